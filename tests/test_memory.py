"""What one call can make the server hold: no more than 1 MB, however long and lively it is.

The parts that grow are filled as two hours do in which the caller interrupts every reply, 2.4 s
after it has begun: a real call of that kind would take an hour to simulate, and its parts were
found by simulating ten minutes of it. What does not grow is bounded where it is (`ring.py`: 10 s of
audio, kept twice; `framing.py`: one message; the reel is forgotten as it is read).
"""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import trio

from voicebot import audio
from voicebot.dialog import Dialog
from voicebot.errors import ProviderError
from voicebot.keypad import SECRETS, Entry, Keypad
from voicebot.ports import Message, Tool, ToolCall
from voicebot.record import TURNS, CallSummary, Journal, Outcome, TurnRecord, tell_turns
from voicebot.ring import Ring
from voicebot.store import CallStore
from voicebot.toolbox import REQUESTS, Toolbox, last_number

TURNS_OF_TWO_HOURS = 3_000
MB = 1_000_000


def held_bytes(fill: Callable[[], object]) -> int:
    """Return how much is allocated by `fill`, and held by what it returns."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = fill()
        gc.collect()  # what Python keeps for later is nobody's
        after = tracemalloc.get_traced_memory()[0]
        del kept
        return after - before
    finally:
        tracemalloc.stop()


async def noop(arguments: Any) -> str:
    raise ProviderError("tool", "is not run here")


def two_hours() -> object:
    """Return what is left of two hours of interruptions."""
    journal, dialog, keypad, ring = Journal(0.0), Dialog("Be brief."), Keypad(Entry()), Ring()
    tool = Tool("book", "Books.", {"type": "object"}, noop, idempotent=False)
    toolbox, store = Toolbox((tool,)), CallStore()
    store.open("CA1", at="now", direction="inbound", from_="", to="", status="in-progress")
    over = tell_turns(lambda turns: store.turns_over("CA1", turns, at="now"))
    for n in range(TURNS_OF_TWO_HOURS):
        now = n * 2.4
        said = f"caller {n} " + "says something else and more of it " * 3
        heard = f"bot {n} " + "answers at some length until it is interrupted " * 3
        record = TurnRecord(journal.next_turn, said, journal.note(now, "turn", number=n))
        journal.begun(record)
        dialog.caller_said(said)
        journal.note(now, "first_text", number=n)
        journal.note(now, "first_audio", number=n)
        journal.note(now, "first_media", number=n)
        journal.interrupted(now, now - 0.05, n)
        journal.silenced(now, 700, True, now)
        journal.decided(now, True)
        job, _ = toolbox.ask(ToolCall(f"call_{n}", "book", json.dumps({"at": n})))
        assert job is not None
        job.done.set()
        record.generated, record.heard, record.interrupted = heard * 2, heard, True
        dialog.bot_said(heard, interrupted=True)
        over(record)
        keypad.expect(Entry(length=20, secret=True), now)
        for _ in range(20):
            keypad.press("1", now)
    for _ in range(2_000):
        ring.put(bytes(audio.FRAME_BYTES))
    return journal, dialog, keypad, ring, toolbox, store


async def test_two_hours_of_interruptions_are_held_in_a_megabyte() -> None:
    await trio.lowlevel.checkpoint()  # scopes of jobs want a clock
    held = held_bytes(two_hours)
    assert held <= MB, f"{held:,} bytes"


def test_a_thousand_ended_calls_are_held_in_a_few_megabytes() -> None:
    def fill() -> object:
        store = CallStore()
        for n in range(1_500):
            sid = f"CA{n}"
            store.open(sid, at=f"{n:05}", direction="inbound", from_="", to="", status="ringing")
            with store.live(sid, lambda: "now"):
                timeline = [{"at": n + i / 7, "what": "turn", "detail": {}} for i in range(100)]
                turns = [{"number": i, "caller": f"words {n}", "heard": "more"} for i in range(5)]
                store.summarise(sid, {"timeline": timeline, "turns": turns, "counts": {}})
        return store

    held = held_bytes(fill)
    assert held <= 5 * MB, f"{held:,} bytes"


def test_what_is_left_out_of_a_record_is_counted_and_numbers_go_on() -> None:
    journal = Journal(0.0, turns=5)
    for _ in range(TURNS + 3):
        journal.begun(TurnRecord(journal.next_turn, "", 0.0))
    assert len(journal.turns) == TURNS
    assert journal.turns[0].number == 5 + 3
    assert journal.next_turn == 5 + TURNS + 3
    assert journal.counts["turns_left_out"] == 3
    summary = CallSummary("CA1", "MZ1", Outcome.HUNG_UP, 1.0, tuple(journal.turns), (), {})
    assert len(summary.as_json()["turns"]) == TURNS


def test_what_is_shown_to_the_model_is_the_same_although_the_rest_is_forgotten() -> None:
    dialog = Dialog("Be brief.", tokens=1_000)
    for n in range(500):
        dialog.caller_said(f"question {n} " + "and so on " * 5)
        call = ToolCall(f"call_{n + 1}", "find", "{}")
        dialog.tools_called("", [call])
        dialog.tool_returned(call.id, f"result {n}")
        dialog.bot_said("", f"answer {n}", interrupted=False)
    shown, kept = dialog.messages(), dialog.history
    assert len(kept) < 500
    assert shown[-1] == Message("assistant", "answer 499")
    assert list(kept[-len(shown) + 1 :]) == shown[1:]  # all that is shown is kept
    assert kept[0].role == "user"  # and whole exchanges only
    assert last_number(kept) == 500  # so that no id comes twice
    assert last_number(()) == 0


def test_secret_keys_that_were_asked_for_long_ago_are_forgotten() -> None:
    keypad = Keypad(Entry())
    told = []
    for n in range(SECRETS + 2):
        keypad.expect(Entry(length=3, secret=True), 0.0)
        told += [keypad.press(key, 0.0) for key in f"{n:03}"]
    placeholders = [text.rpartition(" ")[2].removesuffix("]") for text in told if text]
    assert len(set(placeholders)) == SECRETS + 2
    assert keypad.reveal({"pin": placeholders[-1]}) == {"pin": f"{SECRETS + 1:03}"}
    assert keypad.reveal({"pin": placeholders[0]}) == {"pin": placeholders[0]}


def test_requests_that_are_not_over_are_never_forgotten() -> None:
    tool = Tool("book", "Books.", {"type": "object"}, noop, idempotent=False)
    toolbox = Toolbox((tool,))
    running, _ = toolbox.ask(ToolCall("call_0", "book", '{"at": 0}'))
    for n in range(1, REQUESTS + 50):
        job, _ = toolbox.ask(ToolCall(f"call_{n}", "book", json.dumps({"at": n})))
        assert job is not None
        job.done.set()
    again, _ = toolbox.ask(ToolCall("call_x", "book", '{"at": 0}'))
    assert again is running
