"""What a monitoring system reads of calls that are over."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from voicebot.metrics import Metrics
from voicebot.record import BargeIn, CallSummary, Outcome, TurnRecord


def summary(*barge_ins: BargeIn, turns: tuple[TurnRecord, ...] = ()) -> CallSummary:
    return CallSummary("CA1", "MZ1", Outcome.HUNG_UP, 9.0, turns, (), {}, barge_ins)


def samples(metrics: Metrics) -> dict[str, float]:
    """Return each sample by its name and labels."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


MEANT = BargeIn(1, 2.0, 2.06, 2.05, 2.07, True, 2.17, 2.66, True)
COUGH = BargeIn(1, 5.0, 5.06, 5.05, 5.06, True, 5.16, 5.56, False, 5.58)
EARLY = BargeIn(1, 7.0, 7.06, None, 7.06, False)


def test_calls_and_verdicts_are_counted() -> None:
    metrics = Metrics()
    metrics.call_over(summary(MEANT, COUGH, EARLY))
    metrics.call_over(summary(COUGH))
    found = samples(metrics)
    assert found["voicebot_calls_total{outcome=hung_up}"] == 2
    assert found["voicebot_barge_ins_total{verdict=meant}"] == 1
    assert found["voicebot_barge_ins_total{verdict=not_meant}"] == 2
    assert found["voicebot_barge_ins_total{verdict=undecided}"] == 1


def test_times_of_an_interruption() -> None:
    metrics = Metrics()
    metrics.call_over(summary(MEANT, EARLY))
    found = samples(metrics)
    # What needed no clear is no measurement of one.
    assert found["voicebot_yield_seconds_count"] == 1
    assert found["voicebot_yield_seconds_sum"] == pytest.approx(0.07)
    assert found["voicebot_yield_seconds_bucket{le=0.06}"] == 0
    assert found["voicebot_yield_seconds_bucket{le=0.08}"] == 1
    assert found["voicebot_clear_echo_seconds_sum"] == pytest.approx(0.1)
    assert found["voicebot_verdict_seconds_sum"] == pytest.approx(0.6)
    assert found["voicebot_verdict_seconds_count"] == 1
    assert found["voicebot_resume_seconds_count"] == 0


def test_time_to_resume() -> None:
    metrics = Metrics()
    metrics.call_over(summary(COUGH))
    assert samples(metrics)["voicebot_resume_seconds_sum"] == pytest.approx(0.52)


def test_response_time_is_of_turns_that_were_answered() -> None:
    metrics = Metrics()
    turns = (
        TurnRecord(0, "", 0.0, first_media=0.4),  # a greeting
        TurnRecord(1, "hello", 3.0, fell=2.9, first_media=3.7),
        TurnRecord(2, "hello", 6.0, fell=5.9),
    )
    metrics.call_over(summary(turns=turns))
    found = samples(metrics)
    assert found["voicebot_turns_total"] == 3
    assert found["voicebot_response_seconds_count"] == 1
    assert found["voicebot_response_seconds_sum"] == pytest.approx(0.8)


def test_two_services_of_a_process_do_not_share_their_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.call_over(summary(MEANT))
    assert samples(other)["voicebot_turns_total"] == 0
    assert "voicebot_yield_seconds_count" in samples(other)
