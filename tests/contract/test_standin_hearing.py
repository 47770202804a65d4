"""The stand-in's recogniser: energy in, Deepgram's messages out, in audio time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from voicebot import audio
from voicebot.standins.hearing import Features, Recognizer
from voicebot.standins.script import nth

FULL = Features(
    interim_results=True,
    endpointing_ms=300,
    utterance_end_ms=1_000,
    vad_events=True,
    punctuate=True,
)
METADATA = {"request_id": "r"}


def loud(milliseconds: int) -> bytes:
    return b"\x20\xa0" * (milliseconds * 4)  # a square wave at about -6 dBov


def make(
    features: Features = FULL, texts: Sequence[str] = ("Yes, please.",), **kw: Any
) -> Recognizer:
    return Recognizer(features, lambda n: nth(texts, n), METADATA, **kw)


def transcript(message: dict[str, Any]) -> str:
    text: str = message["channel"]["alternatives"][0]["transcript"]
    return text


def finals(messages: Sequence[dict[str, Any]]) -> list[str]:
    return [
        transcript(message)
        for message in messages
        if message["type"] == "Results" and message["is_final"] and transcript(message)
    ]


def test_an_utterance_gives_these_messages_word_for_word() -> None:
    messages = make().hear(audio.silence(500) + loud(700) + audio.silence(1_000))

    interim: dict[str, Any] = {
        "type": "Results",
        "channel_index": [0, 1],
        "duration": 0.82,
        "start": 0.0,
        "is_final": False,
        "speech_final": False,
        "channel": {
            "alternatives": [
                {
                    "transcript": "Yes,",
                    "confidence": 0.99,
                    "words": [
                        {
                            "word": "yes",
                            "start": 0.5,
                            "end": 0.82,
                            "confidence": 0.99,
                            "punctuated_word": "Yes,",
                        }
                    ],
                }
            ]
        },
        "metadata": METADATA,
        "from_finalize": False,
    }
    words = [
        {
            "word": "yes",
            "start": 0.5,
            "end": 0.755,
            "confidence": 0.99,
            "punctuated_word": "Yes,",
        },
        {
            "word": "please",
            "start": 0.755,
            "end": 1.2,
            "confidence": 0.99,
            "punctuated_word": "please.",
        },
    ]
    both = {"transcript": "Yes, please.", "confidence": 0.99, "words": words}
    assert messages[0] == {"type": "SpeechStarted", "channel": [0, 1], "timestamp": 0.5}
    assert messages[1] == interim
    assert [transcript(message) for message in messages[1:4]] == [
        "Yes,",
        "Yes, please.",
        "Yes, please.",
    ]
    assert messages[3] == interim | {
        "duration": 1.46,
        "channel": {"alternatives": [both]},
    }
    assert messages[4] == interim | {
        "duration": 1.5,
        "is_final": True,
        "speech_final": True,
        "channel": {"alternatives": [both]},
    }
    assert messages[5] == {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.2}
    assert len(messages) == 6


def test_how_the_audio_is_cut_makes_no_difference() -> None:
    sound = audio.silence(510) + loud(1_490) + audio.silence(2_003)
    whole = make().hear(sound)

    for size in (1, 7, 160, 333):
        recognizer = make()
        parts = [recognizer.hear(sound[i : i + size]) for i in range(0, len(sound), size)]
        assert [message for part in parts for message in part] == whole
        assert recognizer.duration_s == len(sound) / 8_000


def test_a_click_is_not_an_utterance_and_two_bursts_across_a_stop_consonant_are_one() -> None:
    click = make()
    messages = click.hear(loud(80) + audio.silence(200) + loud(60) + audio.silence(900))
    stop = make()
    stop.hear(loud(60) + audio.silence(80) + loud(60))

    assert [message["type"] for message in messages] == ["Results"]
    assert click.utterances == 0
    assert stop.utterances == 1


def test_pauses_shorter_than_endpointing_stay_inside_one_utterance() -> None:
    sound = loud(300) + audio.silence(280) + loud(300) + audio.silence(320)

    assert finals(make().hear(sound)) == ["Yes, please."]
    assert finals(make(Features(endpointing_ms=200), ["One", "Two"]).hear(sound)) == ["one", "two"]


def test_each_utterance_gets_the_next_text_and_the_script_begins_again() -> None:
    recognizer = make(texts=["First.", "Second."])

    messages = recognizer.hear((loud(400) + audio.silence(400)) * 3)

    assert finals(messages) == ["First.", "Second.", "First."]


def test_words_of_long_speech_come_final_in_pieces_and_the_last_piece_has_words() -> None:
    text = " ".join(f"word{n}" for n in range(30))
    messages = make(texts=[text]).hear(loud(9_000) + audio.silence(400))

    pieces = [message for message in messages if message.get("is_final")]
    assert " ".join(map(transcript, pieces)) == text
    assert [piece["speech_final"] for piece in pieces] == [False, False, True]
    assert all(map(transcript, pieces))
    for before, after in pairwise(pieces):
        assert round(before["start"] + before["duration"], 3) == after["start"]
    words = [word for piece in pieces for word in piece["channel"]["alternatives"][0]["words"]]
    assert (words[0]["start"], words[-1]["end"]) == (0.0, 9.0)
    assert all(before["end"] == after["start"] for before, after in pairwise(words))


def test_short_text_under_long_speech_is_neither_ended_early_nor_final_without_words() -> None:
    messages = make(texts=["Well."]).hear(loud(9_000) + audio.silence(1_400))

    kinds = [message["type"] for message in messages if message["type"] != "Results"]
    assert kinds == ["SpeechStarted", "UtteranceEnd"]
    assert finals(messages) == ["Well."]
    assert [transcript(m) for m in messages if m.get("speech_final")] == ["Well."]


def test_silence_gives_empty_results_every_second_and_final_ones_in_between() -> None:
    messages = make().hear(audio.silence(9_000))

    assert [(m["start"], m["duration"], m["is_final"]) for m in messages] == [
        (0.0, 1.0, False),
        (0.0, 2.0, False),
        (0.0, 3.0, False),
        (0.0, 4.0, True),
        (4.0, 1.0, False),
        (4.0, 2.0, False),
        (4.0, 3.0, False),
        (4.0, 4.0, True),
        (8.0, 1.0, False),
    ]
    assert not any(m["speech_final"] or transcript(m) for m in messages)


def test_only_finals_come_without_interim_results_and_without_vad_events() -> None:
    messages = make(Features(endpointing_ms=300)).hear(loud(1_000) + audio.silence(900))

    assert [(m["is_final"], m["speech_final"], transcript(m)) for m in messages] == [
        (True, True, "yes please")
    ]
    word = messages[0]["channel"]["alternatives"][0]["words"][0]
    assert "punctuated_word" not in word


def test_without_endpointing_words_become_final_but_no_turn_ends() -> None:
    messages = make(Features(endpointing_ms=None)).hear(loud(600) + audio.silence(1_100))

    assert [(m["speech_final"], transcript(m)) for m in messages] == [(False, "yes please")]


def test_under_steady_noise_only_utterance_end_comes() -> None:
    messages = make(speech_final=False).hear(loud(600) + audio.silence(1_100))

    assert finals(messages) == ["Yes, please."]
    assert not any(message.get("speech_final") for message in messages)
    assert [message["type"] for message in messages].count("UtteranceEnd") == 1


def test_an_utterance_without_words_is_a_speech_start_and_empty_results() -> None:
    messages = make(texts=[""]).hear(loud(600) + audio.silence(2_000))

    assert messages[0]["type"] == "SpeechStarted"
    assert finals(messages) == []
    assert "UtteranceEnd" not in {message["type"] for message in messages}


def test_finalize_after_speech_gives_all_words_at_once() -> None:
    recognizer = make()
    recognizer.hear(loud(600) + audio.silence(120))

    (result,) = recognizer.finalize()

    assert (result["is_final"], result["speech_final"], result["from_finalize"]) == (True,) * 3
    assert transcript(result) == "Yes, please."
    assert finals(recognizer.hear(audio.silence(900))) == []  # not a second time


def test_finalize_in_mid_speech_gives_what_was_said_and_the_rest_follows() -> None:
    recognizer = make(texts=["one two three four"])
    recognizer.hear(loud(700))

    (result,) = recognizer.finalize()
    rest = finals(recognizer.hear(loud(700) + audio.silence(400)))

    assert (transcript(result), result["speech_final"]) == ("one two", False)
    assert rest == ["three four"]


def test_finalize_in_silence_is_answered_empty_and_with_little_pending_not_at_all() -> None:
    recognizer = make()
    recognizer.hear(audio.silence(500))

    (result,) = recognizer.finalize()

    assert (transcript(result), result["from_finalize"], result["duration"]) == ("", True, 0.5)
    assert recognizer.finalize() == []
    recognizer.hear(audio.silence(80))
    assert recognizer.finalize() == []


def test_finish_gives_what_is_owed() -> None:
    talking, quiet, unused = make(), make(), make()
    talking.hear(loud(400))
    quiet.hear(audio.silence(400))

    assert finals(talking.finish()) == ["Yes, please."]
    assert [transcript(message) for message in quiet.finish()] == [""]
    assert unused.finish() == []
