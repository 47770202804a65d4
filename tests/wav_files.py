"""Writes WAV files of any kind, for tests."""

from __future__ import annotations

import wave
from pathlib import Path


def write_wav(path: Path, rate: int, channels: int, width: int, signal: list[float]) -> Path:
    samples = bytearray()
    for value in signal:
        if width == 1:
            samples += bytes([round(value * 127) + 128]) * channels
        else:
            scaled = round(value * (2 ** (8 * width - 1) - 1))
            samples += scaled.to_bytes(width, "little", signed=True) * channels
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(samples))
    return path
