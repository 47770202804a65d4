"""A tool that takes its time, fails, and is slow to let go: as scripted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from voicebot.ports import Tool
from voicebot.testing.faults import linger

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Run:
    """How one run of a tool goes: after `seconds` it returns, or raises."""

    result: str = "done"
    seconds: float = 0.1
    error: Exception | None = None  # raised instead of the result
    close_s: float = 0.0  # goes on that long when cancelled; over 2 s breaks the contract of `Tool`


class ScriptedTool:
    """Makes a `ports.Tool`, its `tool`, and keeps count of its runs.

    Args:
        runs: one for each run, then `default`.

    `arguments` is what each run was given, in order, so its length is the runs begun;
    `finished` counts those that returned or raised, and `cancelled` those that were broken off.
    """

    def __init__(
        self,
        name: str,
        runs: Iterable[Run] = (),
        *,
        default: Run = Run(),
        description: str = "",
        parameters: Mapping[str, Any] = _ANY_OBJECT,
        idempotent: bool = True,
        timeout_s: float = 10.0,
    ) -> None:
        self.arguments: list[Mapping[str, Any]] = []
        self.finished = 0
        self.cancelled = 0
        self._runs = iter(runs)
        self._default = default
        self.tool = Tool(name, description, parameters, self._run, idempotent, timeout_s)

    @property
    def started(self) -> int:
        """How often it was begun."""
        return len(self.arguments)

    async def _run(self, arguments: Mapping[str, Any]) -> str:
        self.arguments.append(arguments)
        run = next(self._runs, self._default)
        try:
            await trio.sleep(run.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            await linger(run.close_s)  # noqa: ASYNC102  # shielded and bounded itself
            raise
        self.finished += 1
        if run.error is not None:
            raise run.error
        return run.result
