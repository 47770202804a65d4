"""Who asks: X-Forwarded-For counts from trusted proxies, and only what they have seen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.client_address import client_address, counted_as, is_in, networks

TRUSTED = networks("10.0.0.0/8, 2001:db8:1::/48")


def scope(peer: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    return {"client": None if peer is None else (peer, 1), "headers": [(b"host", b"a"), *headers]}


@pytest.mark.parametrize(
    "peer,forwarded,address",
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),  # anybody can write that
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.9, 198.51.100.1"], "198.51.100.1"),  # the last is seen, not said
        ("10.0.0.1", ["198.51.100.9", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8::1"], "2001:db8::1"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1::9", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["\xe9"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        (None, ["198.51.100.1"], ""),
    ],
)
def test_address_of_who_asks(peer: str | None, forwarded: list[str], address: str) -> None:
    assert client_address(scope(peer, *forwarded), TRUSTED) == address


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client_address(scope("10.0.0.1", "198.51.100.1"), ()) == "10.0.0.1"


def test_a_long_list_is_not_read_to_its_beginning() -> None:
    many = ", ".join(["198.51.100.1", *["10.0.0.2"] * 5_000])
    assert client_address(scope("10.0.0.1", many), TRUSTED) == "10.0.0.2"


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_header_is_an_error(text: str) -> None:
    assert client_address(scope("10.0.0.1", text), TRUSTED)


def test_networks_are_cidrs_with_commas_between() -> None:
    assert [str(n) for n in networks(" 10.0.0.0/8,127.0.0.1 ,")] == ["10.0.0.0/8", "127.0.0.1/32"]
    for wrong in ("10.0.0.1/8", "proxy", "10.0.0.0/33"):
        with pytest.raises(ValueError, match=wrong):
            networks(wrong)


def test_addresses_that_are_none_are_in_no_network() -> None:
    assert not is_in("", TRUSTED)
    assert not is_in("?", TRUSTED)
    assert counted_as("?") == "?"
    assert counted_as("2001:db8::7") == counted_as("2001:db8::8") == "2001:db8::/64"
    assert counted_as("::ffff:192.0.2.1") == counted_as("192.0.2.1") == "192.0.2.1"
