"""Twilio around the media stream: REST calls, and the paths of what Twilio asks of us.

The twilio SDK builds and reads the messages; its own transports are synchronous or asyncio, so
the bytes go through httpx on Trio. Nothing of the SDK or of httpx leaves this file: refusals
come out as `ProviderRejected` with Twilio's code, and `explain` says what to do about them.
What is not here: signatures (`signature.py`), who may call whom (`http.py`) and which calls there
are (`store.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import trio
from twilio.base.exceptions import TwilioException  # type: ignore[import-untyped]  # ships no types

from voicebot.config import Settings
from voicebot.errors import ProviderError, ProviderRejected, ProviderTimeout
from voicebot.outbound import OutboundCall
from voicebot.plan import CONNECTING, TROUBLE, Timeouts
from voicebot.twiml import parting_twiml

if TYPE_CHECKING:
    from twilio.rest import Client  # type: ignore[import-untyped]  # ships no types

PROVIDER: Final = "twilio"
VOICE_PATH: Final = "/twilio/voice"
TURNED_AWAY_ARGUMENT: Final = "turned_away"  # of `VOICE_PATH`: another server drains
STATUS_PATH: Final = "/twilio/status"
STREAM_STATUS_PATH: Final = "/twilio/stream-status"
STREAM_PATH: Final = "/twilio/stream"
AMD_PATH: Final = "/twilio/amd"
AFTER_STREAM_PATH: Final = "/twilio/after-stream"
AFTER_DIAL_PATH: Final = "/twilio/after-dial"
WHISPER_PATH: Final = "/twilio/whisper"
DIAL_ARGUMENT: Final = "dial"  # of the voice webhook's URL: which request this call is from

# Creating a call takes Twilio well under a second; past this nobody is waiting any more.
REQUEST_DEADLINE_S: Final = 10.0
AFTER_ALL_S: Final = 30  # Twilio ends a call so long after we should have: the last resort

# --- REST ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call as Twilio's REST API shows it."""

    sid: str
    status: str


class Telephony:
    """Twilio's Calls API for one account. Made by `open_telephony`."""

    def __init__(
        self,
        client: Client,
        public_url: str,
        *,
        language: str = "en",
        transfer_to: str = "",
        timeouts: Timeouts | None = None,
    ) -> None:
        self._calls = client.calls
        self._public_url = public_url.rstrip("/")
        self._language = language
        self._transfer_to = transfer_to
        self._time_limit_s = time_limit_s(timeouts or Timeouts())

    async def place_call(self, call: OutboundCall, key: str = "") -> PlacedCall:
        """Dial a number; when it is answered Twilio asks `VOICE_PATH` what to do.

        Args:
            key: comes back in `DIAL_ARGUMENT`, maybe before this returns.

        Raises:
            ProviderRejected: Twilio refused; `explain` knows the usual codes.
            ProviderTimeout: no answer in time; the call may have been placed all the same.
            ProviderError: Twilio cannot be reached or answers nonsense.

        Cancellation: the call may have been placed.
        """
        url = self._public_url + VOICE_PATH + (f"?{DIAL_ARGUMENT}={key}" if key else "")
        options: dict[str, Any] = {}
        if call.machine_detection != "off":
            # The end of what a machine says is of interest to who has something to leave.
            options["machine_detection"] = "DetectMessageEnd" if call.voicemail else "Enable"
        if call.machine_detection == "during":
            options["async_amd"] = "true"
            options["async_amd_status_callback"] = self._public_url + AMD_PATH
            options["async_amd_status_callback_method"] = "POST"
        with _mapped_errors():
            placed = await self._calls.create_async(
                to=call.to,
                from_=call.from_,
                url=url,
                method="POST",
                status_callback=self._public_url + STATUS_PATH,
                status_callback_method="POST",
                status_callback_event=["initiated", "ringing", "answered", "completed"],
                timeout=call.ring_timeout_s,
                time_limit=self._time_limit_s,
                **options,
            )
        return _placed(placed)

    async def fetch_call(self, sid: str) -> PlacedCall:
        """Return what Twilio knows of a call. Raises as `place_call`."""
        with _mapped_errors():
            call = await self._calls(sid).fetch_async()
        return _placed(call)

    async def end_call(self, sid: str) -> bool:
        """Hang up; return False if there was nothing to hang up. Raises as `place_call`."""
        try:
            with _mapped_errors():
                await self._calls(sid).update_async(status="completed")
        except ProviderRejected as exc:
            if exc.code in _ALREADY_OVER:
                return False
            raise
        return True

    async def redirect_call(self, sid: str, twiml: str) -> None:
        """Have a call go on with other TwiML; its stream ends. Raises as `place_call`."""
        with _mapped_errors():
            await self._calls(sid).update_async(twiml=twiml)

    async def hand_over(self, sid: str, say: bool) -> None:
        """Put a caller through to somebody, or hang up, for a bot that cannot go on.

        Args:
            say: whether the caller has yet to be told.

        Raises as `place_call`.
        """
        if say or self._transfer_to:
            text = CONNECTING if self._transfer_to else TROUBLE
            twiml = parting_twiml(text if say else "", self._language, self._transfer_to)
            await self.redirect_call(sid, twiml)
        else:
            await self.end_call(sid)


