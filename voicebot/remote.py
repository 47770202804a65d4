"""What can be done with a live call from outside it."""

from __future__ import annotations

from collections.abc import Callable


class Remote:
    """Held by whoever may want something of a call, and given to `run_call`. Synchronous."""

    def __init__(self) -> None:
        self._message = ""
        self._stopping = False
        self.over_since: float | None = None  # since when the call ends, on the Trio clock
        self._leave: Callable[[str], None] | None = None
        self._stop: Callable[[], None] | None = None

    def leave_message(self, text: str) -> None:
        """Have the call say this to a machine, whatever it is doing, and end.

        A call that has not begun says nothing else then.
        """
        self._message = text
        if self._leave is not None:
            self._leave(text)

    def stop(self) -> None:
        """Have the call say that it has to end, whatever it is doing, and end."""
        self._stopping = True
        if self._stop is not None:
            self._stop()

    def over(self, now: float) -> None:
        """Note that the call begins to end: nothing of it should be left soon after."""
        self.over_since = now

    def attach(self, leave_message: Callable[[str], None], stop: Callable[[], None]) -> None:
        """Say what does it, once the call is there."""
        self._leave, self._stop = leave_message, stop
        if self._message:
            leave_message(self._message)
        if self._stopping:
            stop()
