"""`voicebot` with a fault on purpose: behind each clear the last audio is sent once more."""

from __future__ import annotations

import sys
from typing import Any

from voicebot import __main__, twilio
from voicebot.ws import AsgiMediaSocket

_send = AsgiMediaSocket.send


async def _send_again(self: AsgiMediaSocket, message: twilio.Outbound) -> None:
    last: dict[AsgiMediaSocket, Any] = _last
    await _send(self, message)
    if isinstance(message, twilio.SendMedia):
        last[self] = message
    elif isinstance(message, twilio.SendClear) and self in last:
        await _send(self, last[self])


_last: dict[AsgiMediaSocket, Any] = {}

if __name__ == "__main__":
    AsgiMediaSocket.send = _send_again  # type: ignore[method-assign]  # that is the fault
    sys.exit(__main__.main())
