"""How calls go, as histograms and counters that a monitoring system reads: `GET /metrics`.

Filled from the summary of each call when it is over, and from each request to a provider when that
is, so nothing here is on the way of a call. Names end in their unit. No label has a value that
somebody outside chooses. One registry for each process, made by whoever serves; none is global.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from voicebot.admission import REFUSALS
from voicebot.errors import KINDS
from voicebot.record import CallSummary, Outcome, Part, ProviderRequest, TurnRecord

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: What queues in a call: audio for the recogniser, speech not sent yet, a message for the socket.
QUEUES: Final = ("recogniser", "speech", "socket")
# A tenth of a second is the promise, so that is where the steps are fine.
_YIELD_S: Final = (0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.22, 0.3, 0.5, 1.0)
_VERDICT_S: Final = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0)
_RESPONSE_S: Final = (0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.2, 3.0, 5.0, 8.0)
_STAGE_S: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 4.0, 8.0)
_DURATION_S: Final = (10, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600)
_QUEUE_S: Final = (0.02, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
# 0.1 s is where `/readyz` sees a slow loop, and at 0.2 s a caller hears it.
_LAG_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_PAUSE_S: Final = (0.0005, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)

Breakers = Callable[[], list[tuple[str, bool]]]


class Metrics:
    """What one process has seen of its calls.

    `worker` is a label of every sample, for processes that are scraped as one; empty: there is
    none, and whoever scrapes tells processes apart by their addresses.
    """

    def __init__(self) -> None:
        self.worker = ""
        self._registry = CollectorRegistry()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.build = Info("voicebot_build", "What runs", registry=self._registry)

        # Calls.
        self.calls_live = gauge("calls_live", "Calls whose engine runs")
        self.lines_taken = gauge("lines_taken", "Lines that live or expected calls take")
        self.lines = gauge("lines", "Lines that there are")
        self._started = counter("calls_started", "Calls that have begun", "direction")
        self._calls = counter("calls", "Calls that are over", "outcome", "direction")
        self.turned_away = counter("calls_turned_away", "Calls that got no line", "reason")
        self._duration = histogram("call_duration_seconds", "Calls that are over", _DURATION_S)
        self.leaked_tasks = gauge("leaked_tasks", "Tasks left of calls that should be gone: 0")
        self.outbound_refused = counter(
            "outbound_refused",
            "Calls that were not placed because of whom they were to, or of how many there are",
            "reason",
        )

        # Turns and interruptions.
        self._turns = counter("turns", "Replies begun")
        self._barge_ins = counter(
            "barge_ins", "Interruptions of a reply, and whether they were meant", "verdict"
        )
        self._yield = histogram(
            "yield_seconds", "Caller's first sound to the bot told to be silent", _YIELD_S
        )
        self._obeyed = histogram(
            "clear_echo_seconds", "Clear written to its first mark back", _YIELD_S
        )
        self._verdict = histogram(
            "verdict_seconds", "Interruption noticed to meant or not", _VERDICT_S
        )
        self._resume = histogram("resume_seconds", "Silenced to the reply going on", _VERDICT_S)
        self._response = histogram(
            "response_seconds",
            "Caller's voice let go (0.3 s after the last sound) to the first audio sent",
            _RESPONSE_S,
        )
        self._stage = histogram(
            "response_stage_seconds",
            "Parts of response_seconds, each from the end of the one before",
            _STAGE_S,
            "stage",
        )

        # Providers.
        self._requests = counter(
            "provider_requests", "Requests to providers that are over", "part", "provider"
        )
        self._retries = counter(
            "provider_retries", "Those that another try had failed before", "part", "provider"
        )
        self._failures = counter(
            "provider_failures", "Those that failed", "part", "provider", "kind"
        )
        self._latency = histogram(
            "provider_latency_seconds",
            "Request to its being accepted, and to the first of the answer",
            _STAGE_S,
            "part", "provider", "stage",
        )  # fmt: skip
        self._breakers: dict[Part, Breakers] = {}
        self._providers: set[tuple[Part, str]] = set()

        # Audio.
        self._media = counter("media_messages", "Messages with audio", "direction")
        self._bot_audio = counter(
            "bot_audio_seconds", "Audio of the bot that was sent, by what became of it", "fate"
        )
        self._clears = counter("clears", "Times that Twilio was told to drop audio")
        self._underruns = counter("underruns", "Times that the bot's audio came too late")
        self._underrun = counter("underrun_seconds", "For how long there was none")
        self._gaps = counter("caller_gap_seconds", "Audio of callers that did not arrive")
        self._unrecognised = counter(
            "unrecognised_seconds", "Audio of callers that no recogniser was sent in time"
        )
        self._peaks = histogram(
            "queue_peak_seconds", "The most that queued in a call", _QUEUE_S, "queue"
        )

        # Records, recordings, the bot file, traces.
        self.records_pending = gauge(
            "records_pending", "Calls of which the database has not been told everything yet"
        )
        self.records_dropped = counter(
            "records_dropped",
            "Calls of which news was given up: too many waited, or the database would not take it",
        )
        self.database_failures = counter(
            "database_failures", "Tries to write records that failed and are made again"
        )
        self.calls_lost = counter(
            "calls_lost", "Calls closed as lost because their process had gone"
        )
        self.recording_dropped = counter(
            "recording_dropped_seconds",
            "Seconds of calls that recordings lack: the disk was full, away or too slow",
        )
        self._hooks = counter(
            "hook_failures", "Hooks of the bot file that raised or were given up", "hook"
        )
        self.hooks_waiting = gauge("hooks_waiting", "Hooks that are to run")
        self.traces_dropped = counter("traces_dropped", "Calls of which no trace was made")

        # The loop and the process.
        self.loop_lag = histogram("loop_lag_seconds", "How late the loop runs", _LAG_S)
        self.loop_held = counter("loop_held", "Times that a task held the loop; see the log")
        self.gc_pause = histogram(
            "gc_pause_seconds", "Collections of garbage; they hold the loop", _PAUSE_S, "generation"
        )
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Show what has not happened yet: of a series that begins at one no increase is seen."""
        for direction in ("inbound", "outbound"):
            self._started.labels(direction)
            for outcome in Outcome:
                self._calls.labels(outcome.value, direction)
        for reason in ("busy", "draining"):
            self.turned_away.labels(reason)
        for verdict in ("meant", "not_meant", "undecided"):
            self._barge_ins.labels(verdict)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"voicebot_{name}", what, labels, registry=self._registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"voicebot_{name}", what, registry=self._registry)

    def _histogram(self, name: str, what: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(
            f"voicebot_{name}", what, labels, buckets=tuple(buckets), registry=self._registry
        )

    def call_begun(self, direction: str) -> None:
        """Take that a call has begun."""
        self._started.labels(direction).inc()

    def call_over(self, summary: CallSummary, direction: str = "inbound") -> None:
        """Take what is known of a call."""
        self._calls.labels(summary.outcome.value, direction).inc()
        self._duration.observe(summary.duration_s)
        self._turns.inc(len(summary.turns))
        self._take_barge_ins(summary)
        tokens: dict[int | None, float] = {}
        for request in summary.requests:
            if request.part == "llm" and request.first is not None:
                tokens.setdefault(request.turn, request.first)
        for turn in summary.turns:
            self._take_response(turn, tokens.get(turn.number))
        counts = summary.counts
        self._media.labels("in").inc(counts.get("media_in", 0))
        self._media.labels("out").inc(counts.get("media_out", 0))
        discarded_s = counts.get("discarded_ms", 0) / 1_000
        self._bot_audio.labels("discarded").inc(discarded_s)
        self._bot_audio.labels("heard").inc(
            max(0.0, counts.get("sent_ms", 0) / 1_000 - discarded_s)
        )
        self._clears.inc(counts.get("clears", 0))
        self._underruns.inc(counts.get("underruns", 0))
        self._underrun.inc(counts.get("underrun_ms", 0) / 1_000)
        self._gaps.inc(counts.get("gap_ms", 0) / 1_000)
        self._unrecognised.inc(counts.get("unrecognised_ms", 0) / 1_000)
        for queue in QUEUES:
            self._peaks.labels(queue).observe(summary.peaks.get(queue, 0.0))

    def _take_barge_ins(self, summary: CallSummary) -> None:
        for barge_in in summary.barge_ins:
            verdict = {True: "meant", False: "not_meant", None: "undecided"}[barge_in.meant]
            self._barge_ins.labels(verdict).inc()
            if barge_in.silenced is not None and barge_in.cleared:
                self._yield.observe(barge_in.silenced - barge_in.onset)
                if barge_in.echoed is not None:
                    self._obeyed.observe(barge_in.echoed - barge_in.silenced)
            if barge_in.decided is not None:
                self._verdict.observe(barge_in.decided - barge_in.noticed)
            if barge_in.resumed is not None and barge_in.silenced is not None:
                self._resume.observe(barge_in.resumed - barge_in.silenced)

    def _take_response(self, turn: TurnRecord, first_token: float | None) -> None:
        if turn.fell is None:
            return
        if turn.first_media is not None:
            self._response.observe(max(0.0, turn.first_media - turn.fell))
        at = turn.fell
        for stage, end in (
            ("end_of_turn", turn.began),
            ("first_token", first_token),
            ("first_piece", turn.first_text),
            ("first_audio", turn.first_audio),
            ("first_media", turn.first_media),
        ):
            if end is not None:  # a guess has its first token before the turn is over: 0
                self._stage.labels(stage).observe(max(0.0, end - at))
                at = max(at, end)

    def request_over(self, request: ProviderRequest) -> None:
        """Take a request to a provider."""
        labels = (request.part, request.provider)
        if labels not in self._providers:
            self._providers.add(labels)
            for kind in KINDS:
                self._failures.labels(*labels, kind)
        self._requests.labels(*labels).inc()
        if request.again:
            self._retries.labels(*labels).inc()
        if request.failed:
            self._failures.labels(*labels, request.failed).inc()
        for stage, at in (("accepted", request.accepted), ("first", request.first)):
            # A recogniser's first words are the caller's doing.
            if at is not None and (stage, request.part) != ("first", "stt"):
                self._latency.labels(*labels, stage).observe(at - request.began)

    def show_breakers(self, part: Part, breakers: Breakers) -> None:
        """Show the circuit breakers of the alternatives for a part, as they are when asked."""
        if not self._breakers:
            self._registry.register(_Collected(self._collect_breakers))
        self._breakers[part] = breakers

    def show_refused(self, refused: Mapping[str, int]) -> None:
        """Show how many connections and requests were refused, by the limit."""

        def collect() -> Iterator[Metric]:
            family = CounterMetricFamily(
                "voicebot_refused", "Connections and requests beyond a limit", labels=["reason"]
            )
            for reason in REFUSALS:
                family.add_metric([reason], refused.get(reason, 0))
            yield family

        self._registry.register(_Collected(collect))

    def _collect_breakers(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "voicebot_provider_breaker_open",
            "Whether others are asked first, because this one failed",
            labels=["part", "provider", "place"],
        )
        for part, breakers in self._breakers.items():
            for place, (name, is_open) in enumerate(breakers(), 1):
                family.add_metric([part, name, str(place)], is_open)
        yield family

    def hook_failed(self, name: str) -> None:
        """Take that a hook of the bot file raised, or was given up."""
        self._hooks.labels(name).inc()

    def text(self) -> bytes:
        """Return everything in the exposition format of Prometheus."""
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes]:
        """Yield everything, a metric at a time: all of it would hold the loop for 8 ms and more."""
        for family in self._collect():
            yield generate_latest(_Collected(partial(iter, (family,))))

    def _collect(self) -> Iterator[Metric]:
        """Yield what there is, without when each was made: that doubles the samples."""
        labels = {"worker": self.worker} if self.worker else {}
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={**labels, **sample.labels})
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
            yield family


class _Collected:
    """A collector of one function."""

    def __init__(self, collect: Callable[[], Iterator[Any]]) -> None:
        self.collect = collect
