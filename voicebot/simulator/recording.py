"""The record of one simulated call, and short ways to ask what the caller heard.

recording = await run_call(line, script)
[clear] = recording.clears
assert recording.heard_between(clear.effect_ms, clear.effect_ms + 500) == silence(500)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from voicebot.audio import BYTES_PER_MS
from voicebot.simulator.caller import Pressed, Script, Spoken
from voicebot.simulator.happenings import Clear, Echo, Happening, Mark, Media, Played, Warned
from voicebot.simulator.network import PERFECT, Network
from voicebot.simulator.twilio_end import Identity

EndedBy = Literal["caller", "bot", "limit", "network", "twilio"]


@dataclass(frozen=True, slots=True)
class Ended:
    """Who ended the stream; `limit` is `Script.limit_s`, `network` is `Network.close_at_s`.

    `twilio`: its REST API was told to end the call, or to go on with something else.
    `code`: the bot's close code.
    """

    at_ms: float
    by: EndedBy
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One call, as the caller lived it.

    Shape: `caller` and `heard` are mu-law, 8,000 Hz, equally long, from the start of the
        stream on; `heard` is the bot as it came out of the caller's phone.
    Units: every `_ms` counts from the start of the stream, on the far end's clock.
    """

    identity: Identity
    script: Script
    caller: bytes = field(repr=False)
    heard: bytes = field(repr=False)
    spoken: tuple[Spoken, ...]
    pressed: tuple[Pressed, ...]
    happenings: tuple[Happening, ...]  # in the order of the wire, each echo when it was due
    played: tuple[Played, ...]
    ended: Ended
    network: Network = PERFECT

    def heard_between(self, start_ms: float, end_ms: float) -> bytes:
        """Return what came out of the caller's phone in that time, as far as the call went."""
        first, last = round(start_ms * BYTES_PER_MS), round(end_ms * BYTES_PER_MS)
        return self.heard[max(0, first) : max(0, last)]

    @property
    def medias(self) -> tuple[Media, ...]:
        """All audio the server sent, in the order of the wire."""
        return tuple(h for h in self.happenings if isinstance(h, Media))

    @property
    def clears(self) -> tuple[Clear, ...]:
        """Every `clear` the server sent."""
        return tuple(h for h in self.happenings if isinstance(h, Clear))

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Every mark the server sent."""
        return tuple(h for h in self.happenings if isinstance(h, Mark))

    @property
    def echoes(self) -> tuple[Echo, ...]:
        """Every mark that went back, lost ones included."""
        return tuple(h for h in self.happenings if isinstance(h, Echo))

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What Twilio would have logged."""
        return tuple(h for h in self.happenings if isinstance(h, Warned))
