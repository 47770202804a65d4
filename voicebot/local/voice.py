"""Piper or espeak-ng: text in, telephone audio out. Runs in `worker.py` only.

Both are GPL-3.0-or-later, so they are imported here, inside the functions, by a process of
its own, and never by the service. Either gives 22,050 Hz; a polyphase filter takes that to
8,000 Hz, a gain brings the voice to about -20 dBov, and what would clip is turned down.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import soxr  # type: ignore[import-untyped]  # ships no py.typed

from voicebot import audio
from voicebot.errors import MissingPart
from voicebot.local import weights

Floats = npt.NDArray[np.float32]

# Piper needs about 100 ms for 40 characters, and the caller waits for no more than these.
FIRST_PIECE_CHARS: Final = 40
# One piece occupies the only voice for about 0.4 s, which other callers may have to wait.
PIECE_CHARS: Final = 160

_SENTENCE_END: Final = re.compile(r"(?<=[.!?…])[\"')\]]*\s+")
_CLAUSE_END: Final = re.compile(r"(?<=[,;:–—])\s+")

_PEAK: Final = 0.89  # -1 dBFS: headroom for mu-law rounding and for the line
_EDGE_LEVEL: Final = 0.004  # -48 dBFS: below is the voice's own breath of silence
_LEAD_IN_S: Final = 0.02  # kept of it, so that no plosive is cut


class Voice(Protocol):
    """One loaded voice. Not thread-safe: one thread owns it."""

    def speak(self, text: str) -> bytes:
        """Return one piece as mu-law, 8,000 Hz; empty for a text without words."""
        ...


def open_voice(name: str, threads: int) -> Voice:
    """Load a voice.

    Raises:
        MissingPart: a package or its weights are absent or not the published ones.
    """
    return PiperVoice(threads) if name == "piper" else EspeakVoice()


def split(text: str) -> list[str]:
    """Return the pieces to synthesise one by one: sentences, the first as short as it can be.

    The first sentence is split at a comma where it is long, because the caller waits for it;
    the others stay whole, for their melody, up to `PIECE_CHARS`.
    """
    pieces: list[str] = []
    for sentence in _SENTENCE_END.split(text.strip()):
        limit = PIECE_CHARS if pieces else FIRST_PIECE_CHARS
        clauses = [sentence] if len(sentence) <= limit else _CLAUSE_END.split(sentence)
        piece = ""
        for clause in clauses:
            if piece and len(piece) + len(clause) >= limit:
                pieces.append(piece)
                piece, limit = "", PIECE_CHARS
            piece = f"{piece} {clause}".strip()
        if piece:
            pieces.append(piece)
    return pieces


def telephone(pcm: Floats, rate_hz: int, gain: float) -> bytes:
    """Return mu-law, 8,000 Hz, for samples of -1…1 at another rate.

    The gain is applied after the resampling, which overshoots, and lowered where a peak would
    clip. Silence before the first sound is cut to 20 ms: the caller waits through it.
    """
    narrow = soxr.resample(pcm, rate_hz, audio.RATE_HZ, quality="HQ") * gain
    peak = float(np.abs(narrow).max(initial=0.0))
    if peak > _PEAK:
        narrow *= _PEAK / peak
    loud = np.flatnonzero(np.abs(narrow) > _EDGE_LEVEL)
    if not len(loud):
        return b""
    first = max(0, int(loud[0]) - int(_LEAD_IN_S * audio.RATE_HZ))
    return audio.encode((narrow[first:] * 32_767).astype("<i2").tobytes())


class PiperVoice:
    """en_US-joe-medium, a neural voice."""

    _GAIN: Final = 1.33  # speaks at -22.5 dBov of itself

    def __init__(self, threads: int) -> None:
        onnxruntime = importlib.import_module("onnxruntime")
        piper = importlib.import_module("piper")
        config = json.loads(weights.load_verified(weights.PIPER_CONFIG))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads must sleep: spinning would take the core from the loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._voice: Any = piper.PiperVoice(
            session=onnxruntime.InferenceSession(
                weights.load_verified(weights.PIPER_MODEL),
                sess_options=options,
                providers=["CPUExecutionProvider"],
            ),
            config=importlib.import_module("piper.config").PiperConfig.from_dict(config),
        )
        # The voice's own level is steadier than peaks scaled to one, sentence by sentence.
        self._settings = importlib.import_module("piper.config").SynthesisConfig(
            normalize_audio=False
        )

    def speak(self, text: str) -> bytes:
        """Return one piece as mu-law, 8,000 Hz; empty for a text without words."""
        return b"".join(  # one chunk a sentence
            telephone(chunk.audio_float_array, chunk.sample_rate, self._GAIN)
            for chunk in self._voice.synthesize(text, self._settings)
        )


class EspeakVoice:
    """espeak-ng by its C interface: robotic, under a millisecond.

    Source: espeak-ng's speak_lib.h.
    """

    _GAIN: Final = 1.0  # speaks at -20.3 dBov of itself
    _PAUSE_MS: Final = 200  # it ends with the last sound; piper's sentences carry their pause
    _SYNCHRONOUS: Final = 2  # AUDIO_OUTPUT_SYNCHRONOUS: Synth returns after the last callback
    _UTF8: Final = 1  # espeakCHARS_UTF8
    _DONT_EXIT: Final = 0x8000  # espeakINITIALIZE_DONT_EXIT: report an error instead
    _BUFFER_MS: Final = 200

    def __init__(self) -> None:
        loader = importlib.import_module("espeakng_loader")
        try:
            self._library = ctypes.CDLL(loader.get_library_path())
        except OSError as exc:
            raise MissingPart(
                f"espeak-ng cannot be loaded ({exc}); reinstall it: "
                "pip install --force-reinstall --no-deps espeakng-loader"
            ) from exc
        self._rate_hz: int = self._library.espeak_Initialize(
            self._SYNCHRONOUS, self._BUFFER_MS, loader.get_data_path().encode(), self._DONT_EXIT
        )
        if self._rate_hz <= 0 or self._library.espeak_SetVoiceByName(b"en-us") != 0:
            raise MissingPart(
                "espeak-ng has no English voice; reinstall it: "
                "pip install --force-reinstall --no-deps espeakng-loader"
            )
        self._samples: list[bytes] = []
        # The library keeps the pointer, so the callback must live as long as it does.
        self._callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
        )(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._samples.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    def speak(self, text: str) -> bytes:
        """Return one piece as mu-law, 8,000 Hz; empty for a text without words."""
        content = text.encode() + b"\0"
        self._samples.clear()
        self._library.espeak_Synth(content, len(content), 0, 0, 0, self._UTF8, None, None)
        samples = np.frombuffer(b"".join(self._samples), dtype="<i2")
        pcm = samples.astype(np.float32) / np.float32(32_768)
        speech = telephone(pcm, self._rate_hz, self._GAIN)
        return speech and speech + audio.silence(self._PAUSE_MS)
