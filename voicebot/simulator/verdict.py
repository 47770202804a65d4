"""What a simulated call was like for the caller, and whether that is good enough.

Judges a `Recording` and nothing else. When the caller speaks is measured in the sound of the
caller's channel, when the bot is silent in the sound of the bot's channel (`loudness.py`); of
the server's messages only those count that Twilio acts on. What the server says about itself
is never asked.

How things are told apart, from outside:
- A *talk* is media played in one go. A hole under a second is an underrun inside it, unless the
  caller finished speaking in that hole, so that what follows may be an answer. A longer hole or
  a `clear` ends it.
- An *interruption* is a sound of the caller that begins during a talk that goes on, or that a
  `clear` cuts. Exactly one `clear` must follow, unless under `own_end_ms` was left to hear.
- *Media after clear*: the simulator cannot see which reply a message belongs to. But a new
  reply has to wait for the caller to finish and for somebody to find words, so whatever comes
  within `guard_ms` of a `clear`, or while the caller still speaks (for at most a second, by
  which time a bot may take the sound for noise and go on), is left over from the old one.
- A *reply* is the first sound of a talk that began after the caller did. One before the caller
  has finished cuts the caller off.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from voicebot.audio import BYTES_PER_MS
from voicebot.simulator.caller import RESUME_S, InterruptAfter, Spoken
from voicebot.simulator.happenings import Clear, Media
from voicebot.simulator.loudness import WINDOW_MS, loud_windows, sounds
from voicebot.simulator.recording import Recording

CALLER_PAUSE_MS: Final = 500.0  # shorter silences are inside a sentence: bots wait longer too
BRIDGE_MS: Final = 1_000.0  # a longer hole sounds like a pause, not like a fault
EARLY_MS: Final = 300.0  # a bot may hear a breath that this ruler does not call a sound
PROMPTED_MS: Final = 2_000.0  # a clear this long after a sound or key may still be its effect
NORMAL_CLOSE: Final = frozenset({1000, 1001, 1005})  # RFC 6455: normal, going away, no code


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a bot must keep to. Every one is an option of `voicebot simulate`, bar the last."""

    max_clear_ms: float = 400.0  # p95 of a good bot is 220; one run gets some slack
    max_late_media: int = 0  # messages; a single one is heard as a stutter
    max_reply_ms: float = 4_000.0  # callers ask "hello?" after that
    max_underrun_ms: float = 50.0  # per second of audio; 5 % of holes is plainly a stutter
    guard_ms: float = 150.0  # no caller finishes and no bot finds words in less
    own_end_ms: float = 100.0  # a reply over sooner needs no clear; no lead is so short, either


@dataclass(frozen=True, slots=True)
class Interruption:
    """The caller spoke over the bot.

    `clear_ms` and `heard_ms` count from the caller's first sound: the time until `clear` came,
    and how much sound of the bot the caller still heard. `late_media` are messages.
    """

    utterance: str
    onset_ms: float
    clear_ms: float | None
    clears: int
    heard_ms: float
    late_media: int
    backchannel: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """The caller finished speaking or keying at `end_ms`; the bot was heard `reply_ms` later.

    Negative: the bot did not wait for the end. None: it never answered.
    """

    utterance: str
    end_ms: float
    reply_ms: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The measures of one call, and everything wrong with it. `passed` where nothing is."""

    thresholds: Thresholds
    interruptions: tuple[Interruption, ...]
    turns: tuple[Turn, ...]
    late_media: int
    underrun_ms: float  # per second of audio
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the bot kept to every threshold."""
        return not self.failures


@dataclass(frozen=True, slots=True)
class _Speech:
    """Something the caller said or keyed in one go. `early_ms`: a bot may notice from here."""

    spoken: Spoken
    early_ms: float
    start_ms: float
    end_ms: float
    first: bool
    last: bool
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class _Talk:
    start_ms: float
    end_ms: float
    cut: bool


def judge(recording: Recording, thresholds: Thresholds | None = None) -> Verdict:
    """Measure the call and compare it with the thresholds."""
    return _Judge(recording, thresholds or Thresholds()).verdict()


