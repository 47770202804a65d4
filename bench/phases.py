"""Barge-in in every phase of a call, over real sockets in real time; exit status 1 if one fails.

    python -m bench.phases [--calls 55 --at-once 8 --seed 1] [--only PHASE] [--broken]

A black box, as `bench.barge_in`: `voicebot serve` in a process of its own, the stand-ins for
Deepgram and Groq and the callers in this one. For each phase the stand-ins are so slow, or so
brief, that it lasts, and recorded people speak when it should be there. Which phase a barge-in
met is read off the wire; the timing only makes it likely. There are no tools in `serve` yet, so
"in a tool" is tried in virtual time only (`tests/sim`).

With `--broken` the server sends the last audio once more behind each clear: the run must fail.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from bench.barge_in import STORY, recordings, row, serving, settings
from voicebot.audio import BYTES_PER_MS, silence
from voicebot.simulator import At, InterruptAfter, Recording, Script, Utterance, run_call
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.simulator.loudness import sounds
from voicebot.simulator.twilio_end import Clear, Mark, Media
from voicebot.standins import ChatConduct, SpeakConduct, open_standins
from voicebot.standins.groq import Reply, ToolCall

BROKEN: Final = "bench.broken"
FIRST_MS: Final = 100.0  # of a reply
#: From a sound to the clear at most; later is another interruption's, or none.
NOTICED_MS: Final = 1_500.0
SENT_MS: Final = 70.0  # a message comes every 60 ms while there is something to send
GUARD_MS: Final = 150.0  # what is late is late at once
LEAST: Final = 20  # barge-ins in a phase
BUFFERED_MS: Final = 100.0

#: Phases in which nothing is buffered, or whatever little there is.
SILENT: Final = ("before first token", "before first audio", "between sentences")
HALF: Final = ("first 100 ms", "last byte sent")


@dataclass(frozen=True)
class Scene:
    """What makes a phase likely. `second` is when the interruption begins."""

    phase: str
    second: Callable[[random.Random], At | InterruptAfter]
    replies: str | Reply = STORY
    chat: ChatConduct = field(default_factory=ChatConduct)
    speak: SpeakConduct = field(default_factory=SpeakConduct)
    environ: dict[str, str] = field(default_factory=dict)
    weight: int = 1  # of a short phase there must be more calls


def after_audio(low: float, high: float) -> Callable[[random.Random], InterruptAfter]:
    return lambda pick: InterruptAfter(pick.uniform(low, high))


def after_asking(low: float, high: float) -> Callable[[random.Random], At]:
    """So long after the end of what the caller asks, which is at `ASKED_S`."""
    return lambda pick: At(ASKED_S + pick.uniform(low, high))


ASK_S: Final = 2.0  # when the caller asks: behind the greeting
ASKED_S: Final = 4.0  # asking takes two seconds, with silence before it
WORD: Final = "Certainly. "

SCENES: Final = (
    Scene("before first token", after_asking(0.2, 1.6), chat=ChatConduct(delay_s=3.0)),
    Scene("before first audio", after_asking(0.4, 1.6), speak=SpeakConduct(delay_s=3.0)),
    Scene("first 100 ms", after_asking(0.26, 0.44), speak=SpeakConduct(delay_s=0.3), weight=3),
    Scene("mid-sentence", after_audio(400, 3_000)),
    Scene(
        "between sentences",
        after_audio(900, 1_600),
        replies=WORD + STORY,
        speak=SpeakConduct(delay_s=2.5),
    ),
    Scene("last byte sent", after_audio(340, 520), replies=WORD, weight=2),
    Scene(
        "greeting",
        after_audio(100, 2_500),
        replies="Of course.",
        environ={"VOICEBOT_GREETING": STORY},
    ),
    Scene(
        "goodbye",
        after_audio(300, 2_000),
        replies=Reply(STORY, (ToolCall("hang_up", "{}"),)),
    ),
    Scene("verdict pending", after_audio(400, 2_500)),
    Scene("after resume", after_audio(300, 1_200)),
)


@dataclass(frozen=True)
class BargeIn:
    """One interruption as it was on the wire."""

    phase: str
    clear_ms: float | None  # from the caller's first sound
    dropped_ms: float
    late_media: int
    answered: bool


def script(scene: Scene, clips: list[tuple[str, bytes]], pick: random.Random) -> Script:
    """Return a caller who asks, and then interrupts in the phase of the scene."""
    asks = pick.choice([clip for clip in clips if len(clip[1]) < 1_700 * BYTES_PER_MS])
    name, words = pick.choice(clips)
    asking = silence(2_000 - len(asks[1]) // BYTES_PER_MS) + asks[1]
    utterances = [Utterance("asks", asking, At(ASK_S))]
    match scene.phase:
        case "greeting":
            utterances = []
        case "verdict pending":  # a sound, and 80 ms later the words
            words = asks[1][: 300 * BYTES_PER_MS] + silence(80) + words
        case "after resume":
            # The stand-in takes the second thing it hears for a sign of listening.
            utterances.append(
                Utterance("mm-hm", asks[1][: 350 * BYTES_PER_MS], InterruptAfter(800))
            )
    utterances.append(Utterance(f"interrupts: {name}", words, scene.second(pick)))
    return Script(tuple(utterances), patience_s=6.0)


def texts(scene: Scene) -> list[str]:
    """Return what the recogniser understands, in order."""
    said = {"after resume": ["tell me a story", "mm-hm"], "greeting": []}
    return [*said.get(scene.phase, ["tell me a story"]), *["no wait please"] * 4]


def barge_in(scene: Scene, recording: Recording) -> BargeIn | None:
    """Read the interruption off the wire; None if the caller never came to it."""
    *before, spoken = recording.spoken or (None,)
    if spoken is None or not spoken.utterance.name.startswith("interrupts"):
        return None
    audible = sounds(spoken.utterance.audio, 250.0)
    onset = spoken.start_ms + audible[0].start_ms
    limit = min(spoken.end_ms, onset + NOTICED_MS)
    clears = [h for h in recording.happenings if isinstance(h, Clear)]
    clear = next((c for c in clears if onset <= c.at_ms <= limit), None)
    noticed = clear.at_ms if clear is not None else onset + FIRST_MS
    since = before[-1].end_ms if before else 0.0
    medias = [h for h in recording.happenings if isinstance(h, Media)]
    sent = [m for m in medias if since < m.at_ms <= noticed and m.audio.strip(b"\xff")]
    late = [] if clear is None else late_media(recording, clear)
    return BargeIn(
        met(scene.phase, sent, noticed),
        None if clear is None else clear.at_ms - onset,
        0.0 if clear is None else clear.dropped_ms,
        len(late),
        any(m.at_ms > spoken.end_ms for m in medias),
    )


def late_media(recording: Recording, clear: Clear) -> list[Media]:
    """Return the media behind a clear that is of the reply that was cleared.

    Where the words that stopped the bot were also the end of the caller's turn, the next reply may
    be there at once: its marks have another turn in their names, and it is no repetition.
    """
    behind = recording.happenings[recording.happenings.index(clear) + 1 :]
    before = recording.happenings[: -len(behind) or None]
    turn = next((m.name.split(".")[0] for m in reversed(before) if isinstance(m, Mark)), "")
    last = next((m.audio for m in reversed(before) if isinstance(m, Media)), b"")
    late = []
    for number, media in enumerate(behind):
        if isinstance(media, Media) and media.at_ms - clear.at_ms < GUARD_MS:
            mark = next((m.name for m in behind[number:] if isinstance(m, Mark)), "")
            if media.audio == last or mark.split(".")[0] == turn:
                late.append(media)
    return late


def met(aimed: str, sent: list[Media], noticed: float) -> str:
    """Return the phase that was there; what the wire cannot tell is as it was aimed at."""
    if aimed in {"greeting", "goodbye", "verdict pending", "after resume"}:
        return aimed
    if not sent:
        return aimed if aimed in SILENT[:2] else "before first audio"
    if noticed - sent[0].at_ms <= FIRST_MS:
        return "first 100 ms"
    last = sent[-1]
    ends = last.at_ms + last.buffered_ms + len(last.audio) / BYTES_PER_MS
    if ends <= noticed:
        return "between sentences"
    if noticed - last.at_ms > SENT_MS:
        return "last byte sent"
    return "mid-sentence"


async def measure(options: argparse.Namespace) -> list[BargeIn]:
    """Hold the calls of all scenes; return what became of their interruptions."""
    pick = random.Random(options.seed)
    clips = recordings(pick)
    found: list[BargeIn] = []
    limit = trio.CapacityLimiter(options.at_once)

    async def hold(server: str, scene: Scene, caller: Script) -> None:
        async with limit:
            answer = await dial(server, Account())
            async with open_line(server, answer.stream_url, Account()) as line:
                one = barge_in(scene, await run_call(line, caller, answer.identity))
            if one is not None:
                found.append(one)
            print(".", end="", file=sys.stderr, flush=True)

    module = BROKEN if options.broken else "voicebot"
    for scene in SCENES:
        if options.only and options.only != scene.phase:
            continue
        async with open_standins(
            replies=[scene.replies, *["Of course."] * 5],
            texts=texts(scene),
            chat=scene.chat,
            speak=scene.speak,
        ) as standins:
            with serving({**settings(standins.environment()), **scene.environ}, module) as server:
                async with trio.open_nursery() as nursery:
                    for _ in range(options.calls * scene.weight):
                        nursery.start_soon(hold, server, scene, script(scene, clips, pick))
        print(f" {scene.phase}", file=sys.stderr)
    return found


def report(found: list[BargeIn]) -> list[str]:
    """Print the table; return what is wrong."""
    phases: dict[str, list[BargeIn]] = defaultdict(list)
    for one in found:
        phases[one.phase].append(one)
    heads = ("n", "clears", ">=100 ms", "late media", "answered", "ms: median", "max")
    print(f"{'':20}" + "".join(f"{head:>12}" for head in heads))
    wrong = []
    for phase in [scene.phase for scene in SCENES]:
        ones = phases[phase]
        times = sorted(one.clear_ms for one in ones if one.clear_ms is not None)
        cells = (
            len(ones),
            len(times),
            sum(one.dropped_ms >= BUFFERED_MS for one in ones),
            sum(one.late_media for one in ones),
            sum(one.answered for one in ones),
            round(times[len(times) // 2]) if times else "-",
            round(times[-1]) if times else "-",
        )
        print(f"{phase:20}" + "".join(f"{cell:>12}" for cell in cells))
        if len(ones) < LEAST:
            wrong.append(f"{phase}: {len(ones)} barge-ins only")
        if unanswered := sum(not one.answered for one in ones):
            wrong.append(f"{phase}: {unanswered} not answered")
    cleared = [one for one in found if one.clear_ms is not None]
    full = [one for one in cleared if one.phase not in SILENT + HALF]
    print()
    print(f"{'':44} {'min':>8} {'median':>8} {'p95':>8} {'max':>8} {'n':>6}")
    print(
        row("first sound -> clear", [one.clear_ms for one in cleared if one.clear_ms is not None])
    )
    print(row("buffered at the clear, audio playing", [one.dropped_ms for one in full]))
    buffered = sum(one.dropped_ms >= BUFFERED_MS for one in full)
    late = sum(one.late_media for one in found)
    print(f"barge-ins {len(found)}, clears {len(cleared)}, media after clear {late}")
    print(f"at least 100 ms buffered: {buffered} of {len(full)} where audio goes on")
    if late:
        wrong.append(f"{late} media after clear")
    if buffered < 0.9 * len(full):
        wrong.append("fewer than nine in ten with 100 ms buffered")
    return wrong


def main() -> int:
    """Print the table; exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=55, help="for each phase")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="PHASE")
    parser.add_argument("--broken", action="store_true")
    wrong = report(trio.run(measure, parser.parse_args()))
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
