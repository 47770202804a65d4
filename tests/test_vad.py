"""The ears: what counts as the caller speaking, and what must not.

Speech is generated (vowels of a made-up voice, which Silero takes for speech) so that every rule
is tested anywhere; recordings of people and of hold music are used where Debian's
asterisk-core-sounds-en-wav and asterisk-moh-opsound-wav are installed. How good the ears are in
numbers is the business of `bench/hearing`.
"""

from __future__ import annotations

import logging
import math
import random
import wave
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from voicebot import audio, ports, vad
from voicebot.errors import LocalProtocolError, MissingPart
from voicebot.hearing import Hearing
from voicebot.silero import SileroStream
from voicebot.vad import EchoGate, NoiseFloor, OpenEars

SOUNDS = Path("/usr/share/asterisk/sounds/en")
MUSIC = Path("/usr/share/asterisk/moh")
IN_TIME_MS = 220  # what is promised: the caller's first sound to clear, p95

Samples = list[float]  # full scale is 1


@pytest.fixture(scope="module")
def open_ears() -> OpenEars:
    ears = OpenEars(Hearing())
    assert ears.confirmed
    return ears


@pytest.fixture(scope="module")
def open_alone() -> OpenEars:
    return OpenEars(Hearing(), with_silero=False)


# --- sound -----------------------------------------------------------------------------------

VOWELS = [(730, 1_090, 2_440), (270, 2_290, 3_010), (570, 840, 2_410), (300, 870, 2_240)]


def voice(
    seconds: float, *, dbov: float = -26.0, seed: int = 1, pitch_hz: float = 120.0
) -> Samples:
    """Return five syllables a second: harmonics of a falling pitch under three formants."""
    rng = random.Random(seed)
    syllable = audio.RATE_HZ // 5
    samples: Samples = []
    for _ in range(round(seconds * 5)):
        formants = list(zip(rng.choice(VOWELS), (1, 0.5, 0.25), strict=True))
        pitch = pitch_hz * rng.uniform(0.85, 1.25)
        harmonics = [
            (h, sum(g / (1 + ((h * pitch - f) / 90) ** 2) for f, g in formants))
            for h in range(1, int(3_400 / pitch))
        ]
        phase = 0.0
        for i in range(syllable):
            at = i / syllable
            phase += 2 * math.pi * pitch * (1.05 - 0.15 * at) / audio.RATE_HZ
            envelope = math.sqrt(math.sin(math.pi * at / 0.85)) if at < 0.85 else 0.0
            samples.append(
                envelope and envelope * sum(a * math.sin(h * phase) for h, a in harmonics)
            )
    return at_level(samples, dbov)


def noise(seconds: float, dbov: float, seed: int = 1) -> Samples:
    rng = random.Random(seed)
    scale = 10 ** (dbov / 20)
    return [rng.gauss(0, scale) for _ in range(int(seconds * audio.RATE_HZ))]


def tones(pattern: Iterable[tuple[Sequence[float], float]], dbov: float) -> Samples:
    """Return tones in turn: frequencies in Hz and seconds."""
    samples: Samples = []
    for frequencies, seconds in pattern:
        for i in range(int(seconds * audio.RATE_HZ)):
            t = 2 * math.pi * i / audio.RATE_HZ
            samples.append(sum(math.sin(f * t) for f in frequencies))
    return at_level(samples, dbov)


def silence(seconds: float) -> Samples:
    return [0.0] * int(seconds * audio.RATE_HZ)


def stops_in(rises: Sequence[int]) -> int:
    """Return how often the bot would have been stopped: it is not yet back within 1.5 s."""
    stops: list[int] = []
    for rise in rises:
        if not stops or rise - stops[-1] >= 1_500:
            stops.append(rise)
    return len(stops)


def at_level(samples: Samples, dbov: float) -> Samples:
    """Return the sound with the level of its audible samples set."""
    loud = max(map(abs, samples))
    audible = [s * s for s in samples if abs(s) > loud / 30]
    gain = 10 ** (dbov / 20) / math.sqrt(sum(audible) / len(audible))
    return [s * gain for s in samples]


