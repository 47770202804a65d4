"""How much a peer may take: the numbers, and what counts against them.

Synchronous, pure: `now` is seconds on any clock, the same throughout. Who is refused what stands
in `admission.py`, `serving.py` and `ws.py`. What is kept per address is bounded as well: who has
many addresses makes this side forget others', and forgotten is as good as new.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Final

from voicebot.errors import CallRefused

ADDRESSES: Final = 4_096  # whose rate is remembered: 1 MB, and a flood from so many is no flood


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may take. Beyond it, it is refused or cut off, and no other call feels it."""

    # In all, at once. Half of the 1,024 descriptors that a process usually has: a call takes four.
    connections: int = 500
    # Of one address, at once. Twilio's come from many; 40 calls with their webhooks make 80.
    connections_per_address: int = 100
    connects_per_s: float = 20.0  # new ones of one address; Twilio starts one call a second
    # Of one address. One costs 2 ms, so that an address has a twentieth of a core; all that Twilio
    # asks for 40 calls is less than one.
    requests_per_s: float = 20.0
    # Media sockets that have not said whose call they are, at once, in all. Twilio says so within
    # 0.3 s: as many as there may be calls, and as many again.
    unstarted: int = 80
    unstarted_per_address: int = 40  # of them; as many as there may be calls
    # WebSocket frames of one stream, pings and fragments included. Twilio sends 50, and echoes.
    messages_per_s: float = 100.0
    # Of one stream. Twilio sends 20,000; the worst JSON there is costs 15 ms of CPU in 65,536.
    bytes_per_s: float = 100_000.0
    keys_per_s: float = 20.0  # of one stream; nobody presses so fast
    # So much of each rate may come at once: a line that stalls longer is given up (`media_s`).
    burst_s: float = 5.0
    # Of one message. Media of 20 ms is 400; 64 KiB is what other servers of this protocol take.
    message_chars: int = 65_536
    json_depth: int = 8  # of one message; Twilio's own have 3


class Bucket:
    """A rate that may be exceeded for a while: a token bucket, full at first."""

    __slots__ = ("_at", "_left", "_rate", "_size")

    def __init__(self, rate: float, burst_s: float) -> None:
        self._rate = rate
        self._size = self._left = max(1.0, rate * burst_s)
        self._at = -inf

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Count some; return whether it is within the rate, and does not count where it is not."""
        self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < amount:
            return False
        self._left -= amount
        return True


class Rates:
    """A rate for each address."""

    def __init__(self, rate: float, burst_s: float) -> None:
        self._rate = rate, burst_s
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()  # the least recent first

    def take(self, address: str, now: float) -> bool:
        """Count one of an address; return whether it is within its rate."""
        bucket = self._buckets.setdefault(address, Bucket(*self._rate))
        self._buckets.move_to_end(address)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.take(now)


class Places:
    """How many there may be at once, in all and of one address."""

    def __init__(self, total: int, each: int) -> None:
        self._total, self._each = total, each
        self.taken = 0
        self._of: Counter[str] = Counter()

    def take(self, address: str | None) -> str | None:
        """Take a place; return which limit forbids it. `None`: no address that is counted."""
        if self.taken >= self._total:
            return "total"
        if address is not None:
            if self._of[address] >= self._each:
                return "address"
            self._of[address] += 1
        self.taken += 1
        return None

    def free(self, address: str | None) -> None:
        """Give back what `take` has given."""
        self.taken -= 1
        if address is not None:
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]

    @contextmanager
    def held(self, address: str | None, what: str) -> Iterator[None]:
        """Hold a place while the block runs.

        Raises:
            CallRefused: there is none; `what` says of what there are too many.
        """
        if (limit := self.take(address)) is not None:
            raise CallRefused(f"too many {what} at once ({limit})")
        try:
            yield
        finally:
            self.free(address)
