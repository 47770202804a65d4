"""Whether Twilio signed a request.

Pure but for the SDK, which puts together what is signed. The secrets are those of one account: the
auth token, a second one while it is changed, and shared keys (HMAC-SHA256, Public Beta) by id.

Source: twilio.com/docs/usage/webhooks/webhooks-security, …/webhook-shared-keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]  # no types

SIGNATURE: Final = b"x-twilio-signature"
SIGNATURE_SETTINGS: Final = b"x-twilio-webhooks-signature-settings"
_SHA256: Final = "HMAC_SHA256"


@dataclass(frozen=True, slots=True)
class Secrets:
    """What Twilio may sign with.

    `tokens`: for HMAC-SHA1; empty: such signatures are refused. `shared`: for HMAC-SHA256, by id.
    """

    tokens: tuple[str, ...] = field(default=(), repr=False)
    shared: Mapping[str, str] = field(default_factory=dict, repr=False)

    def signed(
        self,
        signatures: Sequence[str],
        claims: Sequence[str],
        url: str,
        form: Mapping[str, str] | None = None,
    ) -> bool:
        """Say whether a request is genuine.

        Args:
            signatures: the values of `X-Twilio-Signature`; any but one is none.
            claims: the values of `X-Twilio-Webhooks-Signature-Settings`. None: the auth token has
                signed. Otherwise only the shared key that it names can have, and never with SHA-1:
                no secret stands in for another.
            url: as Twilio was given it, query included; never made from the request's own headers.
            form: all fields of a form POST, a multidict; None for a GET and a WebSocket upgrade.
        """
        if len(signatures) != 1 or not signatures[0]:
            return False
        if not claims:
            # All are tried: how long it takes does not say which.
            genuine = [signature_ok(token, signatures[0], url, form) for token in self.tokens]
            return any(genuine)
        secret = self.shared.get(_shared_key(claims) or "")
        return secret is not None and signature_ok(secret, signatures[0], url, form, _SHA256)


def _shared_key(claims: Sequence[str]) -> str | None:
    """Return the id of the key in `key=…,algorithm=HMAC_SHA256`; None for anything else."""
    parts = [part.strip().partition("=") for part in ",".join(claims).split(",")]
    said = {name: value for name, _, value in parts}
    if len(parts) != 2 or said.keys() != {"key", "algorithm"} or said["algorithm"] != _SHA256:
        return None
    return said["key"]


def signature_ok(
    secret: str,
    signature: str | None,
    url: str,
    form: Mapping[str, str] | None = None,
    algorithm: str = "HMAC_SHA1",
) -> bool:
    """Say whether this secret signed a request. Arguments as of `Secrets.signed`.

    Twilio leaves out the port of the URL, or not, depending on the kind of callback, and its
    documentation tells servers to try a WebSocket URL with a slash at its end too.

    The SDK's `validate` is not used: it takes 80 for the port of wss, raises on a missing
    header, and compares in Python.
    """
    if not signature:
        return False
    given = signature.encode("utf-8", "surrogatepass")
    validator = RequestValidator(secret)
    genuine = False
    for candidate in _signed_urls(url):
        expected: str = validator.compute_signature(candidate, form or {}, algorithm)
        genuine |= hmac.compare_digest(expected.encode(), given)
    return genuine


def _signed_urls(url: str) -> set[str]:
    parts = urlsplit(url)
    host = parts.netloc.removesuffix(f":{parts.port}")
    port = parts.port or {"https": 443, "wss": 443}.get(parts.scheme, 80)
    urls = {url, *(parts._replace(netloc=netloc).geturl() for netloc in (host, f"{host}:{port}"))}
    if parts.scheme in {"ws", "wss"}:
        urls |= {one + "/" for one in urls}
    return urls
