"""What Twilio signed, and what it did not."""

from __future__ import annotations

import pytest
from twilio.request_validator import (  # type: ignore[import-untyped]  # ships no types
    RequestValidator,
)
from werkzeug.datastructures import MultiDict

from voicebot.signature import Secrets, signature_ok

# Vector 1 is Twilio's own; the others were made with its SDK.
URL = "https://example.com/myapp.php?foo=1&bar=2"
FORM = {
    "CallSid": "CA1234567890ABCDE",
    "Caller": "+14158675310",
    "Digits": "1234",
    "From": "+14158675310",
    "To": "+18005551212",
}
SIGNATURE = "L/OH5YylLD5NRKLltdqwSvS0BnU="


def sign(url: str, form: MultiDict[str, str] | dict[str, str] | None = None) -> str:
    return str(RequestValidator("12345").compute_signature(url, form or {}))


def test_published_vector_is_accepted() -> None:
    assert signature_ok("12345", SIGNATURE, URL, FORM)
    assert signature_ok("12345", SIGNATURE, URL, MultiDict(FORM))


@pytest.mark.parametrize(
    "token, signature, url, form",
    [
        pytest.param("12346", SIGNATURE, URL, FORM, id="wrong token"),
        pytest.param("12345", None, URL, FORM, id="missing"),
        pytest.param("12345", "", URL, FORM, id="empty"),
        pytest.param("12345", "é\ud800", URL, FORM, id="not ASCII"),
        pytest.param("12345", SIGNATURE[:-1], URL, FORM, id="cut short"),
        pytest.param("12345", SIGNATURE, URL, FORM | {"Digits": "1235"}, id="changed field"),
        pytest.param("12345", SIGNATURE, URL, FORM | {"Extra": ""}, id="added field"),
        pytest.param(
            "12345", SIGNATURE, URL, {k: FORM[k] for k in FORM if k != "To"}, id="removed field"
        ),
        pytest.param(
            "12345", SIGNATURE, URL, MultiDict([*FORM.items(), ("To", "+1900")]), id="second value"
        ),
        pytest.param("12345", SIGNATURE, URL, None, id="as a GET"),
        pytest.param("12345", SIGNATURE, URL + "&x=1", FORM, id="changed query"),
        pytest.param("12345", SIGNATURE, URL.replace("https", "http"), FORM, id="scheme"),
        pytest.param("12345", SIGNATURE, URL.replace("example", "examp1e"), FORM, id="host"),
        pytest.param("12345", SIGNATURE, URL.replace(".php", ".php/"), FORM, id="slash"),
    ],
)
def test_anything_else_is_refused(
    token: str, signature: str | None, url: str, form: dict[str, str] | None
) -> None:
    assert not signature_ok(token, signature, url, form)


@pytest.mark.parametrize(
    "signed, ours, accepted",
    [
        ("https://h.example/v", "https://h.example/v", True),
        ("https://h.example:443/v", "https://h.example/v", True),
        ("https://h.example/v", "https://h.example:8443/v", True),  # voice drops the port
        ("https://h.example:8443/v", "https://h.example:8443/v", True),
        ("https://h.example:8443/v", "https://h.example/v", False),
        ("https://h.example/v/", "https://h.example/v", False),
        ("wss://h.example/s", "wss://h.example/s", True),
        ("wss://h.example/s/", "wss://h.example/s", True),
        ("wss://h.example:443/s", "wss://h.example/s", True),
        ("wss://h.example:8443/s", "wss://h.example:8443/s", True),
        ("wss://h.example/s//", "wss://h.example/s", False),
        ("https://h.example/s", "wss://h.example/s", False),
        ("http://127.0.0.1:80/v", "http://127.0.0.1/v", True),
        ("https://[::1]:8443/v", "https://[::1]:8443/v", True),
        ("https://[::1]/v", "https://[::1]:8443/v", True),
    ],
)
def test_port_and_slash(signed: str, ours: str, accepted: bool) -> None:
    assert signature_ok("12345", sign(signed), ours) is accepted
    form = {"To": "+1"}
    assert signature_ok("12345", sign(signed, form), ours, form) is accepted


def test_empty_field_counts() -> None:
    signature = sign(URL, {"CallerName": "", "To": "+1"})

    assert signature_ok("12345", signature, URL, {"CallerName": "", "To": "+1"})
    assert not signature_ok("12345", signature, URL, {"To": "+1"})


# --- By the auth token, or by a shared key

NEW, SHARED = "67890", "planted-shared-secret"
CLAIM = "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"
SECRETS = Secrets(("12345",), {"webhooks_sharedkey_1": SHARED})


