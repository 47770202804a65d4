"""Records, tokens and lines: what is bounded, what is given once, who may come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.call_record import CallRecord, Packed
from voicebot.errors import CallRefused
from voicebot.redaction import Redaction
from voicebot.standing import Standing, from_json, to_json
from voicebot.store import CallStore, Lines

ACCOUNT = "AC" + "0" * 32


def open_call(store: CallStore, sid: str, status: str = "ringing", at: str = "t0") -> None:
    store.open(sid, at=at, direction="inbound", from_="+15550100", to="+15550101", status=status)


def clock(*times: str) -> Callable[[], str]:
    values = iter(times)
    return lambda: next(values)


# --- Records


def test_late_earlier_status_does_not_overwrite() -> None:
    store = CallStore()
    open_call(store, "CA1", "queued")
    store.status("CA1", at="t3", sequence=3, status="completed", duration_s=12)
    store.status("CA1", at="t4", sequence=2, status="in-progress")
    store.status("CA1", at="t5", sequence=3, status="failed")

    record = store.get("CA1")
    assert record is not None
    assert (record.status, record.ended_at, record.duration_s) == ("completed", "t3", 12)


@given(st.permutations([(0, "initiated"), (1, "ringing"), (2, "in-progress"), (3, "completed")]))
def test_statuses_in_any_order_end_the_same(events: list[tuple[int, str]]) -> None:
    store = CallStore()
    open_call(store, "CA1", "queued")
    for sequence, status in events:
        store.status("CA1", at="t", sequence=sequence, status=status)

    record = store.get("CA1")
    assert record is not None
    assert (record.status, record.sequence, record.ended_at) == ("completed", 3, "t")


def test_repeated_webhook_does_not_set_a_running_call_back() -> None:
    store = CallStore()
    open_call(store, "CA1")
    with store.live("CA1", clock("t1", "t2")):
        open_call(store, "CA1")
        record = store.get("CA1")
        assert record is not None
        assert record.status == "in-progress"


def test_call_without_status_callbacks_is_completed_when_its_engine_ends() -> None:
    store = CallStore()
    open_call(store, "CA1")
    with store.live("CA1", clock("t1", "t2")):
        store.summarise("CA1", {"counts": {"turns": 3}})

    record = store.get("CA1")
    assert record is not None
    assert (record.status, record.ended_at, record.summary) == (
        "completed",
        "t2",
        {"counts": {"turns": 3}},
    )


def test_final_status_of_twilio_stands_when_the_engine_ends_later() -> None:
    store = CallStore()
    open_call(store, "CA1")
    with store.live("CA1", clock("t1", "t3")):
        store.status("CA1", at="t2", sequence=4, status="failed")

    record = store.get("CA1")
    assert record is not None
    assert (record.status, record.ended_at) == ("failed", "t2")


def test_late_callback_does_not_bring_a_call_back_whose_engine_has_ended() -> None:
    store = CallStore()
    open_call(store, "CA1")
    with store.live("CA1", clock("t1", "t2")):
        pass
    store.status("CA1", at="t3", sequence=1, status="in-progress")
    store.status("CA1", at="t4", sequence=2, status="failed")

    record = store.get("CA1")
    assert record is not None
    assert (record.status, record.ended_at) == ("failed", "t2")


def test_follower_is_told_every_change_and_which_turns_are_new() -> None:
    store, told = CallStore(), list[tuple[str, list[int]]]()

    def follow(record: CallRecord, turns: Sequence[Mapping[str, Any]]) -> None:
        told.append((record.status, [turn["number"] for turn in turns]))

    with store.followed(follow):
        open_call(store, "CA1")
        with store.live("CA1", clock("t1", "t2"), {"lang": "en"}):
            store.turns_over("CA1", [{"number": 0}], at="t1")
    open_call(store, "CA2")

    assert told == [
        ("ringing", []),
        ("in-progress", []),
        ("in-progress", [0]),
        ("completed", []),
    ]


def test_oldest_records_go_first_and_live_ones_never() -> None:
    store = CallStore(keep=3)
    open_call(store, "CAlive")
    with store.live("CAlive", clock("t1", "t2")):
        for n in range(10):
            open_call(store, f"CA{n}", at=f"t{n + 10}")
        assert [record.sid for record in store.latest(100)] == ["CA9", "CA8", "CA7", "CAlive"]
    open_call(store, "CA10", at="t99")
    assert [record.sid for record in store.latest(2)] == ["CA10", "CA9"]
    assert [record.sid for record in store.latest(1, store.get("CA9"))] == ["CA8"]
    assert store.get("CAlive") is None


SUMMARY: dict[str, Any] = {
    "outcome": "hung_up",
    "counts": {"media_in": 2},
    "turns": [{"number": n, "caller": "words " * 20} for n in range(200)],
    "timeline": [{"at": n / 10, "what": "turn", "detail": {"number": n}} for n in range(1_000)],
    "barge_ins": [],
}


def test_what_was_said_of_an_ended_call_is_the_same_and_small() -> None:
    store, told = CallStore(), list[CallRecord]()
    open_call(store, "CA1")
    with store.followed(lambda record, turns: told.append(record)):
        with store.live("CA1", clock("t1", "t2")):
            store.summarise("CA1", SUMMARY)
            known = store.get("CA1")
            assert known is not None
            assert known.summary == SUMMARY  # as long as the engine runs, it may come again
    store.status("CA1", at="t3", sequence=9, status="completed", duration_s=12)

    record = store.get("CA1")
    assert record is not None
    assert record.summary is not None
    assert isinstance(record.summary["timeline"], Packed)
    assert record.as_json()["summary"] == SUMMARY
    assert record.as_json()["turns"] == SUMMARY["turns"]
    assert record.as_json(brief=True)["summary"] == {
        "outcome": "hung_up",
        "counts": {"media_in": 2},
    }
    turns = record.summary["turns"]
    assert (len(turns), turns[7], [*turns][7]["number"]) == (200, SUMMARY["turns"][7], 7)
    told_others = json.loads(json.dumps(to_json(Standing(record=record))))
    known = from_json(told_others, None, "").record
    assert known is not None
    assert known.as_json() == record.as_json()
    without = {**record.summary, "turns": ()}
    written = Redaction().record(replace(told[-1], summary=without))
    assert written.summary == {**SUMMARY, "turns": []}


def test_a_call_that_went_away_and_came_back_is_whole() -> None:
    store = CallStore()
    open_call(store, "CA1")
    for stream in range(2):
        with store.live("CA1", clock("t1", "t2")):
            turns = [{"number": 5 * stream + n} for n in range(5)]
            store.summarise("CA1", {**SUMMARY, "turns": turns})

    record = store.get("CA1")
    assert record is not None
    assert [turn["number"] for turn in record.as_json()["turns"]] == list(range(10))
    assert len(record.as_json()["summary"]["timeline"]) == 2 * len(SUMMARY["timeline"])


def test_events_of_a_dropped_call_are_ignored() -> None:
    store = CallStore()
    store.status("CA1", at="t", sequence=0, status="completed")
    store.stream_event("CA1", at="t", event="stream-started", error=None)
    store.summarise("CA1", {})
    with store.live("CA1", clock("t", "t")):
        pass

    assert store.latest(10) == []


def test_numbers_do_not_show_in_a_repr() -> None:
    store = CallStore()
    open_call(store, "CA1")

    assert "+1555" not in repr(store.get("CA1"))


# --- Tokens


def mint(lines: Lines, sid: str, now: float = 0, *, outbound: bool = False) -> str:
    token = lines.mint(sid, ACCOUNT, outbound=outbound, now=now)
    assert token is not None
    return token


def test_token_lets_its_call_in_once() -> None:
    lines = Lines(2, 60)
    token = mint(lines, "CA1")
    lines.redeem(token, "CA1", ACCOUNT, now=1)

    with pytest.raises(CallRefused):
        lines.redeem(token, "CA1", ACCOUNT, now=1)


@pytest.mark.parametrize(
    "token, sid, account, now",
    [
        pytest.param("", "CA1", ACCOUNT, 1, id="empty token"),
        pytest.param("wrong", "CA1", ACCOUNT, 1, id="wrong token"),
        pytest.param("\ud800é", "CA1", ACCOUNT, 1, id="token that is not ASCII"),
        pytest.param(None, "CA2", ACCOUNT, 1, id="token of another call"),
        pytest.param(None, "CA9", ACCOUNT, 1, id="unknown call"),
        pytest.param(None, "CA1", "AC" + "9" * 32, 1, id="other account"),
        pytest.param(None, "CA1", ACCOUNT, 60, id="expired"),
    ],
)
def test_token_is_refused(token: str | None, sid: str, account: str, now: float) -> None:
    lines = Lines(2, 60)
    given_token = mint(lines, "CA1")
    mint(lines, "CA2")

    with pytest.raises(CallRefused):
        lines.redeem(given_token if token is None else token, sid, account, now=now)


def test_refused_attempt_does_not_use_the_token_up() -> None:
    lines = Lines(2, 60)
    token = mint(lines, "CA1")
    with pytest.raises(CallRefused):
        lines.redeem("wrong", "CA1", ACCOUNT, now=1)

    lines.redeem(token, "CA1", ACCOUNT, now=1)


def test_call_being_dialled_has_no_token_to_guess() -> None:
    lines = Lines(2, 60)
    key = lines.dial(0, 60)
    lines.dialled(key, "CA1")

    with pytest.raises(CallRefused):
        lines.redeem("", "CA1", "", now=1)


def test_same_call_gets_the_same_token_before_and_after_use_and_after_its_end() -> None:
    lines = Lines(2, 60)
    token = mint(lines, "CA1")
    assert mint(lines, "CA1", 1) == token
    lines.redeem(token, "CA1", ACCOUNT, now=2)
    assert mint(lines, "CA1", 2) == token
    with lines.held("CA1"):
        assert mint(lines, "CA1", 1000) == token
    assert mint(lines, "CA1", 1000) == token

    with pytest.raises(CallRefused):
        lines.redeem(token, "CA1", ACCOUNT, now=1000)
    assert lines.taken(1000) == 0


def test_expired_token_is_not_replaced() -> None:
    lines = Lines(2, 60)
    token = mint(lines, "CA1")

    assert mint(lines, "CA1", 61) == token
    assert lines.taken(61) == 0


def test_past_tokens_are_bounded() -> None:
    lines = Lines(1, 60)
    for n in range(Lines.REMEMBERED + 10):
        mint(lines, f"CA{n}")
        lines.release(f"CA{n}")

    assert len(lines._past) == Lines.REMEMBERED


# --- Lines


def test_no_token_beyond_the_limit_until_a_line_is_free() -> None:
    lines = Lines(2, 60)
    mint(lines, "CA1")
    token = mint(lines, "CA2", 30)
    assert lines.mint("CA3", ACCOUNT, outbound=False, now=31) is None
    lines.redeem(token, "CA2", ACCOUNT, now=31)
    with lines.held("CA2"):
        mint(lines, "CA3", 60)  # CA1 never came
        assert lines.mint("CA4", ACCOUNT, outbound=False, now=1000) is not None  # nor did CA3
        assert lines.mint("CA5", ACCOUNT, outbound=False, now=1000) is None
    assert lines.taken(1000) == 1


def test_line_is_freed_when_the_engine_crashes() -> None:
    lines = Lines(1, 60)
    lines.redeem(mint(lines, "CA1"), "CA1", ACCOUNT, now=0)
    with pytest.raises(RuntimeError), lines.held("CA1"):
        raise RuntimeError

    assert lines.taken(0) == 0


def test_line_is_freed_when_no_engine_ever_holds_it() -> None:
    lines = Lines(1, 60)
    lines.redeem(mint(lines, "CA1"), "CA1", ACCOUNT, now=59)

    assert (lines.taken(118), lines.taken(119)) == (1, 0)


def test_hang_up_before_the_stream_frees_the_line_and_voids_the_token() -> None:
    lines = Lines(1, 60)
    token = mint(lines, "CA1")
    lines.release("CA1", unused_only=True)

    assert lines.taken(0) == 0
    with pytest.raises(CallRefused):
        lines.redeem(token, "CA1", ACCOUNT, now=0)


def test_final_status_does_not_free_the_line_of_a_stream_that_is_in() -> None:
    lines = Lines(1, 60)
    lines.redeem(mint(lines, "CA1"), "CA1", ACCOUNT, now=0)
    lines.release("CA1", unused_only=True)

    assert lines.taken(0) == 1


def test_dialled_call_keeps_its_line_from_callers() -> None:
    lines = Lines(1, 60)
    key = lines.dial(0, 40)
    assert lines.mint("CAin", ACCOUNT, outbound=False, now=1) is None
    lines.dialled(key, "CAout")
    assert lines.mint("CAin", ACCOUNT, outbound=False, now=1) is None

    mint(lines, "CAout", 1, outbound=True)
    assert lines.taken(1) == 1
    with pytest.raises(CallRefused, match="busy"):
        lines.dial(1, 40)


def test_answer_before_the_rest_reply_takes_the_line_that_is_being_dialled() -> None:
    lines = Lines(1, 60)
    key = lines.dial(0, 40)
    token = mint(lines, "CAout", 1, outbound=True)
    lines.dialled(key, "CAout")

    assert lines.taken(1) == 1
    lines.redeem(token, "CAout", ACCOUNT, now=2)


def test_call_dialled_elsewhere_cannot_push_the_lines_over_the_limit() -> None:
    lines = Lines(1, 60)
    lines.dialled(lines.dial(0, 40), "CA1")
    mint(lines, "CA2", outbound=True)  # placed by `voicebot call`, another process

    assert lines.mint("CA1", ACCOUNT, outbound=True, now=1) is None


def test_closed_lines_take_no_new_call_but_keep_their_word() -> None:
    lines = Lines(3, 60)
    token = mint(lines, "CAin")
    lines.dialled(lines.dial(0, 40), "CAout")
    lines.closed = True

    assert mint(lines, "CAin", 1) == token
    mint(lines, "CAout", 1, outbound=True)
    assert lines.mint("CAnew", ACCOUNT, outbound=False, now=1) is None
    with pytest.raises(CallRefused, match="shutting down"):
        lines.dial(1, 40)


def test_unanswered_call_frees_its_line_by_itself() -> None:
    lines = Lines(1, 60)
    lines.dialled(lines.dial(0, 40), "CAout")

    assert (lines.taken(39), lines.taken(40)) == (1, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["in", "out", "dial", "redeem", "end", "wait"]), st.integers(0, 5)
        ),
        max_size=60,
    )
)
def test_tokens_that_can_be_used_never_exceed_the_limit(steps: list[tuple[str, int]]) -> None:
    lines, now = Lines(2, 10), 0.0
    tokens: dict[str, str] = {}
    live: dict[str, ExitStack] = {}
    for step, n in steps:
        sid = f"CA{n}"
        if step in {"in", "out"}:
            token = lines.mint(sid, ACCOUNT, outbound=step == "out", now=now)
            if token is not None:
                assert tokens.setdefault(sid, token) == token
        elif step == "dial":
            try:
                lines.dialled(lines.dial(now, 5), sid)
            except CallRefused:
                pass  # full, which is the point
        elif step == "redeem" and sid in tokens:
            try:
                lines.redeem(tokens[sid], sid, ACCOUNT, now=now)
            except CallRefused:
                continue  # used or expired
            live[sid] = ExitStack()
            live[sid].enter_context(lines.held(sid))
        elif step == "end" and sid in live:
            live.pop(sid).close()
        elif step == "wait":
            now += n
        assert len(live) <= 2
        assert len(live) <= lines.taken(now)
        assert sum(1 for line in lines._lines.values() if line.nonce) <= 2
    for call in live.values():
        call.close()
