"""The provider clients against the package's own stand-ins: two readings of one contract."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from voicebot import audio, ports
from voicebot.errors import (
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ReplyCut,
    RequestTooLong,
)
from voicebot.llm import open_chat
from voicebot.ports import Final, LikelyEnd, Message, Partial, UtteranceEnd
from voicebot.recognition import Recognition
from voicebot.standins import (
    API_KEY,
    CALLER_TEXTS,
    ChatConduct,
    ListenConduct,
    SpeakConduct,
    Standins,
    deepgram_rules,
    groq_rules,
    open_standins,
)
from voicebot.standins.groq import Reply, ToolCall
from voicebot.standins.voice import speak
from voicebot.stt import open_transcriber
from voicebot.tts import open_synthesizer

SPEECH = speak("This is somebody speaking")
PAUSE = audio.silence(400)  # longer than the endpointing of 300 ms
EAGER = Recognition(keyterms=("Trattoria Aurora", "ragù"), eager_eot_threshold=0.4)
ASK = [Message("user", "What time is it?")]


@asynccontextmanager
async def running() -> AsyncGenerator[Standins]:
    """The stand-ins; at the end no client may hold a connection to them."""
    with trio.fail_after(20):
        async with open_standins() as standins:
            yield standins
            await standins.wait_closed()


def transcriber(standins: Standins, **options: Any) -> Any:
    return open_transcriber(
        **{"url": standins.deepgram.url, "api_key": API_KEY, "model": "nova-3", **options}
    )


def synthesizer(standins: Standins, api_key: str = API_KEY) -> Any:
    return open_synthesizer(url=standins.deepgram.url, api_key=api_key, model="aura-2-thalia-en")


def chat(standins: Standins, model: str = "openai/gpt-oss-20b") -> Any:
    return open_chat(base_url=standins.groq.url, api_key=API_KEY, model=model)


async def say(port: ports.Transcriber, mulaw: bytes) -> None:
    for at in range(0, len(mulaw), 2 * audio.FRAME_BYTES):
        await port.send(mulaw[at : at + 2 * audio.FRAME_BYTES])


async def hear_turn(port: ports.Transcriber) -> tuple[str, ports.Transcript]:
    """Return the words of a turn and what ended it."""
    words: list[str] = []
    while True:
        match await port.receive():
            case Final(text, end_of_turn) as final:
                words.append(text)
                if end_of_turn:
                    return " ".join(filter(None, words)), final
            case UtteranceEnd() as end:
                return " ".join(filter(None, words)), end
            case Partial() | LikelyEnd():
                pass


# Speech to text


async def test_turns_are_heard_and_each_ends_once() -> None:
    async with running() as standins:
        async with transcriber(standins) as port:
            for text in CALLER_TEXTS[:3]:
                # Long enough a pause that an UtteranceEnd follows the speech_final.
                await say(port, SPEECH + audio.silence(1_500))
                heard, end = await hear_turn(port)
                assert heard == text
                assert isinstance(end, Final)
        (listening,) = standins.deepgram.listen.connections
        assert listening.sent["UtteranceEnd"] == 3
        assert listening.controls == ["CloseStream"]
        assert listening.close_code == 1000


async def test_turn_under_steady_noise_ends_with_utterance_end() -> None:
    async with running() as standins:
        standins.deepgram.listen.conducts.once(ListenConduct(speech_final=False))
        async with transcriber(standins) as port:
            await say(port, SPEECH + audio.silence(1_500))
            assert await hear_turn(port) == (CALLER_TEXTS[0], UtteranceEnd())


async def test_turns_of_flux_are_heard_whole_and_each_ends_once() -> None:
    async with running() as standins:
        async with transcriber(standins, model="flux-general-en", recognition=EAGER) as port:
            for text in CALLER_TEXTS[:3]:
                await say(port, SPEECH + audio.silence(560))
                likely = None
                while not isinstance(transcript := await port.receive(), Final):
                    likely = transcript
                assert likely == LikelyEnd(text)
                assert transcript == Final(text, end_of_turn=True)
        (listening,) = standins.deepgram.flux.connections
        assert standins.deepgram.listen.connections_total == 0
        assert listening.controls == ["CloseStream"]
        assert listening.close_code != 1006  # whoever of the two was first to close
        assert "keyterm=Trattoria+Aurora&keyterm=rag%C3%B9" in listening.exchange.target


async def test_flux_takes_a_likely_end_back_when_the_caller_goes_on() -> None:
    async with running() as standins:
        async with transcriber(standins, model="flux-general-en", recognition=EAGER) as port:
            await say(port, SPEECH + audio.silence(200) + SPEECH + audio.silence(560))
            kinds: list[type] = []
            while not kinds or kinds[-1] is not Final:
                kinds.append(type(await port.receive()))
            # The words have all come out, so nothing but the state changes.
            assert kinds[-4:] == [LikelyEnd, Partial, LikelyEnd, Final]


async def test_flux_is_not_lost_to_silence_on_the_line(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_standins() as standins:
        async with transcriber(standins, model="flux-general-en") as port:
            await trio.sleep(120)  # six times as long as it would wait
            await say(port, SPEECH + audio.silence(560))
            assert (await hear_turn(port))[0] == CALLER_TEXTS[0]


async def test_settings_that_flux_does_not_take_are_refused_with_advice() -> None:
    async with running() as standins:
        with pytest.raises(ProviderRejected, match=r"eot_timeout_ms.*check the model"):
            async with transcriber(
                standins, model="flux-general-en", recognition=Recognition(eot_timeout_ms=1)
            ):
                pytest.fail("connected")


@pytest.mark.parametrize("pending", [SPEECH, b""], ids=["words pending", "nothing pending"])
async def test_finalize_is_always_answered(pending: bytes) -> None:
    async with running() as standins:
        async with transcriber(standins) as port:
            await say(port, pending)
            await port.finalize()
            while True:
                transcript = await port.receive()
                if isinstance(transcript, Final) and transcript.finalized:
                    break
            assert bool(transcript.text) is bool(pending)


async def test_silent_client_is_told_net_0001() -> None:
    async with running() as standins:
        standins.deepgram.listen.conducts.once(ListenConduct(idle_s=0.1))
        async with transcriber(standins) as port:
            with pytest.raises(ProviderRejected) as caught:
                await port.receive()
            assert caught.value.code == "NET-0001"
            assert caught.value.retryable


@pytest.mark.parametrize(
    "refusal, retryable",
    [
        (deepgram_rules.INVALID_AUTH, False),
        (deepgram_rules.PAYMENT_REQUIRED, False),
        (deepgram_rules.TOO_MANY_REQUESTS, True),
        (deepgram_rules.INTERNAL, True),
    ],
)
async def test_refusals_of_deepgram_are_understood(
    refusal: deepgram_rules.Refusal, retryable: bool
) -> None:
    async with running() as standins:
        standins.deepgram.listen.conducts.once(ListenConduct(refusal=refusal))
        standins.deepgram.speak.conducts.once(SpeakConduct(refusal=refusal))
        with pytest.raises(ProviderRejected) as of_listen:
            async with transcriber(standins):
                pytest.fail("connected")
        async with synthesizer(standins) as port:
            with pytest.raises(ProviderRejected) as of_speak:
                async with port.open_speech("Hello."):
                    pytest.fail("answered")
        for error in of_listen.value, of_speak.value:
            assert (error.status, error.code) == (refusal.status, refusal.err_code)
            assert error.retryable is retryable
            assert refusal.err_msg in str(error)


async def test_wrong_key_and_unknown_setting_are_refused() -> None:
    async with running() as standins:
        with pytest.raises(ProviderRejected, match="DEEPGRAM_API_KEY"):
            async with transcriber(standins, api_key="wrong"):
                pytest.fail("connected")
        with pytest.raises(ProviderRejected, match="utterance_end_ms"):
            async with transcriber(standins, recognition=Recognition(utterance_end_ms=1)):
                pytest.fail("connected")
        async with synthesizer(standins, "wrong") as port:
            with pytest.raises(ProviderRejected, match="DEEPGRAM_API_KEY"):
                async with port.open_speech("Hello."):
                    pytest.fail("answered")


async def test_stalled_upgrade_is_given_up() -> None:
    async with running() as standins:
        standins.deepgram.listen.conducts.once(ListenConduct(delay_s=math.inf))
        with pytest.raises(ProviderTimeout):
            async with transcriber(standins, connect_timeout_s=0.1):
                pytest.fail("connected")


async def test_connection_cut_in_mid_speech_is_a_loss() -> None:
    async with running() as standins:
        standins.deepgram.listen.conducts.once(ListenConduct(drop_after_bytes=8_000))
        async with transcriber(standins) as port:
            with pytest.raises(ProviderError) as caught:
                await say(port, SPEECH * 1_000)
            assert caught.value.retryable


# Text to speech


async def test_speech_comes_whole_and_bare_over_one_connection() -> None:
    texts = ["Hello.", "How can I help you?", "x" * 1_900]
    async with running() as standins:
        standins.deepgram.speak.conducts.rule = SpeakConduct(rate=math.inf)
        async with synthesizer(standins) as port:
            for text in texts:
                async with port.open_speech(text) as chunks:
                    assert b"".join([chunk async for chunk in chunks]) == speak(text)
            assert standins.deepgram.server.connections_open == 1
        assert [speech.text for speech in standins.deepgram.speak.speeches] == texts


async def test_speech_left_early_is_cancelled_over_there() -> None:
    async with running() as standins:
        standins.deepgram.speak.conducts.once(SpeakConduct(stall_after_bytes=4_000))
        async with synthesizer(standins) as port:
            async with port.open_speech("A sentence of some length.") as chunks:
                assert await anext(chunks)
            await standins.wait_closed()
        (speech,) = standins.deepgram.speak.speeches
        assert speech.exchange.outcome == "cancelled"


async def test_speech_cut_off_is_an_error() -> None:
    async with running() as standins:
        standins.deepgram.speak.conducts.once(SpeakConduct(drop_after_bytes=4_000))
        async with synthesizer(standins) as port:
            async with port.open_speech("A sentence of some length.") as chunks:
                with pytest.raises(ProviderError) as caught:
                    [chunk async for chunk in chunks]
            assert caught.value.retryable


# Answers


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "qwen/qwen3.8-27b"])
async def test_answer_comes_without_reasoning_over_one_connection(model: str) -> None:
    async with running() as standins:
        standins.groq.replies = ["It is noon.", Reply("No more.", reasoning="Hm.")]
        async with chat(standins, model) as port:
            for turn, text in enumerate(["It is noon.", "No more."]):
                async with port.open_reply(ASK * (turn + 1)) as deltas:
                    assert "".join([str(delta) async for delta in deltas]) == text
            assert standins.groq.server.connections_open == 1


@pytest.mark.parametrize(
    "conduct, said",
    [
        (ChatConduct(drop_after_tokens=2), "RemoteProtocolError"),
        (ChatConduct(error_after_tokens=2), "Internal Server Error"),
    ],
)
async def test_answer_that_fails_in_the_middle_is_an_error(conduct: ChatConduct, said: str) -> None:
    async with running() as standins:
        standins.groq.conducts.once(conduct)
        async with chat(standins) as port, port.open_reply(ASK) as deltas:
            assert [await anext(deltas), await anext(deltas)] == ["I", " heard"]
            with pytest.raises(ProviderError, match=said) as caught:
                await anext(deltas)
            assert caught.value.retryable


async def no_run(arguments: object) -> str:
    pytest.fail("the chat runs no tool")


HOURS = ports.Tool("hours", "Opening hours.", {"type": "object", "properties": {"day": {}}}, no_run)
NOW = ports.Tool("now", "", {"type": "object"}, no_run)


async def ask(
    port: ports.Chat, messages: Sequence[Message], tools: Sequence[ports.Tool] = (HOURS, NOW)
) -> list[str | ports.ToolCall]:
    async with port.open_reply(messages, tools) as parts:
        return [part async for part in parts]


@pytest.mark.parametrize("size", [None, 1, 5])
@pytest.mark.parametrize("text", ["", "One moment."])
async def test_tools_are_called_and_their_results_answered(size: int | None, text: str) -> None:
    called = ToolCall("hours", '{"day": "Tuesday"}'), ToolCall("now"), ToolCall("now", "")
    async with running() as standins:
        standins.groq.replies = [Reply(text, called), "From noon."]
        standins.groq.conducts.rule = ChatConduct(argument_chars=size)
        async with chat(standins) as port:
            *words, first, second, third = await ask(port, ASK)
            calls = (
                ports.ToolCall("call_1_0", "hours", '{"day": "Tuesday"}'),
                ports.ToolCall("call_1_1", "now", "{}"),
                ports.ToolCall("call_1_2", "now", "{}"),
            )
            assert (first, second, third) == calls
            assert "".join(map(str, words)) == text
            results = [Message("tool", "noon", tool_call_id=call.id) for call in calls]
            rest = await ask(port, [*ASK, Message("assistant", text, calls), *results])
            assert rest == ["From", " noon."]
            assert standins.groq.server.connections_open == 1


async def test_arguments_that_are_no_json_come_through_and_the_conversation_goes_on() -> None:
    async with running() as standins:
        standins.groq.replies = [Reply(tool_calls=(ToolCall("hours", '{"day": '),)), "Sorry."]
        async with chat(standins) as port:
            call = ports.ToolCall("call_1_0", "hours", '{"day": ')
            assert await ask(port, ASK) == [call]
            told = Message("tool", "the arguments are no JSON", tool_call_id="call_1_0")
            assert await ask(port, [*ASK, Message("assistant", "", (call,)), told]) == ["Sorry."]


async def test_call_left_without_an_answer_is_refused() -> None:
    call = ports.ToolCall("call_1_0", "now", "{}")
    async with running() as standins, chat(standins) as port:
        with pytest.raises(ProviderRejected, match="'call_1_0' before it has no answer"):
            await ask(port, [*ASK, Message("assistant", "", (call,)), *ASK])


async def test_tools_are_only_called_where_they_are_offered() -> None:
    async with running() as standins:
        standins.groq.replies = [Reply(tool_calls=(ToolCall("now"),))]
        async with chat(standins) as port:
            with pytest.raises(ProviderRejected) as caught:
                await ask(port, ASK, ())
            assert caught.value.code == "tool_use_failed"
            assert await ask(port, ASK, (NOW,)) == [ports.ToolCall("call_2_0", "now", "{}")]


@pytest.mark.parametrize(
    "conduct",
    [ChatConduct(argument_chars=1, drop_after_tokens=5), ChatConduct(error_after_tokens=4)],
    ids=["dropped within the second call", "failed after the second call"],
)
async def test_no_call_of_an_answer_that_fails_is_made(conduct: ChatConduct) -> None:
    async with running() as standins:
        standins.groq.replies = [Reply("One moment.", (ToolCall("now", ""), ToolCall("hours")))]
        standins.groq.conducts.once(conduct)
        async with chat(standins) as port, port.open_reply(ASK, [HOURS, NOW]) as parts:
            assert [await anext(parts), await anext(parts)] == ["One", " moment."]
            with pytest.raises(ProviderError):
                await anext(parts)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_answer_that_is_cut_off_says_so(reason: str) -> None:
    async with running() as standins:
        standins.groq.replies = [Reply("We are open", finish_reason=reason)]
        async with chat(standins) as port, port.open_reply(ASK) as parts:
            assert [await anext(parts) for _ in range(3)] == ["We", " are", " open"]
            with pytest.raises(ReplyCut, match=reason):
                await anext(parts)


async def test_answer_stalled_within_a_call_is_cancelled_over_there() -> None:
    async with running() as standins:
        standins.groq.replies = [Reply(tool_calls=(ToolCall("now"),))]
        standins.groq.conducts.once(ChatConduct(argument_chars=1, stall_after_tokens=2))
        async with chat(standins) as port:
            with trio.move_on_after(0.2) as patience:
                await ask(port, ASK)
            assert patience.cancelled_caught
            await standins.wait_closed()
        (asked,) = standins.groq.chats
        assert (asked.tokens_sent, asked.exchange.outcome) == (2, "cancelled")


async def test_stalled_answer_is_cancelled_over_there() -> None:
    async with running() as standins:
        standins.groq.conducts.once(ChatConduct(stall_after_tokens=2))
        async with chat(standins) as port:
            with trio.move_on_after(0.2):
                async with port.open_reply(ASK) as deltas:
                    async for _ in deltas:
                        pass
            await standins.wait_closed()
        (asked,) = standins.groq.chats
        assert asked.exchange.outcome == "cancelled"


@pytest.mark.parametrize(
    "error, retryable, wait_s",
    [
        (groq_rules.INVALID_KEY, False, None),
        (groq_rules.RATE_LIMITED, True, 2),
        (groq_rules.UNASKED_CALL, True, None),
        (groq_rules.UNAVAILABLE, True, None),
    ],
)
async def test_refusals_of_groq_are_understood(
    error: groq_rules.ApiError, retryable: bool, wait_s: float | None
) -> None:
    async with running() as standins:
        standins.groq.conducts.once(ChatConduct(refusal=error))
        async with chat(standins) as port:
            with pytest.raises(ProviderRejected) as caught:
                async with port.open_reply(ASK):
                    pytest.fail("answered")
        assert (caught.value.status, caught.value.code) == (error.status, error.code or error.type)
        assert caught.value.retryable is retryable
        assert caught.value.retry_after_s == wait_s


async def test_request_that_is_too_long_is_told_apart() -> None:
    async with running() as standins:
        standins.groq.conducts.once(ChatConduct(refusal=groq_rules.TOO_LARGE))
        async with chat(standins) as port:
            with pytest.raises(RequestTooLong) as caught:
                await ask(port, ASK)
        # Groq calls it a rate limit, but waiting does not help.
        assert (caught.value.code, caught.value.retryable) == ("rate_limit_exceeded", False)


async def test_model_that_is_gone_is_refused_by_name() -> None:
    async with running() as standins, chat(standins, "llama-3.3-70b-versatile") as port:
        with pytest.raises(
            ProviderRejected, match=r"decommissioned.*VOICEBOT_GROQ_MODEL"
        ) as caught:
            async with port.open_reply(ASK):
                pytest.fail("answered")
        assert caught.value.code == "model_decommissioned"
