"""What the call needs from the outside, as protocols and plain values.

The engine (`nursery.py`) knows nothing but this. One implementation of each port talks to a
vendor, one is embedded, and tests bring their own.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from voicebot import twilio
from voicebot.tries import Alternatives


class MediaSocket(Protocol):
    """The Twilio socket after `start`: authenticated, decoded, one call.

    Whatever serves the socket can be replaced behind this.
    """

    @property
    def start(self) -> twilio.Start:
        """What Twilio said in `start`."""
        ...

    async def receive(self) -> twilio.Inbound:
        """Wait for the next event of the stream.

        Raises:
            SocketClosed: the peer is gone, with or without `stop`.
            RemoteProtocolError: the peer broke a rule its stream does not survive.

        Cancellation: safe; no event is lost.
        """
        ...

    async def send(self, message: twilio.Outbound) -> None:
        """Write one message; returns when the transport has taken it.

        Raises:
            SocketClosed: the peer is gone.

        Cancellation: the message may be half written, so the socket is doomed and must be
        aborted. Only the call's writer may call this.
        """
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with a code. Never raises for a peer that has already gone; bounded."""
        ...


@dataclass(frozen=True, slots=True)
class Partial:
    """What the caller seems to be saying; replaced by the next one."""

    text: str


@dataclass(frozen=True, slots=True)
class LikelyEnd:
    """What `Partial` is, and the provider expects that the caller has finished with it.

    A `Partial` takes it back; the `Final` that makes it certain has the same words.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Final:
    """Words that will not change; add up to the caller's turn. May be empty.

    `end_of_turn`: the provider says the caller has finished. `finalized`: the answer to
    `Transcriber.finalize`, so everything sent before it is now accounted for. `until_ms`: of the
    audio that this transcriber was sent, how much is accounted for; None where it does not say.
    """

    text: str
    end_of_turn: bool = False
    finalized: bool = False
    until_ms: int | None = field(default=None, compare=False)  # not a part of what is said


@dataclass(frozen=True, slots=True)
class UtteranceEnd:
    """The provider hears no more words: ends the turn if no `Final` has done so."""


Transcript = Partial | LikelyEnd | Final | UtteranceEnd


class Transcriber(Protocol):
    """Speech to text for one call."""

    async def send(self, audio: bytes) -> None:
        """Hand over caller audio: mu-law, 8,000 Hz, any length, in order, silence included.

        Raises:
            ProviderError: the connection is lost.

        Cancellation: the transcriber is doomed; leave its context manager.
        """
        ...

    def speech_started(self, ago_ms: int) -> None:
        """Say that the caller began to speak that long before the end of the sent audio."""
        ...

    async def finalize(self) -> None:
        """Ask for all words up to now; a `Final` with `finalized` follows, maybe empty."""
        ...

    async def receive(self) -> Transcript:
        """Wait for the next transcript.

        Raises:
            ProviderError: the connection is lost.

        Cancellation: safe.
        """
        ...


OpenTranscriber = Callable[[], AbstractAsyncContextManager[Transcriber]]


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A recogniser, and who decides with it that the caller has finished."""

    open: OpenTranscriber
    endpointing: Literal["provider", "local"]
    name: str = "recogniser"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to run a tool. `arguments` is JSON as the model wrote it, unchecked."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of the conversation as a language model sees it.

    An `assistant` message with `tool_calls` is followed by one `tool` message for each of them,
    which names it in `tool_call_id`. Its content may then be empty.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


TOOL_TIMEOUT_S: typing.Final = 10.0  # longer than any caller waits in silence
# With the model's own second, when a pause begins to be noticed.
TOOL_FILLER_AFTER_S: typing.Final = 1.0


