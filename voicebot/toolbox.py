"""Which tools a call has, and what has been asked of them.

Synchronous but for the events and scopes it hands out; `nursery.py` runs the jobs. What the
model gets wrong (no such tool, arguments that are no JSON object) is an answer to the model and
no error of the call.

A tool that is not idempotent is run once for one request. A request is over when a reply that
could tell its outcome was heard to its end: until then the same call again is the same request,
by a model that did not see the result, or by a caller who did not hear of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from voicebot.parting import Parting, read_arguments
from voicebot.ports import Message, Tool, ToolCall
from voicebot.record import TurnRecord

NOT_STARTED: Final = "not run: the caller interrupted"
BROKEN_OFF: Final = "broken off before it had finished"
TOO_LATE: Final = "failed: it took too long"
_FAILURES: Final = ("failed: ", "not run", "broken off", "there is no tool named")


# Requests that are remembered so that none is carried out twice: a caller who lets no reply be
# heard to its end has only open ones.
REQUESTS: Final = 30


def last_number(history: Iterable[Message]) -> int:
    """Return the number of the last tool call of a conversation, as `Toolbox.name` gives them."""
    ids = (call.id.removeprefix("call_") for message in history for call in message.tool_calls)
    return max((int(text) for text in ids if text.isdecimal()), default=0)


def has_failed(result: str) -> bool:
    """Return whether a tool's result says that it came to nothing. It is written for a model."""
    return result.startswith(_FAILURES)


@dataclass(slots=True, eq=False)
class Job:
    """A tool that is to run, runs or has run. `scope` is what breaks it off."""

    tool: Tool
    arguments: dict[str, Any]
    calls: list[str]  # ids of the calls it answers
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    result: str | None = None
    broken_off: bool = False

    @property
    def untorn(self) -> bool:
        """Whether it runs on although nobody waits for it."""
        return not (self.tool.idempotent and self.tool.abortable)

    def break_off(self, reason: str) -> None:
        """Cancel it, unless that could do harm or has no effect. Synchronous."""
        if not self.untorn:
            self.broken_off = True
            self.scope.cancel(reason=reason)


@dataclass(frozen=True, slots=True)
class Run:
    """A tool to be run, and where to note it."""

    job: Job
    record: TurnRecord


class Toolbox:
    """The tools of one call."""

    def __init__(
        self, tools: Sequence[Tool], partings: Sequence[Parting] = (), *, numbered: int = 0
    ) -> None:
        """`numbered`: the number of the last call in a conversation that goes on."""
        self._tools = {tool.name: tool for tool in tools}
        self.part_by(partings)
        self.offered = (
            *(parting.tool for parting in self._partings.values()),
            *self._tools.values(),
        )
        self._once: dict[tuple[str, str], Job] = {}  # not to be run again for their request
        self._numbers = numbered
        self.unfinished: list[Job] = []

    def part_by(self, partings: Sequence[Parting]) -> None:
        """Have these ways to end the stream, or the same ones with other words."""
        # A bot may have a tool of such a name itself.
        self._partings = {
            parting.tool.name: parting
            for parting in partings
            if parting.tool.name not in self._tools
        }

    def name(self, call: ToolCall) -> ToolCall:
        """Return the call under an id that no other call of this conversation has."""
        self._numbers += 1
        return ToolCall(f"call_{self._numbers}", call.name, call.arguments)

    def parting(self, call: ToolCall) -> Parting | None:
        """Return what this call ends the stream with, if it is for the bot itself to do so."""
        return self._partings.get(call.name)

    def ask(self, call: ToolCall) -> tuple[Job | None, str]:
        """Return the job that answers a call, new or not; or None and what to tell the model."""
        tool = self._tools.get(call.name)
        if tool is None:
            return None, f"there is no tool named {call.name}"
        arguments = read_arguments(call.arguments)
        if isinstance(arguments, str):
            return None, arguments
        key = (tool.name, json.dumps(arguments, sort_keys=True))
        if not tool.idempotent and key in self._once:
            job = self._once[key]
            job.calls.append(call.id)
            return job, ""
        job = Job(tool, arguments, [call.id])
        if not tool.idempotent:
            self._once[key] = job
            if len(self._once) > REQUESTS:  # the oldest that is over
                over = (key for key, job in self._once.items() if job.done.is_set())
                self._once.pop(next(over, key), None)
        return job, ""

    def untorn(self) -> list[Job]:
        """Return the jobs that run on although the reply that asked for them may be over."""
        return [job for job in self.unfinished if job.untorn]

    def started(self, job: Job) -> None:
        """Note that a job runs from now on, for at most its tool's time."""
        job.scope.deadline = trio.current_time() + job.tool.timeout_s
        job.scope.shield = job.untorn
        self.unfinished.append(job)

    def forget(self, job: Job) -> None:
        """Note that a job never ran."""
        self._once = {key: other for key, other in self._once.items() if other is not job}

    def finished(self, job: Job, result: str) -> None:
        """Note what a job has come to."""
        job.result = result
        self.unfinished.remove(job)
        job.done.set()

    def hurry(self, seconds: float) -> None:
        """Leave jobs that must not be torn no more than this time."""
        latest = trio.current_time() + seconds
        for job in self.unfinished:
            job.scope.deadline = min(job.scope.deadline, latest)

    def told(self) -> None:
        """Note that a reply was heard to its end: what has finished by now is no open request."""
        self._once = {key: job for key, job in self._once.items() if not job.done.is_set()}
