"""Ears that go by energy alone, for toy speech."""

from __future__ import annotations

from typing import Final

from voicebot.audio import FRAME_MS, PCM16

_LOUD: Final = 1_036  # of 16-bit samples: -30 dBov, well under toy speech
_QUIET_CODES: Final = bytes(code for code in range(256) if abs(PCM16[code]) < _LOUD)


class ToyEars:
    """Ears (`ports.Ears`) that rise after `rise_ms` of sound and fall after `fall_ms` without.

    Units: media time, in whole frames of 20 ms; a frame is loud if half of it is.
    """

    def __init__(self, *, rise_ms: int = 60, fall_ms: int = 200) -> None:
        self._rise = max(1, rise_ms // FRAME_MS)
        self._fall = max(1, fall_ms // FRAME_MS)
        self._voice = False
        self._run = 0  # frames in a row that speak against `_voice`

    def hear(self, frame: bytes, *, echo_dbov: float) -> bool:
        """Take 20 ms of the caller; return whether the caller is speaking now.

        A simulated line has no echo, so its level is not asked for.
        """
        loud = len(frame.translate(None, _QUIET_CODES)) * 2 >= len(frame)
        self._run = self._run + 1 if loud is not self._voice else 0
        if self._run >= (self._fall if self._voice else self._rise):
            self._voice, self._run = loud, 0
        return self._voice

    @property
    def onset_ms(self) -> int:
        """How long before the end of the last frame the speech of the last rise began."""
        return self._rise * FRAME_MS
