"""Who may connect and ask, by where they come from. One object per process.

Synchronous, pure. It decides and counts; `serving.py` closes and answers.

Exempt from what is counted by address: trusted proxies, through whom everybody comes and whose
X-Forwarded-For is counted instead, and 127.0.0.1 and ::1, from which a proxy or a tunnel of this
machine connects: one that is not declared would otherwise be everybody. The limit in all holds
for them as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import Any, Final

from voicebot.client_address import Networks, client_address, counted_as, is_in, peer_of
from voicebot.limits import Limits, Places, Rates

USUAL: Final = Limits()
#: Why a connection or a request may be refused: the limit, by its name in `Limits`.
REFUSALS: Final = ("connects_per_s", "connections", "connections_per_address", "requests_per_s")
TELL_S: Final = 1.0  # between two lines of the log about refusals: a flood must not flood it
_HERE: Final = frozenset({"", "127.0.0.1", "::1"})  # "": a Unix socket


class Admission:
    """Counts connections and requests by address. `refused`: how many were, by reason."""

    def __init__(self, limits: Limits = USUAL, trusted: Networks = ()) -> None:
        self.limits = limits
        self.trusted = trusted
        self.refused: Counter[str] = Counter()
        self._connections = Places(limits.connections, limits.connections_per_address)
        self._connects = Rates(limits.connects_per_s, limits.burst_s)
        self._requests = Rates(limits.requests_per_s, limits.burst_s)
        self._told_at = -inf
        self._untold = 0
        self._warned = False

    def counted(self, address: str) -> str | None:
        """Return what an address is counted as; None: it is not."""
        if address in _HERE or is_in(address, self.trusted):
            return None
        return counted_as(address)

    def connect(self, address: str, now: float) -> str | None:
        """Let a connection in, until `leave`; or return why not, for `tell`."""
        counted = self.counted(address)
        if counted is not None and not self._connects.take(counted, now):
            return self._refuse("connects_per_s")
        limit = self._connections.take(counted)
        if limit is None:
            return None
        return self._refuse("connections" if limit == "total" else "connections_per_address")

    def leave(self, address: str) -> None:
        """Note that a connection which was let in has ended."""
        self._connections.free(self.counted(address))

    def request(self, address: str, now: float) -> str | None:
        """Count a request or an upgrade; return why it is refused, if it is."""
        counted = self.counted(address)
        if counted is None or self._requests.take(counted, now):
            return None
        return self._refuse("requests_per_s")

    def client(self, scope: Mapping[str, Any]) -> str:
        """Return the address of whoever asks; see `client_address`."""
        return client_address(scope, self.trusted)

    def tell(self, reason: str, address: str, now: float) -> dict[str, Any] | None:
        """Return what a line of the log says of a refusal; None: there was one just now."""
        self._untold += 1
        if now < self._told_at + TELL_S:
            return None
        self._told_at, untold, self._untold = now, self._untold, 0
        setting = f"VOICEBOT_LIMITS__{reason.upper()}"
        return {
            "reason": reason,
            "address": address,
            "refused": untold,  # since the line before
            "hint": f"{setting}; a proxy of yours belongs into VOICEBOT_TRUSTED_PROXIES",
        }

    def undeclared(self, scope: Mapping[str, Any]) -> bool:
        """Say, once, that a proxy on this machine is not declared, so nobody is told apart."""
        peer = peer_of(scope)
        if self._warned or peer not in _HERE or is_in(peer, self.trusted):
            return False
        self._warned = any(name.lower() == b"x-forwarded-for" for name, _ in scope["headers"])
        return self._warned

    def _refuse(self, reason: str) -> str:
        self.refused[reason] += 1
        return reason