class _Judge:
    def __init__(self, recording: Recording, thresholds: Thresholds) -> None:
        self.recording = recording
        self.thresholds = thresholds
        self.speeches = list(_speeches(recording))
        self.bot = loud_windows(recording.heard)
        self.clears = recording.clears
        self.talks, self.hole_ms = _talks(recording, self.speeches)
        # What is left over from a stopped reply: until when, and how much, by the clear's time.
        self.guarded = {clear.at_ms: self._guarded_until(clear) for clear in self.clears}
        self.late = self._late_media()

    def verdict(self) -> Verdict:
        found = [(speech, self._talk_under(speech)) for speech in self.speeches]
        interrupting = [(speech, talk) for speech, talk in found if talk is not None]
        interruptions = [
            self._interruption(speech, talk, until_ms)
            for (speech, talk), until_ms in zip(
                interrupting,
                _followers([speech.early_ms for speech, _ in interrupting]),
                strict=True,
            )
        ]
        turns = list(self._turns())
        audio_ms = sum(span.end_ms - span.start_ms for span in self.recording.played)
        underrun_ms = 1000 * self.hole_ms / audio_ms if audio_ms else 0.0
        late_media = sum(self.late.values())
        failures = [
            *self._failures_of_call(),
            *(f for i in interruptions for f in self._failures_of_interruption(i)),
            *(f for speech, talk in found for f in self._failures_of_speech(speech, talk)),
            *(f for turn in turns for f in self._failures_of_turn(turn)),
        ]
        if late_media > self.thresholds.max_late_media:
            failures.append(
                f"media messages after clear: {late_media} (at most "
                f"{self.thresholds.max_late_media}); audio of the stopped reply was still sent"
            )
        if underrun_ms > self.thresholds.max_underrun_ms:
            failures.append(
                f"underruns: {underrun_ms:.0f} ms of holes per second of audio (at most "
                f"{self.thresholds.max_underrun_ms:.0f}); audio came too late to play in one go. "
                "Embedded speech wants two idle cores: is this machine busy? Try again, or see "
                "--max-underrun-ms"
            )
        return Verdict(
            self.thresholds,
            tuple(interruptions),
            tuple(turns),
            late_media,
            round(underrun_ms, 1),
            tuple(failures),
        )

    # ---------------------------------------------------------------- measures

    def _talk_under(self, speech: _Speech) -> _Talk | None:
        """Return the talk that this speech interrupts, if it does."""
        if speech.keyed:
            return None  # whether a key stops the bot is the bot's own affair
        for talk in self.talks:
            if talk.start_ms < speech.start_ms < talk.end_ms and (
                talk.cut or self._heard_ms(speech.start_ms, talk.end_ms)
            ):
                return talk
            if talk.cut and speech.early_ms < talk.end_ms <= speech.start_ms:
                return talk
        return None

    def _interruption(self, speech: _Speech, talk: _Talk, until_ms: float) -> Interruption:
        last_ms = max(talk.end_ms, speech.end_ms + CALLER_PAUSE_MS)
        clears = [
            clear
            for clear in self.clears
            if speech.early_ms <= clear.at_ms <= last_ms + 1 and clear.at_ms < until_ms
        ]
        late_media = sum(self.late[at_ms] for at_ms in {clear.at_ms for clear in clears})
        # On its way to Twilio a clear is late for the caller, and all behind it is too.
        heard_until = max(
            [talk.end_ms]
            + [c.at_ms + _under_way_ms(c) + self.thresholds.guard_ms for c in clears[:1]]
        )
        return Interruption(
            utterance=speech.spoken.utterance.name,
            onset_ms=speech.start_ms,
            clear_ms=round(clears[0].at_ms - speech.start_ms, 1) if clears else None,
            clears=len(clears),
            heard_ms=self._heard_ms(speech.start_ms, heard_until),
            late_media=late_media,
            backchannel=speech.spoken.utterance.backchannel,
        )

    def _heard_ms(self, start_ms: float, end_ms: float) -> float:
        return float(WINDOW_MS * sum(start_ms <= window < end_ms for window in self.bot))

    def _guarded_until(self, clear: Clear) -> float:
        until_ms = clear.at_ms + self.thresholds.guard_ms
        for speech in self.speeches:
            if speech.early_ms <= clear.at_ms < speech.end_ms and not speech.keyed:
                until_ms = max(until_ms, min(speech.end_ms, clear.at_ms + BRIDGE_MS))
        return until_ms

    def _late_media(self) -> Counter[float]:
        late: Counter[float] = Counter()
        cleared_ms, until_ms = 0.0, -math.inf
        for happening in self.recording.happenings:
            if isinstance(happening, Clear):
                cleared_ms, until_ms = happening.at_ms, self.guarded[happening.at_ms]
            elif isinstance(happening, Media) and happening.at_ms <= until_ms:
                late[cleared_ms] += 1
        return late

    def _turns(self) -> Iterator[Turn]:
        following = _followers([speech.start_ms for speech in self.speeches])
        for speech, until_ms in zip(self.speeches, following, strict=True):
            if speech.spoken.utterance.backchannel:
                continue
            first_ms = self._first_reply(speech.start_ms, until_ms)
            # The caller may pause; only what is said last must be answered.
            if first_ms is not None or speech.last:
                reply_ms = None if first_ms is None else round(first_ms - speech.end_ms, 1)
                yield Turn(speech.spoken.utterance.name, speech.end_ms, reply_ms)

    def _first_reply(self, start_ms: float, until_ms: float) -> float | None:
        for talk in self.talks:
            left_over = any(
                clear.at_ms - 1 <= talk.start_ms <= self.guarded[clear.at_ms] + _under_way_ms(clear)
                for clear in self.clears
            )
            if start_ms <= talk.start_ms < until_ms and not left_over:
                for window in self.bot:
                    if talk.start_ms <= window < talk.end_ms:
                        return window
        return None

    # ---------------------------------------------------------------- failures

    def _failures_of_call(self) -> Iterator[str]:
        recording = self.recording
        ended = recording.ended
        if not self.bot:
            yield "the bot was never heard"
        warnings = recording.warnings
        for code, count in Counter(warning.code for warning in warnings).items():
            first = next(warning for warning in warnings if warning.code == code)
            yield (
                f"Twilio would log warning {code}, first for a message at "
                f"{first.at_ms / 1000:.2f} s: {first.reason}; such messages: {count}"
            )
        if ended.by == "bot" and ended.code not in NORMAL_CLOSE:
            yield f"the server dropped the call at {ended.at_ms / 1000:.2f} s, code {ended.code}"
        if ended.by == "limit":
            yield f"the call was still going on after {recording.script.limit_s:.0f} s"
        who = {
            "caller": "the caller",
            "bot": "the bot",
            "limit": "the time limit",
            "network": "the network",
            "twilio": "Twilio, being told to,",
        }[ended.by]
        for utterance in recording.script.utterances[len(recording.spoken) :]:
            yield f"{utterance.name} was not spoken: {who} ended the call before"
        for spoken in recording.spoken:
            if not any(speech.spoken is spoken for speech in self.speeches):
                yield f"{spoken.utterance.name}: no sound was found in it; is it a silent file?"
        for clear in self.clears:
            if clear.dropped_ms and not self._prompted(clear):
                yield (
                    f"the bot stopped itself at {clear.at_ms / 1000:.2f} s, although the caller "
                    "had said nothing"
                )

    def _prompted(self, clear: Clear) -> bool:
        return any(
            speech.early_ms <= clear.at_ms <= speech.end_ms + PROMPTED_MS
            for speech in self.speeches
        )

    def _failures_of_interruption(self, interruption: Interruption) -> Iterator[str]:
        name, limits = interruption.utterance, self.thresholds
        if interruption.backchannel:
            return
        if interruption.clear_ms is None:
            if interruption.heard_ms > limits.own_end_ms:
                yield (
                    f"{name}: the bot was interrupted and sent no clear; the caller heard "
                    f"{interruption.heard_ms:.0f} ms more of it"
                )
            return
        if interruption.clear_ms > limits.max_clear_ms:
            yield (
                f"{name}: clear came {interruption.clear_ms:.0f} ms after the caller's first "
                f"sound (at most {limits.max_clear_ms:.0f})"
            )
        if interruption.clears > 1:
            yield f"{name}: {interruption.clears} clears for one interruption"

    def _failures_of_speech(self, speech: _Speech, talk: _Talk | None) -> Iterator[str]:
        utterance = speech.spoken.utterance
        meant = isinstance(utterance.when, InterruptAfter) or utterance.backchannel
        if meant and speech.first and not speech.keyed and talk is None:
            yield f"{utterance.name}: was to interrupt the bot, which was not speaking then"
        if utterance.backchannel and talk is not None and talk.cut:
            resumed_by = speech.end_ms + RESUME_S * 1000
            if not self._heard_ms(max(talk.end_ms, speech.end_ms), resumed_by):
                yield (
                    f"{utterance.name}: the bot lost its reply; it was silent for "
                    f"{RESUME_S:.0f} s after a sound that should not have stopped it"
                )

    def _failures_of_turn(self, turn: Turn) -> Iterator[str]:
        limit = self.thresholds.max_reply_ms
        if turn.reply_ms is None:
            # A caller who hangs up early has not waited for an answer.
            if self.recording.ended.at_ms - turn.end_ms >= limit:
                yield f"{turn.utterance}: no reply"
        elif turn.reply_ms > limit:
            yield f"{turn.utterance}: reply after {turn.reply_ms:.0f} ms (at most {limit:.0f})"
        elif turn.reply_ms < 0:
            yield (
                f"{turn.utterance}: the bot cut the caller off, {-turn.reply_ms:.0f} ms before "
                "the end"
            )