def time_limit_s(bounds: Timeouts) -> int:
    """Return after how many seconds Twilio ends a call that we have placed, whatever happens."""
    return math.ceil(bounds.call_s + bounds.parting_s) + AFTER_ALL_S


@asynccontextmanager
async def open_telephony(settings: Settings) -> AsyncGenerator[Telephony]:
    """Open the account that the settings name.

    Owns: one HTTP client for the life of the process; to make one takes tens of milliseconds.
    """
    from twilio.rest import Client  # costs 0.1 s; a server without Twilio never needs it

    token = settings.twilio_auth_token.get_secret_value()
    # No timeout for each step: one deadline, in `request`, covers all of a request.
    async with httpx.AsyncClient(timeout=None) as http:  # nosec B113  # see above
        client = Client(
            settings.twilio_account_sid,
            token,
            http_client=_Transport(http),
            # Not os.environ: TWILIO_EDGE and TWILIO_REGION would rewrite the configured host.
            environment={"TWILIO_EDGE": ""},
        )
        client.api.base_url = settings.twilio_api_url
        yield Telephony(
            client,
            settings.public_url,
            language=settings.language,
            transfer_to=settings.transfer_to,
            timeouts=settings.timeouts,
        )


class _Transport:
    """What the SDK asks of an HTTP client, on httpx.

    The SDK uses `is_async`, `request`, and of the answer `status_code`, `text` and `headers`,
    which httpx's own answer has. No subclass of the SDK's: that imports a second HTTP library.
    """

    is_async = True

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def request(
        self,
        method: str,
        url: str,
        params: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # the SDK's signature; it gives None
        allow_redirects: bool = False,
    ) -> httpx.Response:
        try:
            with trio.fail_after(REQUEST_DEADLINE_S):
                return await self._http.request(
                    method, url, params=params, data=data, headers=headers, auth=auth
                )
        except trio.TooSlowError as exc:
            raise ProviderTimeout(PROVIDER, "did not answer in time") from exc
        except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
            name = type(exc).__name__  # its text may quote the request
            raise ProviderError(PROVIDER, f"cannot be reached ({name})", retryable=True) from exc
        except httpx.HTTPError as exc:
            # The request has reached somebody: to send it again may place a second call.
            name = type(exc).__name__
            raise ProviderError(PROVIDER, f"the answer broke off ({name})") from exc


# Hang up on a call that has ended, or that this account does not know (any more).
_ALREADY_OVER: Final = frozenset({20404, 21220})


@contextmanager
def _mapped_errors() -> Iterator[None]:
    """Turn what the SDK raises into this package's errors."""
    try:
        yield
    except TwilioException as exc:
        # TwilioRestException or TwilioServiceException (RFC 9457), which share no more than this.
        status = getattr(exc, "status", None) or 0
        code = getattr(exc, "code", None)
        if code == status:
            code = None  # the SDK's stopgap: the answer has none, so it is hardly Twilio's
        text = (
            getattr(exc, "detail", None) or getattr(exc, "title", None) or getattr(exc, "msg", "")
        )
        raise ProviderRejected(
            PROVIDER,
            _without_numbers(str(text)) or f"HTTP status {status}",
            status=status,
            code=code,
            retryable=status == 429 or status >= 500,
        ) from exc
    except (ValueError, TypeError, AttributeError, KeyError) as exc:
        # The SDK checks nothing: an answer that is not Twilio's JSON fails in its models.
        raise ProviderError(PROVIDER, "answered nonsense; check TWILIO_API_URL") from exc


