"""What a monitoring system reads of calls that are over."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from voicebot.errors import (
    KINDS,
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ReplyCut,
    RequestTooLong,
    kind_of,
)
from voicebot.metrics import Metrics
from voicebot.record import BargeIn, CallSummary, Outcome, Part, ProviderRequest, TurnRecord


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
    assert found["voicebot_calls_total{direction=inbound,outcome=hung_up}"] == 2
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


def request(part: Part, **fields: Any) -> ProviderRequest:
    return ProviderRequest(part, "groq", 1, 3.0, **fields)


def test_requests_to_providers_by_what_became_of_them() -> None:
    metrics = Metrics()
    metrics.request_over(request("llm", accepted=3.1, first=3.25, ended=4.0))
    metrics.request_over(request("llm", ended=5.0, failed="timeout"))
    metrics.request_over(request("llm", accepted=3.1, first=3.2, ended=4.0, again=True))
    metrics.request_over(request("stt", accepted=3.4, first=30.0, ended=60.0))
    found, labels = samples(metrics), "part=llm,provider=groq"
    assert found[f"voicebot_provider_requests_total{{{labels}}}"] == 3
    assert found[f"voicebot_provider_retries_total{{{labels}}}"] == 1
    assert found["voicebot_provider_failures_total{kind=timeout,part=llm,provider=groq}"] == 1
    latency = "voicebot_provider_latency_seconds"
    assert found[f"{latency}_count{{{labels},stage=first}}"] == 2
    assert found[f"{latency}_sum{{{labels},stage=first}}"] == pytest.approx(0.45)
    assert found[f"{latency}_sum{{{labels},stage=accepted}}"] == pytest.approx(0.2)
    # When a caller says the first words is no latency of the recogniser.
    assert f"{latency}_count{{part=stt,provider=groq,stage=accepted}}" in found
    assert f"{latency}_count{{part=stt,provider=groq,stage=first}}" not in found


def test_stages_of_a_response_add_up_to_it() -> None:
    metrics = Metrics()
    times: dict[str, Any] = {
        "fell": 2.9,
        "first_text": 3.5,
        "first_audio": 3.7,
        "first_media": 3.71,
    }
    turn = TurnRecord(1, "hello", 3.0, **times)
    # A second request for the same turn is for what comes after its tools.
    asked = (request("llm", first=3.3), request("tts", first=3.7), request("llm", first=9.0))
    metrics.call_over(replace(summary(turns=(turn,)), requests=asked))
    found = samples(metrics)
    stages = {
        stage: found[f"voicebot_response_stage_seconds_sum{{stage={stage}}}"]
        for stage in ("end_of_turn", "first_token", "first_piece", "first_audio", "first_media")
    }
    assert [round(seconds, 3) for seconds in stages.values()] == [0.1, 0.3, 0.2, 0.2, 0.01]
    assert sum(stages.values()) == pytest.approx(found["voicebot_response_seconds_sum"])


def test_a_guess_that_was_thought_before_the_turn_took_no_time_in_it() -> None:
    metrics = Metrics()
    times: dict[str, Any] = {
        "fell": 2.9,
        "first_text": 3.4,
        "first_audio": 3.4,
        "first_media": 3.41,
    }
    turn = TurnRecord(1, "hello", 3.4, **times)
    metrics.call_over(replace(summary(turns=(turn,)), requests=(request("llm", first=3.1),)))
    found = samples(metrics)
    assert found["voicebot_response_stage_seconds_sum{stage=first_token}"] == 0
    assert found["voicebot_response_stage_seconds_sum{stage=end_of_turn}"] == pytest.approx(0.5)


def test_audio_and_queues_of_a_call() -> None:
    metrics = Metrics()
    counts: dict[str, float] = {
        **{"media_in": 500, "media_out": 40, "sent_ms": 4_000, "discarded_ms": 150, "clears": 1},
        **{"underruns": 2, "underrun_ms": 90, "gap_ms": 40, "unrecognised_ms": 20},
    }
    over = replace(summary(), counts=counts, peaks={"recogniser": 1.5, "socket": 0.01})
    metrics.call_over(over, "outbound")
    found = samples(metrics)
    assert found["voicebot_calls_total{direction=outbound,outcome=hung_up}"] == 1
    assert found["voicebot_call_duration_seconds_sum"] == 9
    assert found["voicebot_media_messages_total{direction=in}"] == 500
    assert found["voicebot_media_messages_total{direction=out}"] == 40
    assert found["voicebot_bot_audio_seconds_total{fate=discarded}"] == pytest.approx(0.15)
    assert found["voicebot_bot_audio_seconds_total{fate=heard}"] == pytest.approx(3.85)
    assert found["voicebot_clears_total"] == 1
    assert found["voicebot_underrun_seconds_total"] == pytest.approx(0.09)
    assert found["voicebot_caller_gap_seconds_total"] == pytest.approx(0.04)
    assert found["voicebot_unrecognised_seconds_total"] == pytest.approx(0.02)
    assert found["voicebot_queue_peak_seconds_sum{queue=recogniser}"] == 1.5
    assert found["voicebot_queue_peak_seconds_count{queue=speech}"] == 1


def test_circuit_breakers_are_shown_as_they_are_when_asked() -> None:
    metrics = Metrics()
    states = [("groq", True), ("groq", False)]
    metrics.show_breakers("llm", lambda: states)
    metrics.show_breakers("tts", lambda: [("deepgram-tts", False)])
    name = "voicebot_provider_breaker_open"
    assert samples(metrics)[f"{name}{{part=llm,place=1,provider=groq}}"] == 1
    assert samples(metrics)[f"{name}{{part=llm,place=2,provider=groq}}"] == 0
    states[0] = ("groq", False)
    assert samples(metrics)[f"{name}{{part=llm,place=1,provider=groq}}"] == 0


def test_what_was_refused_is_shown_by_its_limit() -> None:
    metrics, refused = Metrics(), Counter[str]()
    metrics.show_refused(refused)
    refused["requests_per_s"] += 2
    text = metrics.text().decode()
    assert 'voicebot_refused_total{reason="requests_per_s"} 2.0' in text
    assert 'voicebot_refused_total{reason="connections"} 0.0' in text


def test_the_process_is_shown_under_the_usual_names() -> None:
    metrics = Metrics()
    metrics.build.info({"version": "1.2.3"})
    found = samples(metrics)
    assert found["voicebot_build_info{version=1.2.3}"] == 1
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_open_fds"] > 1
    assert any(name.startswith("python_info{") for name in found)
    assert not any("_created" in name for name in found)


def test_processes_that_are_scraped_as_one_are_told_apart() -> None:
    metrics = Metrics()
    metrics.worker = "3"
    metrics.hook_failed("on_turn")
    found = samples(metrics)
    assert found["voicebot_hook_failures_total{hook=on_turn,worker=3}"] == 1
    assert all("worker=3" in name for name in found)
    metrics.worker = ""
    assert samples(metrics)["voicebot_hook_failures_total{hook=on_turn}"] == 1  # and no trace of it


def test_every_name_is_as_prometheus_wants_it() -> None:
    """Base units, counters in `_total`, no label that somebody outside chooses."""
    families = list(text_string_to_metric_families(Metrics().text().decode()))
    ours = [family for family in families if family.name.startswith("voicebot_")]
    assert len(ours) > 40
    for family in ours:
        assert not re.search("(_ms|_minutes|_milliseconds|_kb)$", family.name)
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
    source = Path(inspect.getsourcefile(Metrics) or "").read_text()
    counted = re.findall(r'(?:counter|gauge|histogram)\(\n?\s*"(\w+)"', source)
    assert len(set(counted)) == len(counted) > 35
    used = set(re.findall(r'"(call_sid|sid|from|to|number|text|url|error|name)"', source))
    assert used == set()


@pytest.mark.parametrize(
    "error, kind",
    [
        (ProviderTimeout("groq", "late"), "timeout"),
        (ReplyCut("groq", "length"), "cut"),
        (RequestTooLong("groq", "too long", status=413), "too_long"),
        (ProviderRejected("groq", "wait", status=429), "rate_limited"),
        (ProviderRejected("groq", "who?", status=401), "not_allowed"),
        (ProviderRejected("groq", "what?", status=400), "rejected"),
        (ProviderRejected("groq", "NET-0001"), "rejected"),
        (ProviderRejected("groq", "oh", status=503), "server_error"),
        (ProviderError("groq", "lost", retryable=True), "broken"),
        (ProviderError("groq", "nonsense"), "failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failures_are_counted_by_a_few_kinds(error: ProviderError, kind: str) -> None:
    assert kind_of(error) == kind
    assert kind in KINDS


def test_what_has_not_happened_yet_is_shown_as_none() -> None:
    """Prometheus sees no increase in a series that begins at one: the first crash, for example."""
    found = samples(Metrics())
    assert found["voicebot_calls_total{direction=inbound,outcome=crashed}"] == 0
    assert found["voicebot_calls_turned_away_total{reason=busy}"] == 0
    metrics = Metrics()
    metrics.request_over(request("llm"))
    failures = "voicebot_provider_failures_total{kind=timeout,part=llm,provider=groq}"
    assert samples(metrics)[failures] == 0
