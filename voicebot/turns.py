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

Meant: words that are more than a sign of listening (`words.py`). Length alone means nothing unless
it is asked to (`confirm_ms`): until there are words the bot is silent anyway, and a reply given up
for a noise would never come back. The bot's own words, come back by the caller's phone, are none.
Finished: the silence that these words and this caller ask for (`patience.py`).
A suspicion always ends: words, duration, the end of the sound and a time limit each decide it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from voicebot.audio import FRAME_MS
from voicebot.patience import Endpointing, Patience
from voicebot.ports import Final, LikelyEnd, Partial, Transcript, UtteranceEnd
from voicebot.words import Vocabulary, echoed, words_of


@dataclass(frozen=True, slots=True)
class Interruption:
    """What a caller's voice over the bot does to the reply. Units: milliseconds, decibel."""

    # What happens until it is known whether it was meant. "resume": silence, then on from the
    # word that was cut. "duck": on at once, but quieter. "commit": every sound is meant.
    policy: Literal["resume", "duck", "commit"] = "resume"
    confirm_words: int = 1  # besides signs of listening; a stop word needs no company
    # Voice of this length is meant without words; 0: never. Until there are words the bot is
    # silent anyway, and a reply given up for a noise never comes back.
    confirm_ms: int = 0
    duck_db: float = 15.0  # well under the caller, and still there
    # A provider's words arrive within this after the ears have let go, which is 0.3 s behind the
    # sound; words that come later stop the bot again.
    resume_ms: int = 360
    overtalk_ms: int = 400  # voice that goes on after a turn's end; the ears release in 140 ms
    # A backchannel this shortly before the end of the reply answers it.
    answer_ms: int = 1_500
    # Words without a voice, or so long after it, are an echo if the bot has just said them.
    unheard_ms: int = 1_500
    listening: tuple[str, ...] = ()  # signs of listening; empty: those of the language
    stopping: tuple[str, ...] = ()  # stop words and phrases; empty: those of the language


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The caller's voice was raised `ago_ms` before the end of this frame."""

    ago_ms: int


@dataclass(frozen=True, slots=True)
class Finalize:
    """The voice has fallen: a recogniser that must be asked should account for all words so far."""


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
class Guess:
    """The caller has probably finished, and said this; `EndOfTurn` or `WrongGuess` follows."""

    text: str


@dataclass(frozen=True, slots=True)
class WrongGuess:
    """The caller goes on, or has said something else."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """What was taken for the caller's speech, with nobody to interrupt, was without words."""


Instruction = (
    SpeechStarted
    | Finalize
    | RecogniserLate
    | Interrupt
    | Verdict
    | EndOfTurn
    | Guess
    | WrongGuess
    | Nothing
)


_LONG = 1_000_000  # frames, in which nobody has spoken


class _Caller(enum.Enum):
    QUIET = enum.auto()
    SUSPECTED = enum.auto()
    TALKING = enum.auto()