def _placed(call: Any) -> PlacedCall:
    if not isinstance(call.sid, str) or not call.sid:
        raise ProviderError(PROVIDER, "answered without a call SID; check TWILIO_API_URL")
    return PlacedCall(call.sid, str(call.status))


def _without_numbers(text: str) -> str:
    """Twilio quotes the number it refuses; errors get logged, so two digits must do."""
    return re.sub(r"\+?\d{5,}(?=\d\d)", "…", text)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of Twilio's, for people: our HTTP status, what is wrong, what to do about it."""

    status: int
    message: str
    hint: str
    field: str | None = None  # the request field that is at fault
    code: str | int | None = None


# Twilio's code -> (HTTP status of ours, field at fault, what is wrong, what to do).
# A refusal of our credentials is 502 and not 401: whoever called us did nothing wrong.
# Source: twilio.com/docs/api/errors, one page a code.
_REFUSALS: Final[Mapping[int, tuple[int, str | None, str, str]]] = {
    10004: (
        429,
        None,
        "too many calls at once for this Twilio account",
        "wait for a call to end; an approved business profile lifts the limit",
    ),
    20003: (
        502,
        None,
        "Twilio does not accept the account's credentials",
        "check TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN",
    ),
    20404: (
        502,
        None,
        "Twilio does not know the account or the call",
        "check TWILIO_ACCOUNT_SID and TWILIO_API_URL",
    ),
    20429: (429, None, "too many requests to Twilio", "try again in a few seconds"),
    21210: (
        400,
        "from",
        "is not a number of this Twilio account",
        "use a number bought from Twilio or verified as caller id",
    ),
    21211: (400, "to", "is not a number Twilio can call", "check the number; E.164 is expected"),
    21212: (400, "from", "is not a valid caller id", "use a number of this Twilio account"),
    21215: (
        403,
        "to",
        "is in a country the account may not call",
        "allow the country in the Console: Voice, Settings, Geo permissions",
    ),
    21219: (
        400,
        "to",
        "is not verified, and a trial account may call only verified numbers",
        "verify the number in the Console, or upgrade the account",
    ),
    21220: (409, None, "the call is not in a state that allows this", "it has ended already"),
}
_SAME_REFUSAL: Final = {573005: 21219}  # a newer code for trial accounts


def surely_not_placed(error: ProviderError) -> bool:
    """Say whether a request to place a call that failed like this has placed none."""
    if isinstance(error, ProviderTimeout):
        return False
    if isinstance(error, ProviderRejected):
        return error.status < 500  # behind a 5xx anything may have happened
    return error.retryable  # Twilio was not reached


def explain(error: ProviderError) -> Refusal:
    """Say what a failed request to Twilio means and what to do about it."""
    if isinstance(error, ProviderTimeout):
        return Refusal(
            504,
            "Twilio did not answer in time",
            "a call may have been placed all the same; look at GET /calls before trying again",
        )
    if not isinstance(error, ProviderRejected):
        hint = "check TWILIO_API_URL and the network"
        if not error.retryable:
            hint += "; a call may have been placed all the same, look at GET /calls"
        return Refusal(502, str(error), hint)
    code = int(error.code or 0) if str(error.code).isdecimal() else 0
    known = _REFUSALS.get(_SAME_REFUSAL.get(code, code))
    if known is not None:
        status, field, text, hint = known
        message = f"{field} {text}" if field else text
        return Refusal(status, message, hint, field, error.code)
    hint = f"see https://www.twilio.com/docs/api/errors/{error.code}"
    if error.code is None:
        hint = "the answer has no code of Twilio's; check TWILIO_API_URL and proxies on the way"
    return Refusal(
        error.status if error.status in {400, 429} else 502,
        f"Twilio refused: {str(error).removeprefix(PROVIDER + ': ')}",
        hint,
        code=error.code,
    )
