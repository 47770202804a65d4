"""A simulated call on paper: `call.wav`, `timeline.json`, `timeline.txt`.

`timeline.json`, version 1; new keys may be added, none changes its meaning. Times are ms since
the start of the stream, except `clear_ms`, `heard_ms` (since the caller's first sound) and
`reply_ms` (since the caller's last):

    {"version": 1,
     "call": {"call_sid", "stream_sid", "duration_ms", "ended_by", "close_code"},
     "network": {field of `Network`: value},
     "verdict": {"passed": bool, "failures": [str], "thresholds": {name: number}},
     "interruptions": [{"utterance", "onset_ms", "clear_ms": number|null, "clears", "heard_ms",
                        "late_media", "backchannel"}],
     "turns": [{"utterance", "end_ms", "reply_ms": number|null}],
     "late_media": int, "underrun_ms_per_s": number,
     "events": [{"at_ms", "who": "caller"|"bot"|"twilio", "event", …}]}

Events: caller `speaks` (`utterance`, `end_ms`), `digit` (`digit`), `hangs_up`; bot `media`
(`ms`, `buffered_ms`), `mark` (`name`), `clear` (`dropped_ms`), `hangs_up` (`code`), and `heard`
(`end_ms`), which is when it could be heard; twilio `mark` (`name`, `cleared`), `warning`
(`code`, `reason`), `time_limit`, `line_drops`. Where the network took its time, a message of the
bot also has `transit_ms` and a mark of Twilio `late_ms`; null means that it never arrived.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, assert_never

from voicebot.audio import BYTES_PER_MS
from voicebot.simulator.caller import REPLY_GAP_MS, InterruptAfter
from voicebot.simulator.happenings import Clear, Echo, Happening, Mark, Media, Warned
from voicebot.simulator.loudness import sounds
from voicebot.simulator.recording import Recording
from voicebot.simulator.verdict import Verdict
from voicebot.simulator.wav import write_two_channels

VERSION: Final = 1
RUN_GAP_MS: Final = 500.0  # media further apart stand in two rows of the table


def write_report(directory: Path, recording: Recording, verdict: Verdict) -> str:
    """Write the three files; return the readable one.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_two_channels(directory / "call.wav", recording.caller, recording.heard)
    timeline = json.dumps(as_json(recording, verdict), indent=1)
    (directory / "timeline.json").write_text(timeline + "\n", encoding="utf-8")
    text = as_text(recording, verdict)
    (directory / "timeline.txt").write_text(text, encoding="utf-8")
    return text


def as_json(recording: Recording, verdict: Verdict) -> dict[str, Any]:
    """Return the timeline in the form the docstring of this module gives."""
    return {
        "version": VERSION,
        "call": {
            "call_sid": recording.identity.call_sid,
            "stream_sid": recording.identity.stream_sid,
            "duration_ms": recording.ended.at_ms,
            "ended_by": recording.ended.by,
            "close_code": recording.ended.code,
        },
        "network": asdict(recording.network),
        "verdict": {
            "passed": verdict.passed,
            "failures": list(verdict.failures),
            "thresholds": asdict(verdict.thresholds),
        },
        "interruptions": [asdict(interruption) for interruption in verdict.interruptions],
        "turns": [asdict(turn) for turn in verdict.turns],
        "late_media": verdict.late_media,
        "underrun_ms_per_s": verdict.underrun_ms,
        "events": _events(recording),
    }


def _events(recording: Recording) -> list[dict[str, Any]]:
    events = [
        _event(spoken.start_ms, "caller", "speaks", utterance=spoken.utterance.name)
        | {"end_ms": spoken.end_ms}
        for spoken in recording.spoken
        if spoken.utterance.audio
    ]
    events += [_event(key.at_ms, "caller", "digit", digit=key.digit) for key in recording.pressed]
    events += [
        _event(sound.start_ms, "bot", "heard", end_ms=sound.end_ms)
        for sound in sounds(recording.heard, REPLY_GAP_MS)
    ]
    events += [_event_of(happening) for happening in recording.happenings]
    events.sort(key=lambda event: float(event["at_ms"]))  # stable: what came first stays first
    ended = recording.ended
    match ended.by:
        case "caller":
            events.append(_event(ended.at_ms, "caller", "hangs_up"))
        case "bot":
            events.append(_event(ended.at_ms, "bot", "hangs_up", code=ended.code))
        case "limit":
            events.append(_event(ended.at_ms, "twilio", "time_limit"))
        case "network":
            events.append(_event(ended.at_ms, "twilio", "line_drops"))
        case "twilio":
            events.append(_event(ended.at_ms, "twilio", "stream_ends"))
        case _ as unreachable:
            assert_never(unreachable)
    return events


def _event(at_ms: float, who: str, event: str, **details: Any) -> dict[str, Any]:
    return {"at_ms": at_ms, "who": who, "event": event, **details}