@dataclass(frozen=True, slots=True)
class Tool:
    """Something a bot can do besides speaking.

    `parameters` is the JSON schema of an object. `run` is given the arguments, an object that
    has not been checked against the schema, and returns what the model is told; any exception
    of its is told to the model as a failure. It must end within 2 s of being cancelled, or the
    end of its call waits for it.

    `idempotent`: whether to run it again, or to break it off, does no harm. One that is not is
    finished even if the caller interrupts, and never run twice for one request. `abortable`:
    whether it ends when it is cancelled; one that does not is finished as well.

    `filler` is said, once, when it takes longer than `filler_after_s` in silence.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], Awaitable[str]]
    idempotent: bool = True
    timeout_s: float = TOOL_TIMEOUT_S
    abortable: bool = True
    filler: str = ""
    filler_after_s: float = TOOL_FILLER_AFTER_S


class Chat(Protocol):
    """The words of the bot."""

    def open_reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> AbstractAsyncContextManager[AsyncIterator[str | ToolCall]]:
        """Stream an answer as text deltas, what the model thinks left out, and whole tool calls.

        The tools are offered to the model; running them is the caller's affair.

        Raises:
            ProviderError: from the context manager or from the iterator. ReplyCut comes from the
                iterator, behind all that there is of an answer without its end. RequestTooLong
                asks for fewer messages.

        Cancellation: leaving the context closes the request; safe at any point.
        """
        ...


class Synthesizer(Protocol):
    """Text to speech."""

    def open_speech(self, text: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream one piece of speech.

        Shape: mu-law, 8,000 Hz, mono, no header; chunks of any length, never empty.

        Raises:
            ProviderError: from the context manager or from the iterator.

        Cancellation: leaving the context closes the request; safe at any point.
        """
        ...


class Ears(Protocol):
    """Voice activity of one call. Synchronous and inline: a thread hop costs 60 times it."""

    def hear(self, frame: bytes, *, echo_dbov: float) -> bool:
        """Take 20 ms of the caller; return whether the caller is speaking now.

        `echo_dbov` is the level of what the caller was hearing of the bot around this frame,
        `-inf` while the bot is silent.
        """
        ...

    @property
    def onset_ms(self) -> int:
        """How long before the end of the last frame the speech of the last rise began."""
        ...


class Tape(Protocol):
    """What a recording of one stream is told. Synchronous and quick; never fails.

    Audio is mu-law, 8,000 Hz; `now` and `delay` are seconds on Trio's clock.
    """

    def caller_said(
        self, payload: bytes, timestamp_ms: int, now: float, *, hidden: bool = False
    ) -> None:
        """Take audio of the caller as it came, with Twilio's stamp; `hidden`: it is secret."""
        ...

    def hide_key(self) -> None:
        """Take that a key was pressed which is secret: its tone may be in the caller's audio."""
        ...

    def bot_said(self, chunk: bytes, now: float) -> None:
        """Take audio of the bot that the socket has taken."""
        ...

    def bot_played(self, unproved: int, delay: float) -> None:
        """Take an echo of a mark: the last bytes that it does not prove, and how late it is."""
        ...

    def bot_cut(self, discarded: int, delay: float) -> None:
        """Take that an epoch is over; the last bytes of it were thrown away."""
        ...


@dataclass(frozen=True, slots=True)
class Tongue:
    """What speaks for one of the speakers of a bot, and hears their language.

    `open_transcriber` is None where the usual one hears it; `canned` as in `Ports`.
    """

    synthesizer: Synthesizer | Alternatives[Synthesizer]
    open_transcriber: OpenTranscriber | Alternatives[Recogniser] | None = None
    canned: Callable[[str], bytes | None] = lambda piece: None


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything one call talks to, apart from its socket.

    Of recognisers, language models and voices there may be several, of which the first is used
    that works. `endpointing` says who decides that the caller has finished, the recogniser or our
    ears, where there is one recogniser.
    `hang_up` ends the telephone call of that SID at the carrier, and that it is over already is
    no error; None where there is no carrier. It raises ProviderError; cancelled, the call may
    have been ended. `hand_over` has the carrier take the caller from a bot that cannot go on, and
    say so first if it is told to; otherwise as `hang_up`. `canned` gives the sound of a piece of
    speech where that is known beforehand, which needs no provider: mu-law. `warm` says that a call
    begins, so that what its replies will need can be made ready; it returns at once and never
    fails. `tape` records the call; None: nothing does.
    """

    open_transcriber: OpenTranscriber | Alternatives[Recogniser]
    endpointing: Literal["provider", "local"]
    chat: Chat | Alternatives[Chat]
    synthesizer: Synthesizer | Alternatives[Synthesizer]
    open_ears: Callable[[], Ears]
    tools: tuple[Tool, ...] = ()
    hang_up: Callable[[str], Awaitable[object]] | None = None
    hand_over: Callable[[str, bool], Awaitable[object]] | None = None
    canned: Callable[[str], bytes | None] = lambda piece: None
    warm: Callable[[], None] = lambda: None
    tongues: Mapping[str, Tongue] = field(default_factory=dict)  # by the names of other speakers
    tape: Tape | None = None
