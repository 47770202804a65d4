"""What is recognised of a caller's audio: all speech, once, with a pre-roll."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voicebot import audio
from voicebot.local.recording import MAX_UTTERANCE_MS, PRE_ROLL_MS, Recording

LOUD = bytes([0x90])  # a level no silence reaches


def loud(milliseconds: int) -> bytes:
    return LOUD * (milliseconds * audio.BYTES_PER_MS)


def test_nothing_is_returned_before_anyone_spoke() -> None:
    recording = Recording()
    recording.push(loud(5_000))

    assert recording.cut() == b""


def test_an_utterance_begins_before_its_mark_by_the_pre_roll() -> None:
    recording = Recording()
    recording.push(audio.silence(2_000) + loud(500))
    recording.speech_started(500)

    assert recording.cut() == audio.silence(PRE_ROLL_MS) + loud(500)


def test_a_mark_at_the_very_beginning_is_not_before_the_call() -> None:
    recording = Recording()
    recording.push(loud(500))
    recording.speech_started(5_000)

    assert recording.cut() == loud(500)


def test_the_first_of_two_marks_counts() -> None:
    recording = Recording()
    recording.push(loud(1_000))
    recording.speech_started(1_000)
    recording.push(loud(1_000))
    recording.speech_started(200)

    assert recording.cut() == loud(2_000)


def test_speech_that_goes_on_over_a_cut_is_returned_without_a_new_mark() -> None:
    recording = Recording()
    recording.push(loud(1_000))
    recording.speech_started(1_000)
    recording.cut()
    recording.push(audio.silence(200) + loud(900))

    assert recording.cut() == audio.silence(200) + loud(900)


def test_silence_after_a_cut_is_not_an_utterance() -> None:
    recording = Recording()
    recording.push(loud(1_000))
    recording.speech_started(1_000)
    recording.cut()
    recording.push(audio.silence(3_000))

    assert recording.cut() == b""


def test_a_mark_soon_after_a_cut_loses_nothing_and_repeats_nothing() -> None:
    recording = Recording()
    recording.push(loud(1_000))
    recording.speech_started(1_000)
    recording.cut()
    recording.push(audio.silence(600) + loud(500))
    recording.speech_started(300)

    assert recording.cut() == audio.silence(600) + loud(500)


def test_a_mark_long_after_a_cut_leaves_the_silence_between_out() -> None:
    recording = Recording()
    recording.push(loud(1_000))
    recording.speech_started(1_000)
    recording.cut()
    recording.push(audio.silence(20_000) + loud(500))
    recording.speech_started(500)

    assert recording.cut() == audio.silence(PRE_ROLL_MS) + loud(500)


def test_a_long_utterance_is_split_at_its_pause() -> None:
    recording = Recording()
    first, pause, second = loud(26_000), audio.silence(100), loud(6_000)
    due: list[bytes] = []
    recording.push(b"")
    recording.speech_started(0)
    speech = first + pause + second
    for start in range(0, len(speech), audio.FRAME_BYTES):
        due += recording.push(speech[start : start + audio.FRAME_BYTES])

    assert due == [first]
    assert recording.cut() == pause + second


@given(st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_pieces_and_cuts_add_up_to_all_that_was_said(seconds: list[int]) -> None:
    """One caller who never stops, cut at arbitrary moments."""
    recording = Recording()
    recording.speech_started(0)
    pieces: list[bytes] = []
    for i, length in enumerate(seconds):
        said = bytes([0x80 + i]) * (length * audio.BYTES_PER_S)
        pieces += recording.push(said)
        pieces.append(recording.cut())
        recording.speech_started(0)

    expected = b"".join(bytes([0x80 + i]) * (n * audio.BYTES_PER_S) for i, n in enumerate(seconds))
    assert b"".join(pieces) == expected
    assert max(map(len, pieces)) <= MAX_UTTERANCE_MS * audio.BYTES_PER_MS


def test_it_is_known_up_to_where_audio_was_given_out() -> None:
    recording = Recording()
    recording.push(loud(500))
    assert recording.asked_bytes == 0
    recording.cut()  # nobody spoke: nothing of it is ever asked for
    assert recording.asked_bytes == 500 * audio.BYTES_PER_MS
    recording.speech_started(0)
    [piece] = recording.push(loud(MAX_UTTERANCE_MS + 20))
    assert recording.asked_bytes == 500 * audio.BYTES_PER_MS + len(piece)
