"""WAV files in and out."""

from __future__ import annotations

import math
import wave
from array import array
from pathlib import Path

import pytest

from tests.toy_bot import tone
from tests.wav_files import write_wav
from voicebot.audio import decode, encode, silence
from voicebot.errors import ConfigError
from voicebot.simulator.wav import read_mulaw, write_two_channels


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("rate,channels", [(8_000, 1), (8_000, 2), (16_000, 1), (44_100, 2)])
def test_any_pcm_becomes_telephone_audio(
    tmp_path: Path, rate: int, channels: int, width: int
) -> None:
    signal = [0.5 * math.sin(2 * math.pi * 440 * i / rate) for i in range(rate)]
    path = write_wav(tmp_path / "a.wav", rate, channels, width, signal)

    mulaw = read_mulaw(path)

    assert len(mulaw) == pytest.approx(8_000, abs=2)
    pcm = array("h", decode(mulaw))[2_000:6_000]
    ideal = [16_384 * math.sin(2 * math.pi * 440 * i / 8_000) for i in range(2_000, 6_000)]
    error = sum((a - b) ** 2 for a, b in zip(pcm, ideal, strict=True))
    assert error / sum(b * b for b in ideal) < 0.005  # mu-law alone is about 0.0002


def test_either_channel_is_heard(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(array("h", [0, 16_000] * 800).tobytes())

    assert set(read_mulaw(tmp_path / "a.wav")) == set(encode(array("h", [8_000]).tobytes()))


def test_resampling_leaves_no_alias(tmp_path: Path) -> None:
    signal = [0.5 * math.sin(2 * math.pi * 6_000 * i / 16_000) for i in range(16_000)]

    mulaw = read_mulaw(write_wav(tmp_path / "a.wav", 16_000, 1, 2, signal))

    assert max(abs(sample) for sample in array("h", decode(mulaw))[800:-800]) < 164  # -40 dB


@pytest.mark.parametrize(
    "content,complaint",
    [
        (None, "cannot be read: No such file"),
        (b"", "is not a PCM WAV file"),
        (b"ID3 an MP3", "is not a PCM WAV file"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x03\x00", "is not a PCM WAV file"),
    ],
)
def test_wrong_file_is_named_with_what_to_do(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=complaint) as error:
        read_mulaw(path)

    assert str(path) in str(error.value)


def test_empty_wav_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no audio in it"):
        read_mulaw(write_wav(tmp_path / "a.wav", 8_000, 1, 2, []))


def test_two_channels_are_caller_left_and_bot_right(tmp_path: Path) -> None:
    write_two_channels(tmp_path / "call.wav", tone(20), silence(20))

    with wave.open(str(tmp_path / "call.wav"), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8_000)
        samples = array("h", file.readframes(160))
    assert samples[0::2].tobytes() == decode(tone(20))
    assert set(samples[1::2]) == {0}