def mix(*parts: Samples) -> Samples:
    """Return the sum, as long as the first."""
    total = parts[0][:]
    for part in parts[1:]:
        for i, sample in enumerate(part[: len(total)]):
            total[i] += sample
    return total


def echo(sent: Samples, loss_db: float, delay_ms: int = 130) -> Samples:
    """Return what comes back of the bot's voice."""
    gain = 10 ** (-loss_db / 20)
    return [0.0] * (delay_ms * audio.BYTES_PER_MS) + [s * gain for s in sent]


def frames(samples: Samples) -> list[bytes]:
    pcm = array("h", (max(-32_768, min(32_767, round(s * 32_768))) for s in samples))
    mulaw = audio.encode(pcm.tobytes())
    size = audio.FRAME_BYTES
    return [mulaw[i : i + size] for i in range(0, len(mulaw) - size + 1, size)]


def recording(path: Path) -> Samples:
    if not path.exists():
        pytest.skip(
            f"{path} is not installed (Debian: asterisk-{{core-sounds-en,moh-opsound}}-wav)"
        )
    with wave.open(str(path)) as file:
        pcm = array("h")
        pcm.frombytes(file.readframes(file.getnframes()))
    return [sample / 32_768 for sample in pcm]


def onset_ms(samples: Samples) -> int:
    """Label the onset by energy: three 10 ms blocks within 25 dB of the loud ones."""
    size = audio.RATE_HZ // 100
    blocks = [samples[i : i + size] for i in range(0, len(samples) - size + 1, size)]
    levels = [10 * math.log10(sum(s * s for s in block) / size + 1e-12) for block in blocks]
    limit = sorted(levels)[int(0.95 * len(levels))] - 25
    return next(10 * i for i in range(len(levels)) if min(levels[i : i + 3]) > limit)


# --- listening -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """Ends of the frames at which speech rose and fell, and where it was said to have begun."""

    rises: list[int]
    falls: list[int]
    onsets: list[int]


def listen(ears: vad.CallerEars, line: Samples, bot: Samples | None = None) -> Heard:
    heard = Heard([], [], [])
    sent = [audio.dbov(frame) for frame in frames(bot or [])]
    before = False
    for i, frame in enumerate(frames(line)):
        now = ears.hear(frame, echo_dbov=sent[i] if i < len(sent) else -math.inf)
        at_ms = (i + 1) * audio.FRAME_MS
        if now and not before:
            heard.rises.append(at_ms)
            heard.onsets.append(at_ms - ears.onset_ms)
        if before and not now:
            heard.falls.append(at_ms)
        before = now
    return heard


# --- speech is heard -------------------------------------------------------------------------


@pytest.mark.parametrize("dbov", [-36.0, -26.0, -16.0])
@pytest.mark.parametrize("pitch_hz", [100.0, 200.0])
def test_speech_after_silence_is_heard_in_time_once_and_ends(
    open_ears: OpenEars, dbov: float, pitch_hz: float
) -> None:
    line = silence(1) + voice(1.4, dbov=dbov, pitch_hz=pitch_hz) + silence(1)

    heard = listen(open_ears(), line)

    (rise,), (fall,) = heard.rises, heard.falls
    assert 1_000 < rise <= 1_000 + IN_TIME_MS
    assert 2_400 < fall <= 2_400 + 700
    assert abs(heard.onsets[0] - 1_000) <= 60


def test_first_word_of_a_call_is_heard_before_the_noise_floor_is_known(
    open_ears: OpenEars,
) -> None:
    heard = listen(open_ears(), mix(voice(1.0), noise(1.0, -50)))

    assert heard.rises
    assert heard.rises[0] <= IN_TIME_MS


def test_speech_over_steady_noise_is_heard_in_time(open_ears: OpenEars) -> None:
    speech = silence(3) + voice(1.0, dbov=-24) + silence(1)

    heard = listen(open_ears(), mix(speech, noise(5, -40)))

    (rise,) = heard.rises
    assert 3_000 < rise <= 3_000 + IN_TIME_MS


