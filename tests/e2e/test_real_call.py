"""Real sockets and real time: simulator, hypercorn, our server, stand-ins for the providers.

Recorded human speech interrupts the bot; what happens is judged by the simulator, and what the
caller heard by the stand-in's own knowledge of when each word sounds.
"""

from __future__ import annotations

import json
import re

import httpx
import pytest
import trio

from tests.e2e.running import PATIENT, PUBLIC_URL, open_server, recorded
from tests.keys import API_KEY, entry
from voicebot import audio
from voicebot.simulator.call import InterruptAfter, Recording, Script, Utterance, WhenSilent
from voicebot.simulator.twilio_end import Clear
from voicebot.simulator.verdict import judge
from voicebot.standins import Standins, open_standins
from voicebot.standins.voice import word_spans

STORY = (
    "Once upon a time there was a small house by the sea. An old man lived in it with his dog. "
    "Every morning they walked along the beach and looked for wood. One day they found a bottle "
    "with a letter in it. Nobody could read what the letter said."
)


def environment(standins: Standins) -> dict[str, str]:
    return {
        **standins.environment(),
        "PUBLIC_URL": PUBLIC_URL,
        "TWILIO_FROM_NUMBER": "+15550100123",
        "VOICEBOT_GREETING": "Hello.",
        "VOICEBOT_API_KEYS": entry(),
        "VOICEBOT_API_KEY": API_KEY,  # for `voicebot call`
        "VOICEBOT_DRAIN_S": "2",
    }


def caller() -> Script:
    """Ask for a story, and interrupt it three times."""
    names = ["number-not-answering", "hello-world", "im-sorry", "please-try-again"]
    first, *others = names
    return Script(
        (
            Utterance(first, recorded(first), WhenSilent()),
            *(
                Utterance(name, recorded(name), InterruptAfter(1_200 + 700 * i))
                for i, name in enumerate(others)
            ),
        ),
        hang_up_after_s=None,
    )


async def held_call(texts: tuple[str, ...]) -> tuple[Recording, list[list[dict[str, str]]], str]:
    """Hold the call; return it, the requests to the model, and the record of the call."""
    async with open_standins(texts=texts, replies=[STORY] * 4) as standins:
        async with open_server(environment(standins)) as server:
            recording = await server.call(caller())
            await server.wait_idle()
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.get(
                    f"{server.url}/calls/{recording.identity.call_sid}",
                    headers={"Authorization": f"Bearer {API_KEY}"},
                )
        with trio.fail_after(5):
            await standins.wait_closed()
        return recording, [chat.messages for chat in standins.groq.chats], answer.text


TEXTS = ("tell me a story", "no another one", "a shorter one", "stop now please")


async def test_three_interruptions_of_recorded_speech_in_one_call() -> None:
    with trio.fail_after(90):
        recording, requests, record = await held_call(TEXTS)

    verdict = judge(recording, PATIENT)
    assert verdict.failures == ()
    assert [(i.clears, i.late_media) for i in verdict.interruptions] == [(1, 0)] * 3
    assert sum(isinstance(event, Clear) for event in recording.happenings) == 3
    assert [messages[-1]["content"] for messages in requests] == list(TEXTS)

    # The history ends where the caller's hearing did: at most a word and 150 ms either way.
    talks = [played for played in recording.played if played.cut]
    assert len(talks) == 3
    for number, messages in enumerate(requests[1:]):
        kept = messages[-2]["content"]
        assert messages[-2]["role"] == "assistant"
        said, _, note = kept.partition("… [interrupted by the caller after: ")
        assert note
        assert STORY.startswith(said)
        heard_ms = heard_of_reply(recording, number)
        spans = words_in_time()
        allowed = {
            len([1 for start, end in spans if (start + end) / 2 <= heard_ms + slack])
            for slack in range(-150, 151, 10)
        }
        allowed |= {count + delta for count in allowed for delta in (-1, 1)}
        assert len(said.split()) in allowed

    fields = json.loads(record)
    assert fields["summary"]["outcome"] == "hung_up"
    assert [turn["interrupted"] for turn in fields["summary"]["turns"][1:4]] == [True] * 3


def words_in_time() -> list[tuple[float, float]]:
    """Return when each word of the story sounds, spoken sentence by sentence."""
    spans: list[tuple[float, float]] = []
    offset = 0
    for sentence in re.findall(r"[^.]+\.", STORY):
        sentence = sentence.strip()
        spans += [(offset + s.start_ms, offset + s.end_ms) for s in word_spans(sentence)]
        offset += len(sentence) * 65
    return spans


def heard_of_reply(recording: Recording, number: int) -> float:
    """Return the milliseconds that were played of the `number`-th reply that was cut."""
    cuts = [event.at_ms for event in recording.happenings if isinstance(event, Clear)]
    # The first reply begins after the greeting, which nobody interrupts.
    begin = cuts[number - 1] if number else recording.played[0].end_ms
    return sum(p.end_ms - p.start_ms for p in recording.played if begin < p.start_ms < cuts[number])


