"""Keys that the caller presses: entries, interruptions, and secrets that stay secret."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeChat, FakeEar, FakeTwilio, plan, ports
from voicebot import twilio
from voicebot.keypad import MOST, WAIT_S, Entry, Keypad, read_entry
from voicebot.nursery import run_call
from voicebot.patience import Endpointing
from voicebot.plan import Timeouts
from voicebot.ports import Final, LikelyEnd, Partial, Tape, Tool, ToolCall
from voicebot.record import CallSummary, Outcome
from voicebot.tape import KEY_BEFORE_S, KEY_BEHIND_S, Mixer

Clock = trio.testing.MockClock


def press(keypad: Keypad, keys: str, now: float = 0.0) -> list[str]:
    return [entry for key in keys if (entry := keypad.press(key, now)) is not None]


# Entries.


def test_keys_are_an_entry_when_no_other_has_come_for_a_while() -> None:
    keypad = Keypad(Entry(gap_s=2.0))
    assert keypad.due == math.inf
    assert press(keypad, "12", now=1.0) == []
    assert (keypad.due, keypad.busy) == (3.0, True)
    assert keypad.expire() == "[pressed 12]"
    assert (keypad.due, keypad.busy) == (math.inf, False)
    assert keypad.expire() is None


def test_enough_keys_or_the_terminator_are_an_entry_at_once() -> None:
    assert press(Keypad(Entry(length=2)), "12345") == ["[pressed 12]", "[pressed 34]"]
    assert press(Keypad(Entry()), "12#3#") == ["[pressed 12]", "[pressed 3]"]
    assert press(Keypad(Entry(terminator="")), "1#") == []
    assert press(Keypad(Entry()), "#1#") == ["[pressed #1]"]  # nothing to end: it is a key
    assert len(press(Keypad(Entry()), "1" * MOST)) == 1


def test_what_was_asked_for_holds_once_and_until_something_is_said_instead() -> None:
    keypad = Keypad(Entry(length=1))
    keypad.expect(Entry(length=3), 10.0)
    assert (keypad.busy, keypad.due) == (True, 10.0 + WAIT_S)
    assert press(keypad, "1234") == ["[pressed 123]", "[pressed 4]"]
    keypad.expect(Entry(length=3), 10.0)
    keypad.spoken()
    assert press(keypad, "1") == ["[pressed 1]"]
    keypad.expect(Entry(length=3), 10.0)
    assert keypad.expire() is None
    assert press(keypad, "1") == ["[pressed 1]"]
    keypad.expect(Entry(length=3), 10.0)
    press(keypad, "12")
    keypad.spoken()  # while they are looking for the third
    assert press(keypad, "3") == ["[pressed 123]"]


@given(st.text("0123456789*", min_size=1, max_size=MOST - 1))
def test_a_secret_is_in_nothing_that_is_told(keys: str) -> None:
    keypad = Keypad(Entry())
    keypad.expect(Entry(secret=True, terminator="#"), 0.0)
    [told] = press(keypad, keys + "#")
    assert told == f"[pressed {len(keys)} keys, which are secret: <keys-1>]"
    arguments = {"pin": "<keys-1>", "n": 5, "deep": [{"x": "a <keys-1> b"}, None]}
    assert keypad.reveal(arguments) == {"pin": keys, "n": 5, "deep": [{"x": f"a {keys} b"}, None]}
    assert arguments["pin"] == "<keys-1>"


def test_two_secrets_are_told_apart() -> None:
    keypad = Keypad(Entry())
    for keys in ("11#", "22#"):
        keypad.expect(Entry(secret=True), 0.0)
        press(keypad, keys)
    assert keypad.reveal({"a": "<keys-1>", "b": "<keys-2>"}) == {"a": "11", "b": "22"}


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({}, Entry()),
        ({"length": 4, "terminator": "*", "secret": True}, Entry(4, "*", secret=True)),
        ({"length": -1}, "length must be"),
        ({"length": True}, "length must be"),
        ({"length": "4"}, "length must be"),
        ({"terminator": "5"}, "terminator must be"),
        ({"secret": "yes"}, "secret must be"),
    ],
)
def test_what_a_model_asks_for_is_checked(
    arguments: Mapping[str, Any], expected: Entry | str
) -> None:
    found = read_entry(arguments, Entry())
    assert found == expected if isinstance(expected, Entry) else expected in str(found)


# In a call.

STORY = "One two three four five six seven eight nine ten eleven twelve."


async def call(
    pressed: Sequence[tuple[float, str]],
    replies: Sequence[Any] = (),
    *,
    voice: Sequence[tuple[float, float]] = (),
    says: Sequence[str] = (),
    stop_at: float = 12.0,
    tools: Sequence[Tool] = (),
    tape: Tape | None = None,
    **changes: Any,
) -> tuple[CallSummary, FakeTwilio, FakeChat]:
    socket = FakeTwilio(
        voice=list(voice), stop_at=stop_at, scripted=[(at, twilio.Dtmf(key)) for at, key in pressed]
    )
    chat = FakeChat(list(replies))
    parts = ports(FakeEar(list(says)), chat, tools=tuple(tools), tape=tape)
    return await run_call(socket, parts, plan(**changes)), socket, chat


async def test_keys_are_a_turn_of_the_caller(autojump_clock: Clock) -> None:
    summary, _, chat = await call([(1.0, "4"), (1.5, "2")], ["Yes."])
    [turn] = summary.turns
    assert (turn.caller, turn.heard) == ("[pressed 42]", "Yes.")
    assert turn.began == pytest.approx(4.0, abs=0.05)
    assert chat.requests[0][-1].content == "[pressed 42]"


async def test_one_key_is_enough_where_one_is_an_entry(autojump_clock: Clock) -> None:
    summary, _, _ = await call([(1.0, "4")], ["Yes."], keys=Entry(length=1))
    assert summary.turns[0].began == pytest.approx(1.0, abs=0.05)


async def test_a_key_silences_the_bot_in_the_same_step(autojump_clock: Clock) -> None:
    summary, socket, _ = await call([(1.5, "1")], ["Yes."], greeting=STORY, keys=Entry(length=1))
    assert [turn.interrupted for turn in summary.turns] == [True, False]
    [cleared] = socket.times(twilio.SendClear)
    assert cleared == pytest.approx(1.5, abs=0.03)
    [barge_in] = summary.barge_ins
    assert barge_in.meant
    assert summary.turns[0].heard != STORY


async def test_a_key_over_a_voice_that_is_not_understood_yet_is_one_interruption(
    autojump_clock: Clock,
) -> None:
    summary, socket, _ = await call(
        [(1.8, "1")],
        ["Yes."],
        voice=[(1.5, 2.5)],
        says=[""],
        greeting=STORY,
        keys=Entry(length=1),
    )
    [barge_in] = summary.barge_ins
    assert barge_in.meant
    assert len(socket.times(twilio.SendClear)) == 1
    assert summary.turns[1].caller == "[pressed 1]"


async def test_a_key_while_the_bot_thinks_is_what_is_answered(autojump_clock: Clock) -> None:
    summary, _, chat = await call(
        [(2.62, "1")], ["Never.", "Yes."], voice=[(1.0, 2.0)], says=["hello"], keys=Entry(length=1)
    )
    assert summary.turns[-1].heard == "Yes."
    assert chat.requests[-1][-1].content == "hello [pressed 1]"
    assert "Never." not in [turn.heard for turn in summary.turns]


async def test_the_bot_asks_for_keys_and_waits_for_them(autojump_clock: Clock) -> None:
    ask = ToolCall("x", "expect_keys", '{"length": 3}')
    summary, _, chat = await call(
        [(8.0, "1"), (9.0, "2"), (10.0, "3")],
        [[ask], "Please enter it.", "Thanks."],
        voice=[(1.0, 2.0)],
        says=["hello"],
        may_ask_for_keys=True,
        reprompts=("There?",),
    )
    assert [turn.heard for turn in summary.turns] == ["Please enter it.", "Thanks."]
    assert chat.requests[-1][-1].content == "[pressed 123]"


async def test_the_bot_does_not_wait_for_keys_for_ever(autojump_clock: Clock) -> None:
    ask = ToolCall("x", "expect_keys", "{}")
    summary, _, _ = await call(
        [],
        [[ask], "Please enter it."],
        voice=[(1.0, 2.0)],
        says=["hello"],
        stop_at=60.0,
        may_ask_for_keys=True,
        timeouts=Timeouts(idle_s=5.0),
        reprompts=("There?",),
    )
    assert [turn.heard for turn in summary.turns][:2] == ["Please enter it.", "There?"]
    assert summary.turns[1].began == pytest.approx(2.7 + WAIT_S, abs=0.5)
    assert summary.outcome is Outcome.NO_CALLER


async def test_a_secret_reaches_the_tool_and_nobody_else(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[Mapping[str, Any]] = []

    async def check(arguments: Mapping[str, Any]) -> str:
        given.append(arguments)
        return "right"

    schema = {"type": "object", "properties": {"pin": {"type": "string"}}}
    ask = ToolCall("x", "expect_keys", '{"secret": true}')
    use = ToolCall("y", "check", '{"pin": "<keys-1>"}')
    keys = [(5.0 + index / 2, key) for index, key in enumerate("80461357#")]
    with caplog.at_level(logging.DEBUG):
        summary, _, chat = await call(
            keys,
            [[ask], "Your PIN, please.", [use], "Thanks."],
            voice=[(1.0, 2.0)],
            says=["hello"],
            stop_at=14.0,
            tools=[Tool("check", "Check a PIN.", schema, check)],
            may_ask_for_keys=True,
        )
    assert given == [{"pin": "80461357"}]
    assert summary.turns[-1].heard == "Thanks."
    told = json.dumps(summary.as_json()) + str(chat.requests) + caplog.text
    assert "80461357" not in told
    assert "8046" not in told
    assert "<keys-1>" in told


def sounds(mixer: Mixer) -> list[tuple[float, float]]:
    """Return when the caller's channel has sound, in seconds."""
    channel = mixer.take(rest=True)[0::2]
    frames = [channel[at] != 0xFF for at in range(0, len(channel), 160)]
    edges = [n / 50 for n, now in enumerate(frames) if now != (n > 0 and frames[n - 1])]
    return list(zip(edges[0::2], edges[1::2], strict=True))


