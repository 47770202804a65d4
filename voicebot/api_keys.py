"""Keys of the calls API: how one is made, how it is written down, and what it opens.

Synchronous; knows no request. A key is 256 random bits, and the server knows only its SHA-256, so
whoever reads the server's settings cannot use the API. A plain fast hash is right here, and would
be wrong for a password: there is nothing to guess among 2**256, and a slow hash would cost each
request what it costs an attacker.

An entry of `VOICEBOT_API_KEYS` is `name:scopes:hash`, scopes with `+` between, and entries have
commas or spaces between: characters that need no quotes in a `.env`, a shell or YAML.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from voicebot.errors import ConfigError

PREFIX: Final = "vb_"  # by which scanners for leaked secrets find one: vb_[0-9a-f]{64}
KEY_BYTES: Final = 32  # 256 bits: no guess finds one, however fast it is tried
ALL: Final = "all"
LOCAL: Final = "local"  # in accounts: this machine, under --dev, without a key

SCOPES: Final = {
    "read": "list and show calls, what was said in them, and refused ones",
    "place": "place a call, redirect one",
    "hang_up": "end a call",
    "delete": "delete a call with its recording",
    "recordings": "hear a recording",
    "metrics": "GET /metrics",
}

_KEY: Final = re.compile(rf"{PREFIX}[0-9a-f]{{{2 * KEY_BYTES}}}", re.ASCII)
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)  # SHA-256
_BETWEEN: Final = re.compile(r"[,\s]+")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the server knows of a key. Two of one name are one client whose key is being changed."""

    name: str
    scopes: frozenset[str]
    digest: str  # SHA-256, hexadecimal

    def may(self, scope: str) -> bool:
        """Say whether it opens what wants this scope."""
        return scope in self.scopes or ALL in self.scopes

    @property
    def entry(self) -> str:
        """How it stands in `VOICEBOT_API_KEYS`."""
        return f"{self.name}:{'+'.join(sorted(self.scopes))}:{self.digest}"


class Keyring:
    """The keys of a server."""

    def __init__(self, keys: Collection[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys)

    def find(self, given: str) -> ApiKey | None:
        """Return the key that was given, None if it is none of these.

        What is not of the form of a key is none, whatever its hash: nobody's own word is a key.
        Takes as long whichever it is: all are compared.
        """
        if not _KEY.fullmatch(given):
            return None
        digest, found = _digest(given), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_key(name: str, scopes: Collection[str]) -> tuple[str, ApiKey]:
    """Make a key; return it, and what the server is to know of it.

    Raises:
        ConfigError: the name or a scope is none.
    """
    if problems := [*_wrong_name(name), *_wrong_scopes(scopes)]:
        raise ConfigError(problems)
    key = PREFIX + secrets.token_hex(KEY_BYTES)
    return key, ApiKey(name, frozenset(scopes), _digest(key))


def parse_keys(text: str) -> Keyring:
    """Read entries as `ApiKey.entry` writes them.

    Raises:
        ConfigError: with every problem. No entry is repeated there: it may be a secret.
    """
    keys: list[ApiKey] = []
    problems: list[str] = []
    for place, entry in enumerate(filter(None, _BETWEEN.split(text)), start=1):
        wrong: list[str] = []
        name, scopes, digest = (*entry.split(":"), "", "")[:3]
        if _KEY.search(entry):
            wrong.append("is a key itself, which belongs to its client; make another")
        elif entry.count(":") != 2 or not _HASH.fullmatch(digest):
            wrong.append("must be name:scopes:SHA-256, as `voicebot keys new NAME` prints it")
        elif digest in {key.digest for key in keys}:
            wrong.append("is of a key that stands here before")
        else:
            wrong += [*_wrong_name(name), *_wrong_scopes(scopes.split("+"))]
        problems += [f"entry {place} {what}" for what in wrong]
        if not wrong:
            keys.append(ApiKey(name, frozenset(scopes.split("+")), digest))
    if problems:
        raise ConfigError(problems)
    return Keyring(keys)


def _wrong_name(name: str) -> list[str]:
    if _NAME.fullmatch(name) and name != LOCAL:
        return []
    return [f"needs a name of up to 32 of a-z, 0-9, - and _, and not {LOCAL!r}"]


def _wrong_scopes(scopes: Collection[str]) -> list[str]:
    if scopes and set(scopes) <= {*SCOPES, ALL}:
        return []
    return [f"needs scopes of {', '.join(SCOPES)}, or {ALL}"]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
