"""`@tool`: the schema a model is shown, and what it passes, checked before anything runs."""

from __future__ import annotations

import datetime
import enum
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from voicebot import Call, tool
from voicebot.errors import ConfigError
from voicebot.plan import CallPlan
from voicebot.ports import ToolCall
from voicebot.record import CallSummary
from voicebot.testing import Reply, Script, ScriptedChat, caller_says, hold, toy_ports
from voicebot.toolbox import Toolbox

THREADS = 4


class Room(enum.Enum):
    INSIDE = "inside"
    TERRACE = "terrace"


@dataclass
class Guest:
    name: str
    age: int = 30


def run(tool: Any, arguments: Mapping[str, Any], call: Call | None = None) -> str:
    """Run a tool as the engine does, in the loop."""
    result: str = trio.run(tool.bind(call or Call(), None).run, arguments)
    return result


@tool(timeout_s=5, idempotent=False, filler="Let me book that.", filler_after_s=2)
async def book(
    day: date,
    guests: int = 2,
    room: Room = Room.INSIDE,
    size: Literal["small", "large"] = "small",
    names: list[Guest] | None = None,
    *,
    call: Call,
) -> str:
    """Book a table.

    Only once the caller has agreed.

    Args:
        day: the day
            of the visit
        guests: how many people come
        room: where they sit
        size: of the table
        names: who comes

    Returns:
        what: is said
    """
    return f"{call.call_sid} {day!r} {guests} {room} {size} {names}"


