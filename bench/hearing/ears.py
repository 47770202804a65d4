"""The ears alone: how soon they rise, what they miss, what they take for speech, what they cost.

Times are media times, so the load of the machine does not touch them; only the last table is
about CPU. An onset is where 30 ms of the clean clip come within 25 dB of its loud parts, so in
noise the first of it may be inaudible. "early" are utterances that began while babble or music
already counted as speech; they are in none of the other columns.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.hearing.sounds import (
    BOT_DBOV,
    CALLER_DBOV,
    LINE_DBOV,
    RATE,
    Clip,
    Part,
    Samples,
    child,
    frames,
    level,
    mix,
    non_speech,
    pink,
    read_wav,
    telephone,
    to_level,
    white,
)
from voicebot import audio
from voicebot.hearing import Hearing
from voicebot.vad import CallerEars, OpenEars

ECHO_DELAY_MS: Final = 120  # a mobile leg there and back
REFRACTORY_MS: Final = 1_500  # rises closer than this would stop the bot only once
IN_TIME_MS: Final = 1_000  # a barge-in heard later than this counts as missed


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
            f"{most(self.missed, heard)} | {self.early} | "
            f"{_median_p95(self.onset_errors)} | {_median_p95(self.releases)} |"
        )


def _median_p95(values: list[float]) -> str:
    if not values:
        return "–"
    ordered = sorted(values)
    return f"{statistics.median(ordered):.0f} / {ordered[int(0.95 * (len(ordered) - 1))]:.0f}"


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


def mixtures(
    clips: list[Clip], snr_db: float, noises: list[Samples], rng: random.Random
) -> Iterator[tuple[Samples, float, float]]:
    """Yield each utterance in noise, 3 s into its line, with its true onset and end in ms."""
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
        yield line, lead_ms + clip.onset_ms, lead_ms + clip.end_ms


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
    for line, onset_ms, end_ms in mixtures(clips, snr_db, noises, rng):
        judge(tally, list(edges(open_ears(), line)), onset_ms, end_ms)
    return tally.row(name)


def false_triggers(found: Iterable[Edge]) -> int:
    """Return how many rises would have stopped the bot."""
    count, last = 0, -REFRACTORY_MS
    for edge in found:
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
    echo = mix(noise, np.concatenate([delay, bot * gain]))
    triggers = false_triggers(edges(ears, echo, bot))
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
        f"{heard} | {_median_p95(tally.latencies)} | {most(tally.missed, heard)} |"
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


def most(missed: int, n: int) -> str:
    """Return a rate in percent with the bound that it is under with a probability of 95 %.

    Clopper and Pearson's, by bisection: 0 of 299 is under 1 %.
    """
    if n == 0:
        return "–"
    low, high = missed / n, 1.0
    for _ in range(40):
        p = (low + high) / 2
        seen = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(missed + 1))
        low, high = (p, high) if seen > 0.05 else (low, p)
    return f"{100 * missed / n:.1f} (< {100 * high:.1f})"


def noises(part: Part, seed: int) -> list[tuple[str, Samples]]:
    """Return what a caller may have around him, a minute of each."""
    rng = np.random.default_rng(seed)
    talkers = [np.resize(clip.samples, 60 * RATE) for clip in part.clips[-6:]]
    return [
        ("white", white(rng, 60)),
        ("pink", pink(rng, 60)),
        ("babble", mix(*(to_level(talker, -26) for talker in talkers))),
        *((path.stem, telephone(read_wav(path))) for path in part.music),
    ]


def sentences(clips: list[Clip]) -> list[Clip]:
    """Return the long ones."""
    return [clip for clip in clips if clip.end_ms - clip.onset_ms > 1_200]


def short_words(clips: list[Clip]) -> list[Clip]:
    """Return the short ones."""
    return [clip for clip in clips if clip.end_ms - clip.onset_ms <= 1_000]


def print_ears(part: Part, hearing: Hearing, seed: int, count: int, minutes: float) -> None:
    """Print all tables about the ears, with Silero where it is installed."""
    rng = random.Random(seed)
    open_ears = OpenEars(hearing)
    clips = part.clips
    long, short = sentences(clips)[:count], short_words(clips)[:count]
    small = [young for clip in clips[: 2 * count] if (young := child(clip))][:count]
    sounds = [samples for _, samples in noises(part, seed)]
    alone = OpenEars(hearing, with_silero=False)
    strict = OpenEars(Hearing(rise=0.4))

    print("| set | n | latency ms median / p95 | missed % (95 %) | early | onset error | release |")
    print("|---|---|---|---|---|---|---|")
    for snr_db in (60, 20, 10, 5):
        snr = "clean" if snr_db == 60 else f"{snr_db} dB"
        print(onsets(f"sentences, {snr}", open_ears, long, snr_db, sounds, rng))
        print(onsets(f"short words, {snr}", open_ears, short, snr_db, sounds, rng))
    for snr_db in (60, 10):
        snr = "clean" if snr_db == 60 else f"{snr_db} dB"
        print(onsets(f"like children, {snr}", open_ears, small, snr_db, sounds, rng))
        print(onsets(f"the same, `rise` 0.4, {snr}", strict, small, snr_db, sounds, rng))
        print(onsets(f"short words, webrtcvad alone, {snr}", alone, short, snr_db, sounds, rng))

    print("\n| echo return loss dB | line dBov | false/min | learned | n | latency ms | missed % |")
    print("|---|---|---|---|---|---|---|")
    for line_dbov in (LINE_DBOV, -50.0, -40.0):
        for erl_db in (15, 20, 25, 30, 40):
            print(echo_row(open_ears, long, erl_db, line_dbov, rng))

    print("\n| not speech | minutes | false/min | webrtcvad alone |\n|---|---|---|---|")
    for name, line in non_speech(rng, part, minutes * 60):
        length = len(line) / RATE / 60
        count_of = [false_triggers(edges(ears(), line)) / length for ears in (open_ears, alone)]
        print(f"| {name} | {length:.1f} | {count_of[0]:.1f} | {count_of[1]:.1f} |")

    print("\n| CPU µs per 20 ms | n | min | median | mean | p95 | ms per call-second |")
    print("|---|---|---|---|---|---|---|")
    line = to_level(pink(np.random.default_rng(seed), 60), -30)
    print(cost_row("with Silero" if open_ears.confirmed else "alone", open_ears(), line))
    print(cost_row("webrtcvad alone", alone(), line))
