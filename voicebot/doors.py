"""Who may use the calls API and its pages, and whether a server may start the way it is set up.

Routes declare the scope that they want; one that declares none lets nobody in. Webhooks and media
have their own door in `switchboard.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from quart import Blueprint, g, request

from voicebot.api_keys import LOCAL, SCOPES
from voicebot.config import Settings
from voicebot.errors import ConfigError
from voicebot.switchboard import is_direct_loopback, is_loopback

NEW_KEY: Final = (
    "`voicebot keys new NAME --scopes all` makes a key, and its entry for VOICEBOT_API_KEYS"
)

log = logging.getLogger(__name__)

Refusal = tuple[dict[str, Any], int, dict[str, str]]
View = TypeVar("View", bound=Callable[..., Any])


class ApiDoor:
    """Lets requests in by the key that they bring, and its scopes."""

    def __init__(self, settings: Settings) -> None:
        self._keyring = settings.keyring
        self._dev = settings.dev

    def guard(self, routes: Blueprint) -> Callable[[str], Callable[[View], View]]:
        """Close all routes of a blueprint; return the decorator by which each says its scope."""
        scopes: dict[str, str] = {}

        def needs(scope: str) -> Callable[[View], View]:
            if scope not in SCOPES:
                raise ValueError(f"there is no scope {scope}")

            def declare(view: View) -> View:
                scopes[f"{routes.name}.{view.__name__}"] = scope
                return view

            return declare

        @routes.before_request
        async def check() -> Refusal | None:
            return self._check(scopes.get(request.endpoint or ""))

        return needs

    def _check(self, scope: str | None) -> Refusal | None:
        """Return why this request may not have what is behind `scope`; None if it may."""
        if scope is None:
            return _refuse("undeclared", 403, "this route is closed: it declares no scope")
        if not self._keyring:
            if self._dev and is_direct_loopback(request.scope):
                g.who = LOCAL
                return None
            return _refuse(
                "no_keys",
                403,
                "the calls API is closed: VOICEBOT_API_KEYS has no key",
                hint=NEW_KEY,
            )
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        key = self._keyring.find(given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            text = "send Authorization: Bearer <key>, with one of the server's VOICEBOT_API_KEYS"
            error = 'Bearer error="invalid_token"' if given else "Bearer"  # RFC 6750, 3.1
            return _refuse("wrong" if given else "missing", 401, text, challenge=error)
        if not key.may(scope):
            return _refuse(
                "scope",
                403,
                f"this key may not do that: it lacks the scope {scope!r}",
                name=key.name,
                scope=scope,
                challenge=f'Bearer error="insufficient_scope", scope="{scope}"',
            )
        g.who = key.name
        return None


def who() -> str:
    """Return the name of the key that the request being served has brought."""
    name: str = g.who
    return name


def _refuse(
    why: str, status: int, text: str, *, name: str = "", challenge: str = "", **more: str
) -> Refusal:
    client = (request.scope.get("client") or ("",))[0]
    extra = {"reason": why, "peer": client, "path": request.path, "who": name}
    log.warning("api_key_refused", extra=extra)
    headers = {"WWW-Authenticate": challenge} if challenge else {}
    return {"error": {"message": text, **more}}, status, headers


def check_doors(settings: Settings, host: str | None = None) -> None:
    """Check that a server with these settings is open to nobody by mistake, and to somebody.

    Args:
        host: it is to listen on; None: not known, as under hypercorn's own command line.

    Raises:
        ConfigError: with what is to be done.
    """
    problems = []
    public, keyring = host is not None and not is_loopback(host), settings.keyring
    if settings.dev:
        open_to = "--dev (VOICEBOT_DEV) lets in without key or signature"
        if public:
            problems.append(f"--host {host}: {open_to}, so it is for 127.0.0.1 alone")
        if settings.public_url and not is_loopback(urlsplit(settings.public_url).hostname or ""):
            problems.append(
                f"PUBLIC_URL: {open_to}, and behind a proxy or a tunnel that may be anybody; "
                "unset one of the two"
            )
    elif public and not keyring:
        problems.append(
            f"VOICEBOT_API_KEYS: is empty, and --host {host} is open to others; {NEW_KEY}"
        )
    elif settings.api_key.get_secret_value() and not keyring:
        problems.append(
            "VOICEBOT_API_KEY: is what `voicebot call` sends to a server; what this server lets in "
            f"is VOICEBOT_API_KEYS, which is empty. {NEW_KEY}; or unset VOICEBOT_API_KEY here: "
            "then nobody may use the calls API"
        )
    elif not settings.telephony and not keyring:
        problems.append(
            "nobody could reach this server. To try it on this machine: `voicebot serve --dev`. "
            "On a telephone: set TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and PUBLIC_URL"
        )
    if problems:
        raise ConfigError(problems)
