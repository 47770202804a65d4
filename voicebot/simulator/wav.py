"""WAV files in and out, for the simulator: any PCM in, telephone audio out, and back.

Reads whatever the standard library reads (8, 16, 24, 32 bit, any rate, any number of channels)
and makes 8,000 Hz mono mu-law of it. `soxr` and numpy are imported only for a file that is not
telephone audio already.
"""

from __future__ import annotations

import wave
from array import array
from pathlib import Path
from typing import Final

from voicebot import audio
from voicebot.errors import ConfigError

MAX_S: Final = 600  # a caller who speaks for ten minutes is a wrong file


def read_mulaw(path: Path) -> bytes:
    """Return a recording as mu-law, 8,000 Hz, mono.

    Raises:
        ConfigError: the file is missing, no WAV, or no recording of a caller; says what to do.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if rate and file.getnframes() > MAX_S * rate:
                raise ConfigError([f"{path}: is longer than {MAX_S // 60} minutes; cut it"])
            pcm = file.readframes(file.getnframes())
    except OSError as exc:
        raise ConfigError([f"{path}: cannot be read: {exc.strerror}"]) from exc
    except (wave.Error, EOFError) as exc:
        raise ConfigError(
            [
                f"{path}: is not a PCM WAV file ({str(exc) or 'it is cut off'}); convert it, for "
                f"example with: ffmpeg -i {path.name} -ar 8000 -ac 1 -c:a pcm_s16le caller.wav"
            ]
        ) from exc
    if not pcm:
        raise ConfigError([f"{path}: has no audio in it"])
    if (rate, channels, width) != (audio.RATE_HZ, 1, 2):
        pcm = _to_telephone(pcm, rate, channels, width)
    return audio.encode(pcm)


def _to_telephone(pcm: bytes, rate: int, channels: int, width: int) -> bytes:
    import numpy as np
    import soxr  # type: ignore[import-untyped]  # ships no py.typed

    raw = np.frombuffer(pcm[: len(pcm) // (width * channels) * (width * channels)], np.uint8)
    samples = raw.reshape(-1, width)
    if width == 1:
        signal = (samples[:, 0].astype(np.float64) - 128.0) / 128.0  # 8 bit is unsigned
    else:
        wide = np.zeros((len(samples), 4), np.uint8)
        wide[:, 4 - width :] = samples
        signal = wide.view("<i4")[:, 0].astype(np.float64) / 2.0**31
    mono = signal.reshape(-1, channels).mean(axis=1)
    if rate != audio.RATE_HZ:
        mono = soxr.resample(mono, rate, audio.RATE_HZ)
    clipped: bytes = np.clip(np.round(mono * 32_768.0), -32_768, 32_767).astype("<i2").tobytes()
    return clipped


def write_two_channels(path: Path, left: bytes, right: bytes) -> None:
    """Write mu-law channels of equal length as 16-bit PCM, 8,000 Hz.

    Raises:
        OSError: the file cannot be written.
    """
    samples = array("h", bytes(4 * len(left)))
    samples[0::2] = array("h", audio.decode(left))
    samples[1::2] = array("h", audio.decode(right))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(audio.RATE_HZ)
        file.writeframes(samples.tobytes())