def _under_way_ms(clear: Clear) -> float:
    """Return how long it took to Twilio; 0 for one that never arrived."""
    return clear.transit_ms if clear.transit_ms < math.inf else 0.0


def _followers(times: list[float]) -> list[float]:
    """Return for each time the one after it, for the last one infinity."""
    return [*times, math.inf][1:]


def _speeches(recording: Recording) -> Iterator[_Speech]:
    """Yield what the caller said, in order."""
    end_ms = 0.0
    for spoken in recording.spoken:
        first, last = int(spoken.start_ms * BYTES_PER_MS), int(spoken.end_ms * BYTES_PER_MS)
        found = sounds(recording.caller[first:last], CALLER_PAUSE_MS)
        for index, sound in enumerate(found):
            start_ms = spoken.start_ms + sound.start_ms
            early_ms = max(end_ms, spoken.start_ms, start_ms - EARLY_MS)
            end_ms = spoken.start_ms + sound.end_ms
            is_last = index == len(found) - 1
            yield _Speech(spoken, early_ms, start_ms, end_ms, index == 0, is_last)
        keys = [key.at_ms for key in recording.pressed if key.at_ms >= spoken.start_ms]
        if spoken.utterance.digits and not found and keys:
            pressed = keys[: len(spoken.utterance.digits)]
            end_ms = pressed[-1]
            yield _Speech(spoken, pressed[0], pressed[0], end_ms, True, True, keyed=True)


def _talks(recording: Recording, speeches: Sequence[_Speech]) -> tuple[list[_Talk], float]:
    """Join what was played into talks; return them and the ms of holes inside them."""
    talks: list[_Talk] = []
    hole_ms = 0.0
    for span in recording.played:
        before = talks[-1] if talks else None
        if (
            before is not None
            and not before.cut
            and span.start_ms - before.end_ms < BRIDGE_MS
            and not any(before.end_ms <= speech.end_ms <= span.start_ms for speech in speeches)
        ):
            hole_ms += span.start_ms - before.end_ms
            talks[-1] = _Talk(before.start_ms, span.end_ms, span.cut)
        else:
            talks.append(_Talk(span.start_ms, span.end_ms, span.cut))
    return talks, hole_ms
