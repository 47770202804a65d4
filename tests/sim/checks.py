"""What must be true of every conversation, whatever happened in it.

Each check yields what is wrong, beginning with the invariant's name. The truth is the
simulator's: what was on the wire, and what came out of the caller's phone.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.sim.conversation import ENDS
from tests.sim.world import Held
from voicebot.audio import BYTES_PER_MS
from voicebot.ports import Message
from voicebot.record import Outcome, TurnRecord
from voicebot.simulator.twilio_end import Clear, Echo, Mark, Media, Warned
from voicebot.toolbox import BROKEN_OFF, TOO_LATE
from voicebot.words import Vocabulary

VOCABULARY: Final = Vocabulary.of("en")
OFF_MS: Final = 150  # I4: how far the heard position may be from the truth
WORD_MS: Final = 200  # the shortest word in toy speech, with its space
FRAME_MS: Final = 20

_EXCUSED: Final = {
    Outcome.HUNG_UP: {"stop"},
    Outcome.SOCKET_CLOSED: {"drop"},
    Outcome.MEDIA_TIMEOUT: {"half-open", "stalls"},
    Outcome.SEND_TIMEOUT: {"stall"},
    Outcome.PROTOCOL_ERROR: {"protocol error"},
    Outcome.CANCELLED: {"drain"},
    Outcome.NO_RECOGNITION: {"recogniser"},
    Outcome.NO_CALLER: {"recogniser"},  # deaf from the start, as if nobody had spoken
    Outcome.NO_SPEECH: {"voice"},
    Outcome.NO_ANSWERS: {"chat"},
}


def violations(held: Held) -> list[str]:
    """Return everything that is wrong with a conversation."""
    checks = (
        wire, _goes_on, clears, prompt_clear, _heard, _ends, one_reply, _tools, histories,
        words_of_the_caller, lead, _answered,
    )  # fmt: skip
    return [problem for check in checks for problem in check(held)]


def wire(held: Held) -> Iterator[str]:
    """I1 and Twilio's own contract."""
    for happening in held.call.recording.happenings:
        if isinstance(happening, Warned):
            yield f"wire: warning {happening.code}, {happening.reason}"
    # A mark names the epoch of the media before it: none of a cleared one may come again.
    cleared: set[tuple[str, ...]] = set()
    open_epoch: tuple[str, ...] | None = None
    since = 0
    for happening in held.call.recording.happenings:
        if isinstance(happening, Media):
            since += 1
        elif isinstance(happening, Mark):
            open_epoch = tuple(happening.name.split(".")[:2])
            if open_epoch in cleared:
                yield f"I1: mark {happening.name} after the clear of its epoch"
            since = 0
        elif isinstance(happening, Clear) and open_epoch is not None and not since:
            cleared.add(open_epoch)


def _goes_on(held: Held) -> Iterator[str]:
    """I1, by what was heard: nothing of a stopped reply comes after it was stopped."""
    # What was heard after each clear begins at a word, of the same reply or of the next. Where
    # more was claimed than heard, I4 says how much may be missing.
    heard_ms = dict(_truth_ms(held))
    ahead = {key[0] for key, claimed in _claims(held).items() if claimed > heard_ms.get(key, 0.0)}
    # A sentence that broke off is said again from its beginning.
    again = {m.detail["number"] for m in held.moments if m.what == "begun_again"}
    # What comes behind the last mark is called the last turn's. Where that has sent nothing it is
    # the end of the one before, whose mark was on its way when the call was over.
    turns = held.call.summary.turns
    silent = {len(turns) - 1} if turns and turns[-1].first_media is None else set()
    for number in set(range(len(turns))) - ahead - again - silent:
        try:
            held.call.words_heard_in(number)
        except ValueError as exc:
            yield f"I1: turn {number}: {exc}"


