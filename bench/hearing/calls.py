"""Whole calls in virtual time: real ears, turn-taking and ledger, a simulated Twilio between.

Only the recogniser is played: it knows what is said when, and says it as late as a real one
does. Everything is timed from the true onset and end of the recording, on the wire.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import trio

from bench.hearing.ears import ECHO_DELAY_MS, IN_TIME_MS, most, noises
from bench.hearing.sounds import (
    BLOCK,
    BOT_DBOV,
    CALLER_DBOV,
    LINE_DBOV,
    RATE,
    Clip,
    Part,
    Samples,
    block_levels,
    child,
    frames,
    level,
    mix,
    non_speech,
    pink,
    to_level,
)
from voicebot import audio
from voicebot.floor import Bell
from voicebot.hearing import Hearing
from voicebot.patience import Endpointing
from voicebot.plan import CallPlan
from voicebot.ports import Final as FinalTranscript
from voicebot.ports import LikelyEnd, Partial, Ports, Transcript
from voicebot.simulator import At, Script, Utterance
from voicebot.testing import HeldCall, ScriptedChat, hold
from voicebot.turns import Interruption
from voicebot.vad import OpenEars

Mode = Literal["provider", "local", "flux", "flux, eager"]

ONSET_S: Final = 5.0  # of bot speech before the caller's, to learn the echo and the noise from
LOCAL_ANSWER_S: Final = 0.16  # finalize to words of the embedded recogniser, median
WORD_S: Final = 0.25  # end of a word to a provider's interim result
SPEECH_FINAL_S: Final = 0.3  # a provider's silence, `endpointing=300`
# Assumed of Flux, as none can be reached: a silence makes it expect the end, and a bit more makes
# it sure, but inside a sentence, where it knows better and says nothing. Its published median is
# near the second. Real ones hear the words, and do worse and better than this.
EAGER_S: Final = 0.16
SURE_S: Final = 0.26
NATURAL_MS: Final = 150  # a gap that is part of a sentence; a clip with longer ones has two
LISTENING: Final = "mm-hm"


@dataclass(frozen=True)
class Word:
    """A word and when it is over, in seconds of the call."""

    text: str
    end_s: float


@dataclass(frozen=True)
class Line:
    """What comes from the caller's side, and what of it is words."""

    samples: Samples
    words: tuple[Word, ...] = ()
    silences: tuple[tuple[float, float], ...] = ()  # between and behind the words, in seconds


