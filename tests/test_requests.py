"""What is kept of each request to a provider; whose turn a line of the log is; when a call ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTool, FakeTwilio, plan, ports
from tests.test_failover import TIMES, Failures, Part
from tests.test_tools import BOOK
from voicebot import whose
from voicebot.errors import ProviderError, ProviderRejected, ReplyCut
from voicebot.failover import FailoverChat, FailoverVoice
from voicebot.nursery import run_call
from voicebot.patience import Endpointing
from voicebot.ports import Tool
from voicebot.record import CallSummary, Journal, ProviderRequest
from voicebot.remote import Remote
from voicebot.reply import Asked, Notes
from voicebot.tries import Alternatives

Clock = trio.testing.MockClock


async def call(
    replies: Sequence[Any],
    voice: Sequence[tuple[float, float]] = ((1.0, 2.0),),
    says: Sequence[str] = ("book it",),
    *,
    tools: Sequence[Tool] = (),
    guesses: int = 0,
    chat: FakeChat | None = None,
    stop_at: float = 12.0,
    remote: Remote | None = None,
) -> tuple[CallSummary, list[ProviderRequest]]:
    """Run a call; return it, and each request in the order in which they ended."""
    ended: list[ProviderRequest] = []
    patient = Endpointing(hangover_ms=1_000 if guesses else 350, guesses=guesses)
    summary = await run_call(
        FakeTwilio(voice=list(voice), stop_at=stop_at),
        ports(FakeEar(list(says)), chat or FakeChat(replies), tools=tuple(tools)),
        plan(endpointing=patient),
        on_request=ended.append,
        remote=remote,
    )
    return summary, ended


async def test_each_request_is_on_record_with_its_turn_and_its_times(autojump_clock: Clock) -> None:
    summary, ended = await call(["One two three. Four five six."])

    stt, llm, first, second = summary.requests
    assert [(r.part, r.turn) for r in summary.requests] == [
        *(("stt", None), ("llm", 0), ("tts", 0), ("tts", 0)),
    ]
    assert stt.began == 0
    assert stt.ended == pytest.approx(12.0, abs=0.05)  # with the call
    assert [r.failed for r in summary.requests] == [""] * 4
    turn = summary.turns[0]
    assert llm.began == turn.began
    assert llm.accepted == pytest.approx(llm.began + 0.1)
    assert llm.accepted is not None
    assert llm.first is not None
    assert turn.first_text is not None
    assert llm.accepted <= llm.first <= turn.first_text
    assert turn.first_audio == first.first == pytest.approx(first.began + 0.05, abs=0.01)
    assert second.ended is not None
    assert sorted(map(id, ended)) == sorted(map(id, summary.requests))  # each told of, and once


async def test_what_a_wrong_guess_asked_for_is_of_no_turn(autojump_clock: Clock) -> None:
    summary, _ = await call(
        ["Two it is.", "Two and a child."],
        [(1.0, 2.0), (2.8, 3.5)],
        ["for two", "and a child"],
        guesses=2,
    )
    asked = [r.turn for r in summary.requests if r.part == "llm"]
    assert asked == [None, 0]
    assert {r.turn for r in summary.requests if r.part == "tts"} == {None, 0}


async def test_a_request_that_an_interruption_ends_has_not_failed(autojump_clock: Clock) -> None:
    long = " ".join(["word"] * 300) + "."
    summary, ended = await call([long, "Yes."], [(1.0, 2.0), (3.5, 4.5)], ["tell me", "stop it"])
    assert summary.turns[0].interrupted
    [cut, _] = [r for r in ended if r.part == "llm"]
    assert cut.failed == ""
    assert cut.ended is not None


async def ask(*parts: Part) -> tuple[Journal, Exception | None]:
    """Have alternatives asked; return what is on record of it."""
    journal, error = Journal(trio.current_time()), None
    chat = FailoverChat(
        Alternatives(parts, TIMES.retrying), TIMES, Failures(), Asked(Notes(journal), "llm")
    )
    try:
        async with chat.open_reply([]) as deltas:
            async for _ in deltas:
                pass
    except ProviderError as exc:
        error = exc
    return journal, error


async def test_each_try_is_a_request_and_says_that_it_is_one_more(autojump_clock: Clock) -> None:
    refused = Part([(0.0, ProviderRejected("x", "busy", status=503, retryable=True))], name="one")
    slow = Part([(9.0, "late")], name="two")
    journal, error = await ask(refused, slow, Part([(0.1, "a")], name="three"))

    assert error is None
    assert [(r.provider, r.failed, r.again) for r in journal.requests] == [
        *(("one", "server_error", False), ("two", "timeout", True), ("three", "", True)),
    ]
    assert [r.first is not None for r in journal.requests] == [False, False, True]
    assert [r.ended for r in journal.requests] == [0.0, 2.0, 2.1]


async def test_an_answer_that_breaks_off_or_is_cut_says_so(autojump_clock: Clock) -> None:
    broken, error = await ask(Part([(0.1, "a"), (0.1, ProviderError("x", "!", retryable=True))]))
    assert isinstance(error, ProviderError)
    cut, error = await ask(Part([(0.1, "a"), (0.1, ReplyCut("x", "length"))]))
    assert isinstance(error, ReplyCut)
    nothing, _ = await ask(Part([]))
    assert [r.failed for j in (broken, cut, nothing) for r in j.requests] == ["broken", "cut", ""]
    assert [r.first for j in (broken, cut, nothing) for r in j.requests][2] is None


async def test_without_a_witness_nothing_is_kept(autojump_clock: Clock) -> None:
    voice = FailoverVoice(Alternatives([Part([(0.1, b"x")])], TIMES.retrying), TIMES, Failures())
    async with voice.open_speech("hi") as chunks:
        assert [chunk async for chunk in chunks] == [b"x"]


def test_requests_and_peaks_are_not_in_what_is_stored() -> None:
    """The database keeps what was agreed to be kept, and no more."""
    journal = Journal(0.0)
    request = journal.asked(1.0, "llm", "groq", 0, "gpt")
    journal.answered(request, 2.0)
    journal.peak("speech", 2.0)
    journal.peak("speech", 1.0)
    assert journal.peaks == {"speech": 2.0}
    assert (request.began, request.ended, request.model) == (1.0, 2.0, "gpt")


async def test_the_stored_summary_has_no_requests(autojump_clock: Clock) -> None:
    summary, _ = await call(["Yes."])
    assert summary.requests
    assert set(summary.peaks) >= {"speech", "socket"}
    assert not {"requests", "peaks"} & set(summary.as_json())
    counts = summary.counts
    assert counts["media_in"] == pytest.approx(600, abs=2)
    assert counts["media_out"] > 0
    assert counts["sent_ms"] == pytest.approx(len("Yes.") * 50, abs=20)


async def test_when_a_call_begins_to_end_is_told(autojump_clock: Clock) -> None:
    remote, began = Remote(), trio.current_time()
    await call(["Yes."], remote=remote, stop_at=7.0)
    assert remote.over_since == pytest.approx(began + 7.0, abs=0.05)


# Whose turn a line of the log is.


@pytest.fixture
def turns_logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[str, int | None]]]:
    """What is logged, and the turn that each line has."""
    seen: list[tuple[str, int | None]] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), whose.turn.get()))

    caplog.set_level("INFO", logger="voicebot")
    handler = Seen()
    logging.getLogger("voicebot").addHandler(handler)
    yield seen
    logging.getLogger("voicebot").removeHandler(handler)


async def test_a_line_of_a_turn_has_its_number_and_no_other_line_has(
    autojump_clock: Clock, turns_logged: list[tuple[str, int | None]]
) -> None:
    chat = FakeChat(["One two three.", "Four five six."], fail_after=1)
    await call([], [(1.0, 2.0), (6.0, 7.0)], ["hello", "are you there"], chat=chat)

    of_turns = [turn for event, turn in turns_logged if event == "thinking_failed"]
    assert of_turns == [0, 1]
    assert [turn for event, turn in turns_logged if event == "call_ended"] == [None]


async def test_a_tool_that_outlives_its_turn_logs_with_the_turn_that_asked(
    autojump_clock: Clock, turns_logged: list[tuple[str, int | None]]
) -> None:
    late = FakeTool(takes=5.0, idempotent=False, raises=ValueError("no"))
    summary, _ = await call(
        [[BOOK], "Yes.", "Of course."],
        [(1.0, 2.0), (3.5, 4.5)],
        ["book it", "stop it"],
        tools=[late.tool()],
        stop_at=14.0,
    )
    assert len(summary.turns) == 2
    assert ("tool_failed", 0) in turns_logged