async def test_while_a_secret_is_asked_for_nothing_of_the_caller_is_recorded(
    autojump_clock: Clock,
) -> None:
    ask = ToolCall("x", "expect_keys", '{"secret": true, "length": 2}')
    mixer = Mixer()
    await call(
        [(8.0, "8"), (9.0, "0")],
        [[ask], "Your PIN, please.", "Thanks."],
        voice=[(1.0, 2.0), (5.0, 6.0), (7.9, 8.1), (8.9, 9.2), (10.0, 10.5)],  # says it; tones
        says=["hello", "", "", "", ""],
        tape=mixer,
        may_ask_for_keys=True,
    )
    assert sounds(mixer) == [(1.0, 2.0), (10.0, 10.5)]


async def test_secret_keys_that_nobody_has_asked_for_are_not_recorded(
    autojump_clock: Clock,
) -> None:
    mixer = Mixer()
    entry = Entry(length=2, secret=True)
    pressed = [(4.01, "8"), (4.51, "0")]
    await call(pressed, ["Yes."], voice=[(2.0, 6.0)], tape=mixer, keys=entry)
    begin, end = 4.0 - KEY_BEFORE_S, 4.5 + KEY_BEHIND_S
    assert sounds(mixer) == [(2.0, begin), (end, 6.0)]


