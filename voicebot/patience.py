"""How long a silence ends the turn of this caller: longer where more is likely to come.

Synchronous, no clock: silences are counted in the caller's audio.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from voicebot.words import Vocabulary

_TURNS: Final = 6  # a caller's pauses are remembered for so many turns: people calm down
_BEYOND: Final = 1.2  # the next pause of a caller is not longer than the last by more


@dataclass(frozen=True, slots=True)
class Endpointing:
    """When the caller has finished.

    Units: milliseconds of silence after the ears' release, which is about 0.3 s after the last
    sound (`bench.hearing --only turns`).
    """

    # Where the ears decide: a little longer than the embedded recogniser takes for the words, and
    # no longer than half a second after a finished sentence allows. A pause of 0.3 s is waited
    # out; a longer one is taken for the end and mended before the answer is heard, if the caller
    # goes on, or learned from. At 160 three times as many pauses of 0.42 s are taken for the end.
    hangover_ms: int = 180
    unfinished_ms: int = 1_000  # behind "I would like to": the rest comes within a second
    dictation_ms: int = 1_300  # between the groups of a number
    longest_ms: int = 1_500  # whatever a caller's own pauses are: nobody waits longer
    # A provider's end of turn is believed when the ears have heard nothing for this long: its rule
    # is a silence of 300 ms, and people pause for as long. Flux
    # goes by more than that, and is made to wait as well: the answer comes no later, for thinking
    # has begun.
    agree_ms: int = 100
    disagree_ms: int = 400  # and without, when no word has come for this long: noise
    # How often in a turn thinking may begin before it is certain that the caller has finished:
    # each that was wrong is a request to the model for nothing.
    guesses: int = 2
    final_grace_ms: int = 2_500  # the local recogniser needs 0.2 s; ten times that is a stall
    provider_silence_ms: int = 3_000  # words, but neither speech_final nor UtteranceEnd: noise
    # A caller who goes on this soon after a turn was taken to be over, and before any answer
    regret_ms: int = 1_200  # is heard, had only paused; later, something else came to mind.


class Patience:
    """What a caller's words and own pauses ask for."""

    def __init__(self, rules: Endpointing, vocabulary: Vocabulary) -> None:
        self._rules = rules
        self.vocabulary = vocabulary
        self._longest = 0  # pause inside this turn
        self._pauses: deque[int] = deque(maxlen=_TURNS)  # the longest of each turn

    def paused(self, silence_ms: int, text: str) -> None:
        """Note a silence behind these words of a turn, after which the caller went on.

        One that the words ask for says nothing about the caller.
        """
        if not (self.vocabulary.unfinished(text) or self.vocabulary.dictating(text)):
            self._longest = max(self._longest, silence_ms)

    def turn_over(self) -> None:
        """Begin a new turn."""
        self._pauses.append(self._longest)
        self._longest = 0

    def cut_off(self, silence_ms: int) -> None:
        """Note that the turn noted last was not over: the caller went on after that silence."""
        if self._pauses:
            self._longest = max(self._pauses.pop(), silence_ms)

    def needed_ms(self, text: str, *, hangover_ms: int) -> int:
        """Return the silence behind these words that ends the turn.

        Args:
            hangover_ms: where nothing speaks for more; a provider that says itself when a turn
                is over is believed at once.
        """
        rules = self._rules
        needed = hangover_ms
        if self.vocabulary.dictating(text):
            needed = max(needed, rules.dictation_ms)
        elif self.vocabulary.unfinished(text):
            needed = max(needed, rules.unfinished_ms)
        own = round(max(self._longest, *self._pauses, 0) * _BEYOND)
        return max(needed, min(own, rules.longest_ms) if own > hangover_ms else 0)
