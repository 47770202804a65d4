"""What scripted providers have in common: being slow to let go."""

from __future__ import annotations

import trio


async def linger(seconds: float) -> None:
    """Take that long, cancelled or not, as a provider does that closes slowly.

    Cancellation: not felt; bounded by `seconds`.
    """
    if seconds > 0:
        with trio.move_on_after(seconds, shield=True):
            await trio.sleep_forever()
