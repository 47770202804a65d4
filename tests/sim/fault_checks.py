"""What must be true of every call whose providers fail, as its caller heard it.

As in `checks.py`, each check yields what is wrong. How long a caller may hear nothing is derived
in `Bounds` from the plan's `Timeouts`, and nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.sim.checks import (
    clears,
    histories,
    lead,
    one_reply,
    positions,
    prompt_clear,
    wire,
    words_of_the_caller,
)
from tests.sim.fault_world import FaultyHeld, pieces_of
from tests.sim.faults import CLOSE_S, Ask, Provider, Schedule
from voicebot.record import Moment, Outcome, TurnRecord
from voicebot.simulator.loudness import sounds
from voicebot.testing.toy import CHAR_MS, spell

SLACK_S: Final = 0.4  # frames, the way there and back, marks
TICK_S: Final = 0.002
EARS_S: Final = 0.2  # from the caller's last sound to the fall of toy ears
_FAILED: Final = frozenset({"thinking_failed", "synthesis_failed"})
#: In the middle of an answer, of which nothing may have been heard yet.
_MIDDLE: Final = frozenset({"stall", "break off", "drip"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long what may take, in seconds, by what is wrong with the providers of a schedule."""

    schedule: Schedule

    @property
    def end_of_turn_s(self) -> float:
        """From the caller's last sound to the beginning of the turn that answers it.

        The ears fall, the pauses of this caller are waited out, the recogniser answers; and the
        reply before, if it was stopped, lets go of its requests.
        """
        return EARS_S + self.schedule.plan.endpointing.longest_ms / 1_000 + CLOSE_S + SLACK_S

    @property
    def text_s(self) -> float:
        """From the beginning of a turn to the first piece of text: an answer, or an apology.

        All tries together begin within `answer_s`, and the last is let go of. An answer that
        began may stall once, and be asked for again; what drips, drips each word of a piece.
        """
        timeouts, kinds = self.schedule.plan.timeouts, _kinds(self.schedule.chats)
        if not kinds:
            return 1.0
        found = timeouts.answer_s + CLOSE_S + 1.0
        if kinds & _MIDDLE:  # and then it is asked for once more
            found += timeouts.token_gap_s + CLOSE_S + found
        if "drip" in kinds:
            found += self._piece_words() * _drip_s(self.schedule.chats)
        return found

    @property
    def piece_s(self) -> float:
        """From a piece of text to its first sound, or to the news that it has none.

        All tries together begin within `speech_tries` times `first_audio_s`. One that stalls
        behind its first audio, which may be a sound or not, is begun again.
        """
        timeouts, kinds = self.schedule.plan.timeouts, _kinds(self.schedule.voices)
        if not kinds:
            return 0.5
        found = timeouts.speech_tries * timeouts.first_audio_s + CLOSE_S
        if kinds & _MIDDLE:
            found += timeouts.audio_gap_s + CLOSE_S + found
        return found

    @property
    def silence_s(self) -> float:
        """Of a caller, while a turn is under way."""
        timeouts, kinds = self.schedule.plan.timeouts, _kinds(self.schedule.voices)
        if self.schedule.canned != "all":
            return self.text_s + self.piece_s + SLACK_S
        # Nobody breaks in on a sentence: one that stalls is given up first.
        stalled = timeouts.audio_gap_s + CLOSE_S if kinds & _MIDDLE else 0.0
        return timeouts.filler_s + stalled + SLACK_S

    @property
    def turn_s(self) -> float:
        """From the beginning of a turn to its end."""
        plan = self.schedule.plan
        texts = [*self.schedule.answers.values(), plan.greeting, plan.trouble, plan.farewell]
        text = max(texts, key=len)
        doubled = 4 if "double" in _kinds((*self.schedule.chats, *self.schedule.voices)) else 1
        pieces = len(pieces_of(text)) * doubled + 1  # and the apology
        drips = len(text.split()) * _drip_s(self.schedule.chats) * doubled
        sound_s = 2 * len(text) * CHAR_MS / 1_000 * doubled + 2.0  # once more, and a filler
        return self.text_s + drips + pieces * self.piece_s + sound_s + SLACK_S

    def _piece_words(self) -> int:
        texts = [*self.schedule.answers.values()]
        return max(len(piece.split()) + 1 for text in texts for piece in pieces_of(text))


def _kinds(providers: tuple[Provider, ...]) -> frozenset[str]:
    """Return what goes wrong with these that takes time."""
    found = frozenset[str]().union(*(provider.kinds for provider in providers))
    return found - {"short", "double", "empty"}