@pytest.mark.parametrize(
    "name", ["hello-world", "vm-goodbye", "digits/7", "letters/y", "please-try-again"]
)
def test_recorded_people_are_heard_in_time(open_ears: OpenEars, name: str) -> None:
    speech = at_level(recording(SOUNDS / f"{name}.wav"), -26)
    line = mix(silence(2) + speech + silence(1), noise(2 + len(speech) / 8_000 + 1, -60))

    heard = listen(open_ears(), line)

    assert heard.rises
    latency_ms = heard.rises[0] - (2_000 + onset_ms(speech))
    assert 0 < latency_ms <= IN_TIME_MS
    assert len(heard.falls) == len(heard.rises)


def test_a_voice_that_noise_half_covers_is_heard_with_its_first_vowel(open_ears: OpenEars) -> None:
    """By webrtcvad at its strictest but one, or a surer Silero, in a third of these."""
    latencies = []
    for pitch_hz in (100.0, 200.0):
        for seed in range(8):
            speech = silence(2) + voice(1.0, seed=seed, pitch_hz=pitch_hz)
            line = mix(noise(3.0, -26 - 5, seed), speech)
            latencies.append(listen(open_ears(), line).rises[0] - 2_000)

    assert min(latencies) > 0
    assert sum(ms <= 60 for ms in latencies) > len(latencies) // 2


class Says:
    """Silero with its answers given: one a frame, the last for ever."""

    def __init__(self, *answers: float) -> None:
        self._answers = list(answers)
        self.asked: list[bool] = []  # whether, frame by frame

    def push(self, mulaw: bytes) -> float:
        self.asked.append(True)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def hold(self, mulaw: bytes) -> None:
        self.asked.append(False)


def test_silero_is_asked_only_where_its_answer_can_change_something() -> None:
    hearing = Hearing(awake_ms=100, waking_ms=0, release_ms=100)
    # Sure of speech until long after the voice has gone: it is asked as long as that is believed.
    said = Says(*[0.5] * 80, 0.0)
    line = silence(1.0) + voice(1.0) + silence(3.0)

    heard = listen(vad.CallerEars(hearing, cast("SileroStream", said)), line)

    ((rise,), (fall,)) = heard.rises, heard.falls
    first, last = said.asked.index(True), len(said.asked) - 1 - said.asked[::-1].index(True)
    assert 1_000 <= first * audio.FRAME_MS < rise  # from the first voiced frame on
    assert all(said.asked[first : last + 1])
    assert fall >= rise + 1_500
    # Nobody is voiced any more; it was asked for the frame that ended the speech.
    assert (last + 1) * audio.FRAME_MS == fall


def test_silero_is_asked_for_a_while_after_what_was_no_speech() -> None:
    said = Says(0.0)

    heard = listen(
        vad.CallerEars(Hearing(awake_ms=200, waking_ms=0), cast("SileroStream", said)),
        voice(0.2) + silence(2.0),
    )

    assert heard.rises == []
    last = len(said.asked) - 1 - said.asked[::-1].index(True)
    assert 200 <= last * audio.FRAME_MS <= 200 + 200  # the voice, and so long behind it


def test_silero_gets_to_know_the_line_first() -> None:
    said = Says(0.0)

    listen(vad.CallerEars(Hearing(waking_ms=400), cast("SileroStream", said)), silence(2.0))

    assert said.asked == [True] * 20 + [False] * 80


@pytest.mark.parametrize("pause", [0.3, 1.0, 7.0])
def test_a_word_behind_a_pause_is_heard_no_later_than_if_silero_had_heard_the_pause(
    pause: float,
) -> None:
    line = silence(1.0) + voice(0.8) + noise(pause, -70) + voice(0.8, seed=2) + silence(1.0)
    always = listen(OpenEars(Hearing(awake_ms=1_000_000))(), line).rises

    rises = listen(OpenEars(Hearing())(), line).rises

    assert len(rises) == len(always)
    assert all(a <= b for a, b in zip(rises, always, strict=True))


@pytest.mark.parametrize("weak, strong", [(10, 0), (4, 6)])
def test_a_weak_sound_is_waited_for_longer_than_a_word_that_is_over(weak: int, strong: int) -> None:
    hearing = Hearing(rise=0.15, fall=0.35, release_ms=100, doubt_ms=300)
    said = Says(*[0.2] * weak, *[0.5] * strong, 0.0)

    heard = listen(vad.CallerEars(hearing, cast("SileroStream", said)), voice(1.0))

    ((rise,), (fall,)) = heard.rises, heard.falls
    assert fall == (200 + 100 if strong else rise + 300)


