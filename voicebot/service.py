"""What one process keeps open to run calls, and the run of one call from upgrade to record."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final

import trio

from voicebot import telephony, twilio, twiml, whose, ws
from voicebot.archive import Archive, open_archive
from voicebot.bot import Bot
from voicebot.call import Call
from voicebot.client_address import counted_as, peer_of
from voicebot.config import plan_of
from voicebot.errors import CallRefused, StoreError
from voicebot.hooks import Hooks, open_hooks
from voicebot.limits import Places
from voicebot.metrics import Metrics
from voicebot.nursery import run_call
from voicebot.onward import KEPT
from voicebot.otel import Traces, open_traces
from voicebot.parting import Ending, Resumption
from voicebot.parts import open_ports, open_tongues
from voicebot.phrases import open_phrases
from voicebot.plan import CallPlan
from voicebot.ports import Ports, Tape
from voicebot.record import CallSummary, Part, TurnRecord, tell_turns
from voicebot.recording import Recorder, open_recorder
from voicebot.remote import Remote
from voicebot.shared import Alone, Shared, open_shared
from voicebot.standing import plain
from voicebot.switchboard import MACHINES, Switchboard, wall_clock
from voicebot.telephony import Telephony
from voicebot.tools import THREADS
from voicebot.tries import Alternatives
from voicebot.watch import left_of_calls, open_watch

# To tell other processes that a call is over, within the 2 s after which nothing of it is left;
# where the database is slower, what they find out by themselves is 5 s old.
OVER_S: Final = 1.0

log = logging.getLogger(__name__)


def _nobody_there() -> None:
    """End every call, where there is none."""


async def _nobody_cares(call_sid: str, who: str) -> None:
    """Take who has answered a call, where no call is placed."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a running process has open."""

    serve_media: Callable[[ws.Scope, ws.Receive, ws.Send], Awaitable[None]]  # raw ASGI
    telephony: Telephony | None = None  # None without a Twilio account
    warm: Callable[[], None] = lambda: None  # a call is to be expected; see `Ports`
    answered_by: Callable[[str, str], Awaitable[None]] = _nobody_cares  # CallSid, Twilio's word
    part: Callable[[], None] = _nobody_there  # live calls, and those that come, apologise and end
    archive: Archive | None = None  # None: records are kept as long as the process
    recorder: Recorder | None = None  # None: no call is recorded
    is_slow: Callable[[], bool] = lambda: False  # the loop is late all the time


@asynccontextmanager
async def open_service(board: Switchboard, bot: Bot | None = None) -> AsyncGenerator[Service]:
    """Open everything that lives as long as the process.

    Args:
        bot: of the bot file; None: one by the settings alone.

    Raises:
        MissingPart: an embedded part is not installed.
        ProviderError: an embedded part does not start.
        StoreError: the database, or the folder of recordings, cannot be opened.
    """
    async with AsyncExitStack() as stack:
        # First, because they are open until every call has ended.
        archive = await stack.enter_async_context(
            open_archive(board.settings, board.store, board.metrics)
        )
        if board.settings.shared and archive is not None:
            board.shared = await stack.enter_async_context(open_shared(board, archive))
            stack.callback(setattr, board, "shared", Alone())
        recorder = await stack.enter_async_context(
            open_recorder(
                board.settings.recording,
                board.settings.retention.days if archive is not None else 0.0,
                board.metrics,
            )
        )
        traces = await stack.enter_async_context(open_traces(board.settings, board.metrics))
        phone = None
        if board.settings.telephony:
            phone = await stack.enter_async_context(telephony.open_telephony(board.settings))
        settings = board.settings if bot is None else bot.settings(board.settings)
        brain = None if bot is None or settings.groq else bot.call_brain()
        ports = await stack.enter_async_context(open_ports(settings, brain))
        _show_breakers(board.metrics, ports)
        plan, bot = plan_of(settings), bot or Bot()
        resting = bot.resting_plan(plan)
        phrases = await stack.enter_async_context(
            open_phrases(resting, ports.synthesizer, bot.tool_fillers)
        )
        tongues = await stack.enter_async_context(open_tongues(settings, bot.speakers))
        for name, tongue in tongues.items():
            # Nobody is greeted in it.
            theirs = replace(resting.speakers[name], greeting="", recorded=False)
            known = await stack.enter_async_context(
                open_phrases(theirs, tongue.synthesizer, bot.tool_fillers)
            )
            tongues[name] = replace(tongue, canned=known.get)
        ports = replace(ports, canned=phrases.get, tongues=tongues)
        if phone is not None:
            ports = replace(ports, hang_up=phone.end_call, hand_over=phone.hand_over)
        threads = trio.CapacityLimiter(THREADS)
        hooks = await stack.enter_async_context(open_hooks(bot, threads, board.metrics.hook_failed))
        board.metrics.hooks_waiting.set_function(lambda: hooks.waiting)
        calls = _Calls(
            board, ports, plan, phone, bot, brain is not None, hooks, threads, recorder, traces
        )
        if isinstance(board.shared, Shared):
            board.shared.answered = calls.answered_by
        yield Service(
            serve_media=calls.serve_media,
            telephony=phone,
            warm=ports.warm,
            answered_by=calls.answered_by,
            part=calls.part,
            archive=archive,
            recorder=recorder,
        )


