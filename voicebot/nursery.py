"""The life of a call: its nurseries, its scopes, and what ends each of them.

    run_call
      call nursery            owns these eight; `_Call.end` ends it
        writer                the only task that sends on the media socket; outlives every turn
        listen scope          socket -> ears -> turn-taking; never waits for a provider
        transcribe            ring of caller audio -> recogniser -> turn-taking
        media                 ends a call whose caller is not to be heard, by a dead stream
        keys                  ends entries behind which no other key comes
        clock                 warns that the call gets too long, and ends it
        tools nursery         owns the tools that run; one that must not be torn outlives its turn
        converse              one turn after the other; its own task speaks
          turn nursery        owns think and synth
            think scope       language model and tools -> pieces of text
            synth             pieces -> speech -> reel; survives a stop of speaking
          speak scope         reel -> writer, at most `lead_ms` ahead; no provider inside

Barge-in is cancel, join, clear: the listen scope cancels the speak scope in one synchronous
step, leaving the scope's block is the join, and only then is `clear` handed to the writer,
behind the message it may be writing. Whether the interruption was meant is decided after
the bot is silent; until then think and synth go on.

A call ends in one way, whoever ends it: `_Call.end`, the call nursery is joined, the record is
written, the carrier is told where the end was the bot's, the socket is closed.

Imports core, ports and trio: no vendor, no socket, no JSON.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, assert_never

import trio

from voicebot import audio, twilio, whose
from voicebot.company import Company, waiting_tool
from voicebot.context import shorten
from voicebot.dialog import MAX_RESULT_TOKENS, Dialog
from voicebot.errors import (
    ProviderError,
    RemoteProtocolError,
    SocketClosed,
)
from voicebot.failover import FailoverChat, FailoverVoice
from voicebot.floor import Bell, Floor
from voicebot.keypad import Entry, Keypad, asking_tool
from voicebot.pacer import Pacer
from voicebot.parting import Ending, Resumption
from voicebot.plan import CallPlan
from voicebot.playout import Epoch, Ledger
from voicebot.ports import (
    Ears,
    MediaSocket,
    OpenTranscriber,
    Ports,
    Recogniser,
    Tongue,
    Transcript,
)
from voicebot.recognising import Recognising
from voicebot.record import (
    CallSummary,
    Journal,
    Moment,
    Outcome,
    ProviderRequest,
    ToolRecord,
    TurnRecord,
)
from voicebot.remote import Remote
from voicebot.reply import Asked, Notes, OpenGuess, Reply
from voicebot.speakers import USUAL, Mouth, Speaking, switching_tool
from voicebot.thinking import Piece, Think, Thinker
from voicebot.toolbox import BROKEN_OFF, TOO_LATE, Run, Toolbox, last_number
from voicebot.tries import Alternatives
from voicebot.turns import (
    EndOfTurn,
    Finalize,
    Guess,
    Instruction,
    Interrupt,
    Nothing,
    RecogniserLate,
    SpeechStarted,
    Turns,
    Verdict,
    WrongGuess,
)
from voicebot.voicing import Voicing
from voicebot.words import words_of
from voicebot.writer import Writer

_log = logging.getLogger(__name__)

PIECES: Final = 64  # sentences waiting for synthesis, so that the model's stream is drained
OVERLAP_BYTES: Final = 2 * audio.FRAME_BYTES  # said again by who goes on: the fade takes a bit
ECHO_S: Final = 4.0  # the bot's words may be recognised so much later: a provider's slowest

# Ends of the call that the carrier does not know of. Not among them: a stream that broke, for
# Twilio goes on with what follows in the TwiML, which may be another server; and one that the bot
# has left for something else.
_OURS: Final = frozenset(Outcome) - {
    Outcome.HUNG_UP,
    Outcome.SOCKET_CLOSED,
    Outcome.CANCELLED,
    Outcome.TRANSFERRED,
    Outcome.PRESSING_KEYS,
}
_GAVE_UP: Final = frozenset(
    {Outcome.NO_RECOGNITION, Outcome.NO_SPEECH, Outcome.NO_ANSWERS, Outcome.CRASHED}
)


async def run_call(
    socket: MediaSocket,
    ports: Ports,
    plan: CallPlan,
    *,
    on_end: Callable[[CallSummary], None] | None = None,
    on_turn: Callable[[TurnRecord], None] | None = None,
    watch: Callable[[Moment], None] | None = None,
    on_request: Callable[[ProviderRequest], None] | None = None,
    resumption: Resumption | None = None,
    on_parting: Callable[[Ending], Awaitable[None]] | None = None,
    remote: Remote | None = None,
) -> CallSummary:
    """Run one call from `start` to its end; return what happened.

    Raises nothing that concerns only this call: a hang-up is an outcome, and so is a bug,
    which is logged. The socket is closed on return.

    Args:
        on_end: is given the summary once, however the call ends; synchronous, so that a
            cancelled call is recorded as well.
        on_turn: is given each turn once it is over, also when the call ends in it; synchronous,
            and quick. Tools of the turn may still be running.
        watch: is shown every event of the timeline as it happens; synchronous, and quick.
        on_request: is given each request to a provider that is over; synchronous, and quick.
        resumption: what this stream goes on with; the bot begins then, with an answer.
        on_parting: is told what the bot has ended the stream for, before the socket is closed:
            Twilio asks for it then. Has its own bound. Not called where it has hung up.
        remote: what the call can be told from outside.

    Cancellation: everything of the call is cancelled and joined; at once, but for a tool that
        must not be torn, which has `tool_grace_s`.

    Owns: the call nursery. It ends when `_Call.end` is called or the call gets too long.
    """
    call = _Call(socket, ports, plan, on_turn, watch, on_request, resumption)
    if remote is not None:
        remote.attach(call.leave_message, call.stop)
        call.on_end = remote.over
    try:
        latest = call.began + plan.timeouts.call_s + plan.timeouts.parting_s
        with trio.move_on_at(latest) as length:
            async with trio.open_nursery() as nursery:  # owns the eight tasks; `end` ends it
                call.scope = nursery.cancel_scope
                jobs_send, jobs_receive = trio.open_memory_channel[Run](0)
                call.thinker.jobs = jobs_send
                sid = socket.start.call_sid
                nursery.start_soon(call.writer.run, name=f"write {sid}")
                nursery.start_soon(call.listen, name=f"listen {sid}")
                nursery.start_soon(call.transcribe, name=f"transcribe {sid}")
                nursery.start_soon(call.run_tools, jobs_receive, name=f"tools {sid}")
                nursery.start_soon(call.miss_media, name=f"media {sid}")
                nursery.start_soon(call.take_keys, name=f"keys {sid}")
                nursery.start_soon(call.watch_clock, name=f"clock {sid}")
                nursery.start_soon(call.converse, name=f"converse {sid}")
        if length.cancelled_caught:
            call.outcome = Outcome.TOO_LONG
    except* Exception as crash:
        call.outcome = Outcome.CRASHED
        _log.error("call_crashed", exc_info=crash)
    finally:
        summary = call.summary()
        if on_end is not None:
            on_end(summary)
        _log.info(
            "call_ended",
            extra={
                "outcome": summary.outcome.value,
                "duration_s": round(summary.duration_s, 3),
                "turns": len(summary.turns),
                "counts": summary.counts,
            },
        )
    if on_parting is not None and call.ending is not None:
        await on_parting(call.ending)
    if ports.hand_over is not None and summary.outcome in _GAVE_UP:
        hand_over = partial(ports.hand_over, summary.call_sid, not call.told)
        await _tell_carrier(hand_over, plan.timeouts.hang_up_s)
    elif ports.hang_up is not None and summary.outcome in _OURS:
        await _tell_carrier(partial(ports.hang_up, summary.call_sid), plan.timeouts.hang_up_s)
    await socket.aclose(1011 if summary.outcome is Outcome.CRASHED else 1000)
    return summary


async def _tell_carrier(tell: Callable[[], Awaitable[object]], patience_s: float) -> None:
    """Have the carrier end the call or take it. Whatever comes of it, the socket is closed next."""
    with trio.move_on_after(patience_s) as patience:
        try:
            await tell()
        except Exception:  # a bug there must not keep the socket open
            _log.warning("hang_up_failed", exc_info=True)
    if patience.cancelled_caught:
        _log.warning("hang_up_late", extra={"patience_s": patience_s})


class _Call:
    """What the scopes of one call share. Every method is one task, or a step of one."""

    scope: trio.CancelScope
    _ears: Ears

    def __init__(
        self,
        socket: MediaSocket,
        ports: Ports,
        plan: CallPlan,
        on_turn: Callable[[TurnRecord], None] | None,
        watch: Callable[[Moment], None] | None,
        on_request: Callable[[ProviderRequest], None] | None,
        resumption: Resumption | None,
    ) -> None:
        self.on_end: Callable[[float], None] = lambda now: None  # told when it begins to end
        self.outcome = Outcome.CANCELLED
        self._socket = socket
        self._ports = ports
        self._plan = plan
        self._on_turn = on_turn
        before = resumption or Resumption((), 0, 0.0)
        self.began = trio.current_time() - before.elapsed_s
        notes = Notes(Journal(self.began, watch, turns=before.turns, on_request=on_request))
        self._journal, self._note, self._first = notes.journal, notes.note, notes.first
        self._floor = Floor()
        self._ledger = Ledger(plan.pacing)
        self._turns = Turns(plan.endpointing, ports.endpointing, plan.interruption, plan.language)
        asks = (asking_tool(self._expect, plan.keys),) if plan.may_ask_for_keys else ()
        waits = (waiting_tool(self._wait),) if plan.may_wait and plan.timeouts.idle_s else ()
        self._tongues = {
            USUAL: Tongue(ports.synthesizer, ports.open_transcriber, ports.canned),
            **{name: tongue for name, tongue in ports.tongues.items() if name in plan.speakers},
        }
        names = list(self._tongues)
        switches = (switching_tool(names, self._speak_as),) if len(names) > 1 else ()
        self._toolbox = Toolbox(
            (*waits, *asks, *switches, *ports.tools),
            plan.partings,
            numbered=last_number(before.history),
        )
        self._goes_on = resumption is not None
        self._dialog = Dialog(
            plan.prompt, self._toolbox.offered, plan.context_tokens, before.history
        )
        rules = plan.timeouts.retrying
        self._chat = FailoverChat(
            Alternatives.of(ports.chat, rules),
            plan.timeouts,
            self._provider_failed,
            Asked(notes, "llm"),
        )
        self._asked_voice = Asked(notes, "tts")
        self._mouth = Mouth(self._speaking(USUAL))
        self._recognising = Recognising(
            self._recognisers_of(USUAL),
            plan.timeouts.transcriber_tries,
            self._turns,
            notes,
            self._take,
            self._provider_failed,
            Asked(notes, "stt"),
        )
        self.thinker = Thinker(
            self._mouth, self._chat, self._dialog, self._toolbox, self._floor, notes
        )
        self._voicing = Voicing(self._mouth, self.thinker, self._ledger, self._turns, notes)
        self._company = Company(self._mouth, self._voicing.knows)
        self._framer = audio.Framer()
        self._media_in = 0
        self._media_at = trio.current_time()  # of the caller, last
        self._keypad = Keypad(plan.keys)
        self._tape = ports.tape
        self.writer = Writer(socket, self._ledger, ports.tape, plan.send_deadline_s, self.end)
        self._pacer = Pacer(plan, self.writer, self._ledger, self._floor, self._turns, notes)
        self._pressed = Bell()
        self._inbox: list[str] = []  # turns of the caller not answered yet
        self._idle = False  # nothing is being answered
        self._guess: OpenGuess | None = None
        self._called = Bell()
        self._giving_up: Outcome | None = None
        self._voice = False  # of the caller, by the ears
        self._rose = 0.0  # when it rose, and when it fell
        self._fell: float | None = None
        self._reply: Reply | None = None  # the newest
        self._silent_at = trio.current_time()  # when it was last heard
        self._ducks = plan.interruption.policy == "duck"
        self._failures = 0  # replies in a row that could not be given
        self._message = ""  # for the machine that has answered
        self.told = False  # why the bot gives up, to the end
        self.ending: Ending | None = None  # what the bot has ended the stream for
        if before.speaker in self._tongues:
            self._speak_as(before.speaker)

    def end(self, outcome: Outcome) -> None:
        """End the call. The first reason given is the one that counts."""
        if not self.scope.cancel_called:
            self.outcome = outcome
            self.scope.cancel(reason=outcome.value)
            self.on_end(trio.current_time())

    def summary(self) -> CallSummary:
        """Return what is known now."""
        return CallSummary(
            call_sid=self._socket.start.call_sid,
            stream_sid=self._socket.start.stream_sid,
            outcome=self.outcome,
            duration_s=trio.current_time() - self.began,
            turns=tuple(self._journal.turns),
            timeline=tuple(self._journal.timeline),
            barge_ins=tuple(self._journal.barge_ins),
            requests=tuple(self._journal.requests),
            peaks={**self._journal.peaks, "socket": round(self.writer.slowest_s, 3)},
            counts={
                **self._journal.counts,
                "gaps": self._framer.gaps,
                "gap_ms": self._framer.gap_ms,
                "underruns": self._ledger.underruns,
                "underrun_ms": round(self._ledger.underrun_s * 1_000),
                "stale_marks": self._ledger.stale_marks,
                "media_in": self._media_in,
                "media_out": self.writer.messages,
                "sent_ms": self.writer.bytes // audio.BYTES_PER_MS,
            },
        )

    def _provider_failed(self, error: ProviderError, left_alone: bool) -> None:
        self._journal.count("provider_failures")
        detail = {"provider": error.provider, "error": str(error), "left_alone": left_alone}
        self._note("provider_failed", **detail)
        _log.warning("provider_failed", extra=detail)

    # The listen scope.

    async def listen(self) -> None:
        """Take the caller's audio, keys and the echoes of marks until the stream ends."""
        self._ears = self._ports.open_ears()  # here, where a bug in it is the end of this call
        try:
            while True:
                event = await self._socket.receive()
                match event:
                    case twilio.Media(timestamp_ms, payload):
                        self._media_at = now = trio.current_time()
                        self._media_in += 1
                        self._ledger.caller_heard(timestamp_ms, now)
                        if self._tape is not None:
                            hidden = self._keypad.hiding
                            self._tape.caller_said(payload, timestamp_ms, now, hidden=hidden)
                        for frame in self._framer.push(payload, timestamp_ms):
                            self._hear(frame, now)
                    case twilio.Mark(name):
                        self._mark_echoed(name)
                    case twilio.Dtmf(digit):
                        self._press(digit)
                    case twilio.Stop():
                        self.end(Outcome.HUNG_UP)
                        return
                    case _ as unreachable:
                        assert_never(unreachable)
        except SocketClosed:
            self.end(Outcome.SOCKET_CLOSED)
        except RemoteProtocolError as exc:
            self._note("protocol_error", kind=exc.kind)
            self.end(Outcome.PROTOCOL_ERROR)

    async def miss_media(self) -> None:
        """End the call when no audio of the caller comes: a deadline for each would cost more."""
        while (due := self._media_at + self._plan.timeouts.media_s) > trio.current_time():  # noqa: ASYNC110  # its time is known
            await trio.sleep_until(due)
        self.end(Outcome.MEDIA_TIMEOUT)

    def _hear(self, frame: bytes, now: float) -> None:
        ears = self._ears
        voice = ears.hear(frame, echo_dbov=self._ledger.playing_dbov(now))
        self._recognising.feed(frame)
        if voice and not self._voice:
            self._rose = now
        if self._voice and not voice:
            self._fell = now
            self._called.ring()  # whoever waits for the caller counts from here
        self._voice = voice
        instructions = self._turns.frame(voice, ears.onset_ms, now)
        if not self._message:  # what a machine says is no turn
            self._obey(instructions)

    def _press(self, key: str) -> None:
        """Take a key: whoever presses one has stopped listening. Synchronous."""
        now = trio.current_time()
        self._note("dtmf")  # and not which: it may be secret
        if self._tape is not None and self._keypad.secret:
            self._tape.hide_key()
        if self._message or self._giving_up is not None:
            return
        self._settle_guess(right=False)  # whatever was said, there is more to answer
        if self._ledger.open_epoch is not None or not self._idle:
            if not self._floor.undecided:
                self._floor.interrupt()
                self._journal.interrupted(now, now, self._journal.next_turn - 1)
            self._floor.decide(True)
            self._journal.decided(now, True)
            self.thinker.scope.cancel(reason="key")
        self._entered(self._keypad.press(key, now))
        self._pressed.ring()

    def _entered(self, entry: str | None) -> None:
        """Make keys that are an entry the caller's turn."""
        if entry is not None:
            self._settle_guess(right=False)  # of words behind the last key
            self._give_floor()
            self._note("end_of_turn")
            self._inbox.append(entry)
        self._called.ring()  # whoever keeps company looks again

    async def take_keys(self) -> None:
        """End entries behind which no other key comes."""
        while True:
            with trio.move_on_at(self._keypad.due):
                await self._pressed.wait()
            if trio.current_time() >= self._keypad.due:
                self._entered(self._keypad.expire())

    def _mark_echoed(self, name: str) -> None:
        now = trio.current_time()
        if self._ledger.mark_echoed(name, now):
            if self._tape is not None:
                self._tape.bot_played(self._ledger.unproved, self._ledger.delay_s)
            self._pacer.echoed.ring()
        else:
            self._journal.clear_echoed(now)

    def _obey(self, instructions: Sequence[Instruction]) -> None:
        """Do what turn-taking says. Synchronous: one step for every other task."""
        for instruction in instructions:
            match instruction:
                case SpeechStarted() | Finalize():
                    self._recognising.feed(instruction)
                case RecogniserLate():
                    self._recognising.late()
                case Interrupt(onset):
                    self._floor.interrupt()
                    turn = self._journal.next_turn - 1
                    self._journal.interrupted(trio.current_time(), onset, turn)
                case Verdict(confirmed):
                    self._floor.decide(confirmed)
                    self._journal.decided(trio.current_time(), confirmed)
                    if confirmed:
                        self.thinker.scope.cancel(reason="barge-in")
                case Guess(text):
                    if self._idle and not self._inbox and self._giving_up is None:
                        self._guess = OpenGuess(text)
                        self._journal.count("guesses")
                        self._called.ring()
                case WrongGuess():
                    self._settle_guess(right=False)
                case EndOfTurn(text):
                    self._keypad.spoken()
                    self._give_floor()
                    self._note("end_of_turn")
                    guessed = self._guess is not None and words_of(self._guess.text)
                    if not self._settle_guess(right=guessed == words_of(text)):
                        self._inbox.append(text)
                        self._called.ring()
                case Nothing():
                    # Words that came to nothing may have come without a voice.
                    self._company.nothing((self._fell or 0.0) - self._rose)
                    self._called.ring()
                case _ as unreachable:
                    assert_never(unreachable)

    def _give_floor(self) -> None:
        """Let the bot speak again, but for the reply that an interruption was meant for.

        One that has not begun to speak would meet it only when it does: behind this turn.
        """
        if self._floor.kept and self._reply is not None:
            self._reply.abandoned = True
        self._floor.given()

    def _settle_guess(self, *, right: bool) -> bool:
        """Say what became of the guess, if there is one; return whether its reply is a turn now.

        It becomes one in this step, so that no task of it finds the call before its turn.
        """
        guess, self._guess = self._guess, None
        if guess is None:
            return False
        self._journal.count("guesses_right", right)
        guess.settle(right)
        if guess.reply is None or not right:
            return False
        self._dialog.caller_said(guess.text)
        self._begin(guess.reply)
        return True

    def _wait(self, seconds: float) -> None:
        self._company.wait(trio.current_time() + seconds)

    def _speaking(self, name: str) -> Speaking:
        """Return how a speaker says what there is to say."""
        tongue, timeouts = self._tongues[name], self._plan.timeouts
        voices = Alternatives.of(tongue.synthesizer, timeouts.retrying)
        voice = FailoverVoice(voices, timeouts, self._provider_failed, self._asked_voice)
        return Speaking(self._plan.speakers.get(name, self._plan), voice, tongue.canned)

    def _opener_of(self, name: str) -> OpenTranscriber | Alternatives[Recogniser]:
        return self._tongues[name].open_transcriber or self._ports.open_transcriber

    def _recognisers_of(self, name: str) -> Alternatives[Recogniser]:
        """Return what hears the language of a speaker."""
        opener = self._opener_of(name)
        if isinstance(opener, Alternatives):
            return opener
        timeouts = self._plan.timeouts
        rules = replace(timeouts.retrying, pause_s=timeouts.transcriber_pause_s)
        return Alternatives([Recogniser(opener, self._ports.endpointing)], rules)

    def _speak_as(self, name: str) -> None:
        """Let another speaker go on: with the next piece, and the next words of the caller."""
        if name == self._mouth.name:
            return
        if self._opener_of(name) is not self._opener_of(self._mouth.name):
            self._recognising.change(self._recognisers_of(name))
        self._mouth.name, self._mouth.now = name, self._speaking(name)
        self._turns.speak(self._mouth.plan.language)
        self._toolbox.part_by(self._mouth.plan.partings)
        self._note("voice_switched", to=name)

    def _expect(self, entry: Entry) -> None:
        self._keypad.expect(entry, trio.current_time())
        self._pressed.ring()

    # The recogniser, and what it hears.

    async def transcribe(self) -> None:
        """Have the caller recognised; give up where nobody can."""
        await self._recognising.run()
        self._give_up(Outcome.NO_RECOGNITION)

    def _take(self, transcript: Transcript) -> None:
        now = trio.current_time()
        instructions = self._turns.transcript(transcript, now, self._spoken(now))
        if not self._message:
            self._obey(instructions)

    def _spoken(self, now: float) -> str:
        """Return what the caller has lately heard of the bot, and may be recognised again."""
        if self._reply is None:
            return ""
        heard = self._reply.heard
        if self._ledger.open_epoch is not None:
            heard = max(heard, self._ledger.playing(now))
        elif now - self._silent_at > ECHO_S:
            return ""
        second = audio.BYTES_PER_S
        return self._reply.reel.words_between(heard - ECHO_S * second, heard + second)

    def leave_message(self, text: str) -> None:
        """Say this to a machine, which cannot interrupt, and end the call. Synchronous."""
        self._message = text
        self._note("machine")
        self._give_up(Outcome.VOICEMAIL)

    def stop(self) -> None:
        """Apologise and end the call: the server stops. Synchronous."""
        if self._giving_up is None:  # else it ends already, with words that tell more
            self._note("server_stops")
            self._give_up(Outcome.SERVER_STOPPED)

    def _give_up(self, outcome: Outcome) -> None:
        """Stop what is being said, say goodbye, and end the call."""
        self._giving_up = outcome
        self._settle_guess(right=False)
        self._floor.interrupt()
        self._floor.decide(True)
        self._called.ring()

    async def watch_clock(self) -> None:
        """Warn the caller that the call gets too long, and end it with a goodbye."""
        timeouts = self._plan.timeouts
        warning_at = self.began + timeouts.call_s - timeouts.warning_s
        # A call that comes back behind that moment was warned, or was away when it was due.
        if timeouts.warning_s and warning_at >= trio.current_time():
            await trio.sleep_until(warning_at)
            self._company.warn()
            self._called.ring()
        await trio.sleep_until(self.began + timeouts.call_s)
        self._give_up(Outcome.TOO_LONG)

    # Conversing: one turn after the other.

    async def converse(self) -> None:
        """Greet, then answer the caller's turns until the call ends."""
        if self._goes_on:
            await self._turn("", self.thinker.answer)
        elif self._plan.opening and self._giving_up is None:
            await self._turn("", self.thinker.recite(self._plan.opening))
        while True:
            while not self._inbox and self._giving_up is None and self._guess is None:
                await self._keep_company()
            if self._giving_up is not None:
                self._floor.given()
                await self._turn("", self.thinker.recite(self._last_words(self._giving_up)))
                record = self._journal.turns[-1]
                self.told = record.heard == record.generated
                self.end(self._giving_up)
                return
            self._company.understood()
            guess = self._guess
            text = " ".join(self._inbox) if guess is None else guess.text
            if guess is None:
                self._inbox.clear()
                self._dialog.caller_said(text)
            if not await self._turn(text, self.thinker.answer, guess):
                continue
            # It was a goodbye. A cough over its end is waited out, words are answered.
            while self._turns.caller_talking and self._giving_up is None:
                await self._called.wait()
            if not self._inbox and self._giving_up is None:
                self._part()
                return

    def _last_words(self, outcome: Outcome) -> str:
        """Return what a call says that ends for this reason."""
        if self._message:
            return self._message
        plan = self._mouth.plan
        deaf = {Outcome.NO_RECOGNITION: plan.farewell, Outcome.NO_CALLER: plan.farewell}
        ours = {Outcome.TOO_LONG: plan.time_up, Outcome.SERVER_STOPPED: plan.stopping}
        return {**deaf, **ours}.get(outcome, plan.trouble)

    async def _keep_company(self) -> None:
        """Wait for news of the caller; say something where the silence gets too long before."""
        now = trio.current_time()
        remark = None
        if not self._keypad.busy:
            remark = self._company.remark(
                now,
                waiting=self._turns.caller_talking,
                voice=self._voice,
                silent_at=self._silent_at,
                fell=self._fell or 0.0,
            )
        if remark is None or now < remark.due:
            self._idle = True
            with trio.move_on_at(math.inf if remark is None else remark.due):
                await self._called.wait()
            self._idle = False
        elif remark.kind == "no_caller":
            self._give_up(Outcome.NO_CALLER)
        else:
            self._note(remark.kind)
            self._journal.count(f"{remark.kind}s")
            self._company.said(remark)
            await self._turn("", self.thinker.recite(remark.text), aside=True)

    def _part(self) -> None:
        """End the stream in the way the newest reply has asked for."""
        reply = self._reply
        assert reply is not None  # it was heard to its end
        assert reply.parting is not None  # or it would have been no goodbye
        outcome = reply.parting.outcome
        if outcome is not Outcome.BOT_HUNG_UP:
            so_far = Resumption(
                self._dialog.history,
                self._journal.next_turn,
                trio.current_time() - self.began,
                self._mouth.name,
            )
            self.ending = Ending(outcome, reply.arguments, reply.parting_id, so_far)
        self.end(outcome)

    async def _turn(
        self, caller: str, think: Think, guess: OpenGuess | None = None, *, aside: bool = False
    ) -> bool:
        """Give one reply: think, synthesise, speak, and be stopped or heard.

        Args:
            guess: what the caller has probably said. Until it is known to be right, the reply
                is thought and synthesised and nothing else: it is neither heard nor on record.
            aside: it is on record, and in no history.

        Returns whether it was a goodbye, heard to its end.

        Owns: the turn nursery. It ends when the reply has been heard, when an interruption was
        meant, or when the guess was wrong; leaving it joins think and synth.
        """
        number = self._journal.next_turn
        token = whose.turn.set(number)  # before a task is started: tasks inherit it
        record = TurnRecord(number, caller, 0.0)
        reply = Reply(record, guess, aside)
        if guess is None:
            self._begin(reply)
        else:
            guess.reply = reply
        try:
            async with trio.open_nursery() as turn:  # owns think and synth
                pieces_send, pieces_receive = trio.open_memory_channel[Piece](PIECES)
                turn.start_soon(
                    self.thinker.think, think, pieces_send, reply, name=f"think #{number}"
                )
                turn.start_soon(self._voicing.synth, pieces_receive, reply, name=f"synth #{number}")
                turn.start_soon(self._voicing.fill, reply, name=f"fill #{number}")
                if guess is None or await guess.is_right():
                    record.interrupted = True  # until it is known to have been heard to its end
                    try:
                        record.interrupted = not await self._deliver(reply)
                    finally:
                        self._cut_off(reply)
                    ended = "barge-in" if record.interrupted else "heard"
                else:
                    ended = "wrong guess"
                turn.cancel_scope.cancel(reason=ended)
        finally:
            if reply.begun:
                self._end_turn(reply)
            else:
                self._journal.asked_for_nothing(number)
            whose.turn.reset(token)
        if not reply.begun:
            return False
        self._count_failure(reply)
        goodbye = record.goodbye and not record.interrupted
        if not record.interrupted:
            self._toolbox.told()
        # What a caller mumbles over a goodbye is no answer to it.
        if not self._inbox and (not goodbye or self._turns.caller_talking):
            self._obey(self._turns.bot_ended(trio.current_time()))
        return goodbye

    def _count_failure(self, reply: Reply) -> None:
        """Give up when replies fail one after the other."""
        if reply.failed is None:
            self._failures = 0
        elif not reply.reel.length and not reply.record.interrupted:
            self.end(reply.failed)  # there is no voice to say so with
        elif self._giving_up is None:
            self._failures += 1
            if self._failures >= self._plan.timeouts.failures:
                self._give_up(reply.failed)

    def _begin(self, reply: Reply) -> None:
        """Make a reply a turn of the call. Synchronous: one step for every other task."""
        record, reply.begun, self._reply = reply.record, True, reply
        record.began = self._note("turn", number=record.number)
        if record.caller and self._fell is not None:
            record.fell = self._journal.since(self._fell)
        self._journal.begun(record)
        self._turns.bot_began()
        if reply.pieces:
            self._first("first_text", reply)
        if reply.reel.length:
            self._first("first_audio", reply)

    def _cut_off(self, reply: Reply) -> None:
        """Take what was heard of a reply whose epoch is still open: the call ends in it.

        Here and not when the turn is over, for think and synth may be slow to let go.
        """
        if self._ledger.open_epoch is not None:
            reply.heard = max(reply.heard, self._ledger.heard(trio.current_time()))

    def _end_turn(self, reply: Reply) -> None:
        """Record what was heard of a reply; also when the call ends in the middle."""
        record, parts = reply.record, reply.heard_parts()
        record.heard = " ".join(filter(None, parts))
        if not reply.aside:
            self._dialog.bot_said(*parts, interrupted=record.interrupted)
        self._note("turn_over", number=record.number, interrupted=record.interrupted)
        if self._on_turn is not None:
            self._on_turn(record)

    async def _deliver(self, reply: Reply) -> bool:
        """Speak a reply until it has been heard, through refuted interruptions.

        Returns whether it was heard to its end; otherwise an interruption was meant.

        Owns: the speak scope. The floor cancels it; leaving its block is the join that makes
        the clear come after the last media.
        """
        position, n = 0, 0
        while not reply.abandoned:
            epoch = Epoch(reply.record.number, n)
            self._ledger.open(epoch, position)
            with trio.CancelScope() as speak, self._floor.held(speak):
                await self._pacer.speak(reply, position, epoch)
            cut = await self.writer.end_epoch(clear=speak.cancelled_caught)
            self._silent_at = trio.current_time()
            reply.heard = max(reply.heard, cut.heard)
            if not speak.cancelled_caught:
                return True
            last_media = None if reply.record.first_media is None else self.writer.media_at
            heard_ms = cut.heard // audio.BYTES_PER_MS
            self._journal.silenced(trio.current_time(), heard_ms, cut.cleared, last_media)
            if cut.cleared:
                self._journal.count("clears")
                self._journal.count("discarded_ms", cut.discarded / audio.BYTES_PER_MS)
            n += 1
            if self._ducks and cut.cleared and self._floor.undecided:
                # What was cleared goes on at once, only quieter, and no sound is left out.
                position = max(0, reply.heard - OVERLAP_BYTES)
                self._note("ducked", from_ms=position // audio.BYTES_PER_MS)
                continue
            # Nobody waits for a verdict when the bot gives up. A turn that has come meanwhile was
            # meant, whatever came after it was not.
            if self._giving_up is not None or await self._floor.decided() or self._inbox:
                return False
            # From the furthest that was heard: stops in a row must not go back word by word.
            position = reply.reel.word_edge(reply.heard)
            self._note("resumed", from_ms=position // audio.BYTES_PER_MS)
            self._journal.count("resumes")
        return False

    # Tools, which may outlive the turn that asked for them.

    async def run_tools(self, jobs: trio.MemoryReceiveChannel[Run]) -> None:
        """Run the tools that replies ask for.

        Owns: the tools nursery. It ends with the call.
        """
        async with trio.open_nursery() as tools:  # owns a task for each tool that runs
            try:
                async for run in jobs:
                    self._toolbox.started(run.job)
                    tools.start_soon(self._run_tool, run, name=f"tool {run.job.tool.name}")
            finally:
                self._toolbox.hurry(self._plan.timeouts.tool_grace_s)

    async def _run_tool(self, run: Run) -> None:
        whose.turn.set(run.record.number)  # which it may outlive
        job, name = run.job, run.job.tool.name
        record = ToolRecord(name, job.arguments, self._note("tool", name=name))
        run.record.tools.append(record)
        result = BROKEN_OFF
        try:
            with job.scope:
                result = await job.tool.run(self._keypad.reveal(job.arguments))
            if job.scope.cancelled_caught and not job.broken_off:
                result = TOO_LATE
                self._journal.count("tool_failures")
        except Exception as exc:  # a tool's failure is news for the model, not for the call
            result = f"failed: {exc}"
            self._journal.count("tool_failures")
            # A traceback has the text of the error, and that may have the secret in it.
            trace = None if self._keypad.has_secrets else exc
            extra = {"tool": name, "error": type(exc).__name__}
            _log.warning("tool_failed", exc_info=trace, extra=extra)
        finally:
            result = shorten(self._keypad.hide(result), MAX_RESULT_TOKENS)
            record.ended, record.result = self._note("tool_done", name=name), result
            self._toolbox.finished(job, result)
            for call_id in job.calls:
                self._dialog.tool_returned(call_id, result)
