"""Whose turn it is: one owner of every decision about the caller's speech.

Synchronous; takes the time as an argument. In go 20 ms decisions of the ears and transcripts,
out come instructions for the call. Two decisions are made here and nowhere else: that the
caller has begun to speak (and whether that was meant, once the bot was stopped by it), and
that the caller has finished.

| caller    | speech or words begin              | meant              | not meant      | finished  |
|-----------|------------------------------------|--------------------|----------------|-----------|
| QUIET     | over the bot: Interrupt, SUSPECTED | –                  | –              | –         |
|           | else: TALKING                      |                    |                |           |
| SUSPECTED | –                                  | Verdict(yes),      | Verdict(no),   | both, then|
|           |                                    | TALKING            | QUIET          | QUIET     |
| TALKING   | –                                  | –                  | Nothing, QUIET | EndOfTurn,|
|           |                                    |                    |                | QUIET     |

Meant: words that are more than a sign of listening. Length alone means nothing: until there are
words the bot is silent anyway, and a reply given up for a noise would never come back.
A suspicion always ends: words, duration, the end of the sound and a time limit each decide it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from voicebot.audio import FRAME_MS
from voicebot.ports import Final as FinalTranscript
from voicebot.ports import Partial, Transcript, UtteranceEnd

_WORD: Final = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

#: What a listener says to show that they listen. Said over the bot it does not take the floor.
BACKCHANNELS: Final = frozenset(
    (
        *("mm", "mmm", "mhm", "mmhm", "mm-hm", "mm-hmm", "hm", "hmm", "uh", "uh-huh", "huh"),
        *("ah", "oh", "okay", "ok", "yeah", "yep", "right", "sure"),
    )
)


@dataclass(frozen=True, slots=True)
class Endpointing:
    """When the caller has finished, and when an interruption was meant."""

    # Silence after the ears' release (about 0.3 s after the last sound) that ends a turn when
    # the ears decide; scripted speech has no longer pause inside a sentence.
    hangover_ms: int = 350
    final_grace_ms: int = 2_500  # the local recogniser needs 0.2 s; ten times that is a stall
    provider_silence_ms: int = 3_000  # words, but neither speech_final nor UtteranceEnd: noise
    resume: bool = True  # False: every interruption is taken as meant, and the reply is lost
    overtalk_ms: int = 400  # voice that goes on after a turn's end; the ears release in 200 ms
    resume_ms: int = 600  # a provider's words arrive within this after the sound
    # A backchannel this shortly before the end of the reply answers it.
    answer_ms: int = 1_500


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The caller's voice was raised `ago_ms` before the end of this frame."""

    ago_ms: int


@dataclass(frozen=True, slots=True)
class Finalize:
    """The voice has fallen: the recogniser should account for all words up to here."""


@dataclass(frozen=True, slots=True)
class RecogniserLate:
    """The recogniser has not answered in time and should be replaced."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The bot must be silent now. `onset` is when the sound began."""

    onset: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the newest interruption was meant."""

    confirmed: bool


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """The caller has finished and said this; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """What was taken for the caller's speech, with nobody to interrupt, was without words."""


Instruction = SpeechStarted | Finalize | RecogniserLate | Interrupt | Verdict | EndOfTurn | Nothing


class _Caller(enum.Enum):
    QUIET = enum.auto()
    SUSPECTED = enum.auto()
    TALKING = enum.auto()