def test_each_word_is_doubted_for_itself() -> None:
    hearing = Hearing(rise=0.15, fall=0.35, release_ms=100, doubt_ms=300)
    said = Says(*[0.5] * 10, *[0.0] * 10, *[0.2] * 5, 0.0)

    heard = listen(vad.CallerEars(hearing, cast("SileroStream", said)), voice(1.5))

    assert heard.falls[0] == 200 + 100
    assert heard.falls[1] == heard.rises[1] + 300


def test_onset_grows_with_every_frame_after_the_rise(open_ears: OpenEars) -> None:
    ears = open_ears()
    assert ears.onset_ms == 0
    onsets = [
        ears.onset_ms
        for frame in frames(silence(0.5) + voice(0.6))
        if ears.hear(frame, echo_dbov=-math.inf)
    ]

    assert len(onsets) > 10
    assert [b - a for a, b in pairwise(onsets)] == [audio.FRAME_MS] * (len(onsets) - 1)


def test_onset_is_never_further_back_than_the_pre_roll() -> None:
    open_alone = OpenEars(replace(Hearing(), alone_ms=120, onset_max_ms=60), with_silero=False)

    heard = listen(open_alone(), silence(1) + voice(0.8))

    assert heard.rises[0] >= 1_120
    assert heard.rises[0] - heard.onsets[0] == 60


# --- what is not speech is not ---------------------------------------------------------------

DTMF = [((row, column), 0.1) for row in (697, 770, 852, 941) for column in (1_209, 1_336, 1_477)]
NOT_SPEECH: dict[str, Callable[[], Samples]] = {
    "digital silence": lambda: silence(2),
    "comfort noise -65": lambda: noise(3, -65),
    "comfort noise -55": lambda: noise(3, -55),
    "line noise -40": lambda: noise(3, -40),
    "noise that begins at -30": lambda: silence(1) + noise(3, -30),
    "DTMF": lambda: tones([part for key in DTMF for part in (key, ((), 0.1))], -12),
    "a long DTMF tone": lambda: tones([((697, 1_209), 3.0)], -12),
    "dial tone US": lambda: tones([((350, 440), 3.0)], -18),
    "dial tone EU": lambda: tones([((425,), 3.0)], -18),
    "busy tone": lambda: tones([((425,), 0.5), ((), 0.5)] * 3, -18),
    "information tone": lambda: tones(
        [((950,), 0.33), ((1_400,), 0.33), ((1_800,), 0.33)] * 2, -18
    ),
    "clicks": lambda: [0.8 if i % 4_000 < 24 else 0.0 for i in range(3 * audio.RATE_HZ)],
    "loud noise for 60 ms": lambda: (silence(0.5) + noise(0.06, -15)) * 5,
}


@pytest.mark.parametrize("name", NOT_SPEECH)
def test_noise_and_tones_are_not_speech(open_ears: OpenEars, name: str) -> None:
    assert listen(open_ears(), silence(0.3) + NOT_SPEECH[name]()).rises == []


@pytest.mark.parametrize("with_silero", [True, False])
def test_a_key_is_no_voice_whatever_the_others_say(with_silero: bool) -> None:
    said = cast("SileroStream", Says(1.0)) if with_silero else None
    line = silence(0.3) + NOT_SPEECH["DTMF"]()

    assert listen(vad.CallerEars(Hearing(), said), line).rises == []


@pytest.mark.parametrize("dbov", [-35.0, -25.0])
def test_hold_music_is_hardly_ever_speech(open_ears: OpenEars, dbov: float) -> None:
    pieces = ["macroform-cold_day", "macroform-the_simplicity"]
    music = [at_level(recording(MUSIC / f"{name}.wav"), dbov) for name in pieces]

    stops = sum(stops_in(listen(open_ears(), piece).rises) for piece in music)

    assert stops <= 0.5 * sum(map(len, music)) / audio.RATE_HZ / 60


# --- the bot's own voice ---------------------------------------------------------------------


