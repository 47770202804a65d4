"""Every error this package raises on purpose.

    VoicebotError
    ├── ConfigError            settings are missing or wrong: all problems at once
    ├── MissingPart            an optional part (extra, weights) is not installed
    ├── ProtocolError
    │   ├── LocalProtocolError     we broke a rule: a bug here
    │   └── RemoteProtocolError    the peer broke a rule: its stream ends, nothing else
    ├── SocketClosed           the Twilio socket is gone; an outcome, not a fault
    ├── ProviderError          a provider failed
    │   ├── ProviderTimeout        too late
    │   ├── ProviderRejected       answered, with a refusal
    │   │   └── RequestTooLong         a shorter one may be taken
    │   └── ReplyCut               a language model's answer has no end
    ├── CallRefused            a call is not taken or not placed
    │   └── CallBarred             because of whom it is to, or of how many there are
    └── StoreError             the database cannot be opened or read

Vendor exceptions never leave the file that talks to the vendor. A hang-up is an outcome of
a call and not an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final


class VoicebotError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(VoicebotError):
    """Settings are missing or wrong. `problems` names every one of them, not just the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class MissingPart(VoicebotError):
    """An optional part is not installed or not intact; the message says what to install."""


class ProtocolError(VoicebotError):
    """A rule of a wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This side was about to break, or broke, a rule: a bug."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule that its stream does not survive.

    `kind` is a short constant for logs and counters; `close_code` is the RFC 6455 code to
    close the WebSocket with.
    """

    def __init__(self, kind: str, detail: str = "", *, close_code: int = 1008) -> None:
        self.kind = kind
        self.detail = detail
        self.close_code = close_code
        super().__init__(f"{kind}: {detail}" if detail else kind)


class SocketClosed(VoicebotError):
    """The Twilio socket is gone. `code` is the close code, 1006 where there was none."""

    def __init__(self, code: int = 1006) -> None:
        self.code = code
        super().__init__(f"media socket closed with code {code}")


class ProviderError(VoicebotError):
    """A provider (speech, language model, telephony) failed.

    `provider` is a short name for logs ("deepgram-stt", "groq", …); `retryable` says whether
    the same request may be tried again.
    """

    def __init__(self, provider: str, message: str, *, retryable: bool = False) -> None:
        self.provider = provider
        self.retryable = retryable
        super().__init__(f"{provider}: {message}")


class ProviderTimeout(ProviderError):
    """A provider did not answer, or stopped answering, in time."""

    def __init__(self, provider: str, message: str) -> None:
        super().__init__(provider, message, retryable=True)


class ProviderRejected(ProviderError):
    """A provider answered with a refusal.

    `status` is the HTTP status (0 where there is none) and `code` the provider's own code.
    `retry_after_s` is how long to wait before the same request may be taken, if it said so.
    """

    def __init__(
        self,
        provider: str,
        message: str,
        *,
        status: int = 0,
        code: str | int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        super().__init__(provider, message, retryable=retryable)


class RequestTooLong(ProviderRejected):
    """A conversation is longer than a model or a plan takes, however long one waits.

    A class and not a code: what the servers call it differs, and Groq calls it a rate limit.
    """


class ReplyCut(ProviderError):
    """A language model's answer was ended before its end. What came of it has been given.

    `reason` is the server's word: "length", where a limit was reached, "content_filter", or
    another.
    """

    def __init__(self, provider: str, reason: str) -> None:
        self.reason = reason
        super().__init__(provider, f"the answer was cut off: {reason}")


#: What `kind_of` returns.
KINDS: Final = (
    *("timeout", "cut", "too_long", "rate_limited", "not_allowed", "server_error", "rejected"),
    *("broken", "failed"),
)


def kind_of(error: ProviderError) -> str:
    """Return what kind of failure it is, in one of a few words: for counting."""
    match error:
        case ProviderTimeout():
            return "timeout"
        case ReplyCut():
            return "cut"
        case RequestTooLong():
            return "too_long"
        case ProviderRejected(status=429):
            return "rate_limited"
        case ProviderRejected(status=401 | 402 | 403):
            return "not_allowed"  # key, credit or permission: no try of anybody helps
        case ProviderRejected(status=status):
            return "server_error" if status >= 500 else "rejected"
    return "broken" if error.retryable else "failed"


class CallRefused(VoicebotError):
    """A call is not taken or not placed; the message says why and what to do."""


class CallBarred(CallRefused):
    """A call that is not placed because of whom it is to, or of how many there are.

    `reason` is one word, for counting; `hint` says what to do, `setting` by which setting it was
    decided, if by one. `retry_after_s`: it may be placed so much later; None: never.
    """

    def __init__(
        self,
        reason: str,
        text: str,
        hint: str,
        setting: str = "",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.hint = hint
        self.setting = setting
        self.retry_after_s = retry_after_s


class Draining(CallRefused):
    """The server stops, and takes no new call; another does, or this one soon."""


class StoreError(VoicebotError):
    """The database of records cannot be opened or read; the message says why and what to do."""