def test_schema_comes_from_signature_and_docstring() -> None:
    assert book.name == "book"
    assert book.description == "Book a table.\n\nOnly once the caller has agreed."
    schema = book.parameters
    assert schema["required"] == ["day"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["day"] == {
        "type": "string",
        "format": "date",
        "description": "the day of the visit",
    }
    assert schema["properties"]["guests"] == {
        "type": "integer",
        "default": 2,
        "description": "how many people come",
    }
    assert schema["properties"]["size"]["enum"] == ["small", "large"]
    assert schema["$defs"]["Room"]["enum"] == ["inside", "terrace"]
    assert "call" not in schema["properties"]
    json.dumps(schema)


def test_arguments_arrive_as_the_types_of_the_signature() -> None:
    given = {"day": "2026-11-27", "guests": "4", "room": "terrace", "names": [{"name": "Ann"}]}

    result = run(book, given, Call("CA1"))

    assert result == (
        "CA1 datetime.date(2026, 11, 27) 4 Room.TERRACE small [Guest(name='Ann', age=30)]"
    )
    assert run(book, {"day": "2026-11-27"}).startswith(" datetime.date(2026, 11, 27) 2 Room.INSIDE")


def test_wrong_arguments_are_told_field_by_field_and_nothing_runs() -> None:
    ran = []

    @tool
    def pay(amount: Annotated[int, Field(ge=1, description="in euros")], note: str) -> None:
        """Pay.

        Args:
            note: what for
        """
        ran.append(amount)

    told = run(pay, {"amount": 0, "to": "me"})

    assert told.startswith("not run, the arguments are wrong: ")
    for field in ("amount: input should be greater", "note: field required", "to: extra"):
        assert field in told
    assert ran == []
    assert run(pay, {"amount": 1, "note": ""}) == "done"
    assert ran == [1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(["day", "guests", "room", "size", "names", "call", "", "self"])


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_whatever_a_model_passes_is_an_answer_and_never_an_exception(given: dict[str, Any]) -> None:
    told = run(book, given, Call("CA1"))

    assert told.startswith(("not run, the arguments are wrong: ", "CA1 datetime.date("))
    if "day" not in given:
        assert "day: field required" in told
    if "call" in given:
        assert "call: extra inputs" in told  # the model cannot choose the call


@given(
    st.dates(),
    st.integers(-(2**53), 2**53),
    st.sampled_from(Room),
    st.sampled_from(["small", "large"]),
)
def test_what_fits_the_schema_arrives_unchanged(
    day: datetime.date, guests: int, room: Room, size: str
) -> None:
    given = {"day": day.isoformat(), "guests": guests, "room": room.value, "size": size}

    assert run(book, json.loads(json.dumps(given))) == f" {day!r} {guests} {room} {size} None"


@pytest.mark.parametrize(
    "result, told",
    [
        ("text", "text"),
        (None, "done"),
        ({"day": date(2026, 11, 27)}, '{"day":"2026-11-27"}'),
        ([Guest("Ann")], '[{"name":"Ann","age":30}]'),
        (3, "3"),
        (object, "<class 'object'>"),
    ],
)
def test_what_it_returns_is_told_as_text_or_json(result: Any, told: str) -> None:
    @tool
    def look() -> Any:
        """Look."""
        return result

    assert run(look, {}) == told


def test_a_decorated_function_is_still_the_function() -> None:
    @tool
    def double(n: int) -> int:
        """Double.

        Args:
            n: what
        """
        return 2 * n

    assert double(n=4) == 8


def untyped(x) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # what it is for
    """Do."""


def call_untyped(call) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # what it is for
    """Do."""


def undescribed(x: int, y: int) -> None:
    """Do.

    Args:
        x: this
    """


def misdescribed(day: int) -> None:
    """Do.

    Args:
        day: this
        dya: that
    """


def undocumented() -> None:
    pass


def variadic(*days: int) -> None:
    """Do."""


def positional(x: int, /) -> None:
    """Do."""


def unreadable(x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821  # what it is for
    """Do."""


def opaque(x: threading.Thread) -> None:
    """Do.

    Args:
        x: this
    """


async def yields() -> Any:
    """Do."""
    yield 1


@pytest.mark.parametrize(
    "function, problem",
    [
        (untyped, "parameter x has no type; write x: str"),
        (call_untyped, "(Call, for the call)"),
        (undescribed, "parameter y is not described; add it under Args:"),
        (misdescribed, "describes dya, which is no parameter; is it day?"),
        (undocumented, "has no docstring"),
        (variadic, "parameter days must be one that is passed by name"),
        (positional, "parameter x must be one that is passed by name"),
        (unreadable, "an annotation cannot be read: name 'Nowhere' is not defined"),
        (opaque, "a type that JSON cannot carry"),
        (yields, "must return its result, and not yield"),
        (3, "@tool takes a function"),
    ],
)
def test_function_that_cannot_be_a_tool_says_why(function: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tool(function)

    assert any(problem in text for text in caught.value.problems)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"timeout_s": "5"}, "timeout_s must be"),
        ({"filler_after_s": -1}, "filler_after_s must be"),
        ({"name": "my tool"}, "a name has letters"),
        ({"filler": 3}, "filler must be a text"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], problem: str) -> None:
    def look() -> None:
        """Look."""

    with pytest.raises(ConfigError, match=problem):
        tool(**options)(look)


# Threads.


async def test_sync_function_runs_in_a_thread_and_at_most_so_many() -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    loop = threading.current_thread()
    everybody = threading.Barrier(THREADS)

    @tool
    def wait() -> str:
        """Wait."""
        nonlocal at_once, most
        assert threading.current_thread() is not loop
        with lock:
            at_once += 1
            most = max(most, at_once)
        everybody.wait(10)  # so many are in here together
        with lock:
            at_once -= 1
        return "ok"

    bound = wait.bind(Call(), trio.CapacityLimiter(THREADS))
    results = []

    async def one() -> None:
        results.append(await bound.run({}))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(2 * THREADS):
                nursery.start_soon(one)

    assert results == ["ok"] * 2 * THREADS
    assert most == THREADS


async def test_thread_that_hangs_is_left_alone_and_keeps_its_place() -> None:
    go, gone = threading.Event(), threading.Event()

    @tool
    def hang() -> None:
        """Hang."""
        go.wait(4)
        gone.set()

    threads = trio.CapacityLimiter(1)
    bound = hang.bind(Call(), threads)
    with trio.fail_after(20):
        with trio.move_on_after(0.05) as patience:
            await bound.run({})
        assert patience.cancelled_caught
        assert threads.borrowed_tokens == 1
        go.set()
        while threads.borrowed_tokens:  # noqa: ASYNC110  # a thread tells nobody
            await trio.sleep(0.01)
    assert gone.is_set()


async def test_only_an_async_function_is_broken_off_by_an_interruption() -> None:
    @tool
    def sync() -> None:
        """Do."""

    @tool
    async def does() -> None:
        """Do."""

    threads = trio.CapacityLimiter(1)
    box = Toolbox([t.bind(Call(), threads) for t in (sync, does)])
    for name, broken_off in (("sync", False), ("does", True)):
        job, _ = box.ask(ToolCall("1", name, "{}"))
        assert job is not None
        job.break_off("barge-in")
        assert (job.broken_off, job.scope.cancel_called) == (broken_off, broken_off)


# In a call.


def answer(call: ToolCall, tool: Any, then: str = "It is done.") -> CallSummary:
    chat = ScriptedChat([Reply("", (call,)), then])
    ports = toy_ports(chat=chat, tools=[tool.bind(Call("CA1"), None)])
    return hold(Script((caller_says("do it"),)), ports, CallPlan("Be brief.", "Hello.")).summary


def test_model_that_passes_nonsense_is_told_and_the_call_goes_on() -> None:
    summary = answer(ToolCall("1", "book", '{"day": "soon"}'), book)

    [record] = summary.turns[1].tools
    assert "day: input should be a valid date" in record.result
    assert summary.turns[1].heard == "It is done."


def test_tool_that_raises_or_takes_too_long_is_told_and_the_call_goes_on() -> None:
    @tool
    async def breaks() -> None:
        """Break."""
        raise RuntimeError("the printer is on fire")

    @tool(timeout_s=0.5)
    async def hangs() -> None:
        """Hang."""
        await trio.sleep_forever()

    assert answer(ToolCall("1", "breaks", "{}"), breaks).turns[1].tools[0].result == (
        "failed: the printer is on fire"
    )
    summary = answer(ToolCall("1", "hangs", "{}"), hangs)
    assert summary.turns[1].tools[0].result == "failed: it took too long"
    assert summary.turns[1].heard == "It is done."