class Turns:
    """Turn-taking of one call.

    `endpointing` says who decides that the caller has finished: the recogniser ("provider")
    or the ears ("local").
    """

    def __init__(self, rules: Endpointing, endpointing: Literal["provider", "local"]) -> None:
        self._rules = rules
        self._local = endpointing == "local"
        self._caller = _Caller.QUIET
        self._bot_active = False
        self._voice = False
        self._fell_at = 0.0
        self._run = 0  # frames since the voice rose or fell, or a turn ended: media time
        self._taken = ""  # words of a turn that were still a partial when it ended
        self._finalizing = 0  # answers to Finalize still owed
        self._words: list[str] = []
        self._partial = ""
        self._last_words_at = 0.0
        self._passed_over: tuple[str, float] | None = None

    @property
    def caller_talking(self) -> bool:
        """Whether the caller has, or may have, the floor."""
        return self._caller is not _Caller.QUIET

    def bot_began(self) -> None:
        """Note that the bot has a reply to give, from now on, audible or not."""
        self._bot_active = True

    def bot_ended(self, now: float) -> Sequence[Instruction]:
        """Note that the reply is over, heard or abandoned."""
        self._bot_active = False
        if self._caller is _Caller.SUSPECTED:
            # Nothing is left to be resumed: what the caller says now is an answer.
            self._caller = _Caller.TALKING
            return [Verdict(confirmed=True)]
        passed_over, self._passed_over = self._passed_over, None
        if (
            passed_over is not None
            and self._caller is _Caller.QUIET
            and now - passed_over[1] <= self._rules.answer_ms / 1_000
        ):
            return [self._end_turn(passed_over[0])]
        return ()

    def recogniser_lost(self, finalizing: int) -> bool:
        """Note that the recogniser is gone; `finalizing` requests have not reached it.

        Returns whether the caller is speaking, which the next one has to be told.
        """
        self._finalizing = finalizing
        return self._voice

    def frame(self, voice: bool, onset_ms: int, now: float) -> Sequence[Instruction]:
        """Take the ears' decision about 20 ms."""
        self._run += 1
        if voice is self._voice:
            if self._caller is not _Caller.QUIET:
                return self._decide(now)
            if voice and self._bot_active and self._run == self._rules.overtalk_ms // FRAME_MS:
                return self._begin(now)  # the turn was taken to be over, and goes on
            return ()
        self._voice, self._run = voice, 0
        if voice:
            started = SpeechStarted(onset_ms)
            return [started, *self._begin(now - onset_ms / 1_000), *self._decide(now)]
        self._fell_at = now
        if not self._local:
            return self._decide(now)
        self._finalizing += 1
        return [Finalize(), *self._decide(now)]

    def transcript(self, transcript: Transcript, now: float) -> Sequence[Instruction]:
        """Take what the recogniser says."""
        match transcript:
            case Partial(text):
                self._partial = text
                if not text:
                    return ()
                self._last_words_at = now
                return [*self._begin(now), *self._decide(now)]
            case FinalTranscript(text, end_of_turn, finalized):
                self._partial = ""
                if finalized:
                    self._finalizing = max(0, self._finalizing - 1)
                begun: Sequence[Instruction] = ()
                taken, self._taken = self._taken, ""
                if taken and _words(text)[: len(_words(taken))] == _words(taken):
                    text = ""  # it has been answered already
                if text:
                    self._words.append(text)
                    self._last_words_at = now
                    begun = self._begin(now)
                if end_of_turn and not self._local and self._words:
                    return [*begun, *self._finish(now)]
                return [*begun, *self._decide(now)]
            case UtteranceEnd():
                return self._finish(now) if self._words and not self._local else ()
            case _ as unreachable:
                assert_never(unreachable)

    def _begin(self, onset: float) -> Sequence[Instruction]:
        """React to the first sound or word of the caller."""
        if self._caller is not _Caller.QUIET:
            return ()
        self._passed_over = None
        if not self._bot_active:
            self._caller = _Caller.TALKING
            return ()
        if self._rules.resume:
            self._caller = _Caller.SUSPECTED
            return [Interrupt(onset)]
        self._caller = _Caller.TALKING
        return [Interrupt(onset), Verdict(confirmed=True)]

    def _decide(self, now: float) -> Sequence[Instruction]:
        """Decide what time and words so far allow to be decided."""
        rules = self._rules
        if self._voice:
            return self._confirm_if_meant()
        if self._finalizing:
            if now - self._fell_at < rules.final_grace_ms / 1_000:
                return self._confirm_if_meant()
            # Words may be lost with it, but a caller who is not understood speaks again.
            self._finalizing = 0
            return [RecogniserLate(), *self._decide(now)]
        silence = now - max(self._fell_at, self._last_words_at)
        if self._words and self._local:
            if self._caller is _Caller.SUSPECTED and _only_backchannel(self._words):
                return self._refute(now)
            confirmed = self._confirm_if_meant()
            if self._run >= rules.hangover_ms // FRAME_MS:
                return [*confirmed, *self._finish(now)]
            return confirmed
        if self._words or self._partial:
            if silence >= rules.provider_silence_ms / 1_000:
                return self._finish(now)
            return self._confirm_if_meant()
        if self._local or silence >= rules.resume_ms / 1_000:
            return self._refute(now)
        return ()

    def _confirm_if_meant(self) -> Sequence[Instruction]:
        if self._caller is not _Caller.SUSPECTED:
            return ()
        said = [*self._words, self._partial]
        if any(said) and not _only_backchannel(said):
            self._caller = _Caller.TALKING
            return [Verdict(confirmed=True)]
        return ()

    def _finish(self, now: float) -> Sequence[Instruction]:
        """End the caller's turn with the words there are."""
        if self._caller is _Caller.SUSPECTED:
            if _only_backchannel([*self._words, self._partial]):
                return self._refute(now)
            return [Verdict(confirmed=True), self._end_turn(self._said())]
        return [self._end_turn(self._said())]

    def _refute(self, now: float) -> Sequence[Instruction]:
        """Give the floor back: it was noise, or only a sign of listening."""
        before, said = self._caller, self._said()
        self._caller = _Caller.QUIET
        self._words.clear()
        self._partial = ""
        if before is not _Caller.SUSPECTED:
            return [Nothing()] if before is _Caller.TALKING else ()
        self._passed_over = (said, now) if said else None
        return [Verdict(confirmed=False)]

    def _end_turn(self, text: str) -> EndOfTurn:
        self._caller = _Caller.QUIET
        self._taken, self._run = self._partial, 0
        self._words.clear()
        self._partial = ""
        self._bot_active = True  # from here on a reply is owed, and can be interrupted
        return EndOfTurn(text)

    def _said(self) -> str:
        return " ".join(text for text in [*self._words, self._partial] if text)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _only_backchannel(texts: Sequence[str]) -> bool:
    return all(word in BACKCHANNELS for text in texts for word in _words(text))
