"""G.711 mu-law at 8,000 Hz, the only audio the call engine sees.

8 bytes are 1 ms; a frame is 160 bytes, 20 ms. Tables instead of `audioop`, which Python 3.13
no longer has. Nothing here resamples: that belongs to the edges that meet other rates.
"""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from typing import Final

RATE_HZ: Final = 8_000
BYTES_PER_MS: Final = 8  # one byte a sample, 8 samples a millisecond
FRAME_MS: Final = 20  # what Twilio sends, and what the ears decide on
FRAME_BYTES: Final = FRAME_MS * BYTES_PER_MS
SILENCE: Final = 0xFF  # mu-law zero; 0x00 would be full-scale negative
BYTES_PER_S: Final = RATE_HZ

_BIAS: Final = 0x84  # ITU-T G.711: added before the exponent is taken
_CLIP: Final = 32_635  # largest magnitude that still fits after the bias


def _expand(code: int) -> int:
    code = ~code & 0xFF
    magnitude = ((code & 0x0F) << 3) + _BIAS
    magnitude = (magnitude << ((code & 0x70) >> 4)) - _BIAS
    return -magnitude if code & 0x80 else magnitude


#: 16-bit PCM value of each mu-law code.
PCM16: Final = tuple(_expand(code) for code in range(256))
_LOW: Final = bytes(value & 0xFF for value in PCM16)
_HIGH: Final = bytes(value >> 8 & 0xFF for value in PCM16)
_SQUARES: Final = tuple(value * value for value in PCM16)


def _build_encoder() -> bytes:
    """Return the code of every 16-bit sample, indexed by the sample itself.

    Negative samples index from the end, as Python does anyway: 0…32767, then -32768…-1.
    """
    positive = bytearray(32_768)
    for exponent in range(8):
        for mantissa in range(16):
            first = max(0, ((mantissa | 0x10) << (exponent + 3)) - _BIAS)
            last = min(32_767, ((mantissa + 1 | 0x10) << (exponent + 3)) - _BIAS)
            if mantissa == 15:
                last = min(32_767, (0x20 << (exponent + 3)) - _BIAS)
            code = ~((exponent << 4) | mantissa) & 0xFF
            positive[first:last] = bytes([code]) * (last - first)
    positive[_CLIP:] = bytes([0x80]) * (32_768 - _CLIP)
    negative = bytes(code & 0x7F for code in reversed(positive))
    return bytes(positive) + bytes([negative[0]]) + negative[:-1]


_ENCODE: Final = _build_encoder()


def decode(mulaw: bytes) -> bytes:
    """Return 16-bit little-endian PCM for mu-law bytes; twice as many bytes."""
    pcm = bytearray(2 * len(mulaw))
    pcm[0::2] = mulaw.translate(_LOW)  # a tenth of the time of a lookup per sample
    pcm[1::2] = mulaw.translate(_HIGH)
    return bytes(pcm)


def encode(pcm: bytes) -> bytes:
    """Return mu-law for 16-bit little-endian PCM.

    Raises:
        ValueError: the number of bytes is odd.
    """
    samples = array("h")
    samples.frombytes(pcm)
    return bytes(map(_ENCODE.__getitem__, samples))


def dbov(mulaw: bytes) -> float:
    """Return the level in dB below overload (RMS against full scale); -inf for no bytes.

    A full-scale sine is about -3, telephone speech -32…-20, digital silence below -90.
    """
    if not mulaw:
        return -math.inf
    power = sum([_SQUARES[code] for code in mulaw]) / len(mulaw)  # as a list: in half the time
    return 10.0 * math.log10(power / 32_768.0**2 + 1e-10)


def silence(milliseconds: int) -> bytes:
    """Return that much mu-law silence."""
    return bytes([SILENCE]) * (milliseconds * BYTES_PER_MS)


def fade_in(mulaw: bytes, milliseconds: float = 5.0) -> bytes:
    """Return the audio with a linear ramp from zero over its first milliseconds.

    5 ms is long enough that a cut is not heard as a click and short enough not to be heard
    as a fade.
    """
    count = min(len(mulaw), round(milliseconds * BYTES_PER_MS))
    head = array("h", (PCM16[code] * i // count for i, code in enumerate(mulaw[:count])))
    return bytes(map(_ENCODE.__getitem__, head)) + mulaw[count:]


@lru_cache(maxsize=16)
def _quieter_codes(decibel: float) -> bytes:
    gain = 10.0 ** (-decibel / 20)
    return bytes(_ENCODE[round(value * gain)] for value in PCM16)


def quieter(mulaw: bytes, decibel: float) -> bytes:
    """Return the audio quieter by that much."""
    return mulaw.translate(_quieter_codes(decibel))


class Framer:
    """Twilio media of any length and with gaps in; whole 20 ms frames in order out.

    Time is Twilio's own `timestamp` (milliseconds since the start of the stream). A hole is
    filled with silence and counted, up to `max_gap_ms`; a longer one is counted and skipped,
    because nobody listens to minutes of invented silence.
    """

    def __init__(self, max_gap_ms: int = 1_000) -> None:
        self._max_gap_ms = max_gap_ms
        self._pending = bytearray()
        self._next_ms: float | None = None
        self.gaps = 0
        self.gap_ms = 0.0
        self.overlap_ms = 0.0

    def push(self, audio: bytes, timestamp_ms: int) -> list[bytes]:
        """Return the frames completed by this message, oldest first."""
        end_ms = timestamp_ms + len(audio) / BYTES_PER_MS
        # Under one frame is jitter of the stamps: neither lost audio nor audio twice.
        hole = 0.0 if self._next_ms is None else timestamp_ms - self._next_ms
        if hole >= FRAME_MS:
            self.gaps += 1
            self.gap_ms += hole
            if hole <= self._max_gap_ms:
                self._pending += silence(int(hole))
        elif hole <= -FRAME_MS and self._next_ms is not None:
            self.overlap_ms += self._next_ms - timestamp_ms
            end_ms = max(end_ms, self._next_ms)
        self._next_ms = end_ms
        if not self._pending and len(audio) == FRAME_BYTES:
            return [audio]
        self._pending += audio
        whole = len(self._pending) - len(self._pending) % FRAME_BYTES
        frames = [bytes(self._pending[i : i + FRAME_BYTES]) for i in range(0, whole, FRAME_BYTES)]
        del self._pending[:whole]
        return frames