class Turns:
    """Turn-taking of one call.

    `endpointing` says who decides that the caller has finished: the recogniser ("provider")
    or the ears ("local").
    """

    def __init__(
        self,
        rules: Endpointing,
        endpointing: Literal["provider", "local"],
        interruption: Interruption = Interruption(),
        language: str = "en",
    ) -> None:
        self._rules = rules
        self._interruption = interruption
        self._vocabulary = Vocabulary.of(language, interruption.listening, interruption.stopping)
        self._patience = Patience(rules, self._vocabulary)
        self._local = endpointing == "local"
        self._caller = _Caller.QUIET
        self._bot_active = False
        self._voice = False
        self._fell_at = 0.0
        self._run = 0  # frames since the voice rose or fell, or a turn ended: media time
        self._quiet = _LONG  # frames since the voice fell
        self._since_turn: int | None = None  # frames since a turn ended by silence alone
        self._ended = False  # a provider says that the turn is over; its words may not
        self._ended_ago = 0  # frames since it said so
        self._likely = False  # a provider expects so
        self._taken = ""  # words of a turn that were still a partial when it ended
        self._finalizing = 0  # answers to Finalize still owed
        self._asked_at = 0.0  # when the recogniser was opened, or lost: it owed nothing before
        self._words: list[str] = []
        self._partial = ""
        self._last_words_at = 0.0
        self._passed_over: tuple[str, float] | None = None
        self._guess = ""  # what the caller has probably said
        self._guesses = 0  # of this turn

    def speak(self, language: str) -> None:
        """Go by the words of another language from now on."""
        words = self._interruption
        self._vocabulary = Vocabulary.of(language, words.listening, words.stopping)
        self._patience.vocabulary = self._vocabulary

    @property
    def caller_talking(self) -> bool:
        """Whether the caller has, or may have, the floor."""
        return self._caller is not _Caller.QUIET

    def bot_began(self) -> None:
        """Note that the bot has a reply to give, from now on, audible or not."""
        self._bot_active = True

    def bot_audible(self) -> None:
        """Note that the caller hears the reply: who speaks from now on interrupts."""
        self._since_turn = None

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
            and now - passed_over[1] <= self._interruption.answer_ms / 1_000
        ):
            return [self._end_turn(passed_over[0])]
        return ()

    def recogniser(
        self, endpointing: Literal["provider", "local"] | None, finalizing: int, now: float
    ) -> None:
        """Note that the recogniser is another, or gone, and what it will be told of the past.

        A turn under way goes on: the words so far stay, and a partial until there is something
        new. `endpointing` says who decides from now on that it is over, None: as before, for there
        is no recogniser; `finalizing`, how many requests to finalize have not been answered and
        will reach the next.
        """
        if endpointing is not None:
            self._local = endpointing == "local"
        self._finalizing = finalizing if self._local else 0
        self._asked_at = now

    def frame(self, voice: bool, onset_ms: int, now: float) -> Sequence[Instruction]:
        """Take the ears' decision about 20 ms."""
        return self._guessing(self._take_frame(voice, onset_ms, now))

    def _take_frame(self, voice: bool, onset_ms: int, now: float) -> Sequence[Instruction]:
        self._run += 1
        self._quiet += 1
        self._ended_ago += 1
        if voice is self._voice:
            if self._caller is not _Caller.QUIET:
                return self._decide(now)
            overtalk = self._interruption.overtalk_ms // FRAME_MS
            if voice and self._bot_active and self._run == overtalk:
                return self._begin(now)  # the turn was taken to be over, and goes on
            return ()
        self._voice, self._run = voice, 0
        if voice:
            self._rose(self._quiet * FRAME_MS)
            started = SpeechStarted(onset_ms)
            return [started, *self._begin(now - onset_ms / 1_000), *self._decide(now)]
        self._quiet = 0
        self._fell_at = now
        self._finalizing += self._local
        return [Finalize(), *self._decide(now)]

    def transcript(
        self, transcript: Transcript, now: float, spoken: str = ""
    ) -> Sequence[Instruction]:
        """Take what the recogniser says.

        Args:
            spoken: what the caller has lately heard of the bot, whose echo may be recognised.
        """
        return self._guessing(self._take_transcript(transcript, now, spoken))

    def _take_transcript(
        self, transcript: Transcript, now: float, spoken: str
    ) -> Sequence[Instruction]:
        match transcript:
            case Partial(text) | LikelyEnd(text):
                text = self._unanswered(text)
                if self._is_echo(text, spoken, now):
                    text = ""
                self._partial = text
                self._likely = isinstance(transcript, LikelyEnd)
                if not text:
                    return ()
                self._last_words_at = now
                self._ended = False
                return [*self._begin(now), *self._decide(now)]
            case Final(text, end_of_turn, finalized):
                self._partial, self._likely = "", False
                if finalized:
                    self._finalizing = max(0, self._finalizing - 1)
                begun: Sequence[Instruction] = ()
                text, self._taken = self._unanswered(text), self._taken_still(text)
                if text and self._is_echo(text, spoken, now):
                    text = ""
                if text:
                    self._words.append(text)
                    self._last_words_at = now
                    begun = self._begin(now)
                self._ended, self._ended_ago = end_of_turn and not self._local, 0
                return [*begun, *self._decide(now)]
            case UtteranceEnd():
                return self._finish(now) if self._words and not self._local else ()
            case _ as unreachable:
                assert_never(unreachable)

    def _unanswered(self, text: str) -> str:
        """Return what is new in a text that may begin with words of the turn before.

        Those were a partial when that turn ended, and have been answered. What goes on behind
        them has not. Where a recogniser was lost, they come again one by one.
        """
        taken, said = words_of(self._taken), words_of(text)
        if not taken or said[: len(taken)] != taken:
            return "" if taken[: len(said)] == said else text
        return " ".join(text.split()[len(taken) :])

    def _taken_still(self, text: str) -> str:
        """Return the words of the turn before that a final text leaves to come again."""
        taken, said = words_of(self._taken), words_of(text)
        return " ".join(taken[len(said) :]) if said and taken[: len(said)] == said else ""

    def _guessing(self, decided: Sequence[Instruction]) -> Sequence[Instruction]:
        """Add a guess to what was decided, or take it back."""
        if self._caller is not _Caller.TALKING:
            # Over: the end of the turn says whether the guess was right.
            wrong = self._guess and not any(isinstance(it, EndOfTurn) for it in decided)
            self._guess, self._guesses = "", 0
            return [*decided, WrongGuess()] if wrong else decided
        said = self._said() if self._may_guess() else ""
        if words_of(said) == words_of(self._guess):
            return decided
        orders = list(decided)
        if self._guess:
            orders.append(WrongGuess())
            self._guess = ""
        if said and self._guesses < self._rules.guesses:
            self._guess, self._guesses = said, self._guesses + 1
            orders.append(Guess(said))
        return orders

    def _may_guess(self) -> bool:
        """Return whether the caller has probably finished."""
        if self._voice or self._finalizing or self._bot_active:
            return False
        # A provider's words come late: until it says so, the last of them may be missing. One that
        # only expects so is believed when the ears have let go: not to wait for them gains 20 ms,
        # and makes a request for nothing of nearly every pause (`bench.hearing --only flux`).
        if not (self._local or self._ended or self._likely):
            return False
        said = self._said()
        return not (self._vocabulary.unfinished(said) or self._vocabulary.dictating(said))

    def _is_echo(self, text: str, spoken: str, now: float) -> bool:
        """Return whether these are the bot's own words, come back from the caller's phone."""
        if not spoken or not text:
            return False
        heard = self._voice or now - self._fell_at <= self._interruption.unheard_ms / 1_000
        return echoed(text, spoken, voice=heard)

    def _rose(self, silence_ms: int) -> None:
        """Learn from a silence that was not the end."""
        if self._caller is _Caller.TALKING and self._words and self._local:
            self._patience.paused(silence_ms, self._said())
        elif self._since_turn is not None:
            if (self._quiet - self._since_turn) * FRAME_MS <= self._rules.regret_ms:
                self._patience.cut_off(silence_ms)
            self._since_turn = None

    def _begin(self, onset: float) -> Sequence[Instruction]:
        """React to the first sound or word of the caller."""
        if self._caller is not _Caller.QUIET:
            return ()
        self._passed_over = None
        if not self._bot_active:
            self._caller = _Caller.TALKING
            return ()
        if self._interruption.policy != "commit":
            self._caller = _Caller.SUSPECTED
            return [Interrupt(onset)]
        self._caller = _Caller.TALKING
        return [Interrupt(onset), Verdict(confirmed=True)]

    def _decide(self, now: float) -> Sequence[Instruction]:
        """Decide what time and words so far allow to be decided."""
        rules = self._rules
        if self._ended and self._words:
            if self._caller is _Caller.SUSPECTED and self._only_listening():
                return self._refute(now)
            needed_ms = self._patience.needed_ms(self._said(), hangover_ms=rules.agree_ms)
            if self._voice:
                # The caller goes on, unless the ears have not let go since: then it is noise.
                noise = self._run > self._ended_ago
                over = noise and self._ended_ago * FRAME_MS >= max(needed_ms, rules.disagree_ms)
            else:
                over = self._quiet * FRAME_MS >= needed_ms
            return self._finish(now) if over else self._confirm_if_meant()
        if self._voice:
            return self._confirm_if_meant()
        if self._finalizing:
            if now - max(self._fell_at, self._asked_at) < rules.final_grace_ms / 1_000:
                return self._confirm_if_meant()
            # Words may be lost with it, but a caller who is not understood speaks again.
            self._finalizing = 0
            return [RecogniserLate(), *self._decide(now)]
        silence = now - max(self._fell_at, self._last_words_at)
        if self._words and self._local:
            if self._caller is _Caller.SUSPECTED and self._only_listening():
                return self._refute(now)
            confirmed = self._confirm_if_meant()
            needed_ms = self._patience.needed_ms(self._said(), hangover_ms=rules.hangover_ms)
            if self._run * FRAME_MS >= needed_ms:
                return [*confirmed, *self._finish(now)]
            return confirmed
        if self._words or self._partial:
            if silence >= rules.provider_silence_ms / 1_000:
                return self._finish(now)
            return self._confirm_if_meant()
        if self._local or silence >= self._interruption.resume_ms / 1_000:
            return self._refute(now)
        return ()

    def _confirm_if_meant(self) -> Sequence[Instruction]:
        if self._caller is not _Caller.SUSPECTED:
            return ()
        said, rules = self._said(), self._interruption
        words = self._vocabulary.count(said)
        voiced_ms = self._run * FRAME_MS if self._voice else 0
        if (
            words >= max(1, rules.confirm_words)
            or (said and self._vocabulary.stops(said))
            or 0 < rules.confirm_ms <= voiced_ms
        ):
            self._caller = _Caller.TALKING
            return [Verdict(confirmed=True)]
        return ()

    def _finish(self, now: float) -> Sequence[Instruction]:
        """End the caller's turn with the words there are."""
        if self._caller is _Caller.SUSPECTED:
            if self._only_listening():
                return self._refute(now)
            return [Verdict(confirmed=True), self._end_turn(self._said())]
        return [self._end_turn(self._said())]

    def _refute(self, now: float) -> Sequence[Instruction]:
        """Give the floor back: it was noise, or only a sign of listening."""
        before, said = self._caller, self._said()
        self._caller = _Caller.QUIET
        self._forget()
        if before is not _Caller.SUSPECTED:
            return [Nothing()] if before is _Caller.TALKING else ()
        self._passed_over = (said, now) if said else None
        return [Verdict(confirmed=False)]

    def _end_turn(self, text: str) -> EndOfTurn:
        self._caller = _Caller.QUIET
        self._taken, self._run = self._partial, 0
        self._since_turn = None if self._voice else self._quiet
        self._patience.turn_over()
        self._forget()
        self._bot_active = True  # from here on a reply is owed, and can be interrupted
        return EndOfTurn(text)

    def _forget(self) -> None:
        self._words.clear()
        self._partial = ""
        self._ended = False

    def _only_listening(self) -> bool:
        return self._vocabulary.only_listening(self._said())

    def _said(self) -> str:
        return " ".join(text for text in [*self._words, self._partial] if text)