async def test_other_keys_are_recorded(autojump_clock: Clock) -> None:
    mixer = Mixer()
    await call([(4.0, "8")], ["Yes."], voice=[(2.0, 6.0)], tape=mixer)
    assert sounds(mixer) == [(2.0, 6.0)]


@pytest.mark.parametrize("raises", [False, True])
async def test_a_tool_that_repeats_a_secret_tells_nobody(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, raises: bool
) -> None:
    async def check(arguments: Mapping[str, Any]) -> str:
        text = f"there is no account {arguments['pin']}"
        if raises:
            raise ValueError(text)
        return text

    ask = ToolCall("x", "expect_keys", '{"secret": true, "length": 4}')
    use = ToolCall("y", "check", '{"pin": "<keys-1>"}')
    with caplog.at_level(logging.DEBUG):
        summary, _, chat = await call(
            [(5.0 + index / 2, key) for index, key in enumerate("8046")],
            [[ask], "Your PIN, please.", [use], "Sorry."],
            voice=[(1.0, 2.0)],
            says=["hello"],
            tools=[Tool("check", "Check a PIN.", {"type": "object"}, check)],
            may_ask_for_keys=True,
        )
    told = json.dumps(summary.as_json()) + str(chat.requests) + caplog.text
    assert "no account <keys-1>" in told
    assert "8046" not in told
    assert ("tool_failed" in caplog.text) == raises


