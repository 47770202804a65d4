"""Signs the webhooks that schemathesis makes up, as Twilio would; named by SCHEMATHESIS_HOOKS.

One in four is left as it is, so both sides of the door are tried.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
import schemathesis
from twilio.request_validator import (  # type: ignore[import-untyped]  # ships no types
    RequestValidator,
)
from werkzeug.datastructures import MultiDict

VALIDATOR = RequestValidator(os.environ["TWILIO_AUTH_TOKEN"])
PUBLIC_URL = os.environ["PUBLIC_URL"].rstrip("/")


class Signed(requests.auth.AuthBase):
    """Puts a signature of the finished request into its headers."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        target = urlsplit(request.path_url)
        url = PUBLIC_URL + request.path_url if target.path else PUBLIC_URL
        body = request.body or b""
        assert isinstance(body, str | bytes)
        text = body if isinstance(body, str) else body.decode("utf-8", "replace")
        form: MultiDict[str, str] = MultiDict(parse_qsl(text, keep_blank_values=True))
        request.headers["X-Twilio-Signature"] = VALIDATOR.compute_signature(url, form)
        return request


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """Sign what Twilio asks."""
    if case.path.startswith("/twilio/") and sum(case.id.encode()) % 4:
        kwargs["auth"] = Signed()
