"""How a server stops without dropping a call: from the signal to the moment its port may close.

    signal           not ready, and new calls are turned away, in the same step
    live calls       go on to their end, for at most `drain_s`
    last words       who is still there, or just coming, hears an apology and is hung up on
    last callbacks   Twilio says how the calls have ended

The port is open all the time: Twilio asks this server, and no other, what a call goes on with that
was put through, and a new caller hears more than an error. Each further signal ends the one wait
that it meets. Not here: who hears the signals and closes the port (`__main__.py`, `serving.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from voicebot.switchboard import Switchboard

log = logging.getLogger(__name__)

# Twilio tells the end of a call some tenths of a second after it.
CALLBACKS_S: Final = 2.0

Wait = Callable[[], Awaitable[object]]


async def drain(board: Switchboard, part: Callable[[], None], again: Wait) -> None:
    """Let the calls of a server end; return when its port may be closed.

    Where nobody is on the line that is at once. Else it takes `drain_s`, the `parting_s` of a
    call's last words and `CALLBACKS_S` at most, and less with every signal.

    Args:
        part: has every call that is live, or comes later, apologise and end. Synchronous.
        again: waits for the next signal.

    Cancellation: calls go on; no new one is taken all the same.
    """
    board.drain()
    settings = board.settings
    expected = board.busy_until() > trio.current_time()
    log.info("draining", extra={"drain_s": settings.drain_s, **_lines(board)})
    if not await _came(board.wait_idle, settings.drain_s, again):
        log.info("drain_over", extra=_lines(board))
        part()
        if not await _came(board.wait_hung_up, settings.timeouts.parting_s, again):
            log.warning("calls_cut_off", extra=_lines(board))
    if expected and settings.telephony:
        await _came(trio.sleep_forever, CALLBACKS_S, again)


def _lines(board: Switchboard) -> dict[str, int]:
    return {
        "lines_taken": board.lines.taken(trio.current_time()),
        "live_calls": board.store.live_calls,
    }


async def _came(wait: Wait, seconds: float, again: Wait) -> bool:
    """Wait for something, for so long and not beyond the next signal; return whether it came.

    Owns: the nursery of both waits. The first that is over ends it.
    """
    came = False
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:  # owns the watch for a signal

            async def watch() -> None:
                await again()
                nursery.cancel_scope.cancel(reason="signal")

            nursery.start_soon(watch)
            await wait()
            came = True
            nursery.cancel_scope.cancel(reason="came")
    return came