def _drip_s(providers: tuple[Provider, ...]) -> float:
    drips = [f.wait_s for p in providers for f in p.standing if f.what == "drip"]
    return max(drips, default=0.0)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn, by the timeline. Times are seconds since the call began."""

    record: TurnRecord
    began: float
    over: float
    failed: bool
    moments: tuple[Moment, ...]
    asks: tuple[Ask, ...]  # that began in it


def violations(held: FaultyHeld) -> list[str]:
    """Return everything that is wrong with a call."""
    checks = (_ends, _outcome, _silences, _lengths, _heard, _clean, _noted, _tries, _breakers)
    usual = [wire, clears, prompt_clear, one_reply, histories, lead, positions]
    if held.call.summary.outcome is Outcome.HUNG_UP:  # who gives up answers no more
        usual.append(words_of_the_caller)
    found = [problem for check in usual for problem in check(held)]
    return found + [problem for check in checks for problem in check(held)]


def _turns(held: FaultyHeld) -> list[_Turn]:
    """Return the turns. What came before a turn, after the last, belongs to it: it was guessed."""
    found: list[_Turn] = []
    since, began, moments = 0.0, 0.0, list[Moment]()
    for moment in held.moments:
        moments.append(moment)
        if moment.what == "turn":
            began = moment.at
        elif moment.what == "turn_over":
            failed = {m.what for m in moments} & _FAILED
            record = held.call.summary.turns[moment.detail["number"]]
            asks = []
            for ask in held.asks:
                # What begins in the very moment in which one turn ends may be of the next.
                ours = ask.text in record.generated if ask.text else ask.at < moment.at - TICK_S
                if since - TICK_S <= ask.at < moment.at + TICK_S and ours:
                    asks.append(ask)
            found.append(_Turn(record, began, moment.at, bool(failed), tuple(moments), tuple(asks)))
            since, moments = moment.at, []
    return found


def _wrong_guesses(held: FaultyHeld) -> int:
    counts = held.call.summary.counts
    return int(counts.get("guesses", 0) - counts.get("guesses_right", 0))


def _ends(held: FaultyHeld) -> Iterator[str]:
    """I6, I8, and that a call is never stuck."""
    if held.tasks_left:
        yield f"I6: {held.tasks_left} tasks are left"
    if held.call.summary.outcome is Outcome.CRASHED:
        yield "I8: the call crashed"
    if held.call.recording.ended.by == "limit":
        yield "stuck: the call went on for ever"
    late = held.virtual_s - held.call.recording.ended.at_ms / 1_000
    if late > CLOSE_S + held.schedule.plan.timeouts.hang_up_s + SLACK_S:
        yield f"stuck: the call ended {late:.1f} s after its caller"


def _outcome(held: FaultyHeld) -> Iterator[str]:
    """The call ends as the policy says, and goes on where it says so."""
    outcome, limit = held.call.summary.outcome, held.schedule.plan.timeouts.failures
    turns = _turns(held)
    if outcome is Outcome.NO_RECOGNITION:
        lost = sum(moment.what == "recogniser_failed" for moment in held.moments)
        if lost < held.schedule.plan.timeouts.transcriber_tries:
            yield f"outcome: no recognition after {lost} failures"
        return
    if outcome not in {Outcome.HUNG_UP, Outcome.NO_ANSWERS, Outcome.NO_SPEECH}:
        yield f"outcome: the call ended with {outcome.value}"
        return
    if _wrong_guesses(held):
        return  # whose failure it was, the timeline does not tell
    in_a_row = 0
    for number, turn in enumerate(turns):
        in_a_row = in_a_row + 1 if turn.failed else 0
        last = number == len(turns) - 1
        trouble = turn.record.generated and held.schedule.plan.trouble.startswith(
            turn.record.generated
        )
        if in_a_row >= limit and not trouble and number < len(turns) - 2:
            yield f"outcome: the call went on after {in_a_row} failures in a row"
        if last and outcome is not Outcome.HUNG_UP:
            mute = turn.failed and turn.record.first_media is None
            if not mute and not (trouble and (number == 0 or turns[number - 1].failed)):
                yield f"outcome: {outcome.value} without a reason"
    # What only one of several has is no reason to give up, once the others have been tried.
    timeouts = held.schedule.plan.timeouts
    for gave_up, providers, tries in (
        (Outcome.NO_ANSWERS, held.schedule.chats, timeouts.answer_tries),
        (Outcome.NO_SPEECH, held.schedule.voices, timeouts.speech_tries),
    ):
        ill = sum(bool(provider.kinds) for provider in providers)
        # Each may cost the call one reply: what broke off is not asked for again. All that are ill
        # may take their time first, within that for an answer.
        enough = tries >= len(providers) > ill and limit > ill
        if outcome is Outcome.NO_ANSWERS:
            enough &= timeouts.answer_s > ill * (timeouts.first_token_s + CLOSE_S) + 1.0
        if outcome is gave_up and enough:
            yield f"outcome: {gave_up.value}, though one of them was well"


def _silences(held: FaultyHeld) -> Iterator[str]:
    """Never silent: what the caller is owed is heard within the bounds."""
    bounds, recording = Bounds(held.schedule), held.call.recording
    ended = recording.ended.at_ms / 1_000
    turns = _turns(held)
    said = sounds(recording.caller, bridge_ms=300)
    heard = sounds(recording.heard, bridge_ms=0)
    loud = sorted((sound.start_ms / 1_000, sound.end_ms / 1_000) for sound in (*said, *heard))
    edges = [0.0]
    quiet: list[tuple[float, float]] = []
    for start, end in [*loud, (ended, ended)]:
        if start > edges[-1]:
            quiet.append((edges[-1], min(start, ended)))
        edges.append(max(edges[-1], end))
    for start, end in quiet:
        for turn in turns:
            silent_s = min(end, turn.over) - max(start, turn.began)
            most = bounds.silence_s
            if {"interrupt", "recogniser_failed"} <= {moment.what for moment in turn.moments}:
                # Who breaks in is waited for until the recogniser, too, has been given up.
                most += held.schedule.plan.endpointing.final_grace_ms / 1_000
            if silent_s > most:
                yield (
                    f"silent: {silent_s:.2f} s from {max(start, turn.began):.2f} s in turn "
                    f"{turn.record.number}; at most {most:.2f}"
                )
    if "recogniser" in held.conversation.faults:
        return
    for sound in said:
        end = sound.end_ms / 1_000
        # Whoever goes on is not waiting.
        until = min([s.start_ms / 1_000 for s in said if s.start_ms > sound.end_ms] + [ended])
        until = min([turn.began for turn in turns if turn.began >= end - SLACK_S] + [until])
        if until - end > bounds.end_of_turn_s:
            yield (
                f"silent: no turn began within {until - end:.2f} s of what was said until "
                f"{end:.2f} s; at most {bounds.end_of_turn_s:.2f}"
            )


def _lengths(held: FaultyHeld) -> Iterator[str]:
    """No turn goes on for ever, however often it says that it will soon be there."""
    limit = Bounds(held.schedule).turn_s
    for turn in _turns(held):
        if turn.over - turn.began > limit:
            yield (
                f"stuck: turn {turn.record.number} took {turn.over - turn.began:.1f} s; "
                f"at most {limit:.1f}"
            )


def _heard(held: FaultyHeld) -> Iterator[str]:
    """I4, by words, of which each is said once: through fillers and sentences begun again."""
    plan = held.schedule.plan
    if _all_kinds(held.schedule.voices) & {"short", "double"}:
        return  # what a voice leaves out without a word is nobody's fault
    if _all_kinds(held.schedule.chats) & {"double"}:
        return  # its words are said twice
    for turn in _turns(held):
        number, record = turn.record.number, turn.record
        line = _bare(" ".join(held.call.heard_in(number)))
        claimed, heard = _bare(record.heard), set(line)
        broke = any(m.what in {"provider_failed", "synthesis_failed"} for m in turn.moments)
        apologised = _bare(plan.apology)
        generated = _bare(record.generated)
        if (
            claimed[-len(apologised) :] == apologised
            and generated[-len(apologised) :] != apologised
        ):
            claimed = claimed[: -len(apologised)]
        if claimed != generated[: len(claimed)] and apologised[0] not in claimed:
            yield f"I4: turn {number} heard {record.heard!r}, which is not how it began"
        if not record.interrupted and claimed != generated and not turn.failed:
            yield f"I4: turn {number} was heard to its end and is cut: {record.heard!r}"
        ended_in_it = turn.over >= held.call.summary.duration_s - TICK_S
        false = [word for word in claimed if word not in heard]
        # One is being said at the cut, and two were at each break.
        if len(false) > 1 + broke:
            yield f"I4: turn {number}: {false} are claimed, {line} was heard"
        missed = [word for word in generated if word in heard and word not in claimed]
        # A clause that broke off is placed by the usual rate, a quarter slower than toy speech.
        allowed = 1 + math.ceil(broke * len(missed + claimed) / 4)
        if len(missed) > allowed and not ended_in_it:
            yield f"I4: turn {number}: {missed} were heard, claimed is {record.heard!r}"


def _all_kinds(providers: tuple[Provider, ...]) -> frozenset[str]:
    return frozenset[str]().union(*(provider.kinds for provider in providers))


def _bare(text: str) -> list[str]:
    return [word for word in re.sub(r"[.,?!-]", " ", spell(text)).split() if word]


def _clean(held: FaultyHeld) -> Iterator[str]:
    """A turn whose requests met no fault is answered as if there had never been one."""
    for turn in _turns(held):
        record = turn.record
        if any(ask.fault is not None for ask in turn.asks) or record.interrupted:
            continue
        if turn.failed:
            yield f"clean: turn {record.number} failed, though nothing was wrong"
        if not record.caller or not record.generated:
            continue
        answers = [a for r, a in held.schedule.answers.items() if r in record.caller]
        if record.generated not in answers and "recogniser" not in held.conversation.faults:
            yield f"clean: turn {record.number} says {record.generated!r}"
        if record.heard != record.generated:
            yield f"clean: turn {record.number} is cut: {record.heard!r}"
        if record.first_media is None or record.first_media - record.began > 1.5:
            yield f"clean: turn {record.number} was late, {record.first_media}"


def _noted(held: FaultyHeld) -> Iterator[str]:
    """Every failure of a model and of a voice is on the timeline, and no other."""
    failed = [m for m in held.moments if m.what == "provider_failed"]
    notes = [m for m in failed if not m.detail["provider"].endswith("recogniser")]
    timeouts = held.schedule.plan.timeouts
    ended = held.call.summary.duration_s
    for ask in held.asks:
        if ask.how == "failed":
            due = True
        else:
            first_s = timeouts.first_token_s
            if ask.provider.startswith("voice"):
                first_s = timeouts.first_audio_s
            fault = ask.fault
            never = fault is not None and fault.what in {"hang", "mute"} and not fault.after
            due = never and abs(ask.until - ask.at - first_s) < TICK_S
        close_s = ask.fault.close_s if ask.fault is not None else 0.0
        # A turn that is stopped while a late request lets go of itself is not told of it.
        stopped = ask.how == "cancelled" and any(
            m.what == "confirmed" and ask.until <= m.at <= ask.until + close_s for m in held.moments
        )
        if not due or stopped:
            continue
        for note in notes:
            same = note.detail["provider"] == ask.provider
            if same and abs(note.at - ask.until - close_s) < TICK_S:
                notes.remove(note)
                break
        else:
            if ask.until < ended - TICK_S:
                yield f"noted: {ask} is not on the timeline"
    for note in notes:
        # Late in the middle, or cut short by the patience for all tries together.
        if not any(
            ask.provider == note.detail["provider"]
            and ask.how == "cancelled"
            and -TICK_S < note.at - ask.until < CLOSE_S + TICK_S
            for ask in held.asks
        ):
            yield f"noted: {note} was no failure"


def _tries(held: FaultyHeld) -> Iterator[str]:
    """No request is tried more often than the policy says."""
    timeouts, wrong = held.schedule.plan.timeouts, _wrong_guesses(held)
    for turn in _turns(held):
        chats = sum(ask.provider.startswith("chat") for ask in turn.asks)
        # An answer that breaks off before its first sentence is asked for once more.
        again = 2 if _kinds(held.schedule.chats) & _MIDDLE else 1
        if chats > timeouts.answer_tries * (1 + wrong) * again:
            yield f"tries: turn {turn.record.number} asked models {chats} times"
        texts = [ask.text for ask in turn.asks if ask.text]
        for text in set(texts):
            # A sentence that broke off is begun again once.
            if texts.count(text) > 2 * timeouts.speech_tries * (1 + wrong):
                yield f"tries: turn {turn.record.number} asked {texts.count(text)} times: {text!r}"


def _breakers(held: FaultyHeld) -> Iterator[str]:
    """In a standing outage the first is left alone, if there is another that is well."""
    timeouts = held.schedule.plan.timeouts
    for providers, first_s in (
        (held.schedule.chats, timeouts.first_token_s),
        (held.schedule.voices, timeouts.first_audio_s),
    ):
        first, *others = providers
        if not any(not other.kinds for other in others):
            continue
        for outage in first.outages:
            if not outage.fault.counts:
                continue
            asks = [
                ask
                for ask in held.asks
                if ask.provider == first.name
                and ask.fault is outage.fault
                # And was not given up by the call before it had failed.
                and (ask.how == "failed" or ask.until - ask.at > first_s - TICK_S)
            ]
            if not asks:
                continue
            span = asks[-1].at - asks[0].at
            allowed = timeouts.breaker_failures + span / timeouts.breaker_s
            if len(asks) > allowed + TICK_S:
                yield f"breaker: {first.name} failed {len(asks)} times in its outage"
