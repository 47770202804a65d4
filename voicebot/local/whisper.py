"""Whisper tiny.en: mu-law telephone speech in, words out. Runs in `worker.py` only.

CTranslate2 runs the network; the log-mel spectrogram and the byte-level tokens are done here,
because the packages that usually do it bring a hundred megabytes of video codecs. Greedy,
one utterance at a time, no timestamps.

The encoder is given 12 s instead of whisper's 30 s: a third of the cost for the same word
error rate on telephone speech; below about 10 s the decoder begins to loop.

Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", for
the features; own measurements for the window and the thresholds.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soxr  # type: ignore[import-untyped]  # ships no py.typed

from voicebot import audio
from voicebot.local import weights

Floats = npt.NDArray[np.float32]

MAX_UTTERANCE_S: Final = 28.0  # with a second of silence behind it still under whisper's 30 s

_RATE_HZ: Final = 16_000
_FFT: Final = 400  # 25 ms
_HOP: Final = 160  # 10 ms
_MELS: Final = 80
_WINDOW_S: Final = 12.0
_TAIL_S: Final = 1.0  # silence after the last word, else the last word is often lost
_PROMPT: Final = ["<|startoftranscript|>", "<|notimestamps|>"]  # tiny.en has no language token
# A fast talker makes 4-5 tokens a second; more is a loop.
_TOKENS: Final = 10
_TOKENS_PER_S: Final = 6.0
_NO_REPEAT: Final = 3  # words in a row that may not come twice, once the decoder has looped
# 0.86-0.96 on noise and music, at most 0.44 on 60 real utterances.
_NO_SPEECH: Final = 0.6

_PCM16: Final = np.array(audio.PCM16, dtype=np.float32) / 32_768


class Recognizer:
    """The loaded model. Not thread-safe: one thread owns it.

    Raises:
        MissingPart: the weights are absent or not the published ones.
    """

    def __init__(self, threads: int = 1) -> None:
        ctranslate2 = importlib.import_module("ctranslate2")
        self._storage_view = ctranslate2.StorageView
        self._model: Any = ctranslate2.models.Whisper(
            "whisper-tiny.en",
            device="cpu",
            compute_type="int8",
            inter_threads=1,
            intra_threads=threads,
            files={
                "model.bin": weights.load_verified(weights.WHISPER_MODEL),
                "config.json": weights.load_verified(weights.WHISPER_CONFIG),
                "vocabulary.txt": weights.load_verified(weights.WHISPER_VOCABULARY),
            },
        )

    def transcribe(self, mulaw: bytes) -> str:
        """Return the words of one utterance, or nothing where nobody speaks.

        Shape: mu-law, 8,000 Hz, at most `MAX_UTTERANCE_S`.
        """
        if not mulaw:
            return ""
        pcm = _PCM16[np.frombuffer(mulaw, dtype=np.uint8)]
        seconds = len(mulaw) / audio.BYTES_PER_S
        features = log_mel(soxr.resample(pcm, audio.RATE_HZ, _RATE_HZ), seconds)
        encoded = self._model.encode(self._storage_view.from_array(features[np.newaxis]))
        most_tokens = _TOKENS + int(_TOKENS_PER_S * seconds)
        result = self._decode(encoded, most_tokens, no_repeat=0)
        if result.no_speech_prob > _NO_SPEECH:
            return ""
        if len(result.sequences[0]) >= most_tokens:
            # It loops. The rule is not for every utterance: people do repeat themselves.
            result = self._decode(encoded, most_tokens, no_repeat=_NO_REPEAT)
        return detokenize(result.sequences[0])

    def _decode(self, encoded: Any, most_tokens: int, *, no_repeat: int) -> Any:
        (result,) = self._model.generate(
            encoded,
            [_PROMPT],
            beam_size=1,
            no_repeat_ngram_size=no_repeat,
            max_length=len(_PROMPT) + most_tokens,
            return_no_speech_prob=True,
        )
        return result


def log_mel(pcm: Floats, seconds: float) -> Floats:
    """Return whisper's log-mel spectrogram, 80 by one column for each 10 ms.

    The audio is followed by silence up to the 12 s window, or one second where it is longer.
    """
    samples = int(max(_WINDOW_S, seconds + _TAIL_S) * _RATE_HZ) // _HOP * _HOP
    padded = np.zeros(samples, dtype=np.float32)
    padded[: len(pcm)] = pcm[:samples]
    padded = np.pad(padded, _FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[:-1:_HOP]
    power = np.abs(np.fft.rfft(frames * _HANN, axis=1)) ** 2
    mel = np.log10(np.maximum(_FILTERS @ power.T, 1e-10))
    mel = np.maximum(mel, mel.max() - 8.0)
    return np.ascontiguousarray((mel + 4.0) / 4.0, dtype=np.float32)


def _mel_filters() -> Floats:
    """Return triangular filters on Slaney's mel scale, each of unit area, 80 by 201.

    The scale is linear below 1,000 Hz and logarithmic above.
    """
    linear_hz, break_hz, break_mel, log_step = 200 / 3, 1_000.0, 15.0, np.log(6.4) / 27

    def to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        above = break_hz * np.exp(log_step * (mel - break_mel))
        return np.where(mel < break_mel, linear_hz * mel, above)

    top_mel = break_mel + np.log(_RATE_HZ / 2 / break_hz) / log_step
    edges = to_hz(np.linspace(0.0, top_mel, _MELS + 2))
    bins = np.linspace(0.0, _RATE_HZ / 2, _FFT // 2 + 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (right - left)
    return triangles.astype(np.float32)


_FILTERS: Final = _mel_filters()
_HANN: Final = np.hanning(_FFT + 1)[:-1].astype(np.float32)  # periodic


def _byte_alphabet() -> dict[str, int]:
    """Return which byte each letter of GPT-2's byte-level alphabet stands for.

    Printable Latin-1 characters stand for themselves, the rest is moved above U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES: Final = _byte_alphabet()


def detokenize(tokens: list[str]) -> str:
    """Return the text of byte-level tokens; control tokens such as <|…|> are not text."""
    letters = "".join(token for token in tokens if not token.startswith("<|"))
    content = bytes(_BYTES[letter] for letter in letters if letter in _BYTES)
    return content.decode("utf-8", errors="ignore").strip()
