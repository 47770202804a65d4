"""Keys that the caller presses, until they are an entry; secret ones are shown to nobody.

Synchronous. Keys are an entry when there are enough of them, behind the terminator, or when no
other has come for a while. What the language model is told of a secret entry is a placeholder,
which stands for the keys in the arguments of a tool: so a number of a card reaches the tool that
needs it, and no provider, record or log. In what the tool returns it is hidden again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from voicebot.ports import Tool

SECRETS: Final = 100  # entries that tools can still read; nobody is asked for more in a call
MOST: Final = 64  # keys in one entry: a card and its date are 20; somebody leans on the phone
WAIT_S: Final = 30.0  # for the first key of an entry that was asked for, from when it was


@dataclass(frozen=True, slots=True)
class Entry:
    """How keys become an entry.

    `length`: so many, 0: as many as come. `terminator`: a key that ends it and is no part of it,
    empty: none. `gap_s`: seconds without another key that end it.
    """

    length: int = 0
    terminator: str = "#"
    gap_s: float = 2.5  # people look down between two keys, and up again
    secret: bool = False


class Keypad:
    """The keys of one call. `now` is in seconds on any clock."""

    def __init__(self, usual: Entry) -> None:
        self._usual = usual
        self._entry = usual
        self._keys = ""
        self._secrets: dict[str, str] = {}  # keys by placeholder, the newest
        self._numbered = 0
        self.due = math.inf  # when `expire` is to be called

    @property
    def busy(self) -> bool:
        """Whether keys are being pressed, or have been asked for."""
        return bool(self._keys) or self._entry is not self._usual

    @property
    def secret(self) -> bool:
        """Whether a key that is pressed now is secret."""
        return self._entry.secret

    @property
    def hiding(self) -> bool:
        """Whether what the caller lets hear now may be secret: tones, or keys that are said."""
        return self.secret and self.busy

    def expect(self, entry: Entry, now: float) -> None:
        """Take the next keys for this entry; what was pressed before is void."""
        self._keys, self._entry = "", entry
        self.due = now + WAIT_S

    def press(self, key: str, now: float) -> str | None:
        """Take a key; return the entry for the model, once it is one."""
        if key == self._entry.terminator and self._keys:
            return self._end()
        self._keys += key
        full = len(self._keys) >= (self._entry.length or MOST)
        self.due = now + self._entry.gap_s
        return self._end() if full else None

    def expire(self) -> str | None:
        """Return the entry, if there is one, because no other key has come."""
        if self._keys:
            return self._end()
        self._entry, self.due = self._usual, math.inf
        return None

    def spoken(self) -> None:
        """Note that the caller has said something instead."""
        if not self._keys:
            self._entry, self.due = self._usual, math.inf

    def reveal(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a tool with what placeholders stand for."""
        return {name: self._revealed(value) for name, value in arguments.items()}

    @property
    def has_secrets(self) -> bool:
        """Whether there is anything to hide."""
        return bool(self._secrets)

    def hide(self, text: str) -> str:
        """Return what a tool says with placeholders for the keys it was given."""
        for placeholder, keys in self._secrets.items():
            text = text.replace(keys, placeholder)
        return text

    def _revealed(self, value: Any) -> Any:
        if isinstance(value, str):
            for placeholder, keys in self._secrets.items():
                value = value.replace(placeholder, keys)
            return value
        if isinstance(value, dict):
            return self.reveal(value)
        return [self._revealed(one) for one in value] if isinstance(value, list) else value

    def _end(self) -> str:
        keys, secret = self._keys, self._entry.secret
        self._keys, self._entry, self.due = "", self._usual, math.inf
        if not secret:
            return f"[pressed {keys}]"
        self._numbered += 1
        placeholder = f"<keys-{self._numbered}>"
        self._secrets[placeholder] = keys
        if len(self._secrets) > SECRETS:
            del self._secrets[next(iter(self._secrets))]
        return f"[pressed {len(keys)} keys, which are secret: {placeholder}]"


def read_entry(arguments: Mapping[str, Any], usual: Entry) -> Entry | str:
    """Return the entry that a model asks for, or what is wrong with it."""
    length, terminator = arguments.get("length", 0), arguments.get("terminator", usual.terminator)
    secret = arguments.get("secret", False)
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= MOST:
        return f"length must be a number of keys up to {MOST}, or 0"
    if terminator not in ("", "*", "#"):
        return "terminator must be #, * or empty"
    if not isinstance(secret, bool):
        return "secret must be true or false"
    return Entry(length, terminator, usual.gap_s, secret)


def asking_tool(expect: Callable[[Entry], None], usual: Entry) -> Tool:
    """Return the tool with which a model asks for keys. Whoever asks twice has asked anew."""

    async def ask(arguments: Mapping[str, Any]) -> str:
        entry = read_entry(arguments, usual)
        if isinstance(entry, str):
            return entry
        expect(entry)
        return "now ask the caller for the keys; they come as what the caller says next"

    return Tool("expect_keys", _ASKING, _SCHEMA, ask)


_ASKING: Final = (
    "Expect keys that the caller presses, like a PIN or an account number, and ask for them then."
)
_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "length": {"type": "integer", "description": "how many keys; 0: as many as come"},
        "terminator": {
            "type": "string", "enum": ["#", "*", ""], "description": "key that ends the entry",
        },
        "secret": {
            "type": "boolean",
            "description": "for PINs and numbers of cards: you get a placeholder, which you can "
            "hand to a tool",
        },
    },
}  # fmt: skip
