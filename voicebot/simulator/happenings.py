"""What the server said and what Twilio did about it: the record of a media stream.

A message has two times. `at_ms` is when it was taken off the line: the order of these is the
order on the wire. `transit_ms` later it took effect, which is 0 on a perfect line and infinite
where the call ended first.

Units: every `_ms` counts from the start of the stream, on the far end's clock, of which one
sample is 1/8 ms; with `Network.drift` that is not quite the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Media:
    """Audio from the server. `buffered_ms`: how much was waiting to be played before it."""

    at_ms: float
    audio: bytes = field(repr=False)
    buffered_ms: float = 0.0
    transit_ms: float = 0.0

    @property
    def effect_ms(self) -> float:
        """When it was queued; infinity if never."""
        return self.at_ms + self.transit_ms


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark from the server."""

    at_ms: float
    name: str
    transit_ms: float = 0.0

    @property
    def effect_ms(self) -> float:
        """When Twilio had it; infinity if never."""
        return self.at_ms + self.transit_ms


@dataclass(frozen=True, slots=True)
class Clear:
    """The server threw away `dropped_ms` of audio that was not played yet."""

    at_ms: float
    dropped_ms: float
    transit_ms: float = 0.0

    @property
    def effect_ms(self) -> float:
        """When the bot fell silent by it; infinity if never."""
        return self.at_ms + self.transit_ms


@dataclass(frozen=True, slots=True)
class Echo:
    """A mark was due to go back at `at_ms`: what was before it has played, or was `cleared`.

    It went `late_ms` later, infinity for never. A second one of a name is a duplicate; one of
    a name that was no mark is a stray.
    """

    at_ms: float
    name: str
    cleared: bool
    late_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Warned:
    """Twilio would log this warning for the stream."""

    at_ms: float
    code: int
    reason: str


Happening = Media | Mark | Clear | Echo | Warned


@dataclass(frozen=True, slots=True)
class Played:
    """Media played without a hole. `cut`: a `clear` ended it, not the end of the audio."""

    start_ms: float
    end_ms: float
    cut: bool
