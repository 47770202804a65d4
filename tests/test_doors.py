"""Who may use the calls API and its pages, and which servers may not start."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
import trio
from quart import Blueprint
from quart_trio import QuartTrio
from twilio.request_validator import (  # type: ignore[import-untyped]  # ships no types
    RequestValidator,
)

from tests.keys import API_KEY, entry
from tests.test_http import (
    DEV,
    LOCAL,
    PUBLIC,
    STRANGER,
    TO,
    TWILIO,
    WEBHOOK,
    parameter,
    running,
    sign,
)
from tests.twilio_rest import ACCOUNT_SID, CALL_SID
from voicebot.__main__ import main
from voicebot.api_keys import SCOPES, new_key
from voicebot.config import load
from voicebot.doors import ApiDoor, check_doors
from voicebot.errors import CallRefused, ConfigError
from voicebot.http import create_app

KEY = {"Authorization": f"Bearer {API_KEY}"}
ROUTES = {
    ("POST", "/calls"): "place",
    ("GET", "/calls"): "read",
    ("GET", "/calls/refused"): "read",
    ("GET", f"/calls/{CALL_SID}"): "read",
    ("DELETE", f"/calls/{CALL_SID}"): "delete",
    ("GET", f"/calls/{CALL_SID}/recording"): "recordings",
    ("POST", f"/calls/{CALL_SID}/hangup"): "hang_up",
    ("POST", f"/calls/{CALL_SID}/redirect"): "place",
    ("GET", "/metrics"): "metrics",
}
OPEN = {"/", "/healthz", "/readyz", "/openapi.json"}


def rules() -> Iterator[tuple[str, str]]:
    """Return all routes that there are, but for webhooks."""
    quart = create_app(load(DEV))._quart
    for rule in quart.url_map.iter_rules():
        if not rule.rule.startswith("/twilio/"):
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                yield method, rule.rule.replace("<sid>", CALL_SID)


def test_every_route_there_is_has_its_scope_here() -> None:
    assert {route for route in rules() if route[1] not in OPEN} == set(ROUTES)
    assert set(ROUTES.values()) == set(SCOPES)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_opens_what_its_scope_says_and_nothing_else(scope: str) -> None:
    async with running(**TWILIO, VOICEBOT_API_KEYS=entry(scope)) as service:
        async with service.client(STRANGER, KEY) as client:
            for (method, path), needed in ROUTES.items():
                answer = await client.request(method, path, json={"to": TO})
                if needed == scope:
                    assert answer.status_code not in (401, 403), (method, path)
                    continue
                assert answer.status_code == 403
                assert needed in answer.json()["error"]["message"]
                assert answer.json()["error"]["scope"] == needed
                challenge = f'Bearer error="insufficient_scope", scope="{needed}"'
                assert answer.headers["WWW-Authenticate"] == challenge
        assert bool(service.twilio.asked) is (scope == "place")


@pytest.mark.parametrize("peer", [STRANGER, LOCAL])
@pytest.mark.parametrize("dev", ["true", "false"])
async def test_without_a_key_nothing_is_open_where_there_is_one(
    peer: tuple[str, int], dev: str
) -> None:
    environ = {**TWILIO, "VOICEBOT_API_KEYS": entry(), "VOICEBOT_DEV": dev}
    async with running(**environ) as service:
        async with service.client(peer) as client:
            for method, path in ROUTES:
                answer = await client.request(method, path, json={"to": TO})
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert service.twilio.asked == []


@pytest.mark.parametrize("peer", [STRANGER, LOCAL])
async def test_without_any_key_the_api_is_closed_and_webhooks_are_not(
    peer: tuple[str, int],
) -> None:
    async with running(**TWILIO, VOICEBOT_DEV="false") as service:
        async with service.client(peer) as client:
            for method, path in ROUTES:
                answer = await client.request(method, path, headers=KEY, json={"to": TO})
                assert answer.status_code == 403
                assert "VOICEBOT_API_KEYS" in answer.json()["error"]["message"]
                assert "voicebot keys new" in answer.json()["error"]["hint"]
        assert (await service.webhook("/twilio/voice")).status_code == 200
        assert service.twilio.asked == []


async def test_what_is_not_set_up_lets_nobody_in_without_the_switch() -> None:
    async with running(VOICEBOT_DEV="false") as service:
        async with service.client(LOCAL) as client:
            webhook = await client.post("/twilio/voice", data=WEBHOOK)
            for method, path in ROUTES:
                assert (await client.request(method, path)).status_code == 403
    assert webhook.status_code == 403
    assert "voicebot serve --dev" in webhook.text


async def test_dev_is_not_for_whoever_a_proxy_brings() -> None:
    async with running() as service:
        for headers in ({}, {"X-Forwarded-For": "203.0.113.9"}, {"Host": "bot.example.com"}):
            async with service.client(LOCAL, headers) as client:
                webhook = await client.post("/twilio/voice", data=WEBHOOK)
                listed = await client.get("/calls")
            expected = 403 if headers else 200
            assert (webhook.status_code, listed.status_code) == (expected, expected)


async def test_the_key_that_clients_send_opens_nothing_by_itself() -> None:
    async with running(**TWILIO, VOICEBOT_DEV="false", VOICEBOT_API_KEY=API_KEY) as service:
        async with service.client(LOCAL, KEY) as client:
            assert (await client.get("/calls")).status_code == 403


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_in_any_case(scheme: str) -> None:
    async with running(VOICEBOT_API_KEYS=entry()) as service:
        async with service.client(headers={"Authorization": f"{scheme} {API_KEY}"}) as client:
            assert (await client.get("/calls")).status_code == 200


@pytest.mark.parametrize("given", [f"Basic {API_KEY}", API_KEY, f"Token {API_KEY}", "Bearer"])
async def test_other_schemes_are_none(given: str) -> None:
    async with running(VOICEBOT_API_KEYS=entry()) as service:
        async with service.client(headers={"Authorization": given}) as client:
            assert (await client.get("/calls")).status_code == 401


async def test_a_refusal_is_logged_with_the_address_and_without_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other, _ = new_key("other", ["read"])
    async with running(**TWILIO, VOICEBOT_API_KEYS=entry("read")) as service:
        async with service.client(STRANGER) as client:
            for key in (other, API_KEY):
                headers = {"Authorization": f"Bearer {key}"}
                await client.post("/calls", json={"to": TO}, headers=headers)
            await client.get("/calls")
    refused = [vars(line) for line in caplog.records if line.msg == "api_key_refused"]
    assert [line["reason"] for line in refused] == ["wrong", "scope", "missing"]
    assert [line["who"] for line in refused] == ["", "tests", ""]
    assert {line["peer"] for line in refused} == {STRANGER[0]}
    assert {line["levelno"] for line in refused} == {logging.WARNING}
    logged = str([vars(line) for line in caplog.records])
    assert other not in logged
    assert API_KEY not in logged


async def test_what_was_done_is_logged_with_the_name_of_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running(**TWILIO, VOICEBOT_API_KEYS=entry()) as service:
        async with service.client(headers=KEY) as client:
            await client.post("/calls", json={"to": TO})
            await client.post(f"/calls/{CALL_SID}/redirect", json={"to": TO})
            await client.post(f"/calls/{CALL_SID}/hangup")
            await service.webhook("/twilio/status", CallStatus="completed")
        async with service.client(headers=KEY) as client:
            assert (await client.delete(f"/calls/{CALL_SID}")).status_code == 204
    did = {line.msg: vars(line)["who"] for line in caplog.records if "who" in vars(line)}
    events = ("call_placed", "call_redirected", "call_hung_up", "call_deleted")
    assert did == dict.fromkeys(events, "tests")


async def test_one_clients_idempotency_key_is_not_anothers() -> None:
    other, known = new_key("other", ["place"])
    async with running(**TWILIO, VOICEBOT_API_KEYS=f"{entry()},{known.entry}") as service:
        service.twilio.sids = True
        placed = []
        for key in (API_KEY, other, API_KEY):
            headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "1"}
            async with service.client(headers=headers) as client:
                placed.append(await client.post("/calls", json={"to": TO}))
        first, another, again = [answer.json()["call_sid"] for answer in placed]
        assert first == again != another
        assert len(service.twilio.asked) == 2


async def test_a_route_that_declares_no_scope_is_closed() -> None:
    quart, routes = QuartTrio("closed"), Blueprint("routes", "closed")
    ApiDoor(load({"VOICEBOT_API_KEYS": entry()})).guard(routes)

    @routes.get("/")
    async def forgotten() -> str:
        return "secret"

    quart.register_blueprint(routes)
    with trio.fail_after(5):
        answer = await quart.test_client().get("/", headers=KEY)
    assert answer.status_code == 403


def test_there_is_no_scope_of_another_name() -> None:
    with pytest.raises(ValueError, match="no scope admin"):
        ApiDoor(load({})).guard(Blueprint("routes", "closed"))("admin")


# --- Webhooks


async def test_the_signature_of_an_upgrade_or_a_get_opens_no_webhook() -> None:
    paths = [
        "/twilio/voice",
        "/twilio/after-stream",
        "/twilio/status",
        f"/twilio/whisper?call={CALL_SID}",
    ]
    async with running(**TWILIO) as service:
        for path in paths:
            for url in (
                PUBLIC + path,
                "wss" + PUBLIC.removeprefix("https") + path,
                "wss" + PUBLIC.removeprefix("https") + "/twilio/stream",
            ):
                headers = {"X-Twilio-Signature": sign(url, {})}
                async with service.client(headers=headers) as client:
                    assert (await client.post(path, data=WEBHOOK)).status_code == 403
                    form = {"Content-Type": "application/x-www-form-urlencoded"}
                    assert (await client.post(path, content=b"", headers=form)).status_code == 403
                    assert (await client.get(path)).status_code == 405
        assert service.board.store.latest(1) == []


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data; boundary=x", "text/plain", ""]
)
async def test_a_webhook_is_a_form_of_the_kind_that_is_signed(kind: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="CallSid"\r\n\r\nCA1\r\n--x--\r\n'
    url = f"/twilio/voice?bodySHA256={'0' * 64}"
    headers = {"X-Twilio-Signature": sign(PUBLIC + url, {})} | (
        {"Content-Type": kind} if kind else {}
    )
    async with running(**TWILIO) as service:
        async with service.client(headers=headers) as client:
            assert (await client.post(url, content=body)).status_code == 415
        assert service.board.store.latest(1) == []


async def test_a_shared_key_that_is_claimed_is_the_one_that_signs() -> None:
    url = PUBLIC + "/twilio/voice"
    claim = {"X-Twilio-Webhooks-Signature-Settings": "key=k1,algorithm=HMAC_SHA256"}
    by_shared = RequestValidator("shared").compute_signature(url, WEBHOOK, "HMAC_SHA256")
    by_token = sign(url, WEBHOOK)
    shared = {"TWILIO_WEBHOOK_KEYS": "k1:shared"}
    strict = {**shared, "VOICEBOT_ACCEPT_SHA1": "false"}
    for environ, signature, headers, status in (
        (shared, by_shared, claim, 200),
        (shared, by_token, {}, 200),
        (shared, by_token, claim, 403),
        (shared, by_shared, {}, 403),
        (strict, by_shared, claim, 200),
        (strict, by_token, {}, 403),
        ({}, by_shared, claim, 403),
        ({}, by_token, claim, 403),
        (
            {"TWILIO_AUTH_TOKEN": "new", "TWILIO_AUTH_TOKEN_SECONDARY": "planted-auth-token"},
            by_token,
            {},
            200,
        ),
    ):
        async with running(**{**TWILIO, **environ}) as service:
            async with service.client(
                headers={"X-Twilio-Signature": signature, **headers}
            ) as client:
                answer = await client.post("/twilio/voice", data=WEBHOOK)
                assert answer.status_code == status, (environ, signature, headers)
                if status == 403:
                    assert ("TWILIO_WEBHOOK_KEYS" in answer.text) is bool(headers)


# --- Servers that do not start

ENTRY = {"VOICEBOT_API_KEYS": entry()}


@pytest.mark.parametrize(
    "environ, host, told",
    [
        ({}, "127.0.0.1", "nobody could reach this server"),
        ({}, None, "nobody could reach this server"),
        ({}, "0.0.0.0", "VOICEBOT_API_KEYS: is empty, and --host 0.0.0.0"),
        (TWILIO, "0.0.0.0", "VOICEBOT_API_KEYS: is empty, and --host 0.0.0.0"),
        (TWILIO, "::", "VOICEBOT_API_KEYS: is empty"),
        (TWILIO, "", "VOICEBOT_API_KEYS: is empty"),
        (TWILIO, "192.0.2.1", "VOICEBOT_API_KEYS: is empty"),
        (TWILIO, "localhost.example", "VOICEBOT_API_KEYS: is empty"),
        (TWILIO | {"VOICEBOT_API_KEY": "x"}, "127.0.0.1", "VOICEBOT_API_KEY: is what"),
        (TWILIO | {"VOICEBOT_API_KEY": "x"}, None, "VOICEBOT_API_KEY: is what"),
        (DEV, "0.0.0.0", "--host 0.0.0.0: --dev"),
        (DEV | ENTRY, "0.0.0.0", "--host 0.0.0.0: --dev"),
        (DEV | TWILIO, "127.0.0.1", "PUBLIC_URL: --dev"),
        (DEV | TWILIO, None, "PUBLIC_URL: --dev"),
        (DEV | {"PUBLIC_URL": "http://127.0.0.1.example"}, None, "PUBLIC_URL: --dev"),
    ],
)
def test_a_server_that_would_be_open_or_shut_by_mistake_does_not_start(
    environ: dict[str, str], host: str | None, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_doors(load(environ), host)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "environ, host",
    [
        (TWILIO, "127.0.0.1"),
        (TWILIO, "::1"),
        (TWILIO, "localhost"),
        (TWILIO, None),
        (TWILIO | ENTRY, "0.0.0.0"),
        (TWILIO | ENTRY | {"VOICEBOT_API_KEY": "x"}, "127.0.0.1"),
        (ENTRY, "0.0.0.0"),
        (DEV, "127.0.0.1"),
        (DEV, None),
        (DEV | {"VOICEBOT_API_KEY": "x"}, "127.0.0.1"),
        (DEV | {"PUBLIC_URL": "http://localhost:8000"}, "127.0.0.1"),
        (DEV | {"PUBLIC_URL": "http://[::1]:8000"}, "::1"),
    ],
)
def test_others_do(environ: dict[str, str], host: str | None) -> None:
    check_doors(load(environ), host)


# --- The command


def test_the_command_makes_a_key_that_the_settings_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["keys", "new", "crm", "--scopes", "read,place"]) == 0
    said = capsys.readouterr().out
    [key] = re.findall(r"vb_[0-9a-f]{64}", said)
    [entry_] = re.findall(r"^  (crm:\S+)$", said, re.MULTILINE)
    found = load({"VOICEBOT_API_KEYS": entry_}).keyring.find(key)
    assert found is not None
    assert found.scopes == {"read", "place"}

    monkeypatch.setenv("VOICEBOT_API_KEYS", entry_)
    assert main(["keys", "check"]) == 0
    said = capsys.readouterr().out
    assert said.split() == ["crm", "place,", "read"]
    monkeypatch.delenv("VOICEBOT_API_KEYS")
    assert main(["keys", "check"]) == 1
    assert main(["keys", "new", "crm", "--scopes", "everything"]) == 2
    assert "needs scopes of read, place" in capsys.readouterr().err


# --- The token of a stream


async def test_the_token_is_in_the_twiml_alone_and_opens_one_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(**TWILIO) as service:
        answer = await service.webhook("/twilio/voice")
        token, board = parameter(answer.text), service.board
        for call_sid, account_sid in ((CALL_SID, "AC" + "9" * 32), ("CA" + "9" * 32, ACCOUNT_SID)):
            with pytest.raises(CallRefused):
                board.redeem(token, call_sid, account_sid)
        board.redeem(token, CALL_SID, ACCOUNT_SID)
        with pytest.raises(CallRefused) as caught:
            board.redeem(token, CALL_SID, ACCOUNT_SID)
        with board.live(CALL_SID, {"token": token}):
            pass
        again = await service.webhook("/twilio/voice")
        [record] = board.store.latest(1)
    assert again.text == answer.text  # of no use: its token is
    assert token not in str([vars(line) for line in caplog.records])
    assert token not in str(record.as_json()) + str(caught.value)
