"""Runs what a bot file wants done when a call starts, has had a turn, and is over.

No hook harms a call: each has a bound, runs beside the call where the call need not wait for it,
and what goes wrong in it is logged with its place in the bot file, and counted. Hooks of one
call run one after the other, in the order of what they are told.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import trio

from voicebot.bot import Bot
from voicebot.botfile import line_of
from voicebot.call import Call
from voicebot.floor import Bell
from voicebot.hidden import open_hidden_nursery
from voicebot.record import CallSummary, TurnRecord
from voicebot.tools import invoke

log = logging.getLogger(__name__)

START_S: Final = 1.5  # the greeting waits for it: who hears nothing for 2 s says "hello?"
TURN_S: Final = 10.0  # as a tool; the next turn's waits for it
END_S: Final = 30.0  # nobody waits: a request to a slow service, and once more
GRACE_S: Final = 2.0  # for those of the last calls when the service stops
BEHIND: Final = 64  # turns that a slow hook may be behind, a quarter of an hour of talk

_Job = tuple[str, float, tuple[Any, ...]]


class Hooks:
    """The hooks of all calls of a process; `open_hooks` makes one."""

    def __init__(
        self,
        bot: Bot,
        nursery: trio.Nursery,
        threads: trio.CapacityLimiter | None,
        failed: Callable[[str], None],
    ) -> None:
        self._bot = bot
        self._nursery = nursery
        self._threads = threads
        self._failed = failed
        self._running = 0
        self._queues: set[trio.MemoryReceiveChannel[_Job]] = set()
        self._ended = Bell()

    @contextmanager
    def of(self, call: Call) -> Iterator[CallHooks]:
        """Yield the hooks of one call. What it was told in the block is done behind it."""
        jobs, receive = trio.open_memory_channel[_Job](BEHIND)
        self._running += 1
        self._queues.add(receive)
        self._nursery.start_soon(self._run, receive, name=f"hooks {call.call_sid}")
        with jobs:
            yield CallHooks(call, self, jobs)

    async def _run(self, jobs: trio.MemoryReceiveChannel[_Job]) -> None:
        try:
            async for name, patience_s, arguments in jobs:
                await self.run(name, patience_s, *arguments)
        finally:
            self._running -= 1
            self._queues.remove(jobs)
            self._ended.ring()

    async def run(self, name: str, patience_s: float, *arguments: Any) -> None:
        """Run one hook, if the bot has it. Raises nothing that is the hook's.

        Cancellation: as `tools.invoke`.
        """
        hook = getattr(self._bot, name)
        if hook is None:
            return
        with trio.move_on_after(patience_s) as patience:
            try:
                await invoke(partial(hook, *arguments), self._threads)
            except Exception as exc:  # the bot author's mistake, and not this call's
                self._failed(name)
                line = line_of(exc)
                extra = {"hook": name, "where": f"{line[0]}:{line[1]}" if line else name}
                log.warning("hook_failed", exc_info=True, extra=extra)
        if patience.cancelled_caught:
            self.late(name, patience_s)

    def late(self, name: str, patience_s: float) -> None:
        """Note that a hook was given up."""
        self._failed(name)
        code = getattr(getattr(self._bot, name), "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else name
        extra = {"hook": name, "where": where, "patience_s": patience_s}
        log.warning("hook_late", extra=extra)

    @property
    def waiting(self) -> int:
        """How many hooks are to run, of all calls."""
        return sum(jobs.statistics().current_buffer_used for jobs in self._queues)

    async def idle(self) -> None:
        """Wait until nothing is left to do. Cancellation: safe."""
        while self._running:
            await self._ended.wait()


class CallHooks:
    """The hooks of one call. All but `start` return at once."""

    def __init__(self, call: Call, hooks: Hooks, jobs: trio.MemorySendChannel[_Job]) -> None:
        self._call = call
        self._hooks = hooks
        self._jobs = jobs

    async def start(self) -> None:
        """Run `on_call_start`; return when it has, or after `START_S`."""
        await self._hooks.run("on_call_start", START_S, self._call)

    def turn(self, record: TurnRecord) -> None:
        """Have `on_turn` run."""
        self._put("on_turn", TURN_S, record)

    def end(self, summary: CallSummary) -> None:
        """Have `on_call_end` run."""
        self._put("on_call_end", END_S, summary)

    def _put(self, name: str, patience_s: float, about: TurnRecord | CallSummary) -> None:
        try:
            self._jobs.send_nowait((name, patience_s, (self._call, about)))
        except trio.WouldBlock:
            self._hooks.late(name, patience_s)  # a hook that is that far behind misses one


@asynccontextmanager
async def open_hooks(
    bot: Bot, threads: trio.CapacityLimiter | None, failed: Callable[[str], None]
) -> AsyncGenerator[Hooks]:
    """Yield the hooks of a process.

    Args:
        threads: where sync hooks run; None: in the loop, for tests in virtual time.
        failed: told the name of each hook that raised or was given up. Synchronous.

    Owns: the hooks nursery: one task for each call, which ends behind the last hook of its call;
        those that are left are cancelled `GRACE_S` after the block.
    """
    async with open_hidden_nursery("service stops") as nursery:
        hooks = Hooks(bot, nursery, threads, failed)
        yield hooks
        with trio.move_on_after(GRACE_S):
            await hooks.idle()
