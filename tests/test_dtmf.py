"""Keys of a telephone, and what is none."""

from __future__ import annotations

import math
import random

import pytest

from voicebot import audio
from voicebot.dtmf import is_key

LOW, HIGH = (697, 770, 852, 941), (1_209, 1_336, 1_477, 1_633)


def sound(*tones: tuple[float, float], noise: float = 0.0) -> bytes:
    """Return 20 ms of tones, each with its peak of a full scale of 1."""
    rng = random.Random(1)
    pcm = bytearray()
    for i in range(audio.FRAME_BYTES):
        value = sum(peak * math.sin(2 * math.pi * hz * i / audio.RATE_HZ) for hz, peak in tones)
        value += rng.gauss(0, noise)
        pcm += round(value * 32_767).to_bytes(2, "little", signed=True)
    return audio.encode(bytes(pcm))


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("high", HIGH)
@pytest.mark.parametrize("peak", [0.4, 0.02])
def test_every_key_is_one(low: int, high: int, peak: float) -> None:
    assert is_key(sound((low, peak), (high, peak)))


@pytest.mark.parametrize("off", [0.985, 1.015])
def test_a_key_may_be_off_by_as_much_as_q_23_lets_it(off: float) -> None:
    assert is_key(sound((770 * off, 0.3), (1_336 * off, 0.3)))


@pytest.mark.parametrize("low, high", [(0.3, 0.12), (0.15, 0.3)])
def test_the_two_need_not_be_equally_loud(low: float, high: float) -> None:
    assert is_key(sound((852, low), (1_477, high)))


def test_a_key_is_heard_through_noise() -> None:
    assert is_key(sound((941, 0.2), (1_209, 0.2), noise=0.05))


@pytest.mark.parametrize(
    "frame",
    [
        bytes([audio.SILENCE]) * audio.FRAME_BYTES,
        sound(noise=0.1),
        sound((425, 0.3)),
        sound((350, 0.3), (440, 0.3)),
        sound((697, 0.3)),  # one tone of a key
        sound((697, 0.3), (852, 0.3)),  # two of the same group
        sound((1_209, 0.3), (1_477, 0.3)),
        sound((697, 0.3), (1_209, 0.05)),  # a voice may be like this
        sound((697, 0.2), (1_209, 0.2), (440, 0.3)),
        sound((733, 0.3), (1_272, 0.3)),  # between the keys
        sound(*((140.0 * n, 0.3 / n) for n in range(1, 20))),  # a vowel
    ],
)
def test_what_is_no_key(frame: bytes) -> None:
    assert not is_key(frame)