@dataclass
class KnowsAll:
    """A recogniser that was told what is said."""

    words: tuple[Word, ...]
    silences: tuple[tuple[float, float], ...]
    mode: Mode
    _due: list[tuple[float, Transcript]] = field(default_factory=list)
    _given: int = 0  # words in a final
    _expected: int = 0  # words of the turn when its end was expected
    _partial: int = 0
    _heard_s: float = 0.0
    _news: Bell = field(default_factory=Bell)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[KnowsAll]:
        await trio.lowlevel.checkpoint()
        yield self

    async def send(self, sound: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._heard_s += len(sound) / audio.BYTES_PER_S
        if self.mode == "local":
            return
        over = sum(word.end_s <= self._heard_s for word in self.words)
        if over > self._partial:
            self._partial = over
            self._say(Partial(self._text(self._given, over)), WORD_S)
        if self.mode != "provider":
            self._take_turns(over)
            return
        silent = any(begin + SPEECH_FINAL_S <= self._heard_s < end for begin, end in self.silences)
        if over > self._given and silent:
            said, self._given = self._text(self._given, over), over
            self._say(FinalTranscript(said, end_of_turn=True), 0.05)

    def _take_turns(self, over: int) -> None:
        """Do as Flux does, with so many words said."""
        if over <= self._given:
            return
        said = self._text(self._given, over)
        quiet, last = next(
            (
                (self._heard_s - begin, end == math.inf)
                for begin, end in self.silences
                if begin <= self._heard_s < end
            ),
            (0.0, False),
        )
        if quiet >= SURE_S and last:
            self._given, self._expected = over, 0
            self._say(FinalTranscript(said, end_of_turn=True), 0.05)
        elif self.mode == "flux, eager" and quiet >= EAGER_S and not self._expected:
            self._expected = over
            self._say(LikelyEnd(said), 0.05)
        elif not quiet and self._expected:
            self._expected = 0
            self._say(Partial(said), 0.05)

    def speech_started(self, ago_ms: int) -> None:
        """Know already."""

    async def finalize(self) -> None:
        await trio.lowlevel.checkpoint()
        over = sum(word.end_s <= self._heard_s for word in self.words)
        said, self._given = self._text(self._given, over), over
        self._say(FinalTranscript(said, finalized=True), LOCAL_ANSWER_S)

    async def receive(self) -> Transcript:
        while not (self._due and self._due[0][0] <= trio.current_time()):
            with trio.move_on_at(self._due[0][0] if self._due else math.inf):
                await self._news.wait()
        await trio.lowlevel.checkpoint()
        return self._due.pop(0)[1]

    def _say(self, transcript: Transcript, delay_s: float) -> None:
        self._due.append((trio.current_time() + delay_s, transcript))
        self._news.ring()

    def _text(self, first: int, behind: int) -> str:
        return " ".join(word.text for word in self.words[first:behind])


@dataclass
class Recorded:
    """A voice that is a recording, so that its echo is one."""

    sound: bytes
    _at: int = 0

    @asynccontextmanager
    async def open_speech(self, text: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        await trio.sleep(0.05)
        yield _Chunks(self, len(text) * 65 // 100)

    def read(self) -> bytes:
        """Return the next 100 ms, over and over."""
        start, size = self._at, 100 * audio.BYTES_PER_MS
        self._at = (start + size) % (len(self.sound) - size)
        return self.sound[start : start + size]


@dataclass
class _Chunks:
    """Of speech, ten times as fast as it is spoken."""

    source: Recorded
    left: int

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        await trio.sleep(0.01)
        if self.left == 0:
            raise StopAsyncIteration
        self.left -= 1
        return self.source.read()


@dataclass(frozen=True)
class Setting:
    """How the bot of a trial takes turns."""

    ears: OpenEars
    interruption: Interruption = field(default_factory=Interruption)
    endpointing: Endpointing = field(default_factory=Endpointing)
    mode: Mode = "provider"
    greets: bool = True


def hold_line(line: Line, bot: Samples, setting: Setting) -> HeldCall:
    """Hold a call whose caller's side is the line, from the first frame to the last."""
    recogniser = KnowsAll(line.words, line.silences, setting.mode)
    seconds = len(line.samples) / RATE
    # Spoken for longer than the call.
    greeting = "It goes on and on. " * int(seconds * 1_000 / 65 / 19 + 4) if setting.greets else ""
    plan = CallPlan(
        "Be brief.",
        greeting,
        endpointing=setting.endpointing,
        interruption=setting.interruption,
    )
    ports = Ports(
        open_transcriber=recogniser.open,
        endpointing="local" if setting.mode == "local" else "provider",
        chat=ScriptedChat(default="That is good to know."),
        synthesizer=Recorded(b"".join(frames(bot))),
        open_ears=setting.ears,
    )
    said = Utterance("line", b"".join(frames(line.samples)), At(0.0))
    return hold(Script((said,), hang_up_after_s=seconds), ports, plan)


def spoken(clip: Clip, at_ms: float, text: str | None = None) -> tuple[Word, ...]:
    """Return the words of a clip that is played from then on, placed by their length."""
    text = clip.text if text is None else text
    words = text.split()
    chars = sum(map(len, words)) or 1
    done, placed = 0, []
    for word in words:
        done += len(word)
        end_ms = clip.onset_ms + (clip.end_ms - clip.onset_ms) * done / chars
        placed.append(Word(word, (at_ms + end_ms) / 1_000))
    return tuple(placed)


def over(
    clip: Clip,
    rng: random.Random,
    noise: Samples,
    snr_db: float,
    *,
    text: str | None = None,
    before_s: float = ONSET_S,
    after_s: float = 3.0,
) -> tuple[Line, float]:
    """Return a line on which the clip is said once in noise, and the time of its onset in ms."""
    lead_ms = before_s * 1_000 + rng.uniform(0, 32)
    dbov = rng.choice(CALLER_DBOV)
    lead = np.zeros(int(lead_ms * RATE / 1_000))
    speech = np.concatenate([lead, to_level(clip.samples, dbov), np.zeros(int(after_s * RATE))])
    start = rng.randrange(max(1, len(noise) - len(speech)))
    around = np.resize(noise[start:], len(speech))
    gain_db = max(dbov - snr_db, LINE_DBOV) - level(around)
    samples = mix(speech, around * 10 ** (gain_db / 20))
    words = spoken(clip, lead_ms, text)
    quiet = tuple(
        ((lead_ms + begin) / 1_000, (lead_ms + end) / 1_000) for begin, end in silences(clip)
    )
    return Line(samples, words, quiet), lead_ms + clip.onset_ms


def silences(clip: Clip) -> list[tuple[float, float]]:
    """Return the silences behind the onset of a clip in ms; the last has no end."""
    levels = block_levels(clip.samples)
    loud = np.flatnonzero(levels > np.quantile(levels[levels > -80], 0.95) - 25)
    edges = [(10.0 * (int(a) + 1), 10.0 * int(b)) for a, b in itertools.pairwise(loud) if b > a + 1]
    return [(a, b) for a, b in edges if a >= clip.onset_ms] + [(clip.end_ms, math.inf)]


def bot_of(part: Part, rng: random.Random) -> Samples:
    """Return a minute of somebody's speech, for the bot."""
    clips = rng.sample(part.clips, min(60, len(part.clips)))
    return np.concatenate([to_level(clip.samples, BOT_DBOV) for clip in clips])[: 60 * RATE]


def median_p95(values: Sequence[float]) -> str:
    """Return both, or a dash."""
    if not values:
        return "–"
    ordered = sorted(values)
    return f"{statistics.median(ordered):.0f} / {ordered[int(0.95 * (len(ordered) - 1))]:.0f}"


def worded(part: Part, count: int, *, least_ms: int = 0, most_ms: int = 10_000) -> list[Clip]:
    """Return clips whose words are known."""
    return [
        clip
        for clip in part.clips
        if clip.text and least_ms < clip.end_ms - clip.onset_ms <= most_ms
    ][:count]


def moments(call: HeldCall, *what: str) -> list[float]:
    """Return when these things happened, in ms."""
    return [moment.at * 1_000 for moment in call.summary.timeline if moment.what in what]


# --- interruptions ---------------------------------------------------------------------------


@dataclass
class Stops:
    """What became of so many interruptions."""

    clear_ms: list[float] = field(default_factory=list)
    confirm_ms: list[float] = field(default_factory=list)  # from the first word recognised
    missed: int = 0
    early: int = 0
    words: int = 0
    lost: int = 0  # words

    def take(self, call: HeldCall, line: Line, onset_ms: float) -> None:
        """Count one call."""
        clears = [clear.at_ms for clear in call.recording.clears]
        if any(at <= onset_ms for at in clears):
            self.early += 1
            return
        first = next((at for at in clears if at > onset_ms), math.inf)
        end_ms = line.words[-1].end_s * 1_000 if line.words else onset_ms
        if first > max(onset_ms + IN_TIME_MS, end_ms):
            self.missed += 1
            return
        self.clear_ms.append(first - onset_ms)
        confirmed = moments(call, "confirmed")
        if confirmed and line.words:
            self.confirm_ms.append(confirmed[0] - (line.words[0].end_s + WORD_S) * 1_000)
        taken = " ".join(turn.caller for turn in call.summary.turns).split()
        self.words += len(line.words)
        self.lost += sum(word.text not in taken for word in line.words)

    def row(self, name: str) -> str:
        """Return a line of the table."""
        n = len(self.clear_ms) + self.missed
        return (
            f"| {name} | {n} | {median_p95(self.clear_ms)} | {most(self.missed, n)} | {self.early} "
            f"| {median_p95(self.confirm_ms)} | {self.lost} of {self.words} |"
        )


def print_calls(part: Part, seed: int, count: int, minutes: float) -> None:
    """Print how interruptions fare in noise, and what noise alone does to a reply."""
    rng = random.Random(seed)
    setting = Setting(OpenEars(Hearing()))
    bot = bot_of(part, rng)
    around = noises(part, seed)
    print(
        "| interruption | n | onset to clear ms | missed % (95 %) | early | word to verdict ms "
        "| words lost |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, clips in (
        ("sentence", worded(part, count, least_ms=1_200)),
        ("short word", worded(part, count, most_ms=1_000)),
    ):
        for snr_db in (60.0, 20.0, 10.0, 5.0):
            stops = Stops()
            for number, clip in enumerate(clips):
                line, onset_ms = over(clip, rng, around[number % len(around)][1], snr_db)
                stops.take(hold_line(line, bot, setting), line, onset_ms)
            print(stops.row(f"{name}, {'clean' if snr_db == 60 else f'{snr_db:.0f} dB'}"))
    stops = Stops()
    for number, clip in enumerate(worded(part, count)):
        young = child(clip)
        if young is not None:
            line, onset_ms = over(young, rng, around[number % len(around)][1], 20.0)
            stops.take(hold_line(line, bot, setting), line, onset_ms)
    print(stops.row("like a child, 20 dB"))

    print("\n| not speech, over the bot | minutes | stops/min | replies lost |\n|---|---|---|---|")
    total_s, total_stops, total_lost = 0.0, 0, 0
    for name, samples in non_speech(rng, part, minutes * 60):
        call = hold_line(Line(samples[: int(minutes * 60 * RATE)]), bot, setting)
        seconds = min(len(samples) / RATE, minutes * 60)
        stopped = len(call.recording.clears)
        lost = sum(turn.interrupted for turn in call.summary.turns[:-1])
        total_s, total_stops, total_lost = (
            total_s + seconds, total_stops + stopped, total_lost + lost,
        )  # fmt: skip
        print(f"| {name} | {seconds / 60:.1f} | {stopped / seconds * 60:.1f} | {lost} |")
    print(f"| all | {total_s / 60:.1f} | {total_stops / total_s * 60:.2f} | {total_lost} |")


def print_echo(part: Part, seed: int, count: int) -> None:
    """Print what the echo of the bot does: alone, and under an interruption."""
    rng = random.Random(seed)
    setting = Setting(OpenEars(Hearing()))
    bot = bot_of(part, rng)
    clips = worded(part, count, least_ms=600)
    print(
        "| return loss dB | minutes | stops/min | n | onset to clear ms | missed % (95 %) | early |"
    )
    print("|---|---|---|---|---|---|---|")
    for loss_db in (15, 20, 25, 30, 40):
        gain = 10 ** (-loss_db / 20)

        def echoing(line: Line, gain: float = gain) -> Line:
            """Return the line with the echo of what is heard if nobody interrupts."""
            plain = hold_line(Line(np.zeros(len(line.samples))), bot, setting)
            pcm = np.frombuffer(audio.decode(plain.recording.heard), dtype="<i2") / 32_768
            delay = np.zeros(ECHO_DELAY_MS * RATE // 1_000)
            return replace(line, samples=mix(line.samples, np.concatenate([delay, pcm * gain]))[
                : len(line.samples)
            ])  # fmt: skip

        seconds = 120.0
        noise = pink(np.random.default_rng(seed), seconds)
        quiet = Line(to_level(noise, LINE_DBOV))
        stopped = len(hold_line(echoing(quiet), bot, setting).recording.clears)
        stops = Stops()
        for clip in clips[: count // 2]:
            line, onset_ms = over(clip, rng, noise, 60.0)
            line = echoing(line)
            stops.take(hold_line(line, bot, setting), line, onset_ms)
        n = len(stops.clear_ms) + stops.missed
        print(
            f"| {loss_db} | {seconds / 60:.0f} | {stopped / seconds * 60:.1f} | {n} | "
            f"{median_p95(stops.clear_ms)} | {most(stops.missed, n)} | {stops.early} |"
        )


# --- what was not meant ----------------------------------------------------------------------


def print_policies(part: Part, seed: int, count: int) -> None:
    """Print what each policy makes of a sign of listening, a noise, and an interruption."""
    short = worded(part, count, most_ms=1_000)
    long = worded(part, count, least_ms=1_200)
    ears = OpenEars(Hearing())
    policies = {
        "resume": Interruption(),
        **{f"resume, `confirm_ms` {ms}": Interruption(confirm_ms=ms) for ms in (300, 500, 800)},
        "resume, `confirm_words` 2": Interruption(confirm_words=2),
        "duck": Interruption(policy="duck"),
        "commit": Interruption(policy="commit"),
    }
    print(
        "| policy | replies lost % to mm-hm | gap behind it ms | to a voice without words "
        "| gap ms | interruption to verdict ms | bot over the caller ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, interruption in policies.items():
        setting = Setting(ears, interruption)
        rng = random.Random(seed)
        bot = bot_of(part, rng)
        noise = pink(np.random.default_rng(seed), 30.0)
        lost: dict[str, list[bool]] = {LISTENING: [], "": []}
        gaps: dict[str, list[float]] = {LISTENING: [], "": []}
        for clip in short:
            for text, fates in lost.items():
                line, onset_ms = over(clip, rng, noise, 30.0, text=text)
                call = hold_line(line, bot, setting)
                if not moments(call, "interrupt"):
                    continue
                fates.append(bool(moments(call, "confirmed")))
                resumed = moments(call, "resumed", "ducked")
                if resumed and not fates[-1]:
                    end_ms = onset_ms - clip.onset_ms + clip.end_ms
                    gaps[text].append(max(0.0, resumed[0] - end_ms))
        verdicts, talking = [], []
        for clip in long:
            line, onset_ms = over(clip, rng, noise, 30.0)
            call = hold_line(line, bot, setting)
            confirmed = moments(call, "confirmed")
            if confirmed:
                verdicts.append(confirmed[0] - onset_ms)
                end_ms = min(confirmed[0], onset_ms - clip.onset_ms + clip.end_ms)
                heard = call.recording.heard_between(onset_ms, end_ms)
                blocks = [heard[i : i + 160] for i in range(0, len(heard), 160)]
                talking.append(20.0 * sum(audio.dbov(block) > -50 for block in blocks))
        print(
            f"| {name} | {most(sum(lost[LISTENING]), len(lost[LISTENING]))} "
            f"| {median_p95(gaps[LISTENING])} | {most(sum(lost['']), len(lost['']))} "
            f"| {median_p95(gaps[''])} | {median_p95(verdicts)} | {median_p95(talking)} |"
        )


# --- the end of a turn -----------------------------------------------------------------------


def paused(clip: Clip, pause_ms: int) -> tuple[Clip, float] | None:
    """Return the clip with a pause of that length between two words, and where it begins in ms.

    None where there is no gap, of at most that length, in its middle half.
    """
    levels = block_levels(clip.samples)
    quiet = levels <= np.quantile(levels, 0.95) - 25
    length = clip.end_ms - clip.onset_ms
    first, last = (int((clip.onset_ms + length * part) / 10) for part in (0.25, 0.75))
    middle = min(range(first, last), key=lambda block: levels[block], default=0)
    if not quiet[middle]:
        return None
    begin = end = middle
    while quiet[begin - 1]:
        begin -= 1
    while quiet[end + 1]:
        end += 1
    gap_ms = 10 * (end + 1 - begin)
    others = [b - a for a, b in silences(clip)[:-1] if not a <= middle * 10 < b]
    if gap_ms > pause_ms or max(others, default=0) > NATURAL_MS:
        return None
    cut = middle * BLOCK
    added_ms = pause_ms - gap_ms
    samples = np.concatenate(
        [clip.samples[:cut], np.zeros(added_ms * RATE // 1_000), clip.samples[cut:]]
    )
    return replace(clip, samples=samples, end_ms=clip.end_ms + added_ms), begin * 10.0


def around(clip: Clip, began_ms: float, at_ms: float, pause_ms: float) -> tuple[Word, ...]:
    """Return the words of a clip that is played from then on with a pause inside."""
    pause_ms_of = (
        (word, 0.0 if word.end_s * 1_000 - began_ms <= at_ms + 40 else pause_ms)
        for word in spoken(clip, began_ms)
    )
    return tuple(Word(word.text, word.end_s + ms / 1_000) for word, ms in pause_ms_of)


def print_turns(part: Part, seed: int, count: int) -> None:
    """Print what a pause does, and how long a finished sentence is waited for."""
    clips = [
        clip
        for clip in worded(part, 10_000, least_ms=1_200)
        if max((b - a for a, b in silences(clip)[:-1]), default=0) <= NATURAL_MS
    ]
    settings: dict[str, tuple[Mode, Hearing, Endpointing]] = {
        "local": ("local", Hearing(), Endpointing()),
        **{
            f"local, `release_ms` {release}, `hangover_ms` {hangover}": (
                "local", Hearing(release_ms=release), Endpointing(hangover_ms=hangover),
            )
            for release, hangover in ((200, 350), (100, 100))
        },
        "local, no guesses": ("local", Hearing(), Endpointing(guesses=0)),
        "provider (`endpointing=300`)": ("provider", Hearing(), Endpointing()),
        "provider, no guesses": ("provider", Hearing(), Endpointing(guesses=0)),
        "provider, believed at once": ("provider", Hearing(), Endpointing(agree_ms=0)),
    }  # fmt: skip
    print(
        "| who decides | n | end to end of turn ms | cut off % by a pause of 300 ms | 500 | 800 "
        "| end of turn to text ms | guesses for nothing |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (mode, hearing, endpointing) in settings.items():
        ears = OpenEars(hearing)
        setting = Setting(ears, Interruption(), endpointing, mode, greets=False)
        rng = random.Random(seed)
        noise = pink(np.random.default_rng(seed), 30.0)
        delays: list[float] = []
        thought: list[float] = []
        guesses = right = 0.0
        for clip in clips[:count]:
            line, _ = over(clip, rng, noise, 30.0, before_s=1.0)
            call = hold_line(line, noise, setting)
            ends, texts = moments(call, "end_of_turn"), moments(call, "first_text")
            guesses += call.summary.counts.get("guesses", 0)
            right += call.summary.counts.get("guesses_right", 0)
            end_ms = line.words[-1].end_s * 1_000
            if ends:
                delays.append(ends[-1] - end_ms)
                thought += [texts[-1] - ends[-1]] if texts else []
        cells = []
        for pause_ms in (300, 500, 800):
            cut = tried = 0
            for clip in clips:
                found = paused(clip, pause_ms)
                if found is None or tried >= count:
                    continue
                longer, at_ms = found
                line, onset_ms = over(longer, rng, noise, 30.0, before_s=1.0)
                began_ms = onset_ms - clip.onset_ms
                line = replace(
                    line, words=around(clip, began_ms, at_ms, longer.end_ms - clip.end_ms)
                )
                call = hold_line(line, noise, setting)
                tried += 1
                ends = moments(call, "end_of_turn")
                cut += any(at < began_ms + longer.end_ms - 100 for at in ends)
            cells.append(most(cut, tried))
        tokens = f"{guesses - right:.0f} of {guesses:.0f}" if guesses else "–"
        print(
            f"| {name} | {len(delays)} | {median_p95(delays)} | {' | '.join(cells)} "
            f"| {median_p95(thought)} | {tokens} |"
        )


def print_flux(part: Part, seed: int, count: int) -> None:
    """Print what ends that are expected gain at the end of a sentence, and cost in its pauses."""
    clips = [
        clip
        for clip in worded(part, 10_000, least_ms=1_200)
        if max((b - a for a, b in silences(clip)[:-1]), default=0) <= NATURAL_MS
    ]
    ears = OpenEars(Hearing())
    noise = pink(np.random.default_rng(seed), 30.0)
    print(
        "| recogniser | n | end to end of turn ms | end to text ms | requests for nothing "
        "| with a pause of 300 ms | 500 | 800 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    modes: tuple[Mode, ...] = ("provider", "flux", "flux, eager")
    for mode in modes:
        setting = Setting(ears, Interruption(), Endpointing(), mode, greets=False)
        rng = random.Random(seed)
        ended: list[float] = []
        texts: list[float] = []
        cells = []
        for pause_ms in (0, 300, 500, 800):
            wasted, turns = 0.0, 0
            for clip in clips:
                found = (clip, 0.0) if pause_ms == 0 else paused(clip, pause_ms)
                if found is None or turns >= count:
                    continue
                longer, at_ms = found
                line, onset_ms = over(longer, rng, noise, 30.0, before_s=1.0)
                if pause_ms:
                    began_ms, added_ms = onset_ms - clip.onset_ms, longer.end_ms - clip.end_ms
                    line = replace(line, words=around(clip, began_ms, at_ms, added_ms))
                call = hold_line(line, noise, setting)
                turns += 1
                counts = call.summary.counts
                wasted += counts.get("guesses", 0) - counts.get("guesses_right", 0)
                if pause_ms == 0:
                    end_ms = line.words[-1].end_s * 1_000
                    ended += [at - end_ms for at in moments(call, "end_of_turn")[-1:]]
                    texts += [at - end_ms for at in moments(call, "first_text")[-1:]]
            cells.append(f"{wasted:.0f} of {turns}")
        row = f"{mode} | {len(ended)} | {median_p95(ended)} | {median_p95(texts)}"
        print(f"| {row} | {' | '.join(cells)} |")