def clears(held: Held) -> Iterator[str]:
    """I2: one clear a stop, and only where Twilio may still hold audio."""
    happenings = held.call.recording.happenings
    stops = sum(m.what == "silenced" and m.detail["cleared"] for m in held.moments)
    clears = sum(isinstance(happening, Clear) for happening in happenings)
    ended = {done.act.what for done in held.done} & {"drop", "half-open", "stall", "stop", "drain"}
    if clears != stops and not (ended and clears - stops in {-1, 0, 1}):
        yield f"I2: {clears} clears on the wire for {stops} stops"
    media = 0
    last_mark, proved = "", False
    for happening in happenings:
        if isinstance(happening, Media):
            media, last_mark, proved = media + 1, "", False
        elif isinstance(happening, Mark):
            last_mark, proved = happening.name, False
        elif isinstance(happening, Echo) and happening.name == last_mark:
            proved = not happening.cleared
        elif isinstance(happening, Clear):
            if not media:
                yield f"I2: clear at {happening.at_ms:.0f} ms with nothing sent"
            perfect = held.conversation.network.delay_ms == 0 == held.conversation.network.jitter_ms
            if proved and perfect and not happening.dropped_ms and not held.conversation.faults:
                yield f"I2: clear at {happening.at_ms:.0f} ms of what is known to have played"
            media = 0


def prompt_clear(held: Held) -> Iterator[str]:
    """I3: between noticing and the clear there is nothing but the message being written."""
    if "stall" in {done.act.what for done in held.done}:
        return
    noticed: float | None = None
    for moment in held.moments:
        if moment.what == "interrupt":
            noticed = moment.at if noticed is None else noticed
        elif moment.what == "silenced":
            if noticed is not None and moment.at - noticed > 0.0015 and moment.detail["cleared"]:
                yield f"I3: clear {moment.at - noticed:.3f} s after the interruption"
            noticed = None
        elif moment.what in {"turn", "turn_over"}:
            noticed = None


def _heard(held: Held) -> Iterator[str]:
    """I4: the engine's idea of what was heard, against what was."""
    faults = held.conversation.faults
    acted = {done.act.what for done in held.done}
    if acted & {"half-open", "stall", "drop"}:
        return  # the truth went another way than the engine was told
    unsure = bool(faults & {"marks", "stalls"})
    hidden_ms = _hidden_ms(held)
    for number, turn in enumerate(held.call.summary.turns):
        try:
            truth = held.call.words_heard_in(number)
        except ValueError:
            continue  # reported by I1
        said, heard = len(turn.heard.split()), len(truth.split())
        if not turn.interrupted and turn.heard != turn.generated and "voice" not in faults:
            yield f"I4: turn {number} was heard to its end and is cut: {turn.heard!r}"
        if not turn.generated.startswith(turn.heard):
            yield f"I4: turn {number} heard {turn.heard!r}, which is not how it began"
        if last_of(held) is turn and (unsure or held.ended_early):
            continue  # what plays on after an end is not known to the server
        # How far a clause that broke off had come is known to its length only.
        if "voice" in faults:
            continue
        if said - heard > 1 or heard - said > 1 + math.ceil(hidden_ms / WORD_MS):
            yield f"I4: turn {number}: {turn.heard!r} is claimed, {truth!r} was heard"
    yield from positions(held)


def _hidden_ms(held: Held) -> float:
    """Return how much of what was heard the engine may not know of."""
    faults, pacing = held.conversation.faults, held.conversation.plan.pacing
    # An echo that does not come may also mean that nothing plays. Where one is lost, less is
    # claimed than was heard until it is overdue, never more; in a stall, up to a lead.
    hidden_ms = held.conversation.network.batch_ms  # echoes come with their bunch: believed
    if "marks" in faults:
        hidden_ms += pacing.mark_grace_ms + pacing.mark_every_ms
    if "stalls" in faults:
        hidden_ms += pacing.lead_ms
    return hidden_ms


def positions(held: Held) -> Iterator[str]:
    """I4, in milliseconds: where each reply that was stopped is said to have been cut."""
    faults, network = held.conversation.faults, held.conversation.network
    hidden_ms = _hidden_ms(held)
    heard_ms = dict(_truth_ms(held))
    # What waits for its bunch when the line stalls is late by both, and nothing tells.
    late_ms = network.batch_ms if "stalls" in faults else 0
    for (turn_n, epoch_n), claimed in _claims(held).items():
        off = claimed - heard_ms.get((turn_n, epoch_n), 0.0)
        if not -OFF_MS - hidden_ms <= off <= OFF_MS + late_ms:
            yield f"I4: epoch {turn_n}.{epoch_n} is off by {off:.0f} ms"


