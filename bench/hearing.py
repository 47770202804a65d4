"""How well and how fast the ears hear: onset latency, misses, false triggers, echo, cost.

    python -m bench.hearing [--seed 1] [--clips 120] [--alone] [--sounds DIR] [--music DIR]

Callers are telephone prompts recorded by people (Debian: asterisk-core-sounds-*-wav), music is
asterisk-moh-opsound-wav; noise, tones, clicks and breath are generated. Nothing here is shipped
with the package and nothing is tuned to a clip: the subset is drawn by the seed. Times are media
times, so the load of the machine does not touch them; only the last table is about CPU. An onset
is where 30 ms of the clean clip come within 25 dB of its loud parts, so in noise the first of it
may be inaudible. "early" are utterances that began while babble or music already counted as
speech; they are in none of the other columns.

Not covered: coughs, streets, singing, far-end noise suppression, echo that is not linear.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from voicebot import audio
from voicebot.hearing import Hearing
from voicebot.vad import CallerEars, OpenEars

Samples = NDArray[np.float64]  # full scale is 1
Pattern = list[tuple[tuple[float, ...], float]]  # frequencies in Hz and their seconds

RATE: Final = audio.RATE_HZ
BLOCK: Final = RATE // 100  # onsets are labelled to 10 ms
CALLER_DBOV: Final = (-32.0, -26.0, -20.0)  # levels of telephone speech
BOT_DBOV: Final = -22.0
ECHO_DELAY_MS: Final = 120  # a mobile leg there and back
REFRACTORY_MS: Final = 1_500  # rises closer than this would stop the bot only once
IN_TIME_MS: Final = 1_000  # a barge-in heard later than this counts as missed
LINE_DBOV: Final = -65.0  # noise of a good line
BAND_HZ: Final = (300.0, 3_400.0)  # of a telephone
NOT_SPEECH: Final = {"beep", "beeperr", "confbridge-join", "confbridge-leave"}  # and *tone*


@dataclass(frozen=True)
class Clip:
    """One recorded utterance with the time of its first and last audible block."""

    samples: Samples
    onset_ms: float
    end_ms: float


@dataclass
class Tally:
    """What a set of utterances led to."""

    latencies: list[float]
    onset_errors: list[float]
    releases: list[float]
    missed: int = 0
    early: int = 0

    def row(self, name: str) -> str:
        """Return a line of the table."""
        heard = len(self.latencies) + self.missed
        return (
            f"| {name} | {heard} | {_median_p95(self.latencies)} | "
            f"{100 * self.missed / max(heard, 1):.1f} | {self.early} | "
            f"{_median_p95(self.onset_errors)} | {_median_p95(self.releases)} |"
        )


def _median_p95(values: list[float]) -> str:
    if not values:
        return "–"
    ordered = sorted(values)
    return f"{statistics.median(ordered):.0f} / {ordered[int(0.95 * (len(ordered) - 1))]:.0f}"


# --- sound -----------------------------------------------------------------------------------


def read_wav(path: Path) -> Samples:
    """Return a mono 16-bit WAV of 8,000 Hz."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path}: not mono, 16 bit, 8,000 Hz")
        pcm = file.readframes(file.getnframes())
    return np.frombuffer(pcm, dtype="<i2").astype(np.float64) / 32_768


