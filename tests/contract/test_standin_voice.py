"""The stand-in's voice: what plays when is known from the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
import webrtcvad

from voicebot import audio
from voicebot.standins.voice import CHAR_MS, WordSpan, speak, word_spans

TEXT = "Well, it's a 5-star place — okay."


def test_word_spans_are_read_off_the_text() -> None:
    assert word_spans(TEXT) == [
        WordSpan("Well,", 0, 4 * 65),
        WordSpan("it's", 6 * 65, 10 * 65),
        WordSpan("a", 11 * 65, 12 * 65),
        WordSpan("5-star", 13 * 65, 19 * 65),
        WordSpan("place", 20 * 65, 25 * 65),
        WordSpan("okay.", 28 * 65, 32 * 65),
    ]
    assert word_spans("-'n' -") == [WordSpan("-'n'", 2 * 65, 3 * 65)]
    assert word_spans("") == word_spans(" … ") == []


def test_speech_is_as_long_as_its_text_and_sounds_exactly_in_its_spans() -> None:
    speech = speak(TEXT)

    assert len(speech) == len(TEXT) * CHAR_MS * audio.BYTES_PER_MS
    at = 0
    for _, start_ms, end_ms in word_spans(TEXT):
        assert set(speech[at : start_ms * 8]) <= {audio.SILENCE}
        assert audio.dbov(speech[start_ms * 8 : end_ms * 8]) == pytest.approx(-20, abs=0.5)
        at = end_ms * 8
    assert set(speech[at:]) == {audio.SILENCE}


def test_edges_are_no_steeper_than_the_sound_itself() -> None:
    samples = [audio.PCM16[code] for code in (audio.SILENCE, *speak("word"), audio.SILENCE)]
    steps = [abs(after - before) for before, after in pairwise(samples)]

    assert max(steps[0], steps[-1]) <= max(steps[1:-1])


def test_speech_can_be_faster_and_is_the_same_every_time() -> None:
    assert len(speak("Hello.", 50)) == 6 * 50 * 8
    assert speak("Hello.") == speak("hello!")
    assert speak("Hello.") != speak("Jelly.")


def test_a_voice_activity_detector_takes_it_for_speech() -> None:
    vad = webrtcvad.Vad(2)
    pcm = audio.decode(speak("The quick brown fox jumps over the lazy dog"))
    frames = [pcm[i : i + 320] for i in range(0, len(pcm) - 319, 320)]

    voiced = sum(vad.is_speech(frame, 8_000) for frame in frames)

    assert voiced > 0.9 * len(frames)