async def test_a_bot_that_never_clears_fails_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same caller, a server broken on purpose: the simulator must see it."""
    from voicebot import twilio, ws

    real = ws.AsgiMediaSocket.send

    async def deaf(self: ws.AsgiMediaSocket, message: twilio.Outbound) -> None:
        if isinstance(message, twilio.SendClear):
            return
        await real(self, message)

    monkeypatch.setattr(ws.AsgiMediaSocket, "send", deaf)
    with trio.fail_after(90):
        recording, _, _ = await held_call(TEXTS)

    verdict = judge(recording, PATIENT)
    assert not verdict.passed
    assert [interruption.clears for interruption in verdict.interruptions] == [0, 0, 0]


async def test_an_outbound_call_is_placed_and_answered() -> None:
    with trio.fail_after(60):
        async with open_standins(texts=("hello",), replies=["Good to hear you."]) as standins:
            # Twilio's test numbers are personal ones.
            environ = {**environment(standins), "VOICEBOT_OUTBOUND__KINDS": "personal"}
            async with open_server(environ) as server:
                async with httpx.AsyncClient(
                    base_url=server.url,
                    headers={"Authorization": f"Bearer {API_KEY}"},
                    trust_env=False,
                ) as client:
                    bad = await client.post("/calls", json={"from": "123"})
                    refused = await client.post("/calls", json={"to": "+15005550001"})
                    placed = await client.post("/calls", json={"to": "+15550100199"})
                recording = await server.call(
                    Script((Utterance("hello", recorded("hello", 1.0), WhenSilent()),))
                )

    assert bad.status_code == 400
    assert set(bad.json()["error"]["fields"]) == {"to", "from"}
    assert refused.status_code == 400
    assert refused.json()["error"]["twilio_code"] == 21211
    assert placed.status_code == 201
    assert placed.json()["call_sid"].startswith("CA")
    assert placed.json()["from"] == "+15550100123"
    assert judge(recording, PATIENT).failures == ()


async def test_a_call_by_flux_with_its_likely_ends() -> None:
    """Two turns, the second over the bot's reply; what is guessed early is answered once."""
    said = ("tell me a story", "stop now please")
    script = Script(
        (
            Utterance("first", recorded("number-not-answering"), WhenSilent()),
            Utterance("second", recorded("hello-world"), InterruptAfter(1_500)),
        ),
        hang_up_after_s=None,
    )
    flux = {
        "VOICEBOT_DEEPGRAM_STT_MODEL": "flux-general-en",
        "VOICEBOT_RECOGNITION__EAGER_EOT_THRESHOLD": "0.4",
    }
    with trio.fail_after(60):
        async with open_standins(texts=said, replies=[STORY, "As you wish."] * 3) as standins:
            async with open_server({**environment(standins), **flux}) as server:
                recording = await server.call(script)
                await server.wait_idle()
                record = server.app.board.store.get(recording.identity.call_sid)
            await standins.wait_closed()

    assert judge(recording, PATIENT).failures == ()
    assert standins.deepgram.listen.connections_total == 0
    [listening] = standins.deepgram.flux.connections
    assert listening.sent["TurnInfo"] > 10
    assert listening.controls == ["CloseStream"]
    assert record is not None
    assert record.summary is not None
    turns = record.summary["turns"]
    assert [turn["caller"] for turn in turns] == ["", *said]
    assert [turn["interrupted"] for turn in turns[1:]] == [True, False]
    # However often it was thought early: the history has each turn once.
    asked = [m["content"] for m in standins.groq.chats[-1].messages if m["role"] == "user"]
    assert asked == list(said)
    assert record.summary["counts"]["guesses"] >= 1


async def test_two_calls_at_once_do_not_mix() -> None:
    with trio.fail_after(60):
        async with open_standins(
            texts=lambda heard: f"call {heard.connection}",
            replies=lambda messages: f"Answer to {messages[-1]['content']}.",
        ) as standins:
            async with open_server(environment(standins)) as server:
                recordings: list[Recording] = []

                async def hold() -> None:
                    recordings.append(
                        await server.call(
                            Script((Utterance("hello", recorded("hello", 1.0), WhenSilent()),))
                        )
                    )

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hold)
                    nursery.start_soon(hold)
                records = [
                    server.app.board.store.get(recording.identity.call_sid)
                    for recording in recordings
                ]

    assert all(judge(recording, PATIENT).failures == () for recording in recordings)
    heard = [r.summary["turns"][1]["heard"] for r in records if r is not None and r.summary]
    assert sorted(heard) == ["Answer to call 0.", "Answer to call 1."]
    assert audio.dbov(recordings[0].heard) > -60