@pytest.mark.parametrize("loss_db", [20.0, 30.0])
@pytest.mark.parametrize("line_dbov", [-65.0, -45.0])
def test_echo_of_the_bot_is_not_the_caller_and_talking_over_it_is(
    open_ears: OpenEars, loss_db: float, line_dbov: float
) -> None:
    bot = voice(8, dbov=-22, seed=2, pitch_hz=180)
    line = mix(echo(bot, loss_db)[: len(bot)], noise(8, line_dbov))
    assert listen(open_ears(), line, bot).rises == []

    heard = listen(open_ears(), mix(line, silence(6.05) + voice(1.0, dbov=-26)), bot)

    (rise,) = heard.rises
    assert 6_050 < rise <= 6_050 + IN_TIME_MS


def test_without_the_bots_level_its_echo_would_count_as_the_caller(open_ears: OpenEars) -> None:
    bot = voice(3, dbov=-22, seed=2)

    assert listen(open_ears(), echo(bot, 20)).rises


def test_echo_that_goes_on_does_not_keep_the_caller_speaking(open_ears: OpenEars) -> None:
    bot = voice(9, dbov=-22, seed=2)
    line = mix(echo(bot, 20)[: len(bot)], silence(5) + voice(0.8, dbov=-18))

    heard = listen(open_ears(), line, bot)

    assert heard.falls
    assert heard.falls[-1] <= 5_800 + 700


def test_return_loss_is_learned_from_the_bot_and_not_from_the_caller(open_ears: OpenEars) -> None:
    bot = voice(10, dbov=-22, seed=2)
    line = mix(echo(bot, 28)[: len(bot)], noise(10, -70))
    ears, disturbed = open_ears(), open_ears()
    listen(ears, line, bot)
    # By the loudest of the time in which the echo may come back, so a little less.
    assert ears.echo_loss_db == pytest.approx(27, abs=1)

    backchannels = [silence(2.5) + voice(0.4, dbov=-20, seed=i) for i in range(3)]
    listen(disturbed, mix(line, [s for part in backchannels for s in part]), bot)

    assert disturbed.echo_loss_db == pytest.approx(27, abs=3)


@pytest.mark.parametrize("loss_db", [15.0, 20.0, 25.0])
def test_the_echo_of_a_bot_that_gets_louder_is_not_the_caller(
    open_ears: OpenEars, loss_db: float
) -> None:
    """The echo of what is louder comes later than it: meanwhile nothing seems to come back."""
    levels = [-32, -32, -14, -30, -16, -34, -34, -12, -22, -14]
    bot = [s for seed, dbov in enumerate(levels) for s in voice(2, dbov=dbov, seed=seed)]
    ears = open_ears()

    assert listen(ears, mix(echo(bot, loss_db)[: len(bot)], noise(20, -65)), bot).rises == []
    assert ears.echo_loss_db <= loss_db + 1


def test_what_preceded_a_suspicion_is_not_learned_from() -> None:
    """The echo that was suspected is not, so what it is the echo of must not be either."""
    gate = EchoGate(Hearing(echo_window_ms=200, echo_hold_ms=100))
    for _ in range(40):
        gate.gate(-20.0)
        gate.learn(-40.0)
    learned = gate.loss_db
    for _ in range(20):
        for sent in (-10.0, -10.0, -10.0):
            gate.gate(sent)
            gate.learn(-60.0)
        gate.forget()

    assert learned == 20.0
    assert gate.loss_db == learned


def test_echo_gate_stays_at_the_assumed_loss_until_enough_is_heard() -> None:
    hearing = Hearing(echo_loss_db=15, echo_margin_db=3, echo_window_ms=1_000)
    gate = EchoGate(hearing)
    for _ in range(50 + 15 - 1):  # and the time in which the echo of the last may come back
        assert gate.gate(-20.0) == pytest.approx(-20 - 15 + 3)
        gate.learn(-50.0)
    assert gate.loss_db == 15

    gate.gate(-20.0)
    gate.learn(-50.0)

    assert gate.loss_db == 30


@pytest.mark.parametrize("level, loss_db", [(-100.0, 45.0), (-5.0, 6.0)])
def test_learned_loss_stays_within_what_telephones_do(level: float, loss_db: float) -> None:
    gate = EchoGate(Hearing(echo_window_ms=200))
    for _ in range(40):
        gate.gate(-20.0)
        gate.learn(level)

    assert gate.loss_db == loss_db