def by(secret: str, algorithm: str = "HMAC_SHA256") -> list[str]:
    return [str(RequestValidator(secret).compute_signature(URL, FORM, algorithm))]


def test_a_shared_key_signs_with_sha256() -> None:
    assert SECRETS.signed(by(SHARED), [CLAIM], URL, FORM)
    assert SECRETS.signed(
        by(SHARED), ["algorithm=HMAC_SHA256, key=webhooks_sharedkey_1"], URL, FORM
    )
    assert not SECRETS.signed(by(SHARED), [CLAIM], URL, FORM | {"Digits": "1"})


def test_the_token_signs_beside_it() -> None:
    assert SECRETS.signed([SIGNATURE], [], URL, FORM)


@pytest.mark.parametrize(
    "claims",
    [
        [""],
        ["key=,algorithm=HMAC_SHA256"],
        ["key=another,algorithm=HMAC_SHA256"],
        ["key=webhooks_sharedkey_1"],
        ["algorithm=HMAC_SHA256"],
        ["key=webhooks_sharedkey_1,algorithm=HMAC_SHA1"],
        ["key=webhooks_sharedkey_1,algorithm=hmac_sha256"],
        ["key=webhooks_sharedkey_1,algorithm=none"],
        ["key=webhooks_sharedkey_1,algorithm=HMAC_SHA256,key=another"],
        [CLAIM, CLAIM],
    ],
)
@pytest.mark.parametrize("secret", ["12345", SHARED, ""])
@pytest.mark.parametrize("algorithm", ["HMAC_SHA1", "HMAC_SHA256"])
def test_no_other_claim_is_believed(claims: list[str], secret: str, algorithm: str) -> None:
    assert not SECRETS.signed(by(secret, algorithm), claims, URL, FORM)


def test_no_secret_stands_in_for_another() -> None:
    assert not SECRETS.signed(by("12345"), [CLAIM], URL, FORM)
    assert not SECRETS.signed(by("12345", "HMAC_SHA1"), [CLAIM], URL, FORM)
    assert not SECRETS.signed(by(SHARED, "HMAC_SHA1"), [CLAIM], URL, FORM)
    assert not SECRETS.signed(by(SHARED), [], URL, FORM)
    assert not SECRETS.signed(by(SHARED, "HMAC_SHA1"), [], URL, FORM)


def test_who_has_no_shared_key_believes_no_claim() -> None:
    secrets = Secrets(("12345",))
    for secret in ("12345", ""):
        assert not secrets.signed(by(secret), [CLAIM], URL, FORM)
        assert not secrets.signed(by(secret), ["key=,algorithm=HMAC_SHA256"], URL, FORM)


def test_without_a_secret_nothing_is_signed() -> None:
    assert not Secrets().signed(by("", "HMAC_SHA1"), [], URL, FORM)
    assert not Secrets().signed(by(""), [CLAIM], URL, FORM)


def test_while_the_token_is_changed_both_sign() -> None:
    changing = Secrets(("12345", NEW))
    assert changing.signed([SIGNATURE], [], URL, FORM)
    assert changing.signed(by(NEW, "HMAC_SHA1"), [], URL, FORM)
    assert not changing.signed(by("0", "HMAC_SHA1"), [], URL, FORM)


def test_while_the_shared_key_is_changed_each_signs_under_its_id() -> None:
    changing = Secrets((), {"a": SHARED, "b": NEW})
    assert changing.signed(by(SHARED), ["key=a,algorithm=HMAC_SHA256"], URL, FORM)
    assert changing.signed(by(NEW), ["key=b,algorithm=HMAC_SHA256"], URL, FORM)
    assert not changing.signed(by(NEW), ["key=a,algorithm=HMAC_SHA256"], URL, FORM)


def test_one_signature_is_one() -> None:
    assert not SECRETS.signed([], [], URL, FORM)
    assert not SECRETS.signed([SIGNATURE, SIGNATURE], [], URL, FORM)


def test_secrets_do_not_show() -> None:
    assert "12345" not in repr(SECRETS)
    assert SHARED not in repr(SECRETS)


def test_what_is_signed_as_json_is_signed_as_its_url() -> None:
    """Vector 2: the signature of a JSON POST covers the URL, so none of its body is a form's."""
    digest = "5ccde7145dfb8f56479710896586cb9d5911809d83afbe34627818790db0aec9"
    url = f"https://example.com/myapp.php?bodySHA256={digest}"
    body = '{"CallSid":"CA1234567890ABCDE","Caller":"+12349013030"}'
    signature = sign(url)
    assert RequestValidator("12345").validate(url, body, signature)
    assert signature_ok("12345", signature, url)
    assert not signature_ok("12345", signature, url, FORM)
