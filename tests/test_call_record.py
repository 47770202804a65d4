"""Two accounts of one call become one, whatever their order."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.databases import moment, record, summary, turn
from voicebot.call_record import FINAL_STATUSES, LOST, STATUSES, CallRecord, merge

ACCOUNTS = st.builds(
    record,
    at=st.integers(0, 99),
    from_=st.sampled_from(["", "+15550100123"]),
    to=st.sampled_from(["", "+15550100456"]),
    status=st.sampled_from(sorted(STATUSES)),
    sequence=st.integers(-1, 4),
    ended_at=st.sampled_from([None, moment(50)]),
    duration_s=st.sampled_from([None, 12]),
    outcome=st.sampled_from([None, LOST, "hung_up"]),
    live=st.booleans(),
    streams=st.integers(0, 2),
    metadata=st.sampled_from([{}, {"a": 1}]),
    turns=st.sampled_from([(), (turn(0),), (turn(0), turn(1)), (turn(1),)]),
    summary=st.sampled_from([None, summary(turn(0), turn(1))]),
)


@given(st.lists(ACCOUNTS, min_size=1, max_size=4))
def test_nothing_that_one_of_them_knows_is_lost_in_any_order(accounts: list[CallRecord]) -> None:
    for order in itertools.islice(itertools.permutations(accounts), 24):
        whole = order[0]
        for account in order[1:]:
            whole = merge(whole, account)

        for name in ("ended_at", "duration_s", "metadata", "summary"):
            known = [getattr(a, name) for a in accounts if getattr(a, name)]
            assert (getattr(whole, name) or None) == (known[0] if known else None), name
        told = whole.as_json()["turns"]
        assert sorted(t["number"] for t in told) == sorted(
            {t["number"] for account in accounts for t in account.as_json()["turns"]}
        )
        last = max(a.streams for a in accounts)
        of_last = [a for a in accounts if a.streams == last]
        assert whole.live == all(a.live for a in of_last)
        ends = {a.outcome for a in of_last if not a.live} - {None}
        if not whole.live:
            assert whole.outcome in (ends - {LOST} or ends or {None})
        assert whole.created_at == min(a.created_at for a in accounts)
        if {a.status for a in accounts} & FINAL_STATUSES:
            assert whole.status in FINAL_STATUSES
        assert merge(whole, whole).as_json() == whole.as_json()


def test_a_later_status_counts_and_a_final_one_stands() -> None:
    ringing, live = record(status="ringing", sequence=1), record(status="in-progress", sequence=2)
    over = record(status="completed", sequence=-1)  # the engine has ended; no callback yet

    unheard = [record(status=status) for status in ("ringing", "in-progress")]  # no callbacks

    assert merge(*unheard).status == merge(*reversed(unheard)).status == "in-progress"
    assert merge(ringing, live).status == "in-progress"
    assert merge(live, ringing).status == "in-progress"
    assert merge(merge(live, over), ringing).status == "completed"


def test_lost_is_what_is_known_until_better_is_known() -> None:
    lost = record(process="p1", outcome=LOST)

    assert merge(lost, record()).outcome == LOST  # whoever has forgotten the call
    assert merge(lost, record(process="p1")).outcome == LOST  # whoever was given up
    assert merge(lost, record(process="p1", outcome="hung_up")).outcome == "hung_up"


def test_a_call_that_comes_back_is_live_again() -> None:
    away = record(process="p1", outcome="pressing_keys", summary=summary(turn(0)))
    back = replace(away, outcome=None, live=True, streams=2, turns=(turn(1),))

    whole = merge(away, back)
    assert (whole.live, whole.outcome) == (True, None)
    assert merge(back, away) == whole
    assert [t["number"] for t in whole.as_json()["turns"]] == [0, 1]


def test_a_list_has_no_timelines_and_a_call_is_whole() -> None:
    over = record(summary=summary(turn(0, heard="Hello.")))
    live = replace(over, summary=None, turns=(turn(0),))

    assert "timeline" in over.as_json()["summary"]
    assert over.as_json()["turns"] == over.as_json()["summary"]["turns"]
    assert set(over.as_json(brief=True)["summary"]) & {"timeline", "barge_ins", "turns"} == set()
    assert [t["number"] for t in live.as_json(brief=True)["turns"]] == [0]
    assert live.as_json()["summary"] is None