@asynccontextmanager
async def open_sole_service(board: Switchboard, bot: Bot | None = None) -> AsyncGenerator[Service]:
    """Open the service of a process that does nothing else. As `open_service`.

    What is there by now stays as long as the process, some 86,000 objects. Searched again for
    garbage they hold every call for 20 ms, or several times that on a busy machine.
    """
    limit_s = board.settings.ready_lag_ms / 1_000
    async with open_service(board, bot) as service, open_watch(board.metrics, limit_s) as watch:
        gc.collect()
        gc.freeze()
        yield replace(service, is_slow=lambda: watch.lateness.slow)


def _show_breakers(metrics: Metrics, ports: Ports) -> None:
    parts: tuple[tuple[Part, object], ...] = (
        ("stt", ports.open_transcriber),
        ("llm", ports.chat),
        ("tts", ports.synthesizer),
    )
    for part, alternatives in parts:
        if isinstance(alternatives, Alternatives):
            metrics.show_breakers(part, partial(_left_alone, alternatives))


def _left_alone(alternatives: Alternatives[Any]) -> list[tuple[str, bool]]:
    return alternatives.left_alone(trio.current_time())


class _Calls:
    """Runs the calls of a process, each in the task that serves its socket."""

    def __init__(
        self,
        board: Switchboard,
        ports: Ports,
        plan: CallPlan,
        phone: Telephony | None,
        bot: Bot,
        by_brain: bool,
        hooks: Hooks,
        threads: trio.CapacityLimiter,
        recorder: Recorder | None,
        traces: Traces | None,
    ) -> None:
        self._board = board
        self._ports = ports
        self._plan = plan
        self._phone = phone
        self._bot = bot
        self._by_brain = by_brain  # the bot's own brain answers
        self._hooks = hooks
        self._threads = threads
        self._recorder = recorder
        self._traces = traces
        self._remotes: dict[str, Remote] = {}  # of live calls
        self._tasks: dict[str, trio.lowlevel.Task] = {}  # that run them
        board.metrics.calls_live.set_function(lambda: len(self._remotes))
        board.metrics.leaked_tasks.set_function(self._left)
        self._parting = False  # the server stops
        limits = board.settings.limits
        self._unstarted = Places(limits.unstarted, limits.unstarted_per_address)
        self._away: dict[str, Call] = {}  # of calls that may come back, oldest first

    async def serve_media(self, scope: ws.Scope, receive: ws.Receive, send: ws.Send) -> None:
        """Serve one media WebSocket: admit it, run its call, record how it went."""
        resumption: Resumption | None = None
        notes: Mapping[str, Any] = {}
        left = False  # it may be in another process by now

        async def authenticate(start: twilio.Start) -> None:
            nonlocal resumption, notes
            resumption, notes = await self._let_in(start)

        async with ws.open_media_socket(
            scope,
            receive,
            send,
            admit=self._board.admit,
            authenticate=authenticate,
            start_timeout_s=self._board.settings.start_timeout_s,
            limits=self._board.settings.limits,
            unstarted=self._unstarted.held(
                counted_as(peer_of(scope)), "streams that have not started"
            ),
        ) as socket:
            if socket is None:
                return
            sid = socket.start.call_sid
            whose.call_sid.set(sid)  # before the call starts a task: tasks inherit it
            self._ports.warm()

            call = self._away.pop(sid, None) if resumption is not None else None
            if call is None:
                call = self._call(socket.start)
                call.variables.update(notes.get("variables", {}))
                call.state.update(notes.get("state", {}))

            def tell(turns: list[dict[str, Any]]) -> None:
                self._board.store.turns_over(sid, turns, at=wall_clock())

            kept = tell_turns(tell)

            async def away(ending: Ending) -> None:
                self._away[sid] = call
                while len(self._away) > KEPT:
                    del self._away[next(iter(self._away))]
                nonlocal left
                left = await self._leave(call, ending)

            remote = Remote()
            self._leave_message(sid, self._answered_by(sid), remote)
            self._remotes[sid] = remote
            self._tasks[sid] = trio.lowlevel.current_task()
            if self._parting:
                remote.stop()
            try:
                with self._board.live(sid, socket.start.parameters), self._hooks.of(call) as hooks:

                    def record(summary: CallSummary) -> None:
                        self._board.store.summarise(sid, summary.as_json())
                        self._board.metrics.call_over(summary, call.direction)
                        if self._traces is not None:
                            self._traces.call_over(summary, call.direction)
                        hooks.end(summary)

                    def turn_over(turn: TurnRecord) -> None:
                        kept(turn)
                        hooks.turn(turn)

                    self._board.metrics.call_begun(call.direction)
                    if resumption is None:
                        await hooks.start()  # what the caller says meanwhile waits in the socket
                    ports, plan = self._for(call)
                    with self._tape(sid, plan) as tape:
                        await run_call(
                            socket,
                            replace(ports, tape=tape),
                            plan,
                            on_end=record,
                            on_turn=turn_over,
                            on_request=self._board.metrics.request_over,
                            resumption=resumption,
                            on_parting=away,
                            remote=remote,
                        )
            finally:
                del self._remotes[sid], self._tasks[sid]
                if not left:
                    await self._over(sid)  # noqa: ASYNC102  # shielded and bounded in there

    async def _let_in(self, start: twilio.Start) -> tuple[Resumption | None, Mapping[str, Any]]:
        """Use up a stream's token; return what it goes on with, and what the bot knew of it.

        Raises:
            CallRefused: it is none, was used, or cannot be checked.
        """
        board, sid = self._board, start.call_sid

        def redeem() -> tuple[Resumption | None, Mapping[str, Any]]:
            board.redeem(start.parameters.get(twiml.TOKEN_PARAMETER, ""), sid, start.account_sid)
            notes = board.onward.notes(sid)
            return board.onward.come_back(sid, trio.current_time()), notes

        try:
            return await board.shared.step((sid,), redeem)
        except StoreError as exc:
            raise CallRefused(f"the stream's token cannot be checked: {exc}") from exc

    async def _leave(self, call: Call, ending: Ending) -> bool:
        """Keep what a call is away for, where whoever is asked what comes next finds it.

        Returns whether other processes know, and may go on with it.
        """
        board, sid = self._board, call.call_sid
        if not isinstance(board.shared, Shared):
            board.onward.leave(sid, ending, trio.current_time())
            return False
        notes: dict[str, Any] = {}
        for name in ("variables", "state"):
            notes[name], others = plain(getattr(call, name))
            if others:
                log.warning("not_kept_while_away", extra={"of": name, "names": others})

        def leave() -> None:
            board.lines.release(sid)  # Twilio may ask before this process is done with the stream
            board.onward.leave(sid, ending, trio.current_time(), notes)

        try:
            await board.shared.step((sid,), leave)
        except StoreError as exc:  # Twilio is told to hang up then
            log.error("away_not_kept", extra={"error": str(exc)})
            return False
        return True

    async def _over(self, sid: str) -> None:
        """Tell the other processes that a call is no longer live here."""
        board = self._board
        if not isinstance(board.shared, Shared):
            return
        with trio.move_on_after(OVER_S, shield=True):  # also of a call that was cancelled
            try:
                await board.shared.step((sid,), lambda: board.lines.release(sid))
            except StoreError as exc:  # what is left of it is found a little later
                log.error("end_not_shared", extra={"error": str(exc)})

    def _left(self) -> int:
        calls = ((task, self._remotes[sid].over_since) for sid, task in self._tasks.items())
        return left_of_calls(calls, trio.current_time())

    def part(self) -> None:
        """Have every call, live or yet to come, say that it has to end, and end."""
        self._parting = True
        for remote in self._remotes.values():
            remote.stop()

    def _call(self, start: twilio.Start) -> Call:
        """Return what is known of a call before its first word."""
        record = self._board.store.get(start.call_sid)
        call = Call(
            start.call_sid,
            parameters={
                name: value
                for name, value in start.parameters.items()
                if name != twiml.TOKEN_PARAMETER
            },
        )
        if record is not None:
            call.direction = record.direction
            ends = (record.from_, record.to)
            call.caller, call.number = ends if record.direction == "inbound" else ends[::-1]
            call.metadata = record.metadata or {}
        asked = self._board.asked(start.call_sid)
        if asked is not None:  # Twilio's answer, behind which it is on record, may be on its way
            call.metadata = asked.metadata
        call.declare(self._bot.variables)
        return call

    def _for(self, call: Call) -> tuple[Ports, CallPlan]:
        """Return ports and plan of one call: what the bot can do and says in it."""
        now = datetime.now()
        tools = (*self._ports.tools, *self._bot.call_tools(call, now, self._threads))
        ports = replace(self._ports, tools=tools)
        if self._by_brain:
            ports = replace(ports, chat=self._bot.call_brain(call))
        return ports, self._bot.plan(self._plan, call, now)

    def _tape(self, sid: str, plan: CallPlan) -> AbstractContextManager[Tape | None]:
        """Return what records a call, and hands over the rest when the block is left."""
        if self._recorder is None or not plan.recorded:
            return nullcontext()
        return self._recorder.tape(sid)

    def _answered_by(self, sid: str) -> str:
        """Return who answered a call, in Twilio's word."""
        record = self._board.store.get(sid)
        return record.answered_by or "" if record is not None else ""

    async def answered_by(self, sid: str, who: str) -> None:
        """Do what is to be done with a call that a machine has answered, and live already.

        Raises:
            ProviderError: it cannot be hung up.
        """
        remote = self._remotes.get(sid)
        if who.startswith(MACHINES) and not (
            remote is not None and self._leave_message(sid, who, remote)
        ):
            log.info("machine", extra={"call_sid": sid, "who": who})
            if self._phone is not None:
                await self._phone.end_call(sid)

    def _leave_message(self, sid: str, who: str, remote: Remote) -> bool:
        """Have a call leave its message, if there is one and a machine that takes it."""
        asked = self._board.asked(sid)
        if asked is None or not asked.voicemail or not who.startswith("machine"):
            return False
        remote.leave_message(asked.voicemail)
        return True
