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
    outcome=st.sampled_from([None, "hung_up"]),
    process=st.sampled_from([None, "p1"]),
    metadata=st.sampled_from([None, {"a": 1}]),
    turns=st.sampled_from([(), (turn(0),), (turn(0), turn(1)), (turn(1),)]),
    summary=st.sampled_from([None, summary(turn(0), turn(1))]),
)


@given(st.lists(ACCOUNTS, min_size=1, max_size=4))
def test_nothing_that_one_of_them_knows_is_lost_in_any_order(accounts: list[CallRecord]) -> None:
    for order in itertools.islice(itertools.permutations(accounts), 24):
        whole = order[0]
        for account in order[1:]:
            whole = merge(whole, account)

        for name in ("ended_at", "duration_s", "outcome", "process", "metadata", "summary"):
            known = [getattr(a, name) for a in accounts if getattr(a, name) is not None]
            assert getattr(whole, name) == (known[0] if known else None), name
        assert {t["number"] for t in whole.turns} == {
            t["number"] for account in accounts for t in account.turns
        }
        assert whole.created_at == min(a.created_at for a in accounts)
        if {a.status for a in accounts} & FINAL_STATUSES:
            assert whole.status in FINAL_STATUSES
        assert merge(whole, whole) == whole


def test_a_later_status_counts_and_a_final_one_stands() -> None:
    ringing, live = record(status="ringing", sequence=1), record(status="in-progress", sequence=2)
    over = record(status="completed", sequence=-1)  # the engine has ended; no callback yet

    unheard = [record(status=status) for status in ("ringing", "in-progress")]  # no callbacks

    assert merge(*unheard).status == merge(*reversed(unheard)).status == "in-progress"
    assert merge(ringing, live).status == "in-progress"
    assert merge(live, ringing).status == "in-progress"
    assert merge(merge(live, over), ringing).status == "completed"


def test_lost_is_what_is_known_until_better_is_known() -> None:
    lost = record(outcome=LOST)

    assert merge(lost, record()).outcome == LOST
    assert merge(lost, record(outcome="hung_up")).outcome == "hung_up"


def test_a_list_has_no_timelines_and_a_call_is_whole() -> None:
    over = record(summary=summary(turn(0, heard="Hello.")))
    live = replace(over, summary=None, turns=(turn(0),))

    assert "timeline" in over.as_json()["summary"]
    assert over.as_json()["turns"] == over.as_json()["summary"]["turns"]
    assert set(over.as_json(brief=True)["summary"]) & {"timeline", "barge_ins", "turns"} == set()
    assert [t["number"] for t in live.as_json(brief=True)["turns"]] == [0]
    assert live.as_json()["summary"] is None
