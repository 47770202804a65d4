"""What one process keeps open to run calls, and the run of one call from upgrade to record."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import trio

from voicebot import log as log_setup
from voicebot import telephony, twilio, twiml, ws
from voicebot.archive import Archive, open_archive
from voicebot.config import Settings
from voicebot.nursery import run_call
from voicebot.parting import Ending
from voicebot.parts import open_ports
from voicebot.phrases import open_phrases
from voicebot.plan import CONNECTING, CallPlan
from voicebot.ports import Ports
from voicebot.record import CallSummary, tell_turns
from voicebot.remote import Remote
from voicebot.switchboard import MACHINES, Switchboard, wall_clock
from voicebot.telephony import Telephony

log = logging.getLogger(__name__)


async def _nobody_cares(call_sid: str, who: str) -> None:
    """Take who has answered a call, where no call is placed."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a running process has open."""

    serve_media: Callable[[ws.Scope, ws.Receive, ws.Send], Awaitable[None]]  # raw ASGI
    telephony: Telephony | None = None  # None without a Twilio account
    warm: Callable[[], None] = lambda: None  # a call is to be expected; see `Ports`
    answered_by: Callable[[str, str], Awaitable[None]] = _nobody_cares  # CallSid, Twilio's word
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
        calls = _Calls(board, ports, plan, phone)
        yield Service(
            serve_media=calls.serve_media,
            telephony=phone,
            warm=ports.warm,
            answered_by=calls.answered_by,
            archive=archive,
        )


@asynccontextmanager
async def open_sole_service(board: Switchboard) -> AsyncGenerator[Service]:
    """Open the service of a process that does nothing else. As `open_service`.

    What is there by now stays as long as the process, some 86,000 objects. Searched again for
    garbage they hold every call for 20 ms, or several times that on a busy machine.
    """
    async with open_service(board) as service:
        gc.collect()
        gc.freeze()
        yield service


class _Calls:
    """Runs the calls of a process, each in the task that serves its socket."""

    def __init__(
        self, board: Switchboard, ports: Ports, plan: CallPlan, phone: Telephony | None
    ) -> None:
        self._board = board
        self._ports = ports
        self._plan = plan
        self._phone = phone
        self._remotes: dict[str, Remote] = {}  # of live calls

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
            log_setup.call_sid.set(sid)  # before the call starts a task: tasks inherit it
            self._ports.warm()

            def tell(turns: list[dict[str, Any]]) -> None:
                self._board.store.turns_over(sid, turns, at=wall_clock())

            def record(summary: CallSummary) -> None:
                self._board.store.summarise(sid, summary.as_json())
                self._board.metrics.call_over(summary)

            def away(ending: Ending) -> None:
                self._board.onward.leave(sid, ending, trio.current_time())

            remote = Remote()
            known = self._board.store.get(sid)
            self._leave_message(sid, known.answered_by or "" if known is not None else "", remote)
            self._remotes[sid] = remote
            try:
                with self._board.live(sid, socket.start.parameters):
                    await run_call(
                        socket,
                        self._ports,
                        self._plan,
                        on_end=record,
                        on_turn=tell_turns(tell),
                        resumption=self._board.onward.come_back(sid, trio.current_time()),
                        on_parting=away,
                        remote=remote,
                    )
            finally:
                del self._remotes[sid]

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

    def _authenticate(self, start: twilio.Start) -> None:
        token = start.parameters.get(twiml.TOKEN_PARAMETER, "")
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
        if settings.telephony:  # without it there is nobody who could put anybody through
            values["people"] = {"a person": settings.transfer_to}
    return CallPlan(**values)
