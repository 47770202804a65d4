"""Traces by OpenTelemetry, one for each call, by OTLP over HTTP. The only file that imports it.

Endpoint and service name are settings, under the names that all programs have for them; all else
that OpenTelemetry's SDK reads, headers, time-outs, sampling, it reads from the environment itself.

Behind the calls: the record of one that is over waits in a bounded queue, and a thread makes spans
of it. Providers are sent no `traceparent`: none of them goes on with a trace of ours, and an id
that joins all requests of a caller is nobody else's business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from voicebot.config import Settings
from voicebot.errors import MissingPart
from voicebot.hidden import open_hidden_nursery
from voicebot.metrics import Metrics
from voicebot.record import CallSummary
from voicebot.spans import Span, span_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

WAITING: Final = 100  # calls that are over; a second's worth of making spans
FLUSH_S: Final = 3.0  # at the end, for what waits; a collector that is away costs no longer


class _Over(NamedTuple):
    summary: CallSummary
    direction: str
    at_ns: int  # when it ended, by the clock of the world


class Traces:
    """The traces of a process; `open_traces` makes one."""

    def __init__(self, provider: TracerProvider, metrics: Metrics) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("voicebot")
        self._metrics = metrics
        self._send, self._receive = trio.open_memory_channel[_Over](WAITING)
        self._done = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    def call_over(self, summary: CallSummary, direction: str) -> None:
        """Have a trace of a call made. Synchronous; where too many wait there is none of it."""
        try:
            self._send.send_nowait(_Over(summary, direction, time.time_ns()))
        except trio.WouldBlock:
            self._metrics.traces_dropped.inc()

    async def make(self) -> None:
        """Make spans of what there is, until `finish`."""
        async for over in self._receive:
            try:
                await trio.to_thread.run_sync(
                    make_spans, self._tracer, over, abandon_on_cancel=True, limiter=self._limiter
                )
            except Exception:  # a bug here must not end the service
                self._metrics.traces_dropped.inc()
                log.exception("trace_failed", extra={"call_sid": over.summary.call_sid})
        self._done.set()

    async def finish(self) -> None:
        """Make and send what is left.

        Cancellation: at once; a thread that hangs is left behind.
        """
        self._send.close()
        await self._done.wait()
        await trio.to_thread.run_sync(
            self._provider.shutdown, abandon_on_cancel=True, limiter=self._limiter
        )


@asynccontextmanager
async def open_traces(settings: Settings, metrics: Metrics) -> AsyncGenerator[Traces | None]:
    """Trace calls while the block runs; None where no endpoint is set.

    Raises:
        MissingPart: OpenTelemetry is not installed.

    Owns: the task that makes spans, and the SDK's thread that sends them. Both end with the
        block, or `FLUSH_S` later.
    """
    if not settings.otel_exporter_otlp_endpoint:
        yield None
        return
    traces = Traces(_open_provider(settings), metrics)
    async with open_hidden_nursery("the service has ended") as nursery:
        nursery.start_soon(traces.make, name="traces")
        try:
            yield traces
        finally:
            with trio.move_on_after(FLUSH_S, shield=True) as patience:
                await traces.finish()
            if patience.cancelled_caught:
                log.warning("traces_not_sent", extra={"patience_s": FLUSH_S})


def _open_provider(settings: Settings) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise MissingPart(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is not installed: "
            "pip install 'voicebot[otel]'"
        ) from exc
    from voicebot import __version__

    resource = Resource.create(
        {"service.name": settings.otel_service_name, "service.version": __version__}
    )
    # Not at exit: the service ends it, within its bound.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    endpoint = f"{settings.otel_exporter_otlp_endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def make_spans(tracer: Tracer, over: _Over) -> None:
    """Give the SDK the spans of a call. For a thread."""
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

    began_ns = over.at_ns - round(over.summary.duration_s * 1e9)
    kinds = {
        "server": SpanKind.SERVER,
        "client": SpanKind.CLIENT,
        "internal": SpanKind.INTERNAL,
    }

    def ns(at: float) -> int:
        return began_ns + round(at * 1e9)

    def make(span: Span, context: Context) -> None:
        made = tracer.start_span(
            span.name,
            context=context,
            kind=kinds[span.kind],
            attributes=span.attributes,
            start_time=ns(span.begins),
        )
        for event in span.events:
            made.add_event(event.name, event.attributes, ns(event.at))
        if span.failed:
            made.set_attribute("error.type", span.failed)
            made.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(made, context)
        for child in span.children:
            make(child, inside)
        made.end(ns(span.ends))

    make(span_of(over.summary, over.direction), Context())