def _event_of(happening: Happening) -> dict[str, Any]:
    at_ms = happening.at_ms
    match happening:
        case Media(_, sound, buffered_ms, transit_ms):
            ms, late = len(sound) / BYTES_PER_MS, _late("transit_ms", transit_ms)
            return _event(at_ms, "bot", "media", ms=ms, buffered_ms=buffered_ms, **late)
        case Mark(_, name, transit_ms):
            return _event(at_ms, "bot", "mark", name=name, **_late("transit_ms", transit_ms))
        case Clear(_, dropped_ms, transit_ms):
            late = _late("transit_ms", transit_ms)
            return _event(at_ms, "bot", "clear", dropped_ms=dropped_ms, **late)
        case Echo(_, name, cleared, late_ms):
            late = _late("late_ms", late_ms)
            return _event(at_ms, "twilio", "mark", name=name, cleared=cleared, **late)
        case Warned(_, code, reason):
            return _event(at_ms, "twilio", "warning", code=code, reason=reason)
        case _ as unreachable:
            assert_never(unreachable)


def _late(key: str, milliseconds: float) -> dict[str, float | None]:
    """Return what a perfect line need not say."""
    if milliseconds == 0.0:
        return {}
    return {key: None if milliseconds == math.inf else milliseconds}


# ------------------------------------------------------------------ for people


def as_text(recording: Recording, verdict: Verdict) -> str:
    """Return the timeline as a table, and the verdict under it."""
    rows = ["   time s  who     what"]
    rows += [
        f"{at_ms / 1000:9.3f}  {who:6}  {what}" for at_ms, who, what in _rows(_events(recording))
    ]
    lines = [*_no_interruptions(recording, verdict), *_verdict_lines(verdict)]
    return "\n".join([*rows, "", *lines]) + "\n"


def _rows(events: list[dict[str, Any]]) -> Iterator[tuple[float, str, str]]:
    """Yield one row an event, but one for a run of media, marks and their echoes."""
    media: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "media":
            if media and event["at_ms"] - media[-1]["at_ms"] > RUN_GAP_MS:
                yield _media_row(media)
                media = []
            media.append(event)
            continue
        if event["event"] == "mark" and not event.get("cleared"):
            continue  # several a second, of interest only to a program
        if media:
            yield _media_row(media)
            media = []
        yield event["at_ms"], event["who"], _describe(event)
    if media:
        yield _media_row(media)


def _media_row(media: list[dict[str, Any]]) -> tuple[float, str, str]:
    seconds = sum(event["ms"] for event in media) / 1000
    until = media[-1]["at_ms"] / 1000
    what = f"media: {seconds:.2f} s of audio in {len(media)} messages until {until:.3f}"
    return media[0]["at_ms"], "bot", what


def _describe(event: dict[str, Any]) -> str:
    match event["event"]:
        case "speaks":
            return f"plays {event['utterance']} until {event['end_ms'] / 1000:.3f}"
        case "heard":
            return f"is heard until {event['end_ms'] / 1000:.3f}"
        case "clear":
            return f"clear: {event['dropped_ms']:.0f} ms thrown away"
        case "mark":
            lost = event.get("late_ms", 0.0) is None
            return f"mark {event['name']} {'is lost' if lost else 'comes back'}, cleared"
        case "warning":
            return f"warning {event['code']}: {event['reason']}"
        case "digit":
            return f"presses {event['digit']}"
        case "hangs_up":
            return "hangs up" + (f", close code {event['code']}" if event.get("code") else "")
        case name:
            return str(name).replace("_", " ")


def _no_interruptions(recording: Recording, verdict: Verdict) -> Iterator[str]:
    """Say which utterances were to interrupt the bot and met its silence."""
    for spoken in recording.spoken:
        if isinstance(spoken.utterance.when, InterruptAfter) and not any(
            spoken.start_ms <= interruption.onset_ms <= spoken.end_ms
            for interruption in verdict.interruptions
        ):
            yield (
                f"no interruption at {spoken.start_ms / 1000:.2f} s, {spoken.utterance.name}: the "
                "bot was silent by then; its answer must be longer than --interrupt-after"
            )


def _verdict_lines(verdict: Verdict) -> Iterator[str]:
    limits = verdict.thresholds
    for interruption in verdict.interruptions:
        cleared = (
            f"clear after {interruption.clear_ms:.0f} ms"
            if interruption.clear_ms is not None
            else "no clear"
        )
        yield (
            f"interruption at {interruption.onset_ms / 1000:.2f} s, {interruption.utterance}: "
            f"{cleared} (at most {limits.max_clear_ms:.0f}), {interruption.heard_ms:.0f} ms of "
            f"bot heard after the first sound, {interruption.late_media} media after clear"
        )
    for turn in verdict.turns:
        reply = "no reply" if turn.reply_ms is None else f"reply after {turn.reply_ms:.0f} ms"
        yield (
            f"turn at {turn.end_ms / 1000:.2f} s, {turn.utterance}: {reply} "
            f"(at most {limits.max_reply_ms:.0f})"
        )
    yield f"media after clear: {verdict.late_media} (at most {limits.max_late_media})"
    yield (
        f"underruns: {verdict.underrun_ms:.1f} ms per second of audio "
        f"(at most {limits.max_underrun_ms:.0f})"
    )
    yield ""
    yield f"verdict: {'PASS' if verdict.passed else 'FAIL'}"
    for failure in verdict.failures:
        yield f"  - {failure}"
