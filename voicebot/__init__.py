"""voicebot: a phone bot that stops talking the moment the caller does.

    from voicebot import Bot, Call, tool

What a bot file needs, and no more: see docs/bots.md. Importing this package loads none of it;
each name loads its own file when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voicebot.bot import Bot, Speaker
    from voicebot.call import Call
    from voicebot.tools import tool

__version__ = "0.1.0"
__all__ = ["Bot", "Call", "Speaker", "tool"]

_HOMES = {
    "Bot": "voicebot.bot",
    "Speaker": "voicebot.bot",
    "Call": "voicebot.call",
    "tool": "voicebot.tools",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'voicebot' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