def last_of(held: Held) -> TurnRecord | None:
    """Return the last turn, which the end of the call may have cut."""
    turns = held.call.summary.turns
    return turns[-1] if turns else None


def _claims(held: Held) -> dict[tuple[int, int], float]:
    """Return the position in ms at which the engine says each stopped epoch was cut."""
    claims: dict[tuple[int, int], float] = {}
    turn = epoch = 0
    for moment in held.moments:
        match moment.what:
            case "turn":
                turn, epoch = moment.detail["number"], 0
            case "resumed" | "ducked":
                epoch += 1
            case "silenced" if moment.detail["cleared"]:
                claims[turn, epoch] = moment.detail["heard_ms"]
    return claims


def _truth_ms(held: Held) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the position in ms up to which each epoch really played."""
    starts: dict[tuple[int, int], float] = {}
    turn = epoch = 0
    for moment in held.moments:
        match moment.what:
            case "turn":
                turn, epoch = moment.detail["number"], 0
            case "resumed" | "ducked":
                epoch += 1
                starts[turn, epoch] = moment.detail["from_ms"]
    for key, audio in held.call.audio_by_epoch.items():
        yield (key.turn, key.n), starts.get((key.turn, key.n), 0.0) + len(audio) / BYTES_PER_MS


def _ends(held: Held) -> Iterator[str]:
    """I6, I7: the call ended as it should, and left nothing."""
    outcome = held.call.summary.outcome
    acted = {done.act.what for done in held.done} | (held.conversation.faults - {"stop"})
    if held.tasks_left:
        yield f"I6: {held.tasks_left} tasks are left"
    if outcome is Outcome.CRASHED:
        yield "I8: the call crashed"
    if outcome is Outcome.BOT_HUNG_UP and not any(t.goodbye for t in held.call.summary.turns):
        yield "end: the bot hung up without a goodbye"
    if outcome in {Outcome.HUNG_UP, Outcome.BOT_HUNG_UP}:
        return
    if not acted & _EXCUSED.get(outcome, set()):
        yield f"I7: the call ended with {outcome.value}"


def one_reply(held: Held) -> Iterator[str]:
    """I9."""
    if held.most_replies_at_once > 1:
        yield f"I9: {held.most_replies_at_once} replies of the model at once"


def _tools(held: Held) -> Iterator[str]:
    """I10."""
    turns = held.call.summary.turns
    runs = [(n, record) for n, turn in enumerate(turns) for record in turn.tools]
    # Where nobody ended it on purpose: a tool that lets go slowly may make a call's end long.
    over = min(held.call.summary.duration_s - 1.1, held.call.recording.ended.at_ms / 1_000)
    for number, record in runs:
        if record.ended is None or not record.result:
            yield f"I10: turn {number}: {record.name} has no result"
        # The end of the call may tear one, after a grace of its own.
        torn = record.result in {BROKEN_OFF, TOO_LATE}
        ends = [done.at for done in held.done if done.act.what in ENDS]
        ended = min(ends, default=over)
        if record.name == "book" and torn and record.ended is not None and record.ended < ended:
            yield f"I10: turn {number}: {record.name} was torn at {record.ended}"
    for tool in held.tools.values():
        if tool.started != tool.finished + tool.cancelled:
            yield f"I10: {tool.tool.name} began {tool.started} times and ended less"
    seen: dict[str, int] = {}
    for number, record in runs:
        if record.name != "book":
            continue
        key = json.dumps(record.arguments, sort_keys=True)
        if key in seen and all(turns[n].interrupted for n in range(seen[key], number)):
            yield f"I10: {record.name} ran twice for one request, {key}"
        seen[key] = number


def histories(held: Held) -> Iterator[str]:
    """What the model was shown: every tool call answered, nothing that was not said."""
    for request in held.chat.requests:
        messages = request.messages
        yield from _pairs(messages)
        for message in messages:
            if message.role == "assistant" and not message.content and not message.tool_calls:
                yield "history: an empty assistant message"
        roles = [message.role for message in messages if message.role != "tool"]
        for before, after in itertools.pairwise(roles):
            if before == after == "user":
                yield "history: two messages of the caller in a row"


def _pairs(messages: tuple[Message, ...]) -> Iterator[str]:
    owed: list[str] = []
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id not in owed:
                yield "history: the result of a tool call that is not there"
            else:
                owed.remove(message.tool_call_id)
            continue
        if owed:
            yield "history: a tool call without its result"
        owed = [call.id for call in message.tool_calls]
    if owed:
        yield "history: a tool call without its result"


_KEYS = re.compile(r"\[pressed ([^]]*)\]")


def words_of_the_caller(held: Held) -> Iterator[str]:
    """None lost, none twice: every word said in time is in exactly one turn of the caller."""
    if held.conversation.faults & {"recogniser"}:
        return
    texts = [turn.caller for turn in held.call.summary.turns]
    keys = Counter("".join(key for text in texts for key in _KEYS.findall(text)))
    pressed = Counter("".join(s.utterance.digits for s in held.call.recording.spoken))
    for key in keys - pressed:
        yield f"dialog: the key {key} is in more turns of the caller than it was pressed"
    taken = [word for text in texts for word in _KEYS.sub(" ", text).split()]
    taken = [word for word in taken if not VOCABULARY.only_listening(word) and word != "stop"]
    for word in sorted({word for word in taken if taken.count(word) > 1}):
        yield f"dialog: {word!r} is in two turns of the caller"
    if held.ended_early:
        return
    ended_ms = held.call.recording.ended.at_ms
    for spoken in held.call.recording.spoken:
        if ended_ms - spoken.end_ms < 4_000 or spoken.utterance.backchannel:
            continue
        for word in spoken.utterance.name.split():
            if spoken.utterance.audio and word not in taken and word not in {"stop", "cough"}:
                yield f"dialog: {word!r}, said at {spoken.start_ms:.0f} ms, was lost"


def lead(held: Held) -> Iterator[str]:
    """I12: audio is not further ahead of playout than the lead."""
    network, pacing = held.conversation.network, held.conversation.plan.pacing
    if network.delay_ms or network.jitter_ms or held.conversation.faults & {"stalls", "stall"}:
        return  # bunched on the way
    limit = pacing.lead_ms * (1 + abs(network.drift)) + 1 + abs(network.drift) * 30_000
    for happening in held.call.recording.happenings:
        if isinstance(happening, Media):
            ahead = happening.buffered_ms + len(happening.audio) / BYTES_PER_MS
            if ahead > limit + FRAME_MS:
                yield f"I12: {ahead:.0f} ms ahead at {happening.at_ms:.0f} ms"


def _answered(held: Held) -> Iterator[str]:
    """Never stuck: what the caller said last, after everything, has an answer that was heard."""
    if held.ended_early or held.call.summary.outcome is not Outcome.HUNG_UP:
        return
    last = held.conversation.requests[-1]
    assert isinstance(last, str)
    spoken = [s for s in held.call.recording.spoken if s.utterance.name == last]
    if not spoken:
        yield "stuck: the caller never came to their last words"
        return
    if held.conversation.faults & {"recogniser"}:
        return
    answers = [t for t in held.call.summary.turns if last.split()[-1] in t.caller.split()]
    # A row of slow tools may take longer than this caller waits, and so may an answer to keys that
    # were pressed before: they are a turn of their own, in which the call may end.
    keys = any("[pressed" in turn.caller for turn in held.call.summary.turns)
    if not answers:
        if not keys:
            yield "stuck: the caller's last words were not taken"
        return
    excused = answers[-1].tools or keys or held.conversation.faults & {"voice", "stalls"}
    if not any(t.heard for t in answers) and not excused and not _just_failed(held):
        yield "stuck: the caller's last words were not answered"


def _just_failed(held: Held) -> bool:
    """Return whether the model has failed so late that what follows need not be heard yet.

    `answer_s` bounds when an answer begins. One that then drips and breaks off in its first
    sentence comes on top, and with the next try or the apology that is more than this caller waits.
    """
    failed = [moment.at for moment in held.moments if moment.what == "provider_failed"]
    patience_s = held.conversation.plan.timeouts.answer_s
    return bool(failed) and held.call.summary.duration_s - failed[-1] < patience_s
