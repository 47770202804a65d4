"""A bot of a bot file in whole calls: what it says, knows, and does when a call starts and ends."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import trio

from voicebot import Bot, Call, Speaker, tool
from voicebot.brain.receptionist import ScriptedBrain
from voicebot.brain.rules import Rules, use, when
from voicebot.config import load, plan_of
from voicebot.errors import ConfigError
from voicebot.hooks import BEHIND, END_S, START_S, TURN_S, open_hooks
from voicebot.phrases import Phrases
from voicebot.plan import Timeouts
from voicebot.ports import ToolCall
from voicebot.record import CallSummary, TurnRecord
from voicebot.testing import (
    Reply,
    Script,
    ScriptedChat,
    caller_says,
    hold_bot,
    hold_bot_call,
)
from voicebot.testing.bot import NOW

ONE_TURN = Script((caller_says("hello there"),))


def plan(bot: Bot, environ: dict[str, str] | None = None, call: Call | None = None) -> Any:
    call = call or Call()
    call.declare(bot.variables)
    return bot.plan(plan_of(bot.settings(load(environ or {}))), call, NOW)


# What it says.


def test_a_field_that_is_given_wins_over_the_settings_and_one_that_is_not_does_not() -> None:
    environ = {
        "VOICEBOT_PROMPT": "Of the settings.",
        "VOICEBOT_GREETING": "Hello of the settings.",
        "VOICEBOT_LANGUAGE": "de",
        "VOICEBOT_TIMEOUTS__ANSWER_S": "7",
    }

    by_file = plan(
        Bot("Of the file.", "", language="it", timeouts=Timeouts(answer_s=9), goodbye="Ciao."),
        environ,
    )
    by_settings = plan(Bot(), environ)

    assert (by_file.prompt, by_file.greeting, by_file.language) == ("Of the file.", "", "it")
    assert (by_file.timeouts.answer_s, by_file.goodbye) == (9, "Ciao.")
    assert by_settings.prompt == "Of the settings."
    assert by_settings.greeting == "Hello of the settings."
    assert (by_settings.language, by_settings.timeouts.answer_s) == ("de", 7)


def test_a_bot_that_says_nothing_of_it_does_not_greet_as_the_trattoria() -> None:
    assert plan(Bot("You are a barber.")).greeting == "Hello. How can I help you?"


@pytest.mark.parametrize(
    "voice, field", [("aura-2-orion-en", "deepgram_tts_model"), ("espeak", "voice")]
)
def test_voice_reaches_who_speaks_it(voice: str, field: str) -> None:
    before, after = load({}), Bot(voice=voice).settings(load({}))

    assert getattr(after, field) == voice
    other = "voice" if field != "voice" else "deepgram_tts_model"
    assert getattr(after, other) == getattr(before, other)


def test_variables_are_of_the_call_where_it_has_them() -> None:
    bot = Bot(
        "Talk to {{name}} of {{ town }} about {{why}}. It is {{today}}, {{now}}; {{caller}}.",
        variables={"name": "somebody", "town": "Rome", "why": "nothing"},
    )
    call = Call(
        caller="+15550100199",
        parameters={"name": "Ann", "town": "Oslo"},
        metadata={"name": "{{town}}", "spam": "x"},
    )

    said = plan(bot, call=call).prompt

    assert said == (
        "Talk to {{town}} of Oslo about nothing. It is Friday, 27 November 2026, 10:30; "
        "+15550100199."
    )
    assert set(call.variables) == {"name", "town", "why"}


def test_call_does_not_show_a_persons_number_in_a_log() -> None:
    call = Call("CA1", caller="+15550100199", metadata={"name": "Ann"})

    assert "+1555" not in repr(call)
    assert "Ann" not in repr(call)


def test_who_is_recorded_is_told_before_the_greeting() -> None:
    recorded = {"VOICEBOT_RECORDING__PATH": "recordings"}
    bot = Bot("x", "Hello.", variables={"who": "us"})
    said = {
        plan(bot).opening,
        plan(bot, recorded).opening,
        plan(replace(bot, consent="By {{who}}:"), recorded).opening,
        plan(replace(bot, consent=""), recorded).opening,
        plan(replace(bot, greeting=""), recorded).opening,
    }
    assert said == {
        *("Hello.", "This call is recorded. Hello.", "By us: Hello.", "This call is recorded."),
    }
    never = plan(replace(bot, recording=False, consent="No."), recorded)
    assert (never.recorded, never.opening) == (False, "Hello.")
    assert plan(bot, recorded).recorded
    assert not plan(bot).recorded
    pieces = Phrases(bot.resting_plan(plan_of(load(recorded)))).missing
    assert pieces[0] == "This call is recorded."


def test_other_speakers_say_what_is_theirs_and_else_what_the_bot_says() -> None:
    bot = Bot(
        "x",
        fillers=["Wait, {{who}}."],
        apology="Sorry.",
        may_send_digits=True,
        variables={"who": "you"},
        speakers={
            "Spanish": Speaker(language="es", fillers=["Espera, {{who}}."], goodbye="Adios."),
            "low": Speaker(voice="aura-2-zeus-en"),
        },
    )
    said = plan(bot, call=Call(metadata={"who": "Ann"}))

    spanish, low = said.speakers["Spanish"], said.speakers["low"]
    assert (said.language, spanish.language, low.language) == ("en", "es", "en")
    assert spanish.fillers == ("Espera, Ann.",)
    assert low.fillers == said.fillers == ("Wait, Ann.",)
    assert (spanish.apology, spanish.goodbye, low.goodbye) == ("Sorry.", "Adios.", "Goodbye.")
    assert [parting.tool.name for parting in spanish.partings] == ["hang_up", "send_digits"]
    assert said.partings[0].text == "Goodbye."


def test_what_is_known_beforehand_is_learned_with_its_defaults() -> None:
    @tool(filler="Let me look, {{name}}.")
    def look() -> None:
        """Look."""

    bot = Bot(
        "x",
        greeting="Hello {{name}}. You call from {{caller}}. How are you?",
        variables={"name": "there"},
        tools=[look],
    )
    base = plan_of(bot.settings(load({})))

    pieces = Phrases(bot.resting_plan(base), bot.tool_fillers).missing

    assert pieces[:2] == ["Hello there.", "How are you?"]
    assert pieces[-1] == "Let me look, there."
    assert not [piece for piece in pieces if "{{" in piece]


@pytest.mark.parametrize(
    "fields, problem",
    [
        ({"variables": {"caller": ""}}, "{{caller}} is given by the call"),
        ({"may_send_digits": "12"}, "Bot: may_send_digits must be True, or a list of keys"),
        ({"may_send_digits": []}, "Bot: may_send_digits must be True"),
        ({"may_send_digits": ["call mum"]}, "Bot: may_send_digits must be True"),
        ({"fillers": ["Hm, {{x}}."]}, "Bot: fillers: nobody knows {{x}}"),
        ({"recording": "no"}, "Bot: recording must be True or False"),
        ({"voice": "bob"}, "there is no voice 'bob'"),
        ({"timeouts": {}}, "timeouts must be a voicebot.plan.Timeouts"),
        ({"on_call_end": lambda: None}, "on_call_end is called as <lambda>(call, summary)"),
        ({"brain": "x"}, "brain must be a Chat"),
        ({"brain": Rules(when("x", use("nobody")))}, "Bot: brain: use('nobody'): there is no tool"),
        ({"speakers": ["es"]}, "Bot: speakers must be by name"),
        ({"speakers": {"usual": Speaker()}}, "Bot: speakers: 'usual' is no name"),
        ({"speakers": {"": Speaker()}}, "Bot: speakers: '' is no name"),
        ({"speakers": {"es": "es"}}, "Bot: speakers: 'es' must be a voicebot.Speaker"),
        (
            {"speakers": {"es": Speaker(voice="piper")}},
            "Bot: speakers: 'es': voice must be a model of Deepgram",
        ),
        (
            {"speakers": {"es": Speaker(language=5)}},  # type: ignore[arg-type]
            "Bot: speakers: 'es': language must be a text, and is 5",
        ),
        (
            {"speakers": {"es": Speaker(fillers="Espera.")}},
            "Bot: speakers: 'es': fillers must be a list of texts, and is 'Espera.'",
        ),
        (
            {"speakers": {"es": Speaker(fillers=["{{x}}."])}},
            "Bot: fillers of es: nobody knows {{x}}",
        ),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Bot("x", **fields)

    assert problem in caught.value.problems[0]


def test_two_tools_of_one_name_are_refused() -> None:
    @tool(name="look")
    def one() -> None:
        """Look."""

    @tool(name="look")
    def other() -> None:
        """Look."""

    with pytest.raises(ConfigError, match="there are 2 named look"):
        Bot("x", tools=[one, other])


# Who answers.


def test_a_bot_without_model_and_brain_says_so_and_is_no_receptionist() -> None:
    call = hold_bot(Bot("You are a barber."), ONE_TURN)

    assert call.summary.turns[1].heard == (
        "I have no language model yet, so I can only repeat. I heard: hello there."
    )
    assert not isinstance(Bot().call_brain(), ScriptedBrain)


def test_a_tool_knows_its_call_and_state_lasts_from_turn_to_turn() -> None:
    @tool
    def count(*, call: Call) -> str:
        """Count."""
        call.state["n"] = call.state.get("n", 0) + 1
        return f"{call.state['n']} by {call.caller}"

    bot = Bot("x", "", tools=[count], brain=Rules(when("count", use("count"))))
    script = Script((caller_says("count"), caller_says("count again")))

    for caller in ("+15550100101", "+15550100102"):  # of another call nothing is left
        held = hold_bot(bot, script, call=Call("CA1", caller=caller))
        assert [turn.heard for turn in held.summary.turns] == [f"1 by {caller}", f"2 by {caller}"]


# Hooks.


class Diary:
    """A bot whose hooks note what they were told."""

    def __init__(self, slow_s: float = 0.0, **fields: Any) -> None:
        self.events: list[Any] = []
        self._slow_s = slow_s
        self.bot = Bot(
            "x",
            "Hello {{name}}.",
            variables={"name": "there"},
            on_call_start=self.start,
            on_turn=self.turn,
            on_call_end=self.end,
            **fields,
        )

    async def start(self, call: Call) -> None:
        self.events.append(("start", call.call_sid))
        await trio.sleep(self._slow_s)
        call.variables["name"] = "Ann"

    def turn(self, call: Call, turn: TurnRecord) -> None:
        self.events.append(("turn", turn.caller, turn.heard))

    async def end(self, call: Call, summary: CallSummary) -> None:
        await trio.sleep(1.0)
        self.events.append(("end", len(summary.turns), summary.outcome.value))


def test_hooks_are_told_of_the_start_each_turn_and_the_end_in_order() -> None:
    diary = Diary()

    hold_bot(diary.bot, ONE_TURN, chat=ScriptedChat(["Yes."]), call=Call("CA1"))

    assert diary.events == [
        ("start", "CA1"),
        ("turn", "", "Hello Ann."),
        ("turn", "hello there", "Yes."),
        ("end", 2, "hung_up"),
    ]


def test_the_greeting_does_not_wait_for_a_hook_that_hangs() -> None:
    diary, failed = Diary(slow_s=3_600), list[str]()
    moments: list[float] = []

    async def held() -> Any:
        began = trio.current_time()
        return await hold_bot_call(
            diary.bot,
            ONE_TURN,
            chat=ScriptedChat(["Yes."]),
            failed=failed.append,
            watch=lambda moment: moments.append(trio.current_time() - began),
        )

    call = trio.run(held, clock=trio.testing.MockClock(autojump_threshold=0))

    assert call.summary.turns[0].heard == "Hello there."
    assert failed == ["on_call_start"]
    assert moments[0] == pytest.approx(START_S)


def test_hook_that_raises_is_logged_with_its_line_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(call: Call, *more: Any) -> None:
        raise RuntimeError("no")  # the line that the log names

    failed: list[str] = []
    bot = Bot("x", on_call_start=breaks, on_turn=breaks, on_call_end=breaks)

    async def held() -> Any:
        return await hold_bot_call(bot, ONE_TURN, chat=ScriptedChat(["Yes."]), failed=failed.append)

    with caplog.at_level(logging.WARNING, "voicebot.hooks"):
        call = trio.run(held, clock=trio.testing.MockClock(autojump_threshold=0))

    assert call.verdict.passed
    assert failed == ["on_call_start", "on_turn", "on_turn", "on_call_end"]
    line = breaks.__code__.co_firstlineno + 1
    assert [record.__dict__["where"] for record in caplog.records] == [f"{__file__}:{line}"] * 4


async def test_hooks_that_hang_are_given_up_one_after_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    late: list[tuple[str, float]] = []
    began = trio.current_time()

    async def hangs(call: Call, about: Any) -> None:
        await trio.sleep_forever()

    def failed(hook: str) -> None:
        late.append((hook, trio.current_time() - began))

    bot = Bot("x", on_turn=hangs, on_call_end=hangs)
    async with open_hooks(bot, None, failed) as hooks:
        with hooks.of(Call("CA1")) as mine:
            mine.turn(TurnRecord(0, "", 0.0))
            mine.end(SUMMARY)
            assert late == []  # nobody waits for them
        await hooks.idle()

    assert late == [("on_turn", TURN_S), ("on_call_end", TURN_S + END_S)]


async def test_hooks_outlive_their_call_and_not_the_service(
    autojump_clock: trio.testing.MockClock,
) -> None:
    done: list[str] = []

    async def takes(call: Call, summary: CallSummary) -> None:
        await trio.sleep(call.metadata["s"])
        done.append(call.call_sid)

    async with open_hooks(Bot("x", on_call_end=takes), None, lambda hook: None) as hooks:
        for sid, seconds in (("quick", 1.0), ("slow", 20.0)):
            with hooks.of(Call(sid, metadata={"s": seconds})) as mine:
                mine.end(SUMMARY)
        began = trio.current_time()

    assert done == ["quick"]
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_a_hook_that_is_far_behind_misses_turns_and_holds_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failed: list[str] = []

    async def slow(call: Call, turn: TurnRecord) -> None:
        await trio.sleep(1.0)

    async with open_hooks(Bot("x", on_turn=slow), None, failed.append) as hooks:
        with hooks.of(Call("CA1")) as mine:
            for number in range(BEHIND + 3):
                mine.turn(TurnRecord(number, "", 0.0))

    assert failed == ["on_turn"] * 3


async def test_a_sync_hook_that_blocks_does_not_hold_the_loop() -> None:
    import threading

    go = threading.Event()

    def blocks(call: Call) -> None:
        go.wait(20)

    bot = Bot("x", on_call_start=blocks)
    with trio.fail_after(20):
        async with open_hooks(bot, trio.CapacityLimiter(1), lambda hook: None) as hooks:
            with hooks.of(Call("CA1")) as mine:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(mine.start)
                    await trio.sleep(0.05)  # the loop runs
                    go.set()


SUMMARY = replace(hold_bot(Bot("x"), Script(())).summary)


# What it costs.


def test_importing_the_package_loads_nothing() -> None:
    probe = (
        "import sys, voicebot; assert 'pydantic' not in sys.modules and 'trio' not in sys.modules;"
        "from voicebot import tool; import voicebot.tools; from voicebot import tool as again;"
        "assert tool is again and callable(tool)"
    )

    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)


def test_there_is_no_other_name() -> None:
    import voicebot

    with pytest.raises(AttributeError, match="no attribute 'tol'"):
        _ = voicebot.tol


def test_model_may_call_a_tool_and_answer() -> None:
    @tool
    async def hours(day: str) -> str:
        """Say when it is open.

        Args:
            day: of the week
        """
        return f"{day}: nine to five"

    chat = ScriptedChat(
        [Reply("", (ToolCall("1", "hours", '{"day": "Monday"}'),)), "Nine to five."]
    )

    call = hold_bot(Bot("x", tools=[hours]), ONE_TURN, chat=chat)

    assert [t.name for t in chat.requests[0].tools] == ["hang_up", "wait_for_caller", "hours"]
    assert chat.requests[1].messages[-1].content == "Monday: nine to five"
    assert call.summary.turns[1].heard == "Nine to five."
