"""The caller of a simulated call: follows a script, 20 ms at a time.

Sans-IO. Knows of the bot only what comes out of the caller's phone, as a person would: when it
became audible and when it fell silent. Decides when each utterance begins, and when to hang up.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, assert_never

from voicebot.audio import BYTES_PER_MS, FRAME_BYTES, FRAME_MS, SILENCE, dbov
from voicebot.simulator.loudness import WINDOW_BYTES, WINDOW_MS, sounds

AUDIBLE_DBOV: Final = -50.0  # telephone speech is at -32…-20, line noise under -55
REPLY_GAP_MS: Final = 300  # silence after which a sound counts as a new beginning
HANG_UP_PAUSE_S: Final = 1.5  # silence after the last reply: longer than between sentences
RESUME_S: Final = 3.0  # by then a bot that paused for a cough has gone on; peers take 2 s
KEY_INTERVAL_MS: Final = 250  # brisk dialling by hand

_SILENT: Final = bytes([SILENCE]) * WINDOW_BYTES
_SILENT_FRAME: Final = bytes([SILENCE]) * FRAME_BYTES
# Codes so loud that one of them makes its window audible, whatever the others are.
_LOUD: Final = bytes(
    code
    for code in range(256)
    if dbov(bytes([code])) > AUDIBLE_DBOV + 10 * math.log10(WINDOW_BYTES)
)


@dataclass(frozen=True, slots=True)
class At:
    """Speak that long after the start of the stream."""

    seconds: float


@dataclass(frozen=True, slots=True)
class InterruptAfter:
    """Speak that long after the bot's next reply (or its greeting) became audible."""

    milliseconds: float


@dataclass(frozen=True, slots=True)
class WhenSilent:
    """Speak when the bot has replied and has been silent for that long: an ordinary turn."""

    seconds: float = 0.8  # people take turns in 0.2-1 s; a bot's pauses in a reply are shorter


@dataclass(eq=False)
class Cue:
    """Speak when told to, by whoever watches the call; the same frame if it is not over yet."""

    given: bool = False

    def give(self) -> None:
        """Let the caller speak, now or as soon as it is their turn in the script."""
        self.given = True


When = At | InterruptAfter | WhenSilent | Cue


@dataclass(frozen=True, slots=True)
class Utterance:
    """Something the caller does: speaks, presses keys, or both at once.

    Utterances follow each other: none begins before the one ahead of it has ended.
    `backchannel`: a cough or "mm-hm" that must not cost the bot its reply.
    """

    name: str
    audio: bytes = field(default=b"", repr=False)  # mu-law
    when: When = WhenSilent()
    digits: str = ""
    backchannel: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """The caller's part.

    The caller hangs up `hang_up_after_s` after the start of the stream or, by default, when the
    last reply is over. Where the bot stays silent for `patience_s`, the caller goes on anyway.
    """

    utterances: tuple[Utterance, ...]
    hang_up_after_s: float | None = None
    patience_s: float = 10.0  # callers hang up on longer silences
    limit_s: float = 600.0  # a bot that never stops talking must not hold up a CI job
    send_stop: bool = True  # False: the line drops without a `stop`, which happens


@dataclass(frozen=True, slots=True)
class Spoken:
    """When an utterance of the script was spoken, silence at its edges included."""

    utterance: Utterance
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Pressed:
    """A key of the caller's phone."""

    at_ms: float
    digit: str


def _is_audible(window: bytes) -> bool:
    # The level takes ten times as long as the two questions that mostly make it needless.
    if window == _SILENT:
        return False
    return len(window.translate(None, _LOUD)) < WINDOW_BYTES or dbov(window) > AUDIBLE_DBOV


@lru_cache(maxsize=64)  # a soak speaks the same recordings over and over
def _sound_ms(audio: bytes) -> float:
    """Return where its last sound ends."""
    heard = sounds(audio, bridge_ms=0)
    return heard[-1].end_ms if heard else 0.0


