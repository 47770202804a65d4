"""Traces that reach a collector over a real socket, and collectors that are away."""

from __future__ import annotations

import builtins
import gzip
import logging
import sys
from typing import Any

import pytest
import trio

from tests.servers import Exchange, open_http_server
from tests.test_metrics import samples
from tests.test_spans import CALL
from voicebot import otel
from voicebot.config import load
from voicebot.errors import ConfigError, MissingPart
from voicebot.metrics import Metrics
from voicebot.otel import open_traces

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
except ImportError:
    installed = False
else:
    installed = True
needs_it = pytest.mark.skipif(not installed, reason="the extra `otel` is not installed")


def settings(url: str) -> Any:
    return load({"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "bot-of-the-test"})


async def accept(exchange: Exchange) -> None:
    await exchange.answer(200, "application/x-protobuf", b"")


def received(exchanges: list[Exchange]) -> list[tuple[dict[str, str], Any]]:
    """Return each span that a collector was sent, with the attributes of its resource."""
    found = []
    for exchange in exchanges:
        assert exchange.target == "/v1/traces"
        body = exchange.body
        if exchange.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for of_resource in request.resource_spans:
            resource = {a.key: a.value.string_value for a in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                found += [(resource, span) for span in scope.spans]
    return found


@needs_it
async def test_a_call_is_one_trace_at_the_collector() -> None:
    metrics = Metrics()
    with trio.fail_after(20):
        async with open_http_server(accept) as collector:
            async with open_traces(settings(collector.url), metrics) as traces:
                assert traces is not None
                traces.call_over(CALL, "inbound")
            found = received(collector.exchanges)

    assert len(found) == 11
    assert {resource["service.name"] for resource, _ in found} == {"bot-of-the-test"}
    spans = [span for _, span in found]
    assert len({span.trace_id for span in spans}) == 1
    [call] = [span for span in spans if span.name == "voicebot.call"]
    assert call.parent_span_id == b""
    turns = [span for span in spans if span.name == "voicebot.turn"]
    assert {span.parent_span_id for span in turns} == {call.span_id}
    asked = [span for span in spans if span.name == "chat gpt"]
    assert sorted(span.parent_span_id == turns[1].span_id for span in asked) == [False, True, True]
    # Times are the call's, and not those at which it was told.
    assert call.end_time_unix_nano - call.start_time_unix_nano == pytest.approx(8.98e9, abs=1e6)
    begins = sorted((span.start_time_unix_nano - call.start_time_unix_nano) / 1e9 for span in asked)
    assert begins == pytest.approx([1.98, 2.78, 2.98], abs=0.001)
    failed = [span for span in spans if span.status.code == 2]
    assert sorted(span.name for span in failed) == ["chat gpt", "execute_tool mail"]
    [event] = [e for e in turns[1].events if e.name == "barge_in" and len(e.attributes) == 3]
    assert event.time_unix_nano - call.start_time_unix_nano == pytest.approx(3.98e9, abs=1e6)
    assert b"Ann" not in b"".join(exchange.body for exchange in collector.exchanges)
    assert samples(metrics)["voicebot_traces_dropped_total"] == 0


@needs_it
async def test_a_collector_that_hangs_holds_nobody_for_longer_than_the_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otel, "FLUSH_S", 0.3)

    async def hang(exchange: Exchange) -> None:
        await trio.sleep_forever()

    async with open_http_server(hang) as collector:
        with trio.fail_after(8):  # the exporter's own time-out is 10 s
            async with open_traces(settings(collector.url), Metrics()) as traces:
                assert traces is not None
                traces.call_over(CALL, "inbound")
    assert "traces_not_sent" in {record.msg for record in caplog.records}


@needs_it
async def test_calls_do_not_wait_for_their_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more wait than may, there is no trace of the next, and that is counted."""
    metrics = Metrics()
    async with open_http_server(accept) as collector:
        async with open_traces(settings(collector.url), metrics) as traces:
            assert traces is not None
            for _ in range(otel.WAITING + 3):  # in one step: nobody can take them
                traces.call_over(CALL, "inbound")
            assert samples(metrics)["voicebot_traces_dropped_total"] == 3


@needs_it
async def test_a_bug_in_a_trace_ends_no_service(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tracer: object, over: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(otel, "make_spans", broken)
    metrics = Metrics()
    async with open_http_server(accept) as collector:
        async with open_traces(settings(collector.url), metrics) as traces:
            assert traces is not None
            traces.call_over(CALL, "inbound")
            traces.call_over(CALL, "inbound")
    assert [r.msg for r in caplog.records if r.levelno >= logging.ERROR] == ["trace_failed"] * 2
    assert samples(metrics)["voicebot_traces_dropped_total"] == 2


async def test_without_an_endpoint_there_are_no_traces() -> None:
    async with open_traces(load({}), Metrics()) as traces:
        assert traces is None


async def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, voicebot.http, voicebot.service; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    await trio.run_process([sys.executable, "-c", code])


async def test_an_endpoint_without_the_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPart, match=r"pip install 'voicebot\[otel\]'"):
        async with open_traces(settings("http://localhost:4318"), Metrics()):
            pass


def test_an_endpoint_that_is_no_url_is_told() -> None:
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_ENDPOINT: must be http"):
        settings("collector:4318")