async def test_what_a_model_asks_wrongly_it_is_told(autojump_clock: Clock) -> None:
    ask = ToolCall("x", "expect_keys", '{"length": "four"}')
    _, _, chat = await call(
        [], [[ask], "Sorry."], voice=[(1.0, 2.0)], says=["hello"], may_ask_for_keys=True
    )
    assert "length must be a number" in chat.requests[1][-1].content


async def test_keys_after_the_goodbye_has_begun_keep_the_line(autojump_clock: Clock) -> None:
    bye = ToolCall("x", "hang_up", "{}")
    summary, _, _ = await call(
        [(4.0, "1")],
        [[STORY, bye], "Yes?"],
        voice=[(1.0, 2.0)],
        says=["hello"],
        keys=Entry(length=1),
    )
    assert summary.turns[-1].heard == "Yes?"
    assert summary.outcome is Outcome.HUNG_UP


async def test_a_bot_that_gives_up_takes_no_keys(autojump_clock: Clock) -> None:
    summary, _, chat = await call(
        [(1.2, "1"), (1.4, "2")],
        ["Never."],
        keys=Entry(length=1),
        timeouts=Timeouts(call_s=1.0),
        time_up=STORY,
    )
    assert chat.requests == []
    assert (summary.turns[-1].heard, summary.outcome) == (STORY, Outcome.TOO_LONG)


async def test_a_key_over_a_guess_is_answered_with_the_words_that_were_guessed(
    autojump_clock: Clock,
) -> None:
    ear, chat = FakeEar([]), FakeChat(["Never.", "Yes.", "Yes."], first=1.0)
    socket = FakeTwilio(stop_at=9.0, scripted=[(1.5, twilio.Dtmf("1"))])

    async def talk() -> None:
        await trio.sleep(1.0)
        ear.push(Partial("hello there"))
        ear.push(LikelyEnd("hello there"))
        await trio.sleep(0.7)
        ear.push(Final("hello there", end_of_turn=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        patient = Endpointing(guesses=2)
        parts = ports(ear, chat, endpointing="provider")
        summary = await run_call(socket, parts, plan(endpointing=patient))

    assert summary.counts["guesses"] == 1
    said = [turn.caller for turn in summary.turns]
    assert said == ["hello there", "[pressed 1]"]
    assert chat.requests[-1][-1].content.endswith("[pressed 1]")
    assert summary.turns[-1].heard == "Yes."