def telephone(samples: Samples) -> Samples:
    """Return the sound without what a telephone does not carry."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / RATE)
    spectrum[(hz < BAND_HZ[0]) | (hz > BAND_HZ[1])] = 0
    narrow: Samples = np.fft.irfft(spectrum, len(samples))
    return narrow


def level(samples: Samples) -> float:
    """Return the level in dBov."""
    return 10 * math.log10(float(np.mean(samples**2)) + 1e-12)


def block_levels(samples: Samples) -> Samples:
    """Return the level of each 10 ms in dBov."""
    blocks = samples[: len(samples) // BLOCK * BLOCK].reshape(-1, BLOCK)
    levels: Samples = 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-12)
    return levels


def to_level(samples: Samples, dbov: float) -> Samples:
    """Return the sound with its active part at a level."""
    levels = block_levels(samples)
    active = levels[levels > levels.max() - 30]
    now = 10 * math.log10(float(np.mean(10 ** (active / 10))))
    return samples * 10 ** ((dbov - now) / 20)


def label(samples: Samples) -> Clip | None:
    """Find the onset and the end of speech by energy; None for a clip without clear ones."""
    levels = block_levels(samples)
    if len(levels) < 5 or levels.max() < -50:
        return None
    loud = levels > np.quantile(levels, 0.95) - 25
    runs = np.flatnonzero(loud[:-2] & loud[1:-1] & loud[2:])  # 30 ms, so that no click counts
    if not len(runs):
        return None
    return Clip(samples, 10.0 * int(runs[0]), 10.0 * (int(runs[-1]) + 3))


def white(rng: np.random.Generator, seconds: float) -> Samples:
    """Return white noise."""
    return rng.standard_normal(int(seconds * RATE))


def pink(rng: np.random.Generator, seconds: float) -> Samples:
    """Return noise with 3 dB less per octave, in the telephone band."""
    spectrum = np.fft.rfft(white(rng, seconds))
    hz = np.fft.rfftfreq(int(seconds * RATE), 1 / RATE)
    samples: Samples = np.fft.irfft(spectrum / np.sqrt(np.maximum(hz, 1)), int(seconds * RATE))
    return telephone(samples)


def tones(pattern: Pattern, seconds: float) -> Samples:
    """Return tones in turn, each for its seconds, over and over."""
    parts = []
    for frequencies, length in pattern:
        t = np.arange(int(length * RATE)) / RATE
        parts.append(sum((np.sin(2 * np.pi * f * t) for f in frequencies), np.zeros(len(t))))
    once = np.concatenate(parts)
    return np.resize(once, int(seconds * RATE))


def dtmf(rng: random.Random, seconds: float) -> Samples:
    """Return random digits, 100 ms on and 100 ms off."""
    rows, columns = (697.0, 770.0, 852.0, 941.0), (1_209.0, 1_336.0, 1_477.0, 1_633.0)
    keys = [(rng.choice(rows), rng.choice(columns)) for _ in range(int(seconds * 5))]
    return tones([part for key in keys for part in ((key, 0.1), ((), 0.1))], seconds)


def bursts(rng: np.random.Generator, seconds: float, length_ms: int, every_s: float) -> Samples:
    """Return bursts of pink noise with a round envelope: clicks if short, breath if long."""
    samples = np.zeros(int(seconds * RATE))
    length = length_ms * RATE // 1_000
    for start in np.arange(0.5, seconds - 1, every_s):
        at = int((start + rng.uniform(0, every_s / 2)) * RATE)
        samples[at : at + length] += pink(rng, length / RATE) * np.hanning(length)
    return samples


def mix(*parts: Samples) -> Samples:
    """Return the sum, as long as the longest."""
    total = np.zeros(max(map(len, parts)))
    for part in parts:
        total[: len(part)] += part
    return total


def frames(samples: Samples) -> list[bytes]:
    """Return mu-law frames, through 16 bits as a telephone line carries it."""
    pcm = np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes()
    mulaw = audio.encode(pcm)
    size = audio.FRAME_BYTES
    return [mulaw[i : i + size] for i in range(0, len(mulaw) - size + 1, size)]


# --- trials ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """A change of what the ears say, at the end of a frame."""

    at_ms: int
    rise: bool
    began_ms: int


def edges(ears: CallerEars, line: Samples, bot: Samples | None = None) -> Iterator[Edge]:
    """Play a line, and what the bot says meanwhile, to the ears."""
    heard = frames(line)
    sent = [-math.inf] * len(heard)
    if bot is not None:
        sent = [audio.dbov(frame) for frame in frames(bot)] + sent
    before = False
    for i, frame in enumerate(heard):
        now = ears.hear(frame, echo_dbov=sent[i])
        if now != before:
            at_ms = (i + 1) * audio.FRAME_MS
            yield Edge(at_ms, now, at_ms - ears.onset_ms)
        before = now


def judge(tally: Tally, found: list[Edge], onset_ms: float, end_ms: float) -> None:
    """Compare what the ears said with the truth about one utterance."""
    before = [edge for edge in found if edge.at_ms <= onset_ms]
    if before and before[-1].rise:
        tally.early += 1
        return
    rise = next((e for e in found if e.rise and e.at_ms > onset_ms), None)
    if rise is None or rise.at_ms > max(onset_ms + IN_TIME_MS, end_ms):
        tally.missed += 1
        return
    tally.latencies.append(rise.at_ms - onset_ms)
    tally.onset_errors.append(rise.began_ms - onset_ms)
    fall = next((e for e in found if not e.rise and e.at_ms > end_ms), None)
    if fall is not None:
        tally.releases.append(fall.at_ms - end_ms)


def onsets(
    name: str,
    open_ears: OpenEars,
    clips: list[Clip],
    snr_db: float,
    noises: list[Samples],
    rng: random.Random,
) -> str:
    """Return the row of a set of utterances in noise."""
    tally = Tally([], [], [])
    for number, clip in enumerate(clips):
        lead_ms = 3_000 + rng.uniform(0, 32)
        speech_dbov = rng.choice(CALLER_DBOV)
        lead = np.zeros(int(lead_ms * RATE / 1_000))
        speech = np.concatenate([lead, to_level(clip.samples, speech_dbov), np.zeros(RATE)])
        noise = noises[number % len(noises)]
        start = rng.randrange(max(1, len(noise) - len(speech)))
        noise = np.resize(noise[start:], len(speech))
        gain_db = max(speech_dbov - snr_db, LINE_DBOV) - level(noise)
        line = mix(speech, noise * 10 ** (gain_db / 20))
        found = list(edges(open_ears(), line))
        judge(tally, found, lead_ms + clip.onset_ms, lead_ms + clip.end_ms)
    return tally.row(name)


def false_triggers(ears: CallerEars, line: Samples, bot: Samples | None = None) -> int:
    """Return how many rises would have stopped the bot."""
    count, last = 0, -REFRACTORY_MS
    for edge in edges(ears, line, bot):
        if edge.rise and edge.at_ms - last >= REFRACTORY_MS:
            count, last = count + 1, edge.at_ms
    return count


def echo_row(
    open_ears: OpenEars, clips: list[Clip], erl_db: float, line_dbov: float, rng: random.Random
) -> str:
    """Return false triggers of the bot's own echo, and barge-ins over it, at one return loss."""
    noise_rng = np.random.default_rng(rng.randrange(2**32))
    gain = 10 ** (-erl_db / 20)
    delay = np.zeros(ECHO_DELAY_MS * RATE // 1_000)
    bot = np.concatenate([to_level(clip.samples, BOT_DBOV) for clip in clips])[: 180 * RATE]
    noise = to_level(pink(noise_rng, len(bot) / RATE + 1), line_dbov)
    ears = open_ears()
    triggers = false_triggers(ears, mix(noise, np.concatenate([delay, bot * gain])), bot)
    tally = Tally([], [], [])
    for clip in clips:
        start = rng.randrange(max(1, len(bot) - 12 * RATE))
        said = bot[start : start + 12 * RATE]
        lead_ms = 5_000 + rng.uniform(0, 32)
        caller = to_level(clip.samples, rng.choice(CALLER_DBOV))
        speech = np.concatenate([np.zeros(int(lead_ms * RATE / 1_000)), caller])
        line = mix(noise[: len(said)], np.concatenate([delay, said * gain]), speech)[: len(said)]
        found = list(edges(open_ears(), line, said))
        judge(tally, found, lead_ms + clip.onset_ms, lead_ms + clip.end_ms)
    heard = len(tally.latencies) + tally.missed
    return (
        f"| {erl_db:.0f} | {line_dbov:.0f} | {triggers / (len(bot) / RATE / 60):.1f} | "
        f"{ears.echo_loss_db:.1f} | "
        f"{heard} | {_median_p95(tally.latencies)} | {100 * tally.missed / max(heard, 1):.1f} |"
    )


def cost_row(name: str, ears: CallerEars, line: Samples) -> str:
    """Return CPU per frame."""
    spent = []
    for frame in frames(line):
        start = time.thread_time_ns()
        ears.hear(frame, echo_dbov=-20.0)
        spent.append((time.thread_time_ns() - start) / 1_000)
    spent.sort()
    mean = statistics.fmean(spent)
    return (
        f"| {name} | {len(spent)} | {spent[0]:.1f} | {statistics.median(spent):.1f} | "
        f"{mean:.1f} | {spent[int(0.95 * len(spent))]:.1f} | {mean * 50 / 1_000:.2f} |"
    )


# --- the tables ------------------------------------------------------------------------------


def non_speech(
    rng: random.Random, music: list[Path], seconds: float
) -> Iterator[tuple[str, Samples]]:
    """Yield each kind of non-speech with its name: so many seconds of it, music as a whole."""
    noise = np.random.default_rng(rng.randrange(2**32))
    yield "digital silence", np.zeros(int(seconds * RATE))
    for dbov in (-65, -55, -45):
        yield f"comfort noise {dbov}", to_level(white(noise, seconds), dbov)
    for dbov in (-50, -40, -30):
        yield f"pink noise {dbov}", to_level(pink(noise, seconds), dbov)
    for path in music:
        whole = read_wav(path)
        for dbov in (-35, -25):
            yield f"{path.stem} {dbov}", to_level(telephone(whole), dbov)
        yield f"{path.stem} -25, full band", to_level(whole, -25)
    yield "DTMF -15", to_level(dtmf(rng, seconds), -15)
    progress: dict[str, Pattern] = {
        "dial tone EU": [((425.0,), 1.0)],
        "dial tone US": [((350.0, 440.0), 1.0)],
        "ringback US": [((440.0, 480.0), 2.0), ((), 4.0)],
        "busy EU": [((425.0,), 0.5), ((), 0.5)],
        "information tone": [((950.0,), 0.33), ((1_400.0,), 0.33), ((1_800.0,), 0.33), ((), 1.0)],
    }
    for name, pattern in progress.items():
        yield f"{name} -20", to_level(tones(pattern, seconds), -20)
    yield "clicks 5 ms -15", to_level(bursts(noise, seconds, 5, 0.7), -15)
    yield "knocks 60 ms -20", to_level(bursts(noise, seconds, 60, 0.9), -20)
    yield "breath 700 ms -35", to_level(bursts(noise, seconds, 700, 2.5), -35)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=120, help="utterances per set")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each kind of non-speech")
    parser.add_argument("--alone", action="store_true", help="without Silero")
    parser.add_argument("--sounds", type=Path, default=Path("/usr/share/asterisk/sounds"))
    parser.add_argument("--music", type=Path, default=Path("/usr/share/asterisk/moh"))
    args = parser.parse_args()

    rng = random.Random(args.seed)
    hearing = Hearing()
    open_ears = OpenEars(hearing, with_silero=not args.alone)
    print(f"seed {args.seed}, Silero {'confirms' if open_ears.confirmed else 'is not used'}\n")

    paths = sorted({path.resolve() for path in args.sounds.glob("**/*.wav")})
    paths = [
        path
        for path in paths
        if "tone" not in path.stem and path.stem not in NOT_SPEECH and "silence" not in path.parts
    ]
    rng.shuffle(paths)
    clips = [clip for path in paths if (clip := label(telephone(read_wav(path))))]
    long = [clip for clip in clips if clip.end_ms - clip.onset_ms > 1_200][: args.clips]
    short = [clip for clip in clips if clip.end_ms - clip.onset_ms <= 1_000][: args.clips]
    music = sorted(args.music.glob("*.wav"))

    if clips:
        noise_rng = np.random.default_rng(args.seed)
        babble = mix(*(to_level(np.resize(c.samples, 60 * RATE), -26) for c in clips[-6:]))
        noises = [
            white(noise_rng, 60),
            pink(noise_rng, 60),
            babble,
            *(telephone(read_wav(path)) for path in music),
        ]
        print("| set | n | latency ms median/p95 | miss % | early | onset error | release |")
        print("|---|---|---|---|---|---|---|")
        for snr_db in (60, 20, 10, 5):
            snr = "clean" if snr_db == 60 else f"{snr_db} dB"
            print(onsets(f"long, {snr}", open_ears, long, snr_db, noises, rng))
            print(onsets(f"short, {snr}", open_ears, short, snr_db, noises, rng))
        print(
            "\n| echo return loss dB | line dBov | false/min | learned dB | n | latency | miss % |"
        )
        print("|---|---|---|---|---|---|---|")
        for line_dbov in (LINE_DBOV, -50.0, -40.0):
            for erl_db in (15, 20, 25, 30, 40):
                print(echo_row(open_ears, long, erl_db, line_dbov, rng))
    else:
        print(f"no recordings under {args.sounds}: apt-get install asterisk-core-sounds-en-wav")

    print("\n| non-speech | minutes | false/min |\n|---|---|---|")
    for name, line in non_speech(rng, music, args.minutes * 60):
        count = false_triggers(open_ears(), line)
        minutes = len(line) / RATE / 60
        print(f"| {name} | {minutes:.1f} | {count / minutes:.1f} |")

    print("\n| CPU µs per 20 ms | n | min | median | mean | p95 | ms per call-second |")
    print("|---|---|---|---|---|---|---|")
    line = to_level(pink(np.random.default_rng(args.seed), 60), -30)
    print(cost_row("with Silero" if open_ears.confirmed else "alone", open_ears(), line))
    print(cost_row("alone", OpenEars(hearing, with_silero=False)(), line))


if __name__ == "__main__":
    main()
