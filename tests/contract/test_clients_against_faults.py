"""The provider clients against every fault of the stand-ins' catalogue.

Each fault becomes a valid result or an error of the documented family, says whether trying again
may help, takes no longer than it must, and leaves no connection behind. What hangs without a
deadline of the client's own is left by its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import pytest
import trio
import trio.testing

from voicebot import audio, ports, telephony, tts_socket
from voicebot.config import load
from voicebot.errors import (
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ReplyCut,
    RequestTooLong,
)
from voicebot.llm import open_chat
from voicebot.outbound import OutboundCall
from voicebot.standins import (
    API_KEY,
    FAULTS,
    HOST_FAULTS,
    Standins,
    open_standins,
)
from voicebot.standins.groq import Reply, ToolCall
from voicebot.standins.voice import speak
from voicebot.stt import open_transcriber
from voicebot.telephony import PlacedCall, open_telephony
from voicebot.tts import open_synthesizer

SAID: Final = "Hello, I would like to book a table."
# Behind the end of the turn is enough for Finalize to be answered at once.
SPEECH: Final = speak("This is somebody speaking") + audio.silence(600)
TEXT: Final = "Hello there."
REPLY: Final = Reply("One moment, please.", (ToolCall("now"), ToolCall("now", '{"in": "Rome"}')))
WORDS: Final = ["One", " moment,", " please."]
CALLS: Final = [
    ports.ToolCall("call_1_0", "now", "{}"),
    ports.ToolCall("call_1_1", "now", '{"in": "Rome"}'),
]
PLACED: Final = PlacedCall("CA" + "0" * 31 + "1", "queued")

BOUND_S: Final = 20.0  # real time on a busy machine; what is slow on purpose takes up to 2 s
PATIENCE_S: Final = 0.2  # of a caller whose client would wait longer


class Fails(NamedTuple):
    """The error a fault becomes."""

    kind: type[ProviderError]
    retryable: bool
    said: str


class Hangs(NamedTuple):
    """No result: it is the caller who gives up. `got` is what came before."""

    got: Any


# What the clients do.


async def listen(standins: Standins, got: list[Any]) -> None:
    """Hear one turn, and ask for all of it; the texts of final results are what is got."""
    async with open_transcriber(
        url=standins.deepgram.url,
        api_key=API_KEY,
        model="nova-3",
        connect_timeout_s=PATIENCE_S,
    ) as port:
        for at in range(0, len(SPEECH), 2 * audio.FRAME_BYTES):
            await port.send(SPEECH[at : at + 2 * audio.FRAME_BYTES])
        await port.finalize()
        while True:
            heard = await port.receive()
            if isinstance(heard, ports.Final):
                got += [heard.text] if heard.text else []
                if heard.finalized:
                    return


async def take_turns(standins: Standins, got: list[Any]) -> None:
    """Hear one turn; its text is what is got."""
    async with open_transcriber(
        url=standins.deepgram.url,
        api_key=API_KEY,
        model="flux-general-en",
        connect_timeout_s=PATIENCE_S,
    ) as port:
        for at in range(0, len(SPEECH), 2 * audio.FRAME_BYTES):
            await port.send(SPEECH[at : at + 2 * audio.FRAME_BYTES])
        while True:
            heard = await port.receive()
            if isinstance(heard, ports.Final):
                got.append(heard.text)
                return


async def say(standins: Standins, got: list[Any]) -> None:
    async with open_synthesizer(
        url=standins.deepgram.url, api_key=API_KEY, model="aura-2-thalia-en"
    ) as port:
        async with port.open_speech(TEXT) as chunks:
            async for chunk in chunks:
                got[:] = [b"".join([*got, chunk])]


async def say_by_socket(standins: Standins, got: list[Any]) -> None:
    async with tts_socket.open_synthesizer(
        url=standins.deepgram.url, api_key=API_KEY, model="aura-2-thalia-en"
    ) as port:
        async with port.open_speech(TEXT) as chunks:
            async for chunk in chunks:
                got[:] = [b"".join([*got, chunk])]


async def think(standins: Standins, got: list[Any]) -> None:
    async def run(arguments: Mapping[str, Any]) -> str:
        return "noon"

    tool = ports.Tool("now", "The time.", {"type": "object"}, run)
    async with open_chat(
        base_url=standins.groq.url, api_key=API_KEY, model="openai/gpt-oss-20b"
    ) as port:
        async with port.open_reply([ports.Message("user", "Hello?")], [tool]) as parts:
            async for part in parts:
                got += [part]


async def dial(standins: Standins, got: list[Any]) -> None:
    settings = load(
        {
            **standins.environment(),
            "TWILIO_FROM_NUMBER": "+15550100456",
            "PUBLIC_URL": "https://bot.example.com",
        }
    )
    async with open_telephony(settings) as port:
        got.append(await port.place_call(OutboundCall("+15550100123", "+15550100456")))


CLIENTS: Final = {
    "listen": listen,
    "flux": take_turns,
    "speak": say,
    "speak-socket": say_by_socket,
    "chat": think,
    "rest": dial,
}
HOSTS: Final = {
    "deepgram": ("listen", "flux", "speak", "speak-socket"),
    "groq": ("chat",),
    "twilio": ("rest",),
}


# What comes of it.

BROKEN: Final = Fails(ProviderError, True, "RemoteProtocolError")
CUT: Final = Fails(ProviderError, True, "ReadError")
PROXY: Final = Fails(ProviderRejected, True, "refused with 502")
NOT_AUDIO: Final = Fails(ProviderError, False, "instead of audio/mulaw")
NOT_EVENTS: Final = Fails(ProviderError, False, "instead of an event stream")
FAILED: Final = Fails(ProviderRejected, True, "internal_server_error")
UNINTELLIGIBLE: Final = Fails(ProviderError, True, "unintelligible chunk")
BROKE_OFF: Final = Fails(ProviderError, True, "the answer broke off")
LOST: Final = Fails(ProviderError, True, "the connection was lost")
MAYBE_PLACED: Final = Fails(ProviderError, False, "the answer broke off")
NONSENSE: Final = Fails(ProviderError, False, "answered nonsense")


def each(faults: list[str], got: Any) -> dict[str, Any]:
    return dict.fromkeys(faults, got)


#: Of any WebSocket.
STREAM: Final = {
    "reset-first-byte": Fails(ProviderError, True, "closed instead of upgraded"),
    "garbage": Fails(ProviderError, True, "is no HTTP"),
    "proxy-502": PROXY,
    "portal-200": Fails(ProviderRejected, False, "refused with 200"),
    "close-1000": Fails(ProviderRejected, True, "closed with 1000"),
    "close-net-0000": Fails(ProviderRejected, True, "closed with 1011 NET-0000"),
    "close-net-0001": Fails(ProviderRejected, True, "closed with 1011 NET-0001"),
    "close-data-0000": Fails(ProviderRejected, False, "closed with 1008 DATA-0000"),
    "close-no-code": Fails(ProviderRejected, True, "closed with 1"),
    "close-1006": LOST,
    "reset": LOST,
}

EXPECTED: Final[dict[str, dict[str, Any]]] = {
    "listen": {
        **STREAM,
        "hang-first-byte": Fails(ProviderTimeout, True, "no connection within 0.2 s"),
        "broken-frame": Fails(ProviderRejected, True, "closed with 1002"),
        # Finalize is answered all the same, by the client.
        **each(["deaf", "stall", "late", "drip"], []),
        **each(
            [
                "no-speech-final",
                "malformed-json",
                "no-object",
                "binary-message",
                "unknown-type",
                "unknown-fields",
                "missing-fields",
                "wrong-types",
                "no-alternatives",
                "error-message",
                "reordered",
            ],
            [SAID],
        ),
        "duplicate": [SAID],
    },
    "flux": {
        **STREAM,
        "hang-first-byte": Fails(ProviderTimeout, True, "no connection within 0.2 s"),
        "broken-frame": Fails(ProviderRejected, True, "closed with 1002"),
        # Of what is said before the close, who sends may know nothing yet.
        "fatal-error": Fails(ProviderRejected, True, "the stream was "),
        # The deadline is behind 5 s of audio, and nobody asks Flux to come to an end.
        **each(["deaf", "stall", "no-end-of-turn"], Hangs([])),
        **each(
            [
                "late",
                "drip",
                "malformed-json",
                "no-object",
                "binary-message",
                "unknown-type",
                "unknown-fields",
                "missing-fields",
                "wrong-types",
                "error-message",
                "duplicate",
                "reordered",
            ],
            [SAID],
        ),
    },
    "speak-socket": {
        **STREAM,
        "hang-first-byte": Hangs([]),
        "empty": Fails(ProviderRejected, True, "closed with 1000"),
        "stall": Hangs([speak(TEXT)[:4_000]]),
        **each(["mute", "excessive-flush"], Hangs([])),
        "close-data-0001": Fails(ProviderRejected, True, "closed with 1008 DATA-0001"),
        "close-big-0000": Fails(ProviderRejected, False, "closed with 1009 BIG-0000"),
        "close-message-0000": Fails(ProviderRejected, False, "closed with 1003 MESSAGE-0000"),
        "close-net-0003": Fails(ProviderRejected, True, "closed with 1011 NET-0003"),
        **each(
            [
                "slow",
                "drip",
                "small-chunks",
                "late-chunks",
                "never-cleared",
                "flushed-before-cleared",
                "flushed-after-cleared",
            ],
            [speak(TEXT)],
        ),
    },
    "speak": {
        "hang-first-byte": Hangs([]),
        "reset-first-byte": CUT,
        "garbage": BROKEN,
        "proxy-502": PROXY,
        "portal-200": NOT_AUDIO,
        "wrong-content-type": NOT_AUDIO,
        "empty": Fails(ProviderError, True, "answered no audio"),
        "truncated": BROKEN,
        "reset-mid-body": CUT,
        "stall": Hangs([speak(TEXT)[:4_000]]),
        "short": [speak(TEXT)[:4_000]],
        "wav": NOT_AUDIO,
        "wav-in-disguise": Fails(ProviderError, False, "a WAV file"),
        **each(["drip", "one-byte-chunks"], [speak(TEXT)]),
    },
    "chat": {
        "hang-first-byte": Hangs([]),
        "reset-first-byte": CUT,
        "garbage": BROKEN,
        "proxy-502": PROXY,
        "portal-200": NOT_EVENTS,
        "wrong-content-type": NOT_EVENTS,
        "empty": BROKE_OFF,
        "short": BROKE_OFF,
        "truncated": BROKEN,
        "reset-mid-body": CUT,
        "stall": Hangs([]),  # within the event of the first word
        "stall-before-first-token": Hangs([]),
        "stall-mid-answer": Hangs(WORDS[:2]),
        "drop-mid-answer": BROKEN,
        "reset-mid-answer": CUT,
        "end-mid-answer": BROKE_OFF,
        "error-event": FAILED,
        "error-object": FAILED,
        "malformed-json": UNINTELLIGIBLE,
        "no-object": UNINTELLIGIBLE,
        "wrong-types": UNINTELLIGIBLE,
        # A call that a limit may have cut is not run.
        "finish-length": Fails(ReplyCut, False, "length"),
        "finish-content-filter": Fails(ReplyCut, False, "content_filter"),
        "same-call-id": [*WORDS, *(replace(call, id="call_0") for call in CALLS)],
        "wrong-arguments": [*WORDS, *(replace(call, arguments='{"day": ') for call in CALLS)],
        **each(
            [
                "no-choices",
                "reasoning",
                "comments",
                "empty-deltas",
                "unknown-fields",
                "no-done",
                "hold-open",
                "drip",
                "fragmented-arguments",
            ],
            [*WORDS, *CALLS],
        ),
    },
    "rest": {
        "hang-first-byte": Fails(ProviderTimeout, True, "did not answer in time"),
        "stall": Fails(ProviderTimeout, True, "did not answer in time"),
        "reset-first-byte": MAYBE_PLACED,
        "garbage": MAYBE_PLACED,
        "truncated": MAYBE_PLACED,
        "reset-mid-body": MAYBE_PLACED,
        "proxy-502": Fails(ProviderRejected, True, "twilio: "),
        "portal-200": NONSENSE,
        "short": NONSENSE,
        "malformed-json": NONSENSE,
        "no-object": NONSENSE,
        "empty": Fails(ProviderError, False, "without a call SID"),
        "no-sid": Fails(ProviderError, False, "without a call SID"),
        **each(["wrong-content-type", "slow", "drip"], [PLACED]),
    },
}


def expected_of(service: str, fault: str) -> Any:
    refusal = FAULTS[service][fault].refusal
    if refusal is None:
        return EXPECTED[service][fault]
    if service == "chat" and refusal.status == 413:
        return Fails(RequestTooLong, False, "")
    if fault in {"400-tool-use-failed", "400-json-validate-failed"}:
        return Fails(ProviderRejected, True, "")  # the model's mistake, and it draws lots
    # 498: the flex tier is full for now.
    return Fails(ProviderRejected, refusal.status in {429, 498} or refusal.status >= 500, "")


async def meet(standins: Standins, service: str, outcome: Any) -> None:
    """Use a client, and see that it comes to this; then nothing of it may be left."""
    got: list[Any] = []
    client = CLIENTS[service]
    begin = trio.current_time()
    match outcome:
        case Fails(kind, retryable, said):
            with pytest.raises(ProviderError) as caught:
                await client(standins, got)
            assert type(caught.value) is kind
            assert caught.value.retryable is retryable
            assert said in str(caught.value)
            assert len(str(caught.value)) < 500
        case Hangs():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client, standins, got)
                while not standins.connections_open:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                await trio.sleep(PATIENCE_S)
                assert (got, len(nursery.child_tasks)) == (outcome.got, 1)
                nursery.cancel_scope.cancel()
        case _:
            await client(standins, got)
            assert got == outcome
    assert trio.current_time() - begin < BOUND_S
    with trio.fail_after(1):
        await standins.wait_closed()


@pytest.mark.parametrize(
    "service, fault", [(service, fault) for service in EXPECTED for fault in FAULTS[service]]
)
async def test_fault_of_a_service(
    service: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = expected_of(service, fault)
    if isinstance(outcome, Fails) and outcome.kind is ProviderTimeout:
        monkeypatch.setattr(telephony, "REQUEST_DEADLINE_S", PATIENCE_S)
    with trio.fail_after(2 * BOUND_S):
        async with open_standins(replies=[REPLY]) as standins:
            standins.inflict(service, fault)
            await meet(standins, service, outcome)
            met = {e.conduct.name for host in HOSTS for e in standins.hosts[host].exchanges}
            assert met == {fault}


@pytest.mark.parametrize("fault", HOST_FAULTS)
@pytest.mark.parametrize("service", EXPECTED)
async def test_fault_of_a_host(service: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telephony, "REQUEST_DEADLINE_S", PATIENCE_S)
    (host,) = [host for host, services in HOSTS.items() if service in services]
    hang = EXPECTED[service]["hang-first-byte"]
    refused = "Connect" if service in ("speak", "chat", "rest") else "cannot connect"
    outcome = {
        "refuse-connect": Fails(ProviderError, True, refused),
        # Whether it is writing or reading that fails is a matter of microseconds.
        "reset-connect": EXPECTED[service]["reset-first-byte"]._replace(said=""),
        "hang-connect": hang,
    }[fault]
    with trio.fail_after(2 * BOUND_S):
        async with open_standins(replies=[REPLY]) as standins:
            standins.inflict(host, fault)
            await meet(standins, service, outcome)
            assert standins.hosts[host].requests == 0


def test_every_fault_has_an_outcome() -> None:
    for service, outcomes in EXPECTED.items():
        faults = FAULTS[service].items()
        assert set(outcomes) == {name for name, fault in faults if fault.refusal is None}
