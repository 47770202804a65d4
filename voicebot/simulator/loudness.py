"""Where a recording makes a sound: by energy alone, in windows of 10 ms.

This is the ruler of the simulator, so it is plain on purpose: no voice detection, nothing
learned, nothing shared with the ears of the bot that it measures.

A window is loud when its level is above the highest of
- -55 dBov, under which a telephone line is silent;
- 30 dB under the recording's loud parts (95th percentile), so that a quiet recording does not
  begin late and the tail of a loud one does not count;
- 6 dB over its background (10th percentile), but never within 12 dB of the loud parts, so that
  noise is not speech and a recording without any pause is not noise.
A window counts only among three loud ones of four: 30 ms are a sound, a click is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from voicebot.audio import BYTES_PER_MS, dbov

WINDOW_MS: Final = 10
WINDOW_BYTES: Final = WINDOW_MS * BYTES_PER_MS
_FLOOR_DBOV: Final = -55.0
_RANGE_DB: Final = 30.0
_ABOVE_NOISE_DB: Final = 6.0
_BELOW_SPEECH_DB: Final = 12.0


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch of sound, in ms from the start of the recording."""

    start_ms: float
    end_ms: float


def loud_windows(mulaw: bytes) -> list[int]:
    """Return the start, in ms, of every window with a sound in it."""
    levels = [dbov(mulaw[i : i + WINDOW_BYTES]) for i in range(0, len(mulaw), WINDOW_BYTES)]
    audible = sorted(level for level in levels if level > _FLOOR_DBOV)
    if not audible:
        return []
    speech = audible[int(0.95 * (len(audible) - 1))]
    noise = sorted(levels)[int(0.10 * (len(levels) - 1))]
    threshold = max(
        _FLOOR_DBOV,
        speech - _RANGE_DB,
        min(noise + _ABOVE_NOISE_DB, speech - _BELOW_SPEECH_DB),
    )
    loud = [level > threshold for level in levels]
    counted: set[int] = set()
    for i in range(len(loud)):
        if loud[i] and sum(loud[i : i + 4]) >= 3:
            counted.update(j for j in range(i, min(i + 4, len(loud))) if loud[j])
    return [i * WINDOW_MS for i in sorted(counted)]


def sounds(mulaw: bytes, bridge_ms: float) -> list[Sound]:
    """Return the stretches of sound; silences up to `bridge_ms` are part of one."""
    found: list[Sound] = []
    for start in loud_windows(mulaw):
        end = min(start + WINDOW_MS, len(mulaw) / BYTES_PER_MS)
        if found and start - found[-1].end_ms <= bridge_ms:
            found[-1] = Sound(found[-1].start_ms, end)
        else:
            found.append(Sound(start, end))
    return found
