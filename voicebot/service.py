"""What one process keeps open to run calls, and the run of one call from upgrade to record."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from voicebot import log, telephony, twilio, ws
from voicebot.archive import Archive, open_archive
from voicebot.config import Settings
from voicebot.nursery import run_call
from voicebot.parts import open_ports
from voicebot.phrases import open_phrases
from voicebot.plan import CONNECTING, CallPlan
from voicebot.ports import Ports
from voicebot.record import CallSummary, tell_turns
from voicebot.switchboard import Switchboard, wall_clock
from voicebot.telephony import Telephony


@dataclass(frozen=True, slots=True)
class Service:
    """What a running process has open."""

    serve_media: Callable[[ws.Scope, ws.Receive, ws.Send], Awaitable[None]]  # raw ASGI
    telephony: Telephony | None = None  # None without a Twilio account
    warm: Callable[[], None] = lambda: None  # a call is to be expected; see `Ports`
    archive: Archive | None = None  # None: records are kept as long as the process


@asynccontextmanager
async def open_service(board: Switchboard) -> AsyncGenerator[Service]:
    """Open everything that lives as long as the process.

    Raises:
        MissingPart: an embedded part is not installed.
        ProviderError: an embedded part does not start.
        StoreError: the database cannot be opened.
    """
    async with AsyncExitStack() as stack:
        # First, because it is open until every call has ended.
        archive = await stack.enter_async_context(
            open_archive(board.settings, board.store, board.metrics)
        )
        phone = None
        if board.settings.telephony:
            phone = await stack.enter_async_context(telephony.open_telephony(board.settings))
        ports = await stack.enter_async_context(open_ports(board.settings))
        plan = _plan(board.settings)
        phrases = await stack.enter_async_context(open_phrases(plan, ports.synthesizer))
        ports = replace(ports, canned=phrases.get)
        if phone is not None:
            ports = replace(ports, hang_up=phone.end_call, hand_over=phone.hand_over)
        calls = _Calls(board, ports, plan)
        yield Service(calls.serve_media, phone, ports.warm, archive)


class _Calls:
    """Runs the calls of a process, each in the task that serves its socket."""

    def __init__(self, board: Switchboard, ports: Ports, plan: CallPlan) -> None:
        self._board = board
        self._ports = ports
        self._plan = plan

    async def serve_media(self, scope: ws.Scope, receive: ws.Receive, send: ws.Send) -> None:
        """Serve one media WebSocket: admit it, run its call, record how it went."""
        async with ws.open_media_socket(
            scope,
            receive,
            send,
            admit=self._board.admit,
            authenticate=self._authenticate,
            start_timeout_s=self._board.settings.start_timeout_s,
        ) as socket:
            if socket is None:
                return
            sid = socket.start.call_sid
            log.call_sid.set(sid)  # before the call starts a task: tasks inherit it
            self._ports.warm()

            def tell(turns: list[dict[str, Any]]) -> None:
                self._board.store.turns_over(sid, turns, at=wall_clock())

            def record(summary: CallSummary) -> None:
                self._board.store.summarise(sid, summary.as_json())
                self._board.metrics.call_over(summary)

            with self._board.live(sid, socket.start.parameters):
                await run_call(
                    socket, self._ports, self._plan, on_end=record, on_turn=tell_turns(tell)
                )

    def _authenticate(self, start: twilio.Start) -> None:
        token = start.parameters.get(telephony.TOKEN_PARAMETER, "")
        self._board.redeem(token, start.call_sid, start.account_sid)


def _plan(settings: Settings) -> CallPlan:
    values: dict[str, Any] = {
        name: getattr(settings, name)
        for name in (
            *("prompt", "greeting", "language", "pacing", "endpointing", "interruption"),
            *("timeouts", "send_deadline_s", "context_tokens"),
        )
    }
    if settings.transfer_to:
        values["trouble"] = CONNECTING
    return CallPlan(**values)
