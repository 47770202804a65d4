"""How calls go, as histograms and counters that a monitoring system reads: `GET /metrics`.

Filled from the summary of each call when it is over, so nothing here is on the way of a call.
Names end in their unit. One registry for each process, made by whoever serves; none is global.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from voicebot.record import CallSummary

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# A tenth of a second is the promise, so that is where the steps are fine.
_YIELD_S: Final = (0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.22, 0.3, 0.5, 1.0)
_VERDICT_S: Final = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0)
_RESPONSE_S: Final = (0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.2, 3.0, 5.0, 8.0)


class Metrics:
    """What one process has seen of its calls."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "voicebot_calls", "Calls that are over", ["outcome"], registry=self._registry
        )
        self._turns = Counter("voicebot_turns", "Replies begun", registry=self._registry)
        self._barge_ins = Counter(
            "voicebot_barge_ins",
            "Interruptions of a reply, and whether they were meant",
            ["verdict"],
            registry=self._registry,
        )
        self.records_pending = Gauge(
            "voicebot_records_pending",
            "Calls of which the database has not been told everything yet",
            registry=self._registry,
        )
        self.records_dropped = Counter(
            "voicebot_records_dropped",
            "Calls of which news was given up: too many waited, or the database would not take it",
            registry=self._registry,
        )
        self.database_failures = Counter(
            "voicebot_database_failures",
            "Tries to write records that failed and are made again",
            registry=self._registry,
        )
        self.calls_lost = Counter(
            "voicebot_calls_lost",
            "Calls closed as lost because their process had gone",
            registry=self._registry,
        )
        self.recording_dropped = Counter(
            "voicebot_recording_dropped_seconds",
            "Seconds of calls that recordings lack: the disk was full, away or too slow",
            registry=self._registry,
        )
        self.outbound_refused = Counter(
            "voicebot_outbound_refused",
            "Calls that were not placed because of whom they were to, or of how many there are",
            ["reason"],
            registry=self._registry,
        )
        self._hooks = Counter(
            "voicebot_hook_failures",
            "Hooks of the bot file that raised or were given up",
            ["hook"],
            registry=self._registry,
        )
        self._yield = self._histogram(
            "voicebot_yield_seconds", "Caller's first sound to the bot told to be silent", _YIELD_S
        )
        self._obeyed = self._histogram(
            "voicebot_clear_echo_seconds", "Clear written to its first mark back", _YIELD_S
        )
        self._verdict = self._histogram(
            "voicebot_verdict_seconds", "Interruption noticed to meant or not", _VERDICT_S
        )
        self._resume = self._histogram(
            "voicebot_resume_seconds", "Silenced to the reply going on", _VERDICT_S
        )
        self._response = self._histogram(
            "voicebot_response_seconds",
            "Caller's voice let go (0.3 s after the last sound) to the first audio sent",
            _RESPONSE_S,
        )

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, buckets=buckets, registry=self._registry)

    def call_over(self, summary: CallSummary) -> None:
        """Take what is known of a call."""
        self._calls.labels(summary.outcome.value).inc()
        self._turns.inc(len(summary.turns))
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
        for turn in summary.turns:
            if turn.fell is not None and turn.first_media is not None:
                self._response.observe(max(0.0, turn.first_media - turn.fell))

    def hook_failed(self, name: str) -> None:
        """Take that a hook of the bot file raised, or was given up."""
        self._hooks.labels(name).inc()

    def text(self) -> bytes:
        """Return everything in the exposition format of Prometheus."""
        return generate_latest(self._registry)
