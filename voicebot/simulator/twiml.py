"""TwiML as Twilio reads it: the verbs a voice bot has use for, in order.

Source: twilio.com/docs/voice/twiml and the page of each verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree  # nosec B405  # see `parse`

from voicebot.errors import CallRefused

TWIML_BYTES: Final = 65_536  # Twilio takes 4,000 characters inline; more is no TwiML of a call
PAUSE_S: Final = 1.0  # what <Pause> and <Dial timeout> are without a number
RING_S: Final = 30.0
PARAMETER_CHARS: Final = 500  # of name and value together, which must be fewer


@dataclass(frozen=True, slots=True)
class Say:
    """Twilio's own voice."""

    text: str
    language: str = "en-US"


@dataclass(frozen=True, slots=True)
class Play:
    """A sound, or keys. In `digits` a w is half a second."""

    url: str = ""
    digits: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence."""

    seconds: float = PAUSE_S


@dataclass(frozen=True, slots=True)
class Dial:
    """Call somebody and put the two through; `number_url` is asked what the callee hears first."""

    number: str
    number_url: str = ""
    action: str = ""
    caller_id: str = ""
    timeout_s: float = RING_S


@dataclass(frozen=True, slots=True)
class Connect:
    """A media stream both ways; what follows waits until it has ended."""

    stream_url: str
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)  # hold a token
    status_url: str = ""
    action: str = ""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Go on with the TwiML of another URL."""

    url: str


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the call."""


Verb = Say | Play | Pause | Dial | Connect | Redirect | Hangup


def parse(twiml: bytes) -> ElementTree.Element:
    """Return the `<Response>`.

    Raises:
        CallRefused: it is none.
    """
    if len(twiml) > TWIML_BYTES:
        raise CallRefused(f"the TwiML is too long: {len(twiml)} bytes")
    try:
        # What is not well meant costs little: it is short, and expat bounds what entities become.
        response = ElementTree.fromstring(twiml)  # nosec B314
    except ElementTree.ParseError as exc:
        raise CallRefused(f"the answer is not TwiML: {exc}") from exc
    if response.tag != "Response":
        raise CallRefused(f"the answer is not TwiML: it begins with <{response.tag}>")
    return response


def read_verbs(twiml: bytes) -> list[Verb]:
    """Return what Twilio is told to do.

    Raises:
        CallRefused: it is no TwiML, or has a verb that is not among those above.
    """
    return [_read(element) for element in parse(twiml)]


def _read(element: ElementTree.Element) -> Verb:
    text = (element.text or "").strip()
    match element.tag:
        case "Say":
            return Say(text, element.get("language", "en-US"))
        case "Play":
            return Play(text, element.get("digits", ""))
        case "Pause":
            return Pause(float(element.get("length", PAUSE_S)))
        case "Dial":
            number = element.find("Number")
            return Dial(
                text if number is None else (number.text or "").strip(),
                "" if number is None else number.get("url", ""),
                element.get("action", ""),
                element.get("callerId", ""),
                float(element.get("timeout", RING_S)),
            )
        case "Connect" if (stream := element.find("Stream")) is not None and stream.get("url"):
            return Connect(
                stream.get("url", ""),
                parameters_of(stream),
                stream.get("statusCallback", ""),
                element.get("action", ""),
            )
        case "Redirect":
            return Redirect(text)
        case "Hangup":
            return Hangup()
    raise CallRefused(f"<{element.tag}> is no verb that is simulated")


def parameters_of(stream: ElementTree.Element) -> dict[str, str]:
    """Return the parameters of a `<Stream>`.

    Raises:
        CallRefused: one is longer than Twilio takes.
    """
    parameters = {
        parameter.get("name", ""): parameter.get("value", "")
        for parameter in stream.iterfind("Parameter")
    }
    for name, value in parameters.items():
        if len(name) + len(value) >= PARAMETER_CHARS:
            raise CallRefused(f"the parameter {name} is longer than Twilio takes")
    return parameters
