"""The ears of a call: whether the caller is speaking, every 20 ms, from what the caller sends.

`webrtcvad` hears the first syllable; Silero tells speech from music, tones and noise; two gates
keep out what is too quiet: the noise of the line, and the bot's own voice coming back from the
caller's phone; a key that is pressed is no voice (`dtmf.py`). A rise needs all of them (the FAST
rule); to fall, Silero is enough. Without Silero the ears still work, and then music,
call-progress tones and breath count as speech.

Not a policy: what a rise does to the reply, and how long a pause ends a turn, is decided in
`turns.py`. No clock and no thread: the same frames give the same answers.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final

import webrtcvad

from voicebot.audio import FRAME_BYTES, FRAME_MS, RATE_HZ, dbov, decode
from voicebot.dtmf import is_key
from voicebot.errors import LocalProtocolError, MissingPart
from voicebot.hearing import Hearing
from voicebot.silero import Silero, SileroStream

_log = logging.getLogger(__name__)

_IDLE_DBOV: Final = -90.0  # a silent line; what has not been heard yet is taken to be like it
_BLOCK_FRAMES: Final = 5  # 100 ms of noise: short enough to fit between two words
_WORD_GAP_FRAMES: Final = 5  # 100 ms: a longer gap starts a new onset
_LOUD_QUANTILE: Final = 0.95  # the loud end of some seconds, less their freak frames
_LEAST_LOSS_DB, _MOST_LOSS_DB = 6.0, 45.0  # a loudspeaker beside its microphone; no echo at all
_NEVER: Final = -(10**9)


class OpenEars:
    """Opens the ears of each call, on one model that is loaded here and shared.

    Construction takes 0.1 s and belongs into the start of the service; opening takes
    microseconds, and what it returns needs no closing.
    """

    def __init__(self, hearing: Hearing, *, with_silero: bool = True) -> None:
        self._hearing = hearing
        self._model: Silero | None = None
        if with_silero:
            try:
                self._model = Silero()
            except MissingPart as exc:
                _log.warning("silero_missing", extra={"reason": str(exc)})

    @property
    def confirmed(self) -> bool:
        """Whether Silero confirms what webrtcvad hears; if not, music interrupts the bot."""
        return self._model is not None

    def __call__(self) -> CallerEars:
        """Return the ears of one call."""
        return CallerEars(self._hearing, self._model.open() if self._model else None)


class CallerEars:
    """`ports.Ears` for one call."""

    def __init__(self, hearing: Hearing, silero: SileroStream | None) -> None:
        self._hearing = hearing
        self._silero = silero
        if silero:
            self._webrtc = webrtcvad.Vad(hearing.voiced_mode)
            self._voiced_needed = hearing.voiced_ms // FRAME_MS
            self._voiced_mask = (1 << hearing.voiced_within_ms // FRAME_MS) - 1
        else:
            self._webrtc = webrtcvad.Vad(hearing.alone_mode)
            self._voiced_needed = hearing.alone_ms // FRAME_MS
            self._voiced_mask = (1 << self._voiced_needed) - 1
        self._recent = deque[bytes](maxlen=self._voiced_mask.bit_length())
        self._noise = NoiseFloor(hearing.noise_window_ms)
        self._echo = EchoGate(hearing)
        self._probability = 0.0
        self._voiced_bits = 0  # one a frame, the newest lowest
        self._speaking = False
        self._certain = False  # this speech has reached `fall`
        # Media time in frames: the number of the last frame heard, and of earlier ones.
        self._now = 0
        self._likely = _NEVER  # Silero's last answer of at least `rise`
        self._voiced = _NEVER  # the last voiced frame, and the first of its run
        self._voiced_since = _NEVER
        self._awake_until = hearing.waking_ms // FRAME_MS  # Silero's; see `_ask_silero`
        self._speech = _NEVER  # the last frame that kept `speaking` up
        self._onset = 1

    @property
    def onset_ms(self) -> int:
        """How long before the end of the last frame the speech of the last rise began."""
        return (self._now - self._onset + 1) * FRAME_MS

    @property
    def echo_loss_db(self) -> float:
        """The return loss of the bot's echo, as far as it is learned."""
        return self._echo.loss_db

    def hear(self, frame: bytes, *, echo_dbov: float) -> bool:
        """Take 20 ms of the caller; return whether the caller is speaking now.

        Args:
            frame: 160 bytes mu-law.
            echo_dbov: level of what the caller was hearing of the bot; `-inf` for nothing.

        Raises:
            LocalProtocolError: the frame is not 20 ms.
        """
        if len(frame) != FRAME_BYTES:
            raise LocalProtocolError(f"ears take frames of {FRAME_BYTES} bytes, not {len(frame)}")
        hearing = self._hearing
        self._now += 1
        self._recent.append(frame)
        level = dbov(frame)
        over_echo = level > self._echo.gate(echo_dbov)
        over_noise = level > max(hearing.gate_dbov, self._noise.dbov + hearing.over_noise_db)
        self._noise.learn(level)
        # Both detectors adapt to what they hear, so both hear every frame, loud or not.
        voiced = self._webrtc.is_speech(decode(frame), RATE_HZ) and over_echo and over_noise
        self._note_voiced(voiced)
        self._ask_silero(frame)
        if not self._speaking and self._rises():
            self._speaking, self._certain = True, self._goes_on(voiced, over_echo)
            self._onset = max(self._voiced_since, self._now - hearing.onset_max_ms // FRAME_MS + 1)
            self._speech = self._now
        elif self._goes_on(voiced, over_echo):
            self._speech, self._certain = self._now, True
        elif self._ago_ms(self._speech) >= (
            hearing.release_ms if self._certain else hearing.doubt_ms
        ):
            self._speaking = False
        if self._speaking or voiced:
            self._echo.forget()
        elif self._ago_ms(self._voiced) >= hearing.suspect_ms:
            self._echo.learn(level)
        return self._speaking

    def _note_voiced(self, voiced: bool) -> None:
        self._voiced_bits = (self._voiced_bits << 1 | voiced) & self._voiced_mask
        if voiced:
            if self._now - self._voiced > _WORD_GAP_FRAMES:
                self._voiced_since = self._now
            self._voiced = self._now
            self._awake_until = self._now + self._hearing.awake_ms // FRAME_MS

    def _ask_silero(self, frame: bytes) -> None:
        if self._silero is None:
            return
        if not self._speaking and self._now > self._awake_until:
            self._silero.hold(frame)  # whatever it said, nothing could rise
            return
        probability = self._silero.push(frame)
        if probability is not None:
            self._probability = probability
            if probability >= self._hearing.rise:
                self._likely = self._now

    def _rises(self) -> bool:
        if self._voiced_bits.bit_count() < self._voiced_needed:
            return False
        if self._silero is not None and self._ago_ms(self._likely) >= self._hearing.rise_ms:
            return False
        return not any(map(is_key, self._recent))

    def _goes_on(self, voiced: bool, over_echo: bool) -> bool:
        if self._silero is None:
            return voiced
        # Not only Silero: the echo of a reply that goes on would keep the caller speaking.
        return over_echo and self._probability >= self._hearing.fall

    def _ago_ms(self, frame: int) -> int:
        return (self._now - frame) * FRAME_MS


class NoiseFloor:
    """The level of the line when nobody speaks: the quietest 100 ms of the last seconds."""

    def __init__(self, window_ms: int) -> None:
        blocks = window_ms // (_BLOCK_FRAMES * FRAME_MS)
        self._blocks = deque([_IDLE_DBOV] * blocks, maxlen=blocks)
        self._powers: list[float] = []
        self.dbov = _IDLE_DBOV

    def learn(self, level: float) -> None:
        """Take the level of the next frame."""
        self._powers.append(10.0 ** (level / 10.0))
        if len(self._powers) == _BLOCK_FRAMES:
            self._blocks.append(10.0 * math.log10(sum(self._powers) / _BLOCK_FRAMES))
            self._powers.clear()
            self.dbov = min(self._blocks)


class EchoGate:
    """How loud the bot's own voice may come back: what was sent, less the return loss.

    The loss is learned by comparing how loud the line gets with how loud the bot gets, over the
    same seconds: no need to know the delay, and noise between the words does not pass for echo.
    What was sent is compared with the loudest of the time in which its echo may come back. Else,
    when the bot gets louder, it would seem for the length of the delay as if nothing came back;
    the gate would fall, and what then does come back be taken for the caller.
    Whoever calls `learn` keeps the caller's own speech out of it, or the gate would rise above
    the caller; and calls `forget` where it begins. What was sent just before is then forgotten as
    well: an echo that is taken for speech is not learned from, so neither may be what it is the
    echo of, or the loss would seem the greater the louder the echo is.
    """

    def __init__(self, hearing: Hearing) -> None:
        self.loss_db = hearing.echo_loss_db
        self._margin_db = hearing.echo_margin_db
        self._audible_dbov = hearing.gate_dbov  # the echo of less stays below that gate anyway
        holds = hearing.echo_hold_ms // FRAME_MS
        self._sent = deque([-math.inf] * holds, maxlen=holds)
        self._loudest = -math.inf
        self._waiting: deque[tuple[float, float]] = deque()
        self._wait = holds
        window = hearing.echo_window_ms // FRAME_MS
        self._loud_out = _Quantile(window)
        self._loud_in = _Quantile(window)

    def gate(self, sent_dbov: float) -> float:
        """Take what the caller is hearing of the bot; return what its echo may reach, in dBov."""
        self._sent.append(sent_dbov)
        self._loudest = max(self._sent)
        return self._loudest - self.loss_db + self._margin_db

    def learn(self, level: float) -> None:
        """Take the level of the last frame, known to hold no speech of the caller."""
        if self._loudest <= self._audible_dbov:
            return
        self._waiting.append((self._sent[-1], level))
        if len(self._waiting) <= self._wait:
            return
        heard = max(level for _, level in self._waiting)
        sent, _ = self._waiting.popleft()
        self._loud_out.push(sent)
        self._loud_in.push(heard)
        if self._loud_in.full:
            loss_db = self._loud_out.value - self._loud_in.value
            self.loss_db = min(max(loss_db, _LEAST_LOSS_DB), _MOST_LOSS_DB)

    def forget(self) -> None:
        """Learn nothing from the last `echo_hold_ms`: what followed may have been its echo."""
        self._waiting.clear()


class _Quantile:
    """A high quantile of the last values."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def full(self) -> bool:
        return len(self._sorted) == self._count

    @property
    def value(self) -> float:
        return self._sorted[int(_LOUD_QUANTILE * len(self._sorted))]

    def push(self, value: float) -> None:
        if self.full:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(value)
        insort(self._sorted, value)
