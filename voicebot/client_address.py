"""Who asks: the peer's address, or what a trusted proxy says of it.

Pure. Anybody may write X-Forwarded-For, so it counts only where the peer is a proxy that the
settings name (`VOICEBOT_TRUSTED_PROXIES`), and only up to the first address that is none: what is
before it was written by whoever that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

Networks = Sequence[IPv4Network | IPv6Network]

HOPS: Final = 10  # proxies in a row that are looked at; more is somebody's invention


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks of a list with commas between.

    Raises:
        ValueError: one is no CIDR; says which.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def client_address(scope: Mapping[str, Any], trusted: Networks) -> str:
    """Return the address of whoever has sent a request or an upgrade, for limits and logs.

    Args:
        scope: of ASGI, of type http or websocket.
        trusted: proxies whose X-Forwarded-For is believed.

    Returns the peer's address; where the peer is a trusted proxy, the last of X-Forwarded-For that
    is not one. Empty where there is none: a Unix socket.
    """
    peer = peer_of(scope)
    if not is_in(peer, trusted):
        return peer
    lines = [value for name, value in scope["headers"] if name.lower() == b"x-forwarded-for"]
    address = peer
    hops = b",".join(lines).decode("latin-1").rsplit(",", HOPS)[-HOPS:]
    for hop in reversed(hops):
        parsed = _parsed(_bare(hop.strip()))
        if parsed is None:
            break  # nonsense: whoever has passed it on is the last one known
        address = str(parsed)
        if not is_in(address, trusted):
            break
    return address


def peer_of(scope: Mapping[str, Any]) -> str:
    """Return the address of the other end of the connection; empty for a Unix socket."""
    return str((scope.get("client") or ("",))[0])


def is_in(address: str, those: Networks) -> bool:
    """Say whether an address is in one of the networks."""
    parsed = _parsed(address) if those else None
    return parsed is not None and any(parsed in network for network in those)


def counted_as(address: str) -> str:
    """Return what an address counts as: who has one of IPv6 has its whole /64."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


def _bare(hop: str) -> str:
    """Return the address of a hop that may come with a port."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # ::ffff:192.0.2.1 on a dual-stack socket
    return getattr(address, "ipv4_mapped", None) or address
