"""Which alternative a request is tried on, when again, and who is left alone for a while."""

from __future__ import annotations

import math

import pytest

from voicebot.errors import ProviderError, ProviderRejected, ProviderTimeout
from voicebot.tries import Alternatives, Retrying, Tries

RULES = Retrying(breaker_failures=3, breaker_s=20.0, pause_s=0.1)
LATE = ProviderTimeout("x", "late")
ASKED = ProviderRejected("x", "malformed", status=400)
KEY = ProviderRejected("x", "key", status=401)


def busy(seconds: float) -> ProviderRejected:
    return ProviderRejected("x", "busy", status=429, retryable=True, retry_after_s=seconds)


def fail(parts: Alternatives[str], error: ProviderError, now: float) -> bool:
    """Let one request fail at its first try; return whether that opened a breaker."""
    tries = parts.tries(1)
    tries.begin(now)
    tries.failed(error, now)
    return tries.opened


def asked(parts: Alternatives[str], now: float) -> str:
    """Return whom a request asks first; it is not heard of again."""
    return parts.tries(1).begin(now)


def order(tries: Tries[str], error: ProviderError, now: float = 0.0) -> list[tuple[str, float]]:
    """Return whom a request asks and how long it waits before, until it gives up."""
    asked, pause = [], 0.0
    while True:
        now += pause
        asked.append((tries.begin(now), round(pause, 3)))
        again = tries.failed(error, now)
        if again is None:
            return asked
        pause = again


@pytest.mark.parametrize(
    "parts, count, expected",
    [
        ("a", 1, [("a", 0)]),
        ("a", 4, [("a", 0), ("a", 0.1), ("a", 0.2), ("a", 0.4)]),
        ("ab", 3, [("a", 0), ("b", 0), ("a", 0)]),
        ("abc", 3, [("a", 0), ("b", 0), ("c", 0)]),
    ],
)
def test_what_may_be_bad_luck_is_tried_elsewhere_first_and_there_again_after_a_pause(
    parts: str, count: int, expected: list[tuple[str, float]]
) -> None:
    assert order(Alternatives(list(parts), RULES).tries(count), LATE) == expected


def test_what_was_refused_for_good_is_not_asked_there_again() -> None:
    assert order(Alternatives(["a"], RULES).tries(5), ASKED) == [("a", 0)]
    assert order(Alternatives(["a", "b"], RULES).tries(5), ASKED) == [("a", 0), ("b", 0)]


def test_a_wait_that_is_named_is_kept_unless_somebody_else_can_answer() -> None:
    assert order(Alternatives(["a"], RULES).tries(2), busy(1.5)) == [("a", 0), ("a", 1.5)]
    assert order(Alternatives(["a", "b"], RULES).tries(3), busy(2.0)) == [
        ("a", 0),
        ("b", 0),
        ("a", 2.0),
    ]


def test_who_is_busy_is_left_alone_by_other_requests_until_then() -> None:
    parts = Alternatives(["a", "b"], RULES)
    fail(parts, busy(3.0), now=10.0)

    assert asked(parts, 12.9) == "b"
    assert asked(parts, 13.0) == "a"


def test_nothing_is_tried_past_the_end_of_patience() -> None:
    patient = Alternatives(["a"], RULES).tries(9, until=0.25)

    assert order(patient, LATE) == [("a", 0), ("a", 0.1)]
    assert order(Alternatives(["a"], RULES).tries(9, until=2.0), busy(2.0)) == [("a", 0)]


def test_three_failures_in_a_row_open_a_breaker_and_two_do_not() -> None:
    parts = Alternatives(["a", "b"], RULES)

    assert [fail(parts, LATE, 0.0) for _ in range(2)] == [False, False]
    assert asked(parts, 1.0) == "a"
    assert fail(parts, LATE, 2.0)
    assert asked(parts, 3.0) == "b"


def test_what_went_well_closes_a_breaker_and_begins_the_count_anew() -> None:
    parts = Alternatives(["a", "b"], RULES)
    for _ in range(2):
        fail(parts, LATE, 0.0)
    tries = parts.tries(1)
    tries.begin(1.0)
    tries.worked()

    assert [fail(parts, LATE, 2.0) for _ in range(2)] == [False, False]
    assert asked(parts, 3.0) == "a"


def test_after_its_time_one_request_is_let_through_and_others_follow_if_that_went_well() -> None:
    parts = Alternatives(["a", "b"], RULES)
    for _ in range(3):
        fail(parts, LATE, 0.0)

    assert asked(parts, 19.9) == "b"
    trial = parts.tries(1)
    assert trial.begin(20.0) == "a"
    assert asked(parts, 20.1) == "b"
    trial.worked()
    assert asked(parts, 20.2) == "a"


def test_a_trial_that_fails_leaves_it_alone_for_as_long_again() -> None:
    parts = Alternatives(["a", "b"], RULES)
    for _ in range(3):
        fail(parts, LATE, 0.0)
    trial = parts.tries(1)
    trial.begin(20.0)
    trial.failed(LATE, 22.0)

    assert not trial.opened  # it was not closed in between
    assert asked(parts, 41.9) == "b"
    assert asked(parts, 42.0) == "a"


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refusal_of_what_we_are_opens_the_breaker_at_once(status: int) -> None:
    parts = Alternatives(["a", "b"], RULES)

    assert fail(parts, ProviderRejected("x", "no", status=status), 0.0)
    assert asked(parts, 1.0) == "b"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_of_what_was_asked_says_nothing_about_other_requests(status: int) -> None:
    parts = Alternatives(["a", "b"], RULES)
    for _ in range(5):
        fail(parts, ProviderRejected("x", "no", status=status), 0.0)

    assert asked(parts, 1.0) == "a"


def test_if_all_are_to_be_left_alone_they_are_tried_all_the_same() -> None:
    parts = Alternatives(["a", "b"], RULES)
    for _ in range(2):
        order(parts.tries(2), KEY)

    assert order(parts.tries(3), LATE, now=1.0) == [("a", 0), ("b", 0), ("a", 0)]


def test_one_thing_is_an_alternative_of_its_own_and_several_stay_as_they_are() -> None:
    several = Alternatives(["a", "b"], RULES)

    same: object = Alternatives[str].of(several, RULES)
    assert same is several
    assert Alternatives.of("a", RULES).tries(1, math.inf).begin(0.0) == "a"


@pytest.mark.parametrize("error", [ASKED, KEY])
def test_a_stream_that_had_worked_is_opened_once_more_whatever_it_ended_with(
    error: ProviderError,
) -> None:
    tries = Alternatives(["a"], RULES).tries(3)
    tries.begin(0.0)
    tries.worked(3)
    assert tries.failed(error, 5.0) is not None
    assert tries.begin(6.0) == "a"
    assert tries.failed(error, 6.0) is None
