"""The caller's part of a script, in toy speech."""

from __future__ import annotations

from voicebot.audio import silence
from voicebot.simulator import Utterance, When, WhenSilent
from voicebot.testing.toy import noise, say


def caller_says(
    text: str,
    when: When = WhenSilent(),  # noqa: B008  # frozen
    *,
    pause_ms: int = 0,
    backchannel: bool = False,
) -> Utterance:
    """Return an utterance in toy speech, named by its text.

    Args:
        pause_ms: silence instead of each `|`, as of a caller who thinks: `"to|london"`.
        backchannel: it must not cost the bot its reply, as in "mm-hm".
    """
    audio = silence(pause_ms).join(say(part) for part in text.split("|"))
    return Utterance(text, audio, when, backchannel=backchannel)


def caller_coughs(
    when: When = WhenSilent(),  # noqa: B008  # frozen
    *,
    seconds: float = 0.3,
) -> Utterance:
    """Return a sound without words, which must not cost the bot its reply."""
    return Utterance("cough", noise(seconds), when, backchannel=True)
