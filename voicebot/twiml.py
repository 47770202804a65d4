"""What Twilio is told to do with a call, as TwiML.

The twilio SDK writes the XML. Source: twilio.com/docs/voice/twiml and the page of each verb.
"""

from __future__ import annotations

from typing import Final

from twilio.twiml.voice_response import (  # type: ignore[import-untyped]  # ships no types
    Dial,
    Stream,
    VoiceResponse,
)

TOKEN_PARAMETER: Final = "token"  # name of the <Parameter>, and in start.customParameters

DIAL_S: Final = 20  # some four rings; then the caller is better off with the bot again

# <Say> takes a language with its region only. Source: twilio.com/docs/voice/twiml/say.
_SAY_LANGUAGES: Final = {
    **{"en": "en-US", "de": "de-DE", "fr": "fr-FR", "es": "es-ES", "it": "it-IT", "nl": "nl-NL"},
    **{"pt": "pt-BR", "multi": "en-US"},
}


def stream_twiml(
    stream_url: str,
    token: str,
    status_callback: str | None = None,
    *,
    action: str | None = None,
    digits: str = "",
) -> str:
    """Return TwiML that connects the call to the media stream, with its one-time token.

    `<Connect>` is the last verb: when the stream ends the call is hung up, unless `action`, which
    Twilio asks then, says otherwise. `digits` are played to the caller before.
    The token is a `<Parameter>` because Twilio drops a query string from the URL.
    """
    response = VoiceResponse()
    if digits:
        response.play(digits=digits)
    stream = Stream(url=stream_url, status_callback=status_callback)
    stream.parameter(name=TOKEN_PARAMETER, value=token)
    response.connect(action=action).append(stream)
    return str(response)


def dial_twiml(to: str, *, action: str, whisper: str | None = None, caller_id: str = "") -> str:
    """Return TwiML that puts the caller through to somebody.

    Args:
        action: asked for TwiML when the two have talked, or nobody has answered.
        whisper: asked for what the callee hears before they are put through.
        caller_id: what the callee sees; empty: the caller's number.
    """
    response = VoiceResponse()
    dial = Dial(action=action, timeout=DIAL_S, caller_id=caller_id or None)
    dial.number(to, url=whisper)
    response.append(dial)
    return str(response)


def say_twiml(text: str, language: str) -> str:
    """Return TwiML that says something and goes on; with no text, only that."""
    response = VoiceResponse()
    if text:
        response.say(text, language=_say_language(language))
    return str(response)


def hang_up_twiml() -> str:
    """Return TwiML that ends the call."""
    response = VoiceResponse()
    response.hangup()
    return str(response)


def redirect_twiml(url: str) -> str:
    """Return TwiML that has another server answer the call."""
    response = VoiceResponse()
    response.redirect(url, method="POST")
    return str(response)


def sorry_twiml() -> str:
    """Return TwiML for a caller whom this server can take no more."""
    response = VoiceResponse()
    response.say("I am sorry, we cannot take your call now. Please call again in a few minutes.")
    response.hangup()
    return str(response)


def busy_twiml() -> str:
    """Return TwiML for a caller that no line is free for."""
    response = VoiceResponse()
    response.say("All lines are busy. Please call again later.")
    response.hangup()
    return str(response)


def parting_twiml(text: str, language: str, transfer_to: str = "") -> str:
    """Return TwiML for a caller whose bot cannot go on: say so, and put through or hang up.

    Args:
        text: said by Twilio's own voice; empty where the bot could say so itself.
        language: BCP 47, of the text. Twilio has a voice for each of the usual ones.
        transfer_to: E.164; empty: hang up.
    """
    response = VoiceResponse()
    if text:
        response.say(text, language=_say_language(language))
    if transfer_to:
        response.dial(transfer_to)
    response.hangup()
    return str(response)


def _say_language(language: str) -> str:
    return _SAY_LANGUAGES.get(language.lower(), language)