def test_echo_gate_holds_for_late_echo_and_opens_after_it() -> None:
    gate = EchoGate(Hearing(echo_hold_ms=300))
    held = gate.gate(-20.0)

    assert [gate.gate(-math.inf) for _ in range(14)] == [held] * 14
    assert gate.gate(-math.inf) == -math.inf


def test_nothing_is_learned_of_the_echo_while_the_bot_is_silent() -> None:
    gate = EchoGate(Hearing(echo_window_ms=200))
    for _ in range(50):
        gate.gate(-math.inf)
        gate.learn(-60.0)

    assert gate.loss_db == Hearing().echo_loss_db


def test_noise_floor_takes_what_it_has_not_heard_for_quiet() -> None:
    floor = NoiseFloor(window_ms=2_000)
    for level in [-20.0] * 95:
        floor.learn(level)

    assert floor.dbov < -80


def test_noise_floor_is_the_quietest_tenth_of_a_second_and_forgets() -> None:
    floor = NoiseFloor(window_ms=2_000)
    for level in [-50.0] * 100:
        floor.learn(level)
    assert floor.dbov == pytest.approx(-50)

    for level in [-20.0] * 95:
        floor.learn(level)
    assert floor.dbov == pytest.approx(-50)

    for level in [-20.0] * 5:
        floor.learn(level)
    assert floor.dbov == pytest.approx(-20)


# --- without Silero, and the rest ------------------------------------------------------------


def test_without_silero_speech_is_heard_and_ends(open_alone: OpenEars) -> None:
    heard = listen(open_alone(), silence(1) + voice(1.4) + silence(1))

    assert not open_alone.confirmed
    assert 1_000 < heard.rises[0] <= 1_000 + 300
    assert 2_200 < heard.falls[-1] <= 2_400 + 700
    assert abs(heard.onsets[0] - 1_000) <= 60


@pytest.mark.parametrize("name", ["digital silence", "comfort noise -55", "clicks"])
def test_without_silero_quiet_and_clicks_are_not_speech(open_alone: OpenEars, name: str) -> None:
    assert listen(open_alone(), NOT_SPEECH[name]()).rises == []


def test_missing_silero_is_said_once_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise MissingPart("not here")

    monkeypatch.setattr(vad, "Silero", missing)
    with caplog.at_level(logging.WARNING):
        ears = OpenEars(Hearing())
        ears()
        ears()

    assert not ears.confirmed
    assert [record.message for record in caplog.records] == ["silero_missing"]


def test_calls_do_not_hear_each_other_and_the_same_line_gives_the_same_answers(
    open_ears: OpenEars,
) -> None:
    loud, quiet = frames(silence(0.5) + voice(1.0)), frames(noise(1.5, -60))
    alone, one, two = open_ears(), open_ears(), open_ears()
    expected = [alone.hear(frame, echo_dbov=-30) for frame in loud]

    answers = []
    for a, b in zip(loud, quiet, strict=True):
        answers.append(one.hear(a, echo_dbov=-30))
        assert not two.hear(b, echo_dbov=-math.inf)

    assert answers == expected
    assert any(expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"rise": 1.01},
        {"gate_dbov": -10.0},
        {"over_noise_db": 80.0},
        {"voiced_ms": 80, "voiced_within_ms": 60},
    ],
)
def test_a_rise_needs_silero_and_webrtcvad_and_the_gates(changed: dict[str, float]) -> None:
    deaf = OpenEars(replace(Hearing(), **changed))  # type: ignore[arg-type]  # fields by name

    assert listen(deaf(), silence(0.5) + voice(1.0)).rises == []


@pytest.mark.parametrize("length", [0, 159, 161, 320])
def test_frame_of_another_length_is_our_own_fault(open_ears: OpenEars, length: int) -> None:
    with pytest.raises(LocalProtocolError, match="160"):
        open_ears().hear(bytes(length), echo_dbov=-math.inf)


def test_factory_and_ears_fit_their_ports(open_ears: OpenEars) -> None:
    ears: ports.Ears = open_ears()

    assert ears.hear(audio.silence(20), echo_dbov=-math.inf) is False
