"""What counts against limits: rates, places, who is exempt, and what of it is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot import limits
from voicebot.admission import Admission
from voicebot.client_address import networks
from voicebot.errors import CallRefused
from voicebot.limits import Bucket, Limits, Places, Rates

FEW = Limits(
    connections=4,
    connections_per_address=2,
    connects_per_s=1.0,
    requests_per_s=1.0,
    burst_s=3.0,
)


def test_a_rate_may_be_exceeded_for_a_while() -> None:
    bucket = Bucket(rate=10.0, burst_s=0.5)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(0.05)
    assert bucket.take(0.1)
    assert not bucket.take(0.15)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]  # no more is saved up


@given(st.lists(st.floats(0, 1), max_size=200))
def test_no_more_than_the_rate_and_a_burst_get_through(steps: list[float]) -> None:
    bucket, now, taken = Bucket(rate=5.0, burst_s=2.0), 0.0, 0
    for step in steps:
        now += step
        taken += bucket.take(now)
    assert taken <= 5.0 * now + 10.0 + 1e-6


def test_a_rate_below_one_lets_one_through() -> None:
    bucket = Bucket(rate=0.1, burst_s=1.0)
    assert bucket.take(0.0)
    assert not bucket.take(9.0)
    assert bucket.take(10.1)


def test_rates_are_of_each_address_and_of_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADDRESSES", 2)
    rates = Rates(1.0, 1.0)
    assert rates.take("a", 0.0)
    assert not rates.take("a", 0.0)
    assert rates.take("b", 0.0)
    assert not rates.take("a", 0.0)
    assert rates.take("c", 0.0)  # "b" is the one not seen for longest
    assert not rates.take("a", 0.0)
    assert rates.take("b", 0.0)
    assert len(rates._buckets) == 2


def test_places_are_limited_in_all_and_by_address() -> None:
    places = Places(total=3, each=2)
    assert [places.take(a) for a in ("a", "a", "a", "b", "b")] == [
        None,
        None,
        "address",
        None,
        "total",
    ]
    assert places.take(None) == "total"
    places.free("a")
    assert places.take(None) is None
    places.free(None)
    for address in ("a", "b"):
        places.free(address)
    assert places.taken == 0
    assert not places._of  # nothing is kept of who has gone


def test_a_place_is_held_while_a_block_runs() -> None:
    places = Places(total=1, each=1)
    with places.held("a", "streams"):
        with pytest.raises(CallRefused, match=r"too many streams at once \(total\)"):
            with places.held("b", "streams"):
                raise AssertionError
    assert places.taken == 0


# Admission


def test_connections_of_an_address_are_limited() -> None:
    admission = Admission(FEW)
    assert [admission.connect("192.0.2.1", 0.0) for _ in range(3)] == [
        None,
        None,
        "connections_per_address",
    ]
    assert admission.connect("192.0.2.2", 0.0) is None
    assert admission.connect("192.0.2.3", 0.0) is None
    assert admission.connect("192.0.2.4", 0.0) == "connections"
    admission.leave("192.0.2.1")
    assert admission.connect("192.0.2.4", 0.0) is None
    assert admission.refused == {"connections_per_address": 1, "connections": 1}


def test_connecting_too_often_is_refused() -> None:
    admission = Admission(FEW)
    for _ in range(3):
        assert admission.connect("192.0.2.1", 0.0) is None
        admission.leave("192.0.2.1")
    assert admission.connect("192.0.2.1", 0.0) == "connects_per_s"
    assert admission.connect("192.0.2.1", 1.0) is None


def test_asking_too_often_is_refused() -> None:
    admission = Admission(FEW)
    answers = [admission.request("192.0.2.1", 0.0) for _ in range(4)]
    assert answers == [None, None, None, "requests_per_s"]
    assert admission.request("192.0.2.2", 0.0) is None


def test_whoever_has_an_address_of_ipv6_has_its_network() -> None:
    admission = Admission(FEW)
    answers = [admission.connect(f"2001:db8::{n}", 0.0) for n in range(1, 4)]
    assert answers == [None, None, "connections_per_address"]
    assert admission.connect("2001:db8:0:1::1", 0.0) is None


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1", "10.1.2.3"])
def test_proxies_are_limited_in_all_only(address: str) -> None:
    admission = Admission(FEW, networks("10.0.0.0/8"))
    answers = [admission.connect(address, 0.0) for _ in range(5)]
    assert answers == [None] * 4 + ["connections"]
    assert [admission.request(address, 0.0) for _ in range(9)] == [None] * 9
    for _ in range(4):
        admission.leave(address)
    assert admission.connect("192.0.2.1", 0.0) is None


def test_refusals_are_told_once_a_second_with_how_many_there_were() -> None:
    admission = Admission(FEW)
    told = [admission.tell("connects_per_s", "192.0.2.1", at) for at in (0.0, 0.1, 0.9, 1.1)]
    assert [line and line["refused"] for line in told] == [1, None, None, 3]
    assert told[0] is not None
    assert "VOICEBOT_LIMITS__CONNECTS_PER_S" in told[0]["hint"]


def test_a_proxy_on_this_machine_that_is_not_declared_is_told_of_once() -> None:
    forwarded = {"client": ("127.0.0.1", 1), "headers": [(b"X-Forwarded-For", b"192.0.2.1")]}
    admission = Admission()
    assert not admission.undeclared({**forwarded, "headers": []})
    assert not admission.undeclared({**forwarded, "client": ("192.0.2.9", 1)})
    assert admission.undeclared(forwarded)
    assert not admission.undeclared(forwarded)
    assert not Admission(trusted=networks("127.0.0.1")).undeclared(forwarded)
