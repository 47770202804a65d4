"""A bot that changes its voice and language within a call."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trio.testing

from tests.fakes import CHAR, FakeChat, FakeEar, FakeTwilio, FakeVoice, code, plan, ports
from voicebot import twilio
from voicebot.errors import ProviderError
from voicebot.nursery import run_call
from voicebot.parting import Ending, Resumption
from voicebot.plan import CallPlan, Timeouts
from voicebot.ports import Message, Tongue, ToolCall
from voicebot.record import CallSummary

Clock = trio.testing.MockClock

USUAL = plan(apology="Sorry.", fillers=("Wait.",))
SPANISH = replace(USUAL, language="es", apology="Perdona.", goodbye="Adios.", fillers=("Espera.",))
PLAN = replace(USUAL, speakers={"Spanish": SPANISH, "low": USUAL})


def switch(to: str) -> ToolCall:
    return ToolCall("x", "switch_voice", json.dumps({"to": to}))


@dataclass
class Scene:
    """What there was in a call."""

    summary: CallSummary
    socket: FakeTwilio
    chat: FakeChat
    ear: FakeEar
    oreja: FakeEar
    voice: FakeVoice
    voz: FakeVoice
    low: FakeVoice
    endings: list[Ending]

    @property
    def heard(self) -> list[str]:
        return [turn.heard for turn in self.summary.turns]

    @property
    def switched(self) -> list[str]:
        moments = self.summary.timeline
        return [m.detail["to"] for m in moments if m.what == "voice_switched"]


async def call(
    replies: list[Any],
    english: list[str],
    spanish: list[str],
    voice: list[tuple[float, float]],
    *,
    the_plan: CallPlan = PLAN,
    stop_at: float = 20.0,
    known: tuple[str, ...] = (),
    oreja: FakeEar | None = None,
    voz: FakeVoice | None = None,
    first: float = 0.1,
    **given: Any,
) -> Scene:
    socket, chat = FakeTwilio(voice=voice, stop_at=stop_at), FakeChat(replies, first)
    ear, oreja = FakeEar(english), oreja or FakeEar(spanish)
    ours, low, voz = FakeVoice(), FakeVoice(), voz or FakeVoice()
    endings: list[Ending] = []

    def canned(piece: str) -> bytes | None:
        return b"".join(bytes([code(c)]) * CHAR for c in piece) if piece in known else None

    async def parting(ending: Ending) -> None:
        endings.append(ending)

    summary = await run_call(
        socket,
        ports(
            ear,
            chat,
            ours,
            tongues={
                "Spanish": Tongue(voz, oreja.open, canned),
                "low": Tongue(low),
            },
        ),
        the_plan,
        on_parting=parting,
        **given,
    )
    return Scene(summary, socket, chat, ear, oreja, ours, voz, low, endings)


async def test_what_comes_behind_the_change_has_the_new_voice_and_is_heard_in_the_new_language(
    autojump_clock: Clock,
) -> None:
    scene = await call(
        [["Of course.", switch("Spanish"), "Hola."], "Hola. Dime.", "Bueno."],
        ["speak spanish"],
        ["gracias"],
        [(1.0, 2.0), (7.0, 8.0)],
    )
    assert scene.heard == ["Of course. Hola. Hola. Dime.", "Bueno."]
    assert scene.voice.texts == ["Of course.", "Hola."]  # what was said with the call as well
    assert scene.voz.texts == ["Hola.", "Dime.", "Bueno."]
    assert [turn.caller for turn in scene.summary.turns] == ["speak spanish", "gracias"]
    assert (scene.ear.opened, scene.oreja.opened) == (1, 1)
    assert scene.switched == ["Spanish"]
    assert scene.summary.counts.get("recogniser_failures", 0) == 0
    assert "'Spanish'" in scene.chat.requests[1][-1].content


async def test_a_voice_alone_leaves_the_recogniser_as_it_is(autojump_clock: Clock) -> None:
    scene = await call(
        [[switch("low")], "Better?", [switch("usual")], "As before."],
        ["a lower voice", "no, as before"],
        [],
        [(1.0, 2.0), (6.0, 7.0)],
    )
    assert scene.heard == ["Better?", "As before."]
    assert (scene.low.texts, scene.voice.texts) == (["Better?"], ["As before."])
    assert scene.ear.opened == 1
    assert scene.switched == ["low", "usual"]


async def test_back_to_the_usual_language(autojump_clock: Clock) -> None:
    scene = await call(
        [[switch("Spanish")], "Hola.", [switch("usual")], "Hello.", "Yes."],
        ["spanish", "thanks"],
        ["english please"],
        [(1.0, 2.0), (6.0, 7.0), (11.0, 12.0)],
    )
    assert scene.heard == ["Hola.", "Hello.", "Yes."]
    assert (scene.ear.opened, scene.oreja.opened) == (2, 1)


async def test_the_same_voice_again_changes_nothing(autojump_clock: Clock) -> None:
    scene = await call(
        [[switch("usual")], "Hello.", [switch("Spanish")], "Hola.", [switch("Spanish")], "Si."],
        ["english", "spanish"],
        ["spanish"],
        [(1.0, 2.0), (6.0, 7.0), (11.0, 12.0)],
    )
    assert scene.heard == ["Hello.", "Hola.", "Si."]
    assert scene.switched == ["Spanish"]
    assert (scene.ear.opened, scene.oreja.opened) == (1, 1)


async def test_words_that_fall_into_the_change_are_told_to_the_new_recogniser(
    autojump_clock: Clock,
) -> None:
    # The caller goes on while the bot thinks: the recogniser that is left has half of it.
    scene = await call(
        [[switch("Spanish")], "Hola.", "Si."],
        ["spanish"],
        ["y gracias"],
        [(1.0, 2.0), (2.9, 3.9)],
        oreja=FakeEar(["y gracias"], open_delay=0.5),
        first=1.0,
    )
    assert any(byte != 0xFF for byte in scene.ear.audio[int(2.9 * 8_000) :])
    assert [turn.caller for turn in scene.summary.turns][-1].endswith("y gracias")
    # All of it, from its first sound on.
    assert sum(byte != 0xFF for byte in scene.oreja.audio) >= 0.95 * 8_000


async def test_turn_taking_goes_by_the_words_of_the_language(autojump_clock: Clock) -> None:
    answer = "Esto es una respuesta bastante larga que dura algunos segundos."
    scene = await call(
        [[switch("Spanish")], answer],
        ["spanish"],
        ["vale"],  # a sign of listening in Spanish, and none in English
        [(1.0, 2.0), (4.0, 4.5)],
    )
    assert scene.heard == [answer]
    assert scene.summary.counts["resumes"] == 1


async def test_fixed_texts_are_those_of_the_speaker(autojump_clock: Clock) -> None:
    scene = await call(
        [[switch("Spanish")], "", "", [ToolCall("x", "hang_up", "{}")], ""],
        ["spanish"],
        ["que", "adios"],
        [(1.0, 2.0), (7.0, 8.0), (12.0, 13.0)],
    )
    assert scene.heard == ["Perdona.", "Perdona.", "Adios."]
    assert scene.voice.texts == []


async def test_fillers_and_what_is_known_beforehand_are_those_of_the_speaker(
    autojump_clock: Clock,
) -> None:
    class Slow(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            raise ProviderError("voz", "down")
            yield b""

    scene = await call(
        [[switch("Spanish")], "Hola."],
        ["spanish"],
        [],
        [(1.0, 2.0)],
        known=("Perdona.", "Espera."),
        voz=Slow(first=2.5),
        the_plan=replace(PLAN, timeouts=Timeouts(idle_s=0, filler_s=2.0, speech_tries=1)),
    )
    [turn] = scene.summary.turns
    assert turn.heard == "Perdona."
    assert [m.what for m in scene.summary.timeline].count("filler") == 1
    sound = b"".join(bytes([code(char)]) * CHAR for char in "Espera.")
    assert sound in scene.socket.heard()


async def test_a_name_that_is_none_is_told(autojump_clock: Clock) -> None:
    scene = await call([[switch("French")], "I cannot."], ["french"], [], [(1.0, 2.0)])
    assert "usual, Spanish, low" in scene.chat.requests[1][-1].content
    assert scene.heard == ["I cannot."]
    assert scene.switched == []


@pytest.mark.parametrize("without", ["tongues", "speakers"])
async def test_without_others_there_is_nothing_to_change(
    without: str, autojump_clock: Clock
) -> None:
    chat = FakeChat(["Hello."])
    given: dict[str, Any] = (
        {} if without == "tongues" else {"tongues": {"Spanish": Tongue(FakeVoice())}}
    )
    await run_call(
        FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0),
        ports(FakeEar(["hello"]), chat, **given),
        USUAL if without == "speakers" else PLAN,
    )
    assert "switch_voice" not in chat.offered[0]


async def test_a_call_that_comes_back_has_the_voice_that_it_left_with(
    autojump_clock: Clock,
) -> None:
    keys = ToolCall("x", "send_digits", '{"digits": "1"}')
    speakers = {"Spanish": replace(SPANISH, may_send_digits=True)}
    away = await call(
        [[switch("Spanish")], ["Hola.", keys]],
        ["spanish"],
        [],
        [(1.0, 2.0)],
        the_plan=replace(PLAN, may_send_digits=True, speakers=speakers),
    )
    [ending] = away.endings
    assert ending.so_far.speaker == "Spanish"

    back = await call(
        ["Aqui estoy.", "Si."], [], ["hola"], [(4.0, 5.0)], resumption=ending.came_back("done", 3)
    )
    assert back.heard == ["Aqui estoy.", "Si."]
    assert back.voz.texts == ["Aqui estoy.", "Si."]
    assert (back.ear.opened, back.oreja.opened) == (0, 1)


async def test_a_voice_that_is_gone_when_a_call_comes_back_is_the_usual_one(
    autojump_clock: Clock,
) -> None:
    history = (Message("user", "hello"),)
    scene = await call(["Hello."], [], [], [], resumption=Resumption(history, 1, 5.0, "French"))
    assert scene.voice.texts == ["Hello."]


async def test_an_interruption_in_the_change_stops_the_bot_as_ever(autojump_clock: Clock) -> None:
    scene = await call(
        [["This is said for about two seconds.", switch("Spanish")], "Hola.", "Dime."],
        ["spanish"],
        ["para para"],
        [(1.0, 2.0), (2.9, 3.9)],
        the_plan=replace(PLAN, timeouts=Timeouts(idle_s=0)),
    )
    assert len(scene.socket.times(twilio.SendClear)) == 1
    assert scene.socket.media_after_clear(until=4.0) == 0
    assert scene.summary.turns[0].interrupted
    assert [turn.caller for turn in scene.summary.turns][1] == "para para"
