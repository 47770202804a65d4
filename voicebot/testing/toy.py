"""Toy speech: audio that can be read back as text, so that a test can say what was heard.

Each character of `ALPHABET` is 50 ms of one loud mu-law byte, of its own. Mu-law silence reads
as nothing, and a pause of 150 ms or more as the space between two words. A character counts
when more than half of it is there, so audio may be cut anywhere. Every character is between
-6 and -14 dBov: loud for ears and judges that go by energy, and too even in level for one letter
to pass for another's background.

Not for ears that know voices (webrtcvad, Silero): to them it is no speech.
"""

from __future__ import annotations

import re
from typing import Final

from voicebot.audio import BYTES_PER_MS, BYTES_PER_S

ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789 '.,?!-"
CHAR_MS: Final = 50  # 20 characters a second; people say 15
CHAR_BYTES: Final = CHAR_MS * BYTES_PER_MS
PAUSE_MS: Final = 150  # an underrun inside a word is shorter

_PAUSE_BYTES: Final = PAUSE_MS * BYTES_PER_MS
# Both signs. None is a letter of base64, by which double encoding is recognised.
_CODES: Final = bytes([*range(0x90, 0xA6), *range(0x10, 0x25)])
_NOISE: Final = bytes([0x0E, 0x8E])  # as loud, and no character
_CODE: Final = dict(zip(ALPHABET, _CODES, strict=True))
_CHAR: Final = {code: char for char, code in _CODE.items()}
_SOUND: Final = {char: bytes([code]) * CHAR_BYTES for char, code in _CODE.items()}
# One alternative a code: thirteen times faster than a back reference.
_RUN: Final = re.compile(
    b"|".join(re.escape(bytes([code])) * 2 + b"*" for code in _CODES)
    + b"|[^"
    + re.escape(_CODES)
    + b"]+"
)


class _Spelling(dict[int, str]):
    """What `str.translate` writes for each code point: always one character."""

    def __missing__(self, point: int) -> str:
        char = chr(point).lower()
        spelt = " " if char.isspace() else char if char in _CODE else "-"
        self[point] = spelt
        return spelt


_SPELLING: Final = _Spelling({ord("’"): "'", ord("…"): "."})


def spell(text: str) -> str:
    """Return the text as toy speech can say it: as long, in lower case, `-` for what is unknown."""
    return text.translate(_SPELLING)


def say(text: str) -> bytes:
    """Return the text as audio: mu-law, 8,000 Hz, `CHAR_BYTES` a character."""
    return b"".join([_SOUND[char] for char in spell(text)])


def read(audio: bytes) -> str:
    """Return the text of toy speech, cut and interrupted anywhere. `read(say(t)) == spell(t)`."""
    reader = Reader()
    reader.feed(audio)
    return reader.text


def noise(seconds: float) -> bytes:
    """Return a sound that reads as nothing, like a cough."""
    length = round(seconds * BYTES_PER_S)
    return (_NOISE * (length // 2 + 1))[:length]


class Reader:
    """Reads toy speech as it comes, in chunks of any length, to the byte as if in one."""

    def __init__(self) -> None:
        self._text = ""
        self._char = ""  # the run under way; it may be interrupted by short silence
        self._length = 0
        self._pause = 0  # bytes between the last character that counted and the run
        self._quiet = 0  # bytes behind the run

    @property
    def text(self) -> str:
        """What was said so far."""
        return self._text + self._counted()

    @property
    def quiet_ms(self) -> float:
        """How long nobody has spoken; noise is nobody's speech."""
        return self._quiet / BYTES_PER_MS

    def feed(self, audio: bytes) -> None:
        """Read on."""
        for run in _RUN.finditer(audio):
            char = _CHAR.get(audio[run.start()])
            length = run.end() - run.start()
            if char is None:
                self._quiet += length
            elif char == self._char and self._quiet < _PAUSE_BYTES:
                self._length += length
                self._quiet = 0
            else:
                self._begin(char, length)

    def _begin(self, char: str, length: int) -> None:
        counted = self._counted()
        self._text += counted
        # A run too short to count, as in a fade, is part of the pause around it.
        self._pause = self._quiet if counted else self._pause + self._length + self._quiet
        self._char, self._length, self._quiet = char, length, 0

    def _counted(self) -> str:
        """Return what the run under way adds to the text."""
        chars = self._char * ((self._length + CHAR_BYTES // 2 - 1) // CHAR_BYTES)
        if chars and self._pause >= _PAUSE_BYTES and " " not in (chars[0], self._text[-1:] or " "):
            return f" {chars}"
        return chars
