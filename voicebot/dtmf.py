"""Whether a frame is the tone of a telephone key: two pure tones, one of each group, and no more.

Twilio tells keys apart from the audio; this keeps those that are in the audio all the same from
being taken for the caller's voice. Synchronous, 80 µs a frame.

Source: ITU-T Q.23 for the frequencies, Q.24 for how unequal the two may be.
"""

from __future__ import annotations

import math
from array import array
from operator import mul
from typing import Final

from voicebot import audio

_LOW_HZ: Final = (697, 770, 852, 941)
_HIGH_HZ: Final = (1_209, 1_336, 1_477, 1_633)
_SHARE: Final = 0.7  # of the energy in the two; of 32,000 frames of speech none has more than 0.77
_LEAST: Final = 0.1  # in the weaker: 8 dB less than the other is 0.14, and speech is rarely here


def _waves(hz: int) -> tuple[list[float], list[float]]:
    angles = [2 * math.pi * hz * i / audio.RATE_HZ for i in range(audio.FRAME_BYTES)]
    return [math.cos(angle) for angle in angles], [math.sin(angle) for angle in angles]


_LOW: Final = [_waves(hz) for hz in _LOW_HZ]
_HIGH: Final = [_waves(hz) for hz in _HIGH_HZ]


def is_key(frame: bytes) -> bool:
    """Say whether 20 ms of mu-law, 160 bytes, are the tone of a key throughout."""
    samples = array("h", audio.decode(frame))
    whole: float = sum(map(mul, samples, samples)) * len(samples) / 2
    if not whole:
        return False
    low, high = (max(_power(samples, *waves) for waves in group) / whole for group in (_LOW, _HIGH))
    return low + high > _SHARE and min(low, high) > _LEAST


def _power(samples: array[int], wave: list[float], turned: list[float]) -> float:
    along: float = sum(map(mul, samples, wave))
    across: float = sum(map(mul, samples, turned))
    return along**2 + across**2
