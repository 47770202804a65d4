"""Mu-law tables, levels and framing."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot import audio


def pcm(*samples: int) -> bytes:
    return array("h", samples).tobytes()


# ITU-T G.711 mu-law: known pairs of code and 16-bit value.
@pytest.mark.parametrize(
    "code,value", [(0xFF, 0), (0x7F, 0), (0x00, -32124), (0x80, 32124), (0xFE, 8), (0x7E, -8)]
)
def test_decode_known_codes(code: int, value: int) -> None:
    assert audio.decode(bytes([code])) == pcm(value)


def test_every_code_survives_decode_and_encode_up_to_the_two_zeros() -> None:
    for code in range(256):
        again = audio.encode(audio.decode(bytes([code])))[0]
        assert again == (0xFF if code == 0x7F else code)


@given(st.integers(-32_768, 32_767))
def test_encode_picks_a_neighbouring_value(sample: int) -> None:
    value = audio.PCM16[audio.encode(pcm(sample))[0]]
    clipped = max(-32_635, min(32_635, sample))
    # The widest step is 1,024; below 132 it is 8.
    assert abs(value - clipped) <= max(8, abs(clipped) // 16)


def test_encode_keeps_order() -> None:
    codes = audio.encode(array("h", range(-32_768, 32_768)).tobytes())
    values = [audio.PCM16[code] for code in codes]
    assert values == sorted(values)


def test_encode_refuses_half_a_sample() -> None:
    with pytest.raises(ValueError, match="bytes length"):
        audio.encode(b"\0")


def test_dbov_of_a_full_scale_sine_is_minus_three() -> None:
    sine = (int(32_000 * math.sin(2 * math.pi * 1_000 * i / 8_000)) for i in range(800))
    assert audio.dbov(audio.encode(array("h", sine).tobytes())) == pytest.approx(-3.2, abs=0.2)


def test_dbov_of_silence_and_of_nothing() -> None:
    assert audio.dbov(audio.silence(20)) < -90
    assert audio.dbov(b"") == -math.inf


@pytest.mark.parametrize("decibel", [0.0, 6.0, 12.0, 20.0])
def test_quieter_is_quieter_by_so_much(decibel: float) -> None:
    loud = audio.encode(array("h", (round(20_000 * math.sin(i / 7)) for i in range(800))).tobytes())
    quiet = audio.quieter(loud, decibel)
    assert len(quiet) == len(loud)
    assert audio.dbov(quiet) == pytest.approx(
        audio.dbov(loud) - decibel, abs=0.3
    )  # as fine as mu-law is


def test_fade_in_starts_at_zero_and_leaves_the_rest_alone() -> None:
    loud = bytes([0x10]) * 160
    faded = audio.fade_in(loud)
    assert len(faded) == 160
    assert audio.PCM16[faded[0]] == 0
    levels = [abs(audio.PCM16[code]) for code in faded[:40]]
    assert levels == sorted(levels)
    assert faded[40:] == loud[40:]
    assert audio.fade_in(loud[:7])[0] == 0xFF


def frames(framer: audio.Framer, *messages: tuple[int, int]) -> list[bytes]:
    """Push messages of (timestamp_ms, bytes); return all frames."""
    return [f for at, size in messages for f in framer.push(bytes([at & 0x7F]) * size, at)]


def test_framer_passes_whole_frames_through() -> None:
    framer = audio.Framer()
    assert frames(framer, (0, 160), (20, 160), (40, 160)) == [
        bytes([at]) * 160 for at in (0, 20, 40)
    ]
    assert (framer.gaps, framer.gap_ms) == (0, 0)


def test_framer_fills_a_gap_with_silence_and_counts_it() -> None:
    framer = audio.Framer()
    got = frames(framer, (0, 160), (60, 160))
    assert got == [bytes([0]) * 160, *[audio.silence(20)] * 2, bytes([60]) * 160]
    assert (framer.gaps, framer.gap_ms) == (1, 40)


def test_framer_skips_a_gap_nobody_would_listen_to() -> None:
    framer = audio.Framer()
    got = frames(framer, (0, 160), (60_000, 160), (60_020, 160))
    assert len(got) == 3
    assert (framer.gaps, framer.gap_ms) == (1, 59_980)


def test_framer_ignores_jitter_of_the_stamps() -> None:
    framer = audio.Framer()
    assert len(frames(framer, (5, 160), (20, 160), (50, 160), (61, 160))) == 4
    assert framer.gaps == 0


def test_framer_counts_audio_that_comes_twice() -> None:
    framer = audio.Framer()
    assert len(frames(framer, (0, 160), (20, 160), (0, 160), (40, 160))) == 4
    assert framer.overlap_ms == 40
    assert framer.gaps == 0


@given(st.lists(st.integers(1, 700), max_size=40))
def test_framer_loses_no_byte_of_messages_of_any_length(sizes: list[int]) -> None:
    framer, sent, got, at = audio.Framer(), b"", b"", 0.0
    for index, size in enumerate(sizes):
        chunk = bytes([index % 250]) * size
        sent += chunk
        produced = framer.push(chunk, int(at))
        assert all(len(frame) == 160 for frame in produced)
        got += b"".join(produced)
        at += size / 8
    assert sent.startswith(got)
    assert len(sent) - len(got) < 160
    assert framer.gaps == 0