class BotVoice:
    """When the bot is audible, from the sound that left the caller's phone and nothing else."""

    def __init__(self) -> None:
        self.onsets_ms: list[float] = []
        self.last_ms = 0.0  # end of its last sound
        self._windows = 0  # looked at so far

    def hear(self, heard: bytearray, until_ms: float = math.inf) -> None:
        """Look at what was heard since the last time, but no further than `until_ms`."""
        windows = int(min(until_ms * BYTES_PER_MS, len(heard))) // WINDOW_BYTES
        for index in range(self._windows, windows):
            window = heard[index * WINDOW_BYTES : (index + 1) * WINDOW_BYTES]
            if _is_audible(bytes(window)):
                start_ms = float(index * WINDOW_MS)
                if not self.onsets_ms or start_ms - self.last_ms >= REPLY_GAP_MS:
                    self.onsets_ms.append(start_ms)
                self.last_ms = start_ms + WINDOW_MS
            self._windows = index + 1

    def next_onset_ms(self, since_ms: float) -> float | None:
        """Return when the bot began to speak, the first time after that."""
        index = bisect_left(self.onsets_ms, since_ms)
        return self.onsets_ms[index] if index < len(self.onsets_ms) else None


class Caller:
    """Follows the script, one frame at a time; a frame is asked for when it is over."""

    def __init__(self, script: Script, bot: BotVoice) -> None:
        self.channel = bytearray()
        self.spoken: list[Spoken] = []
        self.pressed: list[Pressed] = []
        self._script = script
        self._bot = bot
        self._ahead = deque(script.utterances)
        self._saying = memoryview(b"")
        self._keys: deque[Pressed] = deque()
        self._since_ms = 0.0  # when the caller's last sound or key ended
        self._pause_s = 0.0  # extra silence before going on

    @property
    def now_ms(self) -> float:
        """Where the next frame begins."""
        return len(self.channel) / BYTES_PER_MS

    def next_frame(self) -> tuple[bytes, list[Pressed]]:
        """Return the next 20 ms of sound, and the keys pressed in them.

        The bot has been heard to the end of these 20 ms and no further.
        """
        busy = self._saying or self._keys
        if self._ahead and not busy and self._is_due(self._ahead[0].when):
            self._begin(self._ahead.popleft())
        keys = [key for key in self._keys if key.at_ms < self.now_ms + FRAME_MS]
        for _ in keys:
            self._keys.popleft()
        self.pressed += keys
        frame = _SILENT_FRAME
        if self._saying:
            frame = bytes(self._saying[:FRAME_BYTES]).ljust(FRAME_BYTES, bytes([SILENCE]))
            self._saying = self._saying[FRAME_BYTES:]
        self.channel += frame
        return frame, keys

    @property
    def hangs_up(self) -> bool:
        """Whether the caller has nothing more to say or to hear."""
        if self._script.hang_up_after_s is not None:
            return self.now_ms >= self._script.hang_up_after_s * 1000
        if self._ahead or self._saying or self._keys:
            return False
        return self._is_due(WhenSilent(HANG_UP_PAUSE_S))

    def _begin(self, utterance: Utterance) -> None:
        start_ms = self.now_ms
        end_ms = start_ms + len(utterance.audio) / BYTES_PER_MS
        self.spoken.append(Spoken(utterance, start_ms, end_ms))
        self._saying = memoryview(utterance.audio)
        self._keys.extend(
            Pressed(start_ms + index * KEY_INTERVAL_MS, digit)
            for index, digit in enumerate(utterance.digits)
        )
        self._since_ms = start_ms + _sound_ms(utterance.audio)
        if self._keys:
            self._since_ms = max(self._since_ms, self._keys[-1].at_ms)
        self._pause_s = RESUME_S if utterance.backchannel else 0.0

    def _is_due(self, when: When) -> bool:
        now_ms = self.now_ms
        patience_ms = self._script.patience_s * 1000
        lost_patience = now_ms - max(self._since_ms, self._bot.last_ms) >= patience_ms
        onset_ms = self._bot.next_onset_ms(self._since_ms)
        match when:
            case At(seconds):
                return now_ms >= seconds * 1000
            case InterruptAfter(milliseconds):
                return lost_patience or (onset_ms is not None and now_ms >= onset_ms + milliseconds)
            case Cue(given):
                return lost_patience or given
            case WhenSilent(seconds):
                # After a backchannel the bot goes on without a new beginning.
                spoke = onset_ms is not None or self._pause_s > 0
                silent_ms = now_ms - max(self._since_ms, self._bot.last_ms)
                return lost_patience or (spoke and silent_ms >= (seconds + self._pause_s) * 1000)
            case _ as unreachable:
                assert_never(unreachable)
