"""A voice whose every millisecond is known: text in, mu-law out.

The mapping: the *i*-th character of the text owns the `CHAR_MS` milliseconds from
`i * CHAR_MS` on. A letter or digit sounds, and so does a hyphen or an apostrophe between
two of them; everything else is silence. So words are bursts, a space is a gap, a comma before
a space a longer one, and `word_spans` tells from the text alone when each word is heard.

The sound is a glottal-like harmonic series with two resonances chosen by the letter, at
`LEVEL_DBOV`: a voice activity detector takes it for speech, nobody else would.
"""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from voicebot import audio

CHAR_MS: Final = 65  # 15 characters a second, an unhurried speaker
LEVEL_DBOV: Final = -20.0  # of a sounding stretch: a loud telephone voice
PERIODS: Final = audio.BYTES_PER_MS  # of the voice in a character: 123 Hz, no click between two
HIGHEST_HZ: Final = 3_400  # the telephone band


class WordSpan(NamedTuple):
    """A word and where it sounds, in milliseconds from the start of the speech."""

    word: str
    start_ms: int
    end_ms: int


def speak(text: str, char_ms: int = CHAR_MS) -> bytes:
    """Return the speech: mu-law, 8,000 Hz, `char_ms` for every character."""
    quiet = audio.silence(char_ms)
    return b"".join(
        _letter(char.lower(), char_ms) if sounds else quiet
        for char, sounds in zip(text, _sounding(text), strict=True)
    )


def word_spans(text: str, char_ms: int = CHAR_MS) -> list[WordSpan]:
    """Return every word that sounds, in order. A word is what stands between spaces."""
    sounding = _sounding(text)
    edges = [-1, *(i for i, char in enumerate(text) if char.isspace()), len(text)]
    spans = []
    for before, after in pairwise(edges):
        audible = [i for i in range(before + 1, after) if sounding[i]]
        if audible:
            word = text[before + 1 : after]
            spans.append(WordSpan(word, audible[0] * char_ms, (audible[-1] + 1) * char_ms))
    return spans


def _sounding(text: str) -> list[bool]:
    padded = f" {text} "
    return [
        char.isalnum() or (char in "-'’" and padded[i].isalnum() and padded[i + 2].isalnum())
        for i, char in enumerate(text)
    ]


@lru_cache(maxsize=1_024)  # 520 bytes each; a language has 40 of them, times a few speeds
def _letter(char: str, char_ms: int) -> bytes:
    """Return one character's sound: whole periods, each `char_ms` samples, from zero to zero."""
    base_hz = audio.RATE_HZ / char_ms
    # The alphabet wanders over the vowels' range: 300…800 Hz and 900…2,400 Hz.
    first_hz = 300 + ord(char) * 37 % 500
    second_hz = 900 + ord(char) * 211 % 1_500
    partials = [
        (k, (_resonance(k * base_hz, first_hz) + _resonance(k * base_hz, second_hz)) / k)
        for k in range(1, int(HIGHEST_HZ / base_hz) + 1)
    ]
    step = 2 * math.pi / char_ms
    period = [sum(a * math.sin(step * k * i) for k, a in partials) for i in range(char_ms)]
    rms = math.sqrt(sum(sample * sample for sample in period) / char_ms)
    gain = 32_768 * 10 ** (LEVEL_DBOV / 20) / rms
    pcm = array("h", (round(sample * gain) for sample in period))
    return audio.encode(pcm.tobytes()) * PERIODS


def _resonance(hz: float, centre_hz: float) -> float:
    """Gain of a formant 120 Hz wide, with a floor so that no partial is lost."""
    return 0.05 + 1 / (1 + ((hz - centre_hz) / 120) ** 2)
