"""A key of the calls API for tests."""

from __future__ import annotations

import hashlib

from voicebot.api_keys import ALL, ApiKey

API_KEY = "vb_" + "5e" * 32


def entry(*scopes: str, name: str = "tests", key: str = API_KEY) -> str:
    """Return what lets a key in, as `VOICEBOT_API_KEYS` has it."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return ApiKey(name, frozenset(scopes or {ALL}), digest).entry
