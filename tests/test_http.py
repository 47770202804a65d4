"""The service from outside: webhooks, calls API, health, and the way to the media path."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import hypercorn.trio
import pytest
import trio
import trio.testing
from hypercorn.config import Config
from sqlalchemy.exc import OperationalError
from trio_websocket import open_websocket_url
from twilio.request_validator import (  # type: ignore[import-untyped]  # ships no types
    RequestValidator,
)
from werkzeug.datastructures import MultiDict

from tests import databases
from tests.keys import API_KEY, entry
from tests.twilio_rest import ACCOUNT_SID, CALL_SID, FakeTwilio, open_fake_twilio
from voicebot import __version__
from voicebot.archive import open_archive
from voicebot.config import load
from voicebot.database import Database, News, open_database
from voicebot.errors import CallRefused, ConfigError, StoreError
from voicebot.http import App, create_app
from voicebot.recording import Recorder, open_recorder
from voicebot.service import Service
from voicebot.switchboard import Switchboard
from voicebot.telephony import open_telephony
from voicebot.ws import Receive, Scope, Send

AUTH_TOKEN = "planted-auth-token"
DEV = {"VOICEBOT_DEV": "true"}  # what is not configured is not asked of LOCAL
TO, FROM = "+15550100123", "+15550100456"
PUBLIC = "https://bot.example.com"
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
STRANGER = ("203.0.113.9", 40_000)
LOCAL = ("127.0.0.1", 40_000)

TWILIO = {
    "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
    "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
    "TWILIO_FROM_NUMBER": FROM,
    "PUBLIC_URL": PUBLIC + "/",
}
WEBHOOK = {
    "CallSid": CALL_SID,
    "AccountSid": ACCOUNT_SID,
    "From": "+15550100999",
    "To": FROM,
    "CallStatus": "ringing",
    "Direction": "inbound",
    "ApiVersion": "2010-04-01",
    "CallerName": "",
}


@dataclass
class Running:
    """An app on hypercorn and ways to reach it, as if from elsewhere too."""

    app: App
    twilio: FakeTwilio
    media: list[Scope] = field(default_factory=list)
    warmed: int = 0
    url: str = ""
    peer: tuple[str, int] = LOCAL

    @property
    def board(self) -> Switchboard:
        return self.app.board

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on to the app, with the peer's address changed."""
        if scope["type"] != "lifespan":
            scope = {**scope, "client": self.peer}
        await self.app(scope, receive, send)

    def client(
        self, peer: tuple[str, int] = STRANGER, headers: Mapping[str, str] | None = None
    ) -> httpx.AsyncClient:
        self.peer = peer
        host = {} if peer == LOCAL else {"Host": "10.0.0.5:8000"}
        return httpx.AsyncClient(base_url=self.url, headers={**host, **(headers or {})})

    async def webhook(self, path: str, **fields: str) -> httpx.Response:
        """Send a webhook as Twilio does, through a proxy that tells our host otherwise."""
        form = WEBHOOK | fields
        signature = sign(PUBLIC + path, form)
        async with self.client(headers={"X-Twilio-Signature": signature}) as client:
            return await client.post(path, data=form)


def sign(url: str, form: Mapping[str, str] | MultiDict[str, str]) -> str:
    return str(RequestValidator(AUTH_TOKEN).compute_signature(url, form))


def parameter(twiml: str) -> str:
    found = ET.fromstring(twiml).find("Connect/Stream/Parameter")
    assert found is not None
    return found.attrib["value"]


@asynccontextmanager
async def on_hypercorn(app: Asgi) -> AsyncGenerator[str]:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = None
    config.errorlog = None
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        urls: list[str] = await nursery.start(
            partial(hypercorn.trio.serve, app, config, shutdown_trigger=stop.wait)
        )
        yield urls[0]
        stop.set()


@asynccontextmanager
async def running(**environ: str) -> AsyncGenerator[Running]:
    """Serve the app, with a Twilio on loopback if an account is configured."""
    with trio.fail_after(20):
        async with open_fake_twilio() as twilio:
            settings = load({"TWILIO_API_URL": twilio.url, **DEV, **environ})

            async def serve_media(scope: Scope, receive: Receive, send: Send) -> None:
                service.media.append(scope)
                await send({"type": "websocket.close", "code": 1000})

            def warm() -> None:
                service.warmed += 1

            @asynccontextmanager
            async def open_service(board: Switchboard) -> AsyncGenerator[Service]:
                if not settings.telephony:
                    yield Service(serve_media)
                    return
                async with open_telephony(settings) as telephony:
                    yield Service(serve_media, telephony, warm)

            service = Running(create_app(settings, open_service), twilio)
            async with on_hypercorn(service) as service.url:
                yield service


# --- Webhooks


async def test_connections_are_made_ready_when_twilio_asks_and_for_nobody_else() -> None:
    async with running(**TWILIO) as service:
        async with service.client() as client:
            assert (await client.post("/twilio/voice", data=WEBHOOK)).status_code == 403
        assert service.warmed == 0
        await service.webhook("/twilio/voice")
        assert service.warmed == 1


async def test_voice_connects_the_stream_with_a_one_time_token() -> None:
    async with running(**TWILIO) as service:
        answer = await service.webhook("/twilio/voice")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/xml")
        stream = ET.fromstring(answer.text).find("Connect/Stream")
        assert stream is not None
        assert stream.attrib == {
            "url": "wss://bot.example.com/twilio/stream",
            "statusCallback": "https://bot.example.com/twilio/stream-status",
        }
        token = parameter(answer.text)
        assert len("token" + token) < 500

        service.board.redeem(token, CALL_SID, ACCOUNT_SID)
        with pytest.raises(CallRefused):
            service.board.redeem(token, CALL_SID, ACCOUNT_SID)


async def test_repeated_webhook_gets_the_same_answer_even_after_the_call() -> None:
    async with running(**TWILIO) as service:
        first = await service.webhook("/twilio/voice")
        again = await service.webhook("/twilio/voice")
        service.board.redeem(parameter(first.text), CALL_SID, ACCOUNT_SID)
        with service.board.live(CALL_SID):
            during = await service.webhook("/twilio/voice")
        after = await service.webhook("/twilio/voice")

        assert first.text == again.text == during.text == after.text
        with pytest.raises(CallRefused):
            service.board.redeem(parameter(after.text), CALL_SID, ACCOUNT_SID)
        assert len(service.board.store.latest(10)) == 1


async def test_parameters_of_the_stream_are_on_record_without_the_token() -> None:
    async with running(**TWILIO) as service:
        token = parameter((await service.webhook("/twilio/voice")).text)
        with service.board.live(CALL_SID, {"token": token, "lang": "en"}):
            record = service.board.store.get(CALL_SID)

    assert record is not None
    assert record.parameters == {"lang": "en"}


@pytest.mark.parametrize("path", ["/twilio/voice", "/twilio/status", "/twilio/stream-status"])
@pytest.mark.parametrize("forgery", ["missing", "wrong", "changed", "added", "repeated", "query"])
async def test_forged_webhook_is_refused_and_leaves_no_trace(path: str, forgery: str) -> None:
    form: dict[str, Any] = dict(WEBHOOK)
    headers = {"X-Twilio-Signature": sign(PUBLIC + path, form)}
    url = path
    if forgery == "missing":
        headers = {}
    elif forgery == "wrong":
        headers = {"X-Twilio-Signature": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    elif forgery == "changed":
        form["CallSid"] = "CA" + "2" * 32
    elif forgery == "added":
        form["Extra"] = ""
    elif forgery == "repeated":
        form["CallSid"] = [CALL_SID, "CA" + "2" * 32]
    else:
        url += "?x=1"
    async with running(**TWILIO) as service:
        for peer in (STRANGER, LOCAL):
            async with service.client(peer, headers) as client:
                answer = await client.post(url, data=form)
            assert answer.status_code == 403
            assert AUTH_TOKEN not in answer.text
        assert service.board.store.latest(10) == []
        assert service.board.lines.taken(trio.current_time()) == 0


async def test_host_of_the_request_does_not_make_a_signature_valid() -> None:
    url = "http://evil.example/twilio/voice"
    headers = {"X-Twilio-Signature": sign(url, WEBHOOK), "Host": "evil.example"}
    async with running(**TWILIO) as service:
        async with service.client(
            headers={**headers, "X-Forwarded-Host": "evil.example"}
        ) as client:
            assert (await client.post("/twilio/voice", data=WEBHOOK)).status_code == 403


async def test_query_of_the_webhook_is_part_of_the_signature() -> None:
    async with running(**TWILIO) as service:
        assert (await service.webhook("/twilio/voice?a=b%20c&d")).status_code == 200


async def test_get_is_not_a_webhook() -> None:
    async with running(**TWILIO) as service:
        async with service.client() as client:
            answer = await client.get("/twilio/voice")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("missing", ["CallSid", "AccountSid"])
async def test_webhook_that_names_no_call_is_a_bad_request(missing: str) -> None:
    async with running(**TWILIO) as service:
        answer = await service.webhook("/twilio/voice", **{missing: ""})
    assert answer.status_code == 400
    assert missing in answer.text


async def test_webhook_that_names_two_calls_is_a_bad_request() -> None:
    form: MultiDict[str, str] = MultiDict([*WEBHOOK.items(), ("CallSid", "CA2")])
    headers = {"X-Twilio-Signature": sign(PUBLIC + "/twilio/voice", form)}
    async with running(**TWILIO) as service:
        async with service.client(headers=headers) as client:
            body: dict[str, Any] = {**WEBHOOK, "CallSid": form.getlist("CallSid")}
            assert (await client.post("/twilio/voice", data=body)).status_code == 400


async def test_caller_beyond_the_limit_hears_that_the_lines_are_busy() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="2") as service:
        for sid in ("CA1", "CA2"):
            assert parameter((await service.webhook("/twilio/voice", CallSid=sid)).text)
        busy = await service.webhook("/twilio/voice", CallSid="CA3")
        assert busy.status_code == 200
        assert [one.tag for one in ET.fromstring(busy.text)] == ["Say", "Hangup"]
        assert "busy" in busy.text

        hung_up = {"CallSid": "CA2", "CallStatus": "completed", "SequenceNumber": "1"}
        await service.webhook("/twilio/status", **hung_up)
        assert parameter((await service.webhook("/twilio/voice", CallSid="CA4")).text)


async def test_parallel_webhooks_do_not_share_the_last_line() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="3") as service:
        answers: list[str] = []

        async def ring(sid: str) -> None:
            answers.append((await service.webhook("/twilio/voice", CallSid=sid)).text)

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(ring, f"CA{n}")
    assert sum("<Stream" in text for text in answers) == 3


async def test_draining_server_takes_no_new_call_but_keeps_its_word() -> None:
    async with running(**TWILIO) as service:
        first = await service.webhook("/twilio/voice")
        service.board.drain()
        again = await service.webhook("/twilio/voice")
        other = await service.webhook("/twilio/voice", CallSid="CAother")
        async with service.client(LOCAL) as client:
            ready = await client.get("/readyz")
            placed = await client.post("/calls", json={"to": TO})

        assert first.text == again.text
        assert "<Stream" not in other.text
        assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
        assert placed.status_code == 503
        service.board.redeem(parameter(again.text), CALL_SID, ACCOUNT_SID)


async def test_statuses_out_of_order_end_in_the_last() -> None:
    async with running(**TWILIO) as service:
        for sequence, status in [("0", "initiated"), ("3", "completed"), ("2", "in-progress")]:
            answer = await service.webhook(
                "/twilio/status", CallStatus=status, SequenceNumber=sequence, CallDuration="17"
            )
            assert (answer.status_code, answer.content) == (204, b"")
        async with service.client(LOCAL) as client:
            record = (await client.get(f"/calls/{CALL_SID}")).json()
    assert (record["status"], record["duration_s"]) == ("completed", 17)
    assert record["ended_at"] is not None


async def test_status_that_says_nothing_known_is_ignored() -> None:
    async with running(**TWILIO) as service:
        await service.webhook("/twilio/status", CallStatus="exploded", SequenceNumber="²")
        record = service.board.store.get(CALL_SID)
        assert record is not None
        assert (record.status, record.sequence) == ("queued", -1)


async def test_stream_status_is_recorded_and_frees_the_line_of_a_failed_stream() -> None:
    async with running(**TWILIO) as service:
        await service.webhook("/twilio/voice")
        answer = await service.webhook(
            "/twilio/stream-status", StreamEvent="stream-error", StreamError="31920"
        )
        assert answer.status_code == 204
        record = service.board.store.get(CALL_SID)
        assert record is not None
        assert (record.stream, record.stream_error) == ("stream-error", "31920")
        assert service.board.lines.taken(trio.current_time()) == 0


async def test_oversized_body_is_refused() -> None:
    async with running(**TWILIO) as service:
        async with service.client(LOCAL) as client:
            for path, kind in (("/twilio/voice", "x-www-form-urlencoded"), ("/calls", "json")):
                headers = {"Content-Type": f"application/{kind}"}
                answer = await client.post(path, content=b"a" * 70_000, headers=headers)
                assert answer.status_code == 413


# --- Without a Twilio account


async def test_simulator_on_this_machine_needs_no_signature() -> None:
    async with running() as service:
        async with service.client(LOCAL) as client:
            answer = await client.post("/twilio/voice", data=WEBHOOK)
    assert answer.status_code == 200
    stream = ET.fromstring(answer.text).find("Connect/Stream")
    assert stream is not None
    assert stream.attrib == {"url": service.url.replace("http", "ws") + "/twilio/stream"}


@pytest.mark.parametrize(
    "peer, headers",
    [
        pytest.param(STRANGER, {}, id="another machine"),
        pytest.param(
            STRANGER, {"Host": "localhost:8000"}, id="another machine that says localhost"
        ),
        pytest.param(LOCAL, {"Host": "bot.example.com"}, id="rebound name"),
        pytest.param(LOCAL, {"Host": "localhost.evil.example"}, id="lookalike"),
        pytest.param(LOCAL, {"X-Forwarded-For": "127.0.0.1"}, id="tunnel"),
        pytest.param(LOCAL, {"X-Forwarded-Proto": "https"}, id="tunnel without address"),
        pytest.param(LOCAL, {"Forwarded": "for=127.0.0.1"}, id="proxy"),
        pytest.param(LOCAL, {"Via": "1.1 proxy"}, id="old proxy"),
    ],
)
async def test_anybody_else_is_refused_without_an_account(
    peer: tuple[str, int], headers: dict[str, str]
) -> None:
    async with running() as service:
        async with service.client(peer, headers) as client:
            webhook = await client.post("/twilio/voice", data=WEBHOOK)
            calls = [
                await client.post("/calls", json={"to": TO}),
                await client.get("/calls"),
                await client.get(f"/calls/{CALL_SID}"),
                await client.post(f"/calls/{CALL_SID}/hangup"),
            ]
            health = await client.get("/healthz")
    assert webhook.status_code == 403
    assert "TWILIO_ACCOUNT_SID" in webhook.text
    for answer in calls:
        assert answer.status_code == 403
        assert "VOICEBOT_API_KEYS" in answer.text
    assert health.status_code == 200


# --- Calls API


async def test_call_is_placed_and_listed() -> None:
    async with running(**TWILIO) as service:
        async with service.client(LOCAL) as client:
            answer = await client.post("/calls", json={"to": TO})
            listed = (await client.get("/calls")).json()["calls"]
            one = (await client.get(answer.headers["Location"])).json()

        assert answer.status_code == 201
        assert answer.json() == {"call_sid": CALL_SID, "status": "queued", "to": TO, "from": FROM}
        assert service.twilio.asked[0].form["To"] == [TO]
        assert listed == [one]
        assert (one["direction"], one["status"], one["summary"]) == ("outbound", "queued", None)


async def test_from_of_the_request_wins() -> None:
    async with running(**TWILIO) as service:
        async with service.client(LOCAL) as client:
            answer = await client.post("/calls", json={"to": TO, "from": "+15550100777"})
        assert answer.json()["from"] == "+15550100777"
        assert service.twilio.asked[0].form["From"] == ["+15550100777"]


@pytest.mark.parametrize(
    "body, fields",
    [
        ({}, {"to"}),
        ({"to": "15550100", "from": "anonymous", "twiml": "<Hangup/>"}, {"to", "from", "twiml"}),
        ({"to": None, "from": 5}, {"to", "from"}),
        ([], {"to"}),
        ("+15550100123", {"to"}),
        (None, {"to"}),
    ],
)
async def test_every_bad_field_is_named_at_once(body: object, fields: set[str]) -> None:
    async with running(**TWILIO) as service:
        async with service.client(LOCAL) as client:
            answer = await client.post("/calls", content=json.dumps(body), headers=JSON)
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert set(error["fields"]) == fields
        assert all(name in error["message"] for name in fields)
        assert service.twilio.asked == []


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("body", [b"", b"{", b'{"to": ', b"\xff", b"[" * 60_000])
async def test_body_that_is_not_json_is_a_bad_request(body: bytes) -> None:
    async with running(**TWILIO) as service:
        async with service.client(LOCAL) as client:
            answer = await client.post("/calls", content=body, headers=JSON)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_content_types_are_refused(content_type: str) -> None:
    async with running(**TWILIO) as service:
        async with service.client(LOCAL) as client:
            headers = {"Content-Type": content_type} if content_type else {}
            answer = await client.post("/calls", content=b'{"to": "+15550100123"}', headers=headers)
        assert answer.status_code == 415
        assert service.twilio.asked == []


async def test_api_key_opens_the_calls_api_from_anywhere() -> None:
    async with running(**TWILIO, VOICEBOT_API_KEYS=entry()) as service:
        async with service.client(STRANGER) as client:
            key = {"Authorization": f"Bearer {API_KEY}"}
            assert (await client.post("/calls", json={"to": TO}, headers=key)).status_code == 201
            assert (await client.get("/calls", headers=key)).status_code == 200


@pytest.mark.parametrize("given", [None, "", API_KEY, "Bearer", "Bearer wrong", "Basic x"])
async def test_with_an_api_key_loopback_must_send_it_too(given: str | None) -> None:
    async with running(**TWILIO, VOICEBOT_API_KEYS=entry()) as service:
        async with service.client(LOCAL) as client:
            headers = {} if given is None else {"Authorization": given}
            answer = await client.post("/calls", json={"to": TO}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert API_KEY not in answer.text
        assert service.twilio.asked == []


async def test_metrics_are_for_those_who_may_see_calls() -> None:
    async with running(**TWILIO, VOICEBOT_API_KEYS=entry()) as service:
        async with service.client(STRANGER) as client:
            key = {"Authorization": f"Bearer {API_KEY}"}
            refused = await client.get("/metrics")
            told = await client.get("/metrics", headers=key)
    assert refused.status_code == 401
    assert told.status_code == 200
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "voicebot_yield_seconds_bucket" in told.text


async def test_without_a_key_metrics_are_for_this_machine_only() -> None:
    async with running(**TWILIO) as service:
        async with service.client(STRANGER) as client:
            assert (await client.get("/metrics")).status_code == 403
        async with service.client(LOCAL) as client:
            assert (await client.get("/metrics")).status_code == 200


async def test_without_twilio_the_missing_settings_are_named() -> None:
    async with running() as service:
        async with service.client(LOCAL) as client:
            answer = await client.post("/calls", json={"to": TO})
            nothing = await client.post("/calls", json={})
    assert answer.status_code == 503
    for name in ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "PUBLIC_URL", "TWILIO_FROM_NUMBER"):
        assert name in answer.json()["error"]["message"]
    assert nothing.status_code == 400
    assert set(nothing.json()["error"]["fields"]) == {"to", "from"}


async def test_refusal_of_twilio_comes_through_with_its_code() -> None:
    async with running(**TWILIO) as service:
        service.twilio.refuse(400, 21211)
        async with service.client(LOCAL) as client:
            answer = await client.post("/calls", json={"to": TO})
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["twilio_code"] == 21211
        assert error["fields"] == {"to": "is not a number Twilio can call"}
        assert error["hint"]
        assert service.board.lines.taken(trio.current_time()) == 0
        assert service.board.store.latest(1) == []


async def test_twilio_that_is_away_is_a_bad_gateway() -> None:
    async with running(**TWILIO) as service:
        assert service.app.service is not None
        service.twilio.answer = "<html>"
        async with service.client(LOCAL) as client:
            answer = await client.post("/calls", json={"to": TO})
    assert answer.status_code == 502


async def test_no_more_calls_are_dialled_than_lines_are_free() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="2") as service:
        statuses: list[int] = []

        async def place() -> None:
            async with service.client(LOCAL) as client:
                statuses.append((await client.post("/calls", json={"to": TO})).status_code)

        service.twilio.sids = True
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(place)
        assert sorted(statuses) == [201, 201] + [503] * 8
        assert len(service.twilio.asked) == 2


async def test_answered_outbound_call_sits_on_the_line_it_was_dialled_on() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="1") as service:
        async with service.client(LOCAL) as client:
            await client.post("/calls", json={"to": TO})
        outbound = {"Direction": "outbound-api", "CallStatus": "in-progress"}
        busy = await service.webhook("/twilio/voice", CallSid="CAin")
        answered = await service.webhook("/twilio/voice", **outbound)

        assert "<Stream" not in busy.text
        assert parameter(answered.text)
        record = service.board.store.get(CALL_SID)
        assert record is not None
        assert (record.status, record.direction, record.to) == ("in-progress", "outbound", TO)


async def test_hang_up_ends_the_call_at_twilio() -> None:
    async with running(**TWILIO) as service:
        async with service.client(LOCAL) as client:
            await client.post("/calls", json={"to": TO})
            service.twilio.status = 200
            answer = await client.post(f"/calls/{CALL_SID}/hangup")
            unknown = await client.post("/calls/CAnone/hangup")
            missing = await client.get("/calls/CAnone")
        assert answer.json() == {"call_sid": CALL_SID, "hung_up": True}
        assert service.twilio.asked[-1].form == {"Status": ["completed"]}
        assert unknown.status_code == missing.status_code == 404


async def test_numbers_are_logged_only_under_pii_keys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="voicebot")
    async with running(**TWILIO) as service:
        await service.webhook("/twilio/voice")
        await service.webhook("/twilio/status", CallStatus="completed", SequenceNumber="3")
        async with service.client(LOCAL) as client:
            await client.post("/calls", json={"to": TO})
            service.twilio.refuse(400, 99999, f"no {TO}")
            await client.post("/calls", json={"to": TO})
    records = [record for record in caplog.records if record.name.startswith("voicebot")]
    assert {"call_answered", "call_placed", "twilio_refused"} <= {one.msg for one in records}
    for record in records:
        public = {k: v for k, v in vars(record).items() if not k.startswith("pii_")}
        assert not re.search(r"\+1555|planted", repr(public)), record.msg


# --- Health


async def test_health_of_a_running_server() -> None:
    async with running() as service:
        async with service.client() as client:
            assert (await client.get("/healthz")).json() == {"healthy": True}
            ready = await client.get("/readyz")
            root = await client.get("/")
            nowhere = await client.get("/nowhere")
    assert (ready.status_code, ready.json()) == (
        200,
        {"ready": True, "lines_taken": 0, "lines": 4},
    )
    assert "/twilio/voice" in root.text
    assert (nowhere.status_code, "error" in nowhere.json()) == (404, True)


async def test_a_server_whose_loop_is_slow_is_alive_but_not_ready() -> None:
    async with running() as service:
        assert service.app.service is not None
        service.app.service = replace(service.app.service, is_slow=lambda: True)
        async with service.client() as client:
            assert (await client.get("/healthz")).status_code == 200
            ready = await client.get("/readyz")
    assert ready.status_code == 503
    assert "VOICEBOT_READY_LAG_MS" in ready.json()["reason"]


async def test_server_is_alive_but_not_ready_before_its_lifespan() -> None:
    app = create_app(load(DEV))  # with the real service, which is never opened

    async def without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await app(scope, receive, send)

    with trio.fail_after(20):
        async with on_hypercorn(without_lifespan) as url, httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.post("/calls", json={"to": TO})).status_code == 503


# --- Lifespan


async def test_service_that_cannot_open_fails_the_startup_with_its_message() -> None:
    @asynccontextmanager
    async def open_service(board: Switchboard) -> AsyncGenerator[Service]:
        raise ConfigError(["DEEPGRAM_URL: is not a URL", "GROQ_BASE_URL: neither"])
        yield

    sent = await lifespan(create_app(load(DEV), open_service))
    assert [one["type"] for one in sent] == ["lifespan.startup.failed"]
    assert "DEEPGRAM_URL: is not a URL\nGROQ_BASE_URL: neither" in sent[0]["message"]


async def test_service_is_closed_before_shutdown_is_complete() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def open_service(board: Switchboard) -> AsyncGenerator[Service]:
        seen.append("opened")
        yield Service(serve_nothing)
        await trio.lowlevel.checkpoint()
        seen.append("closed")

    await lifespan(create_app(load(DEV), open_service), seen.append)
    assert seen == [
        "opened",
        "lifespan.startup.complete",
        "closed",
        "lifespan.shutdown.complete",
    ]


async def lifespan(app: App, note: Callable[[str], None] = lambda kind: None) -> list[Any]:
    """Start and stop an app; return what it sent."""
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Any] = []

    async def receive() -> Any:
        await trio.lowlevel.checkpoint()
        return next(events)

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        note(message["type"])
        sent.append(message)

    with trio.fail_after(5):
        await app({"type": "lifespan", "asgi": {}}, receive, send)
    return sent


async def serve_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close", "code": 1000})


# --- The media path


@pytest.mark.parametrize("path", ["/", "/twilio/voice", "/twilio/stream/", "/twilio/stream2"])
async def test_other_websockets_are_not_found(path: str) -> None:
    async with running() as service:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            sent.append(message)

        extensions: dict[str, Any] = {"websocket.http.response": {}}
        scope: dict[str, Any] = {"type": "websocket", "path": path, "extensions": extensions}
        await service.app(scope, trio.sleep_forever, send)
        assert [one.get("status") for one in sent] == [404, None]
        assert service.media == []

        sent.clear()
        await service.app(scope | {"extensions": {}}, trio.sleep_forever, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]


def upgrade(peer: tuple[str, int], **headers: str) -> dict[str, Any]:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "websocket", "path": "/twilio/stream", "client": peer, "headers": raw}


@pytest.mark.parametrize(
    "signed",
    ["wss://bot.example.com/twilio/stream", "wss://bot.example.com/twilio/stream/"],
)
def test_upgrade_that_twilio_signed_is_admitted(signed: str) -> None:
    board = Switchboard(load(TWILIO))
    board.admit(upgrade(STRANGER, **{"x-twilio-signature": sign(signed, {})}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Twilio-Signature": sign("https://bot.example.com/twilio/stream", {})},
        {"X-Twilio-Signature": sign("wss://other.example.com/twilio/stream", {})},
        {"X-Twilio-Signature": sign("wss://bot.example.com/twilio/voice", {})},
    ],
)
def test_upgrade_that_twilio_did_not_sign_is_refused(headers: dict[str, str]) -> None:
    board = Switchboard(load(TWILIO))
    for peer in (STRANGER, LOCAL):
        with pytest.raises(CallRefused):
            board.admit(upgrade(peer, Host="localhost", **headers))


def test_two_signatures_are_no_signature() -> None:
    board = Switchboard(load(TWILIO))
    good = sign("wss://bot.example.com/twilio/stream", {}).encode()
    scope = upgrade(STRANGER)
    scope["headers"] = [(b"x-twilio-signature", good), (b"X-Twilio-Signature", b"x")]
    with pytest.raises(CallRefused):
        board.admit(scope)


@pytest.mark.parametrize(
    "peer, host, admitted",
    [
        ("127.0.0.1", "localhost:8000", True),
        ("127.8.9.1", "127.0.0.1", True),
        ("::1", "[::1]:8000", True),
        ("::ffff:127.0.0.1", "localhost", True),
        ("::ffff:10.0.0.1", "localhost", False),
        ("10.0.0.1", "localhost", False),
        ("", "localhost", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[::1", False),
        ("127.0.0.1", "bot.example.com", False),
    ],
)
def test_upgrade_without_an_account_is_for_this_machine(
    peer: str, host: str, admitted: bool
) -> None:
    board = Switchboard(load(DEV))
    scope = upgrade((peer, 1), Host=host)
    if admitted:
        board.admit(scope)
    else:
        with pytest.raises(CallRefused):
            board.admit(scope)


# --- Over real sockets


async def test_simulated_call_over_real_sockets() -> None:
    said: list[Any] = []

    @asynccontextmanager
    async def open_service(board: Switchboard) -> AsyncGenerator[Service]:
        async def serve_media(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            board.admit(scope)
            await send({"type": "websocket.accept"})
            start = json.loads((await receive())["text"])
            board.redeem(start["token"], start["callSid"], start["accountSid"])
            with board.live(start["callSid"]):
                said.append(board.lines.taken(trio.current_time()))
                await send({"type": "websocket.send", "text": "hello"})
                await receive()
            await send({"type": "websocket.close", "code": 1000})

        yield Service(serve_media)

    with trio.fail_after(20):
        async with on_hypercorn(create_app(load(DEV), open_service)) as url:
            async with httpx.AsyncClient(base_url=url) as client:
                answer = await client.post("/twilio/voice", data=WEBHOOK)
                stream = ET.fromstring(answer.text).find("Connect/Stream")
                assert stream is not None
                async with open_websocket_url(stream.attrib["url"]) as socket:
                    start = {"token": parameter(answer.text)}
                    start |= {"callSid": CALL_SID, "accountSid": ACCOUNT_SID}
                    await socket.send_message(json.dumps(start))
                    assert await socket.get_message() == "hello"
                    live = (await client.get(f"/calls/{CALL_SID}")).json()["status"]
                record = (await client.get(f"/calls/{CALL_SID}")).json()
    assert said == [1]
    assert (live, record["status"]) == ("in-progress", "completed")


async def test_other_upgrade_is_not_found_over_real_sockets() -> None:
    with trio.fail_after(20):
        async with on_hypercorn(create_app(load({"VOICEBOT_DATABASE_URL": ""}))) as url:
            host = url.removeprefix("http://")
            async with await trio.open_tcp_stream("127.0.0.1", int(host.split(":")[1])) as stream:
                await stream.send_all(
                    b"GET /other HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 404 ")


async def test_slow_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicebot.http.BODY_TIMEOUT_S", 0.2)
    with trio.fail_after(20):
        async with on_hypercorn(create_app(load({"VOICEBOT_DATABASE_URL": ""}))) as url:
            port = int(url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(
                    b"POST /twilio/voice HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
                    b"Content-Type: application/x-www-form-urlencoded\r\n\r\nCall"
                )
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 408 ")


def hypercorn_cli(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hypercorn", "-ktrio", "-w0", "-b127.0.0.1:0", "voicebot.http:app"],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_wrong_settings_stop_the_server_and_are_named(tmp_path: Path) -> None:
    result = hypercorn_cli(tmp_path, TWILIO_ACCOUNT_SID="nonsense", GROQ_BASE_URL="ftp://x")

    assert result.returncode != 0
    for name in ("TWILIO_ACCOUNT_SID:", "TWILIO_AUTH_TOKEN:", "GROQ_BASE_URL:"):
        assert name in result.stderr


# --- Records in a database


async def test_calls_of_earlier_processes_are_listed_and_shown(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/calls.db")
    before = databases.record("CAbefore", outcome="hung_up", status="completed")
    database.write([News(before, {0: databases.turn(0, heard="Hello.")})])
    database.engine.dispose()
    async with running_with_archive(f"sqlite:///{tmp_path}/calls.db") as (_, url):
        async with httpx.AsyncClient(base_url=url) as client:
            await client.post("/twilio/voice", data=WEBHOOK)
            listed = (await client.get("/calls")).json()["calls"]
            one = (await client.get("/calls/CAbefore")).json()
            missing = await client.get("/calls/CAnone")

    assert [call["call_sid"] for call in listed] == [CALL_SID, "CAbefore"]
    assert [each["heard"] for each in one["turns"]] == ["Hello."]
    assert missing.status_code == 404


@pytest.mark.parametrize("kept", [True, False])
async def test_calls_are_listed_in_pages(kept: bool, tmp_path: Path) -> None:
    async with running_with_archive(f"sqlite:///{tmp_path}/calls.db") as (service, url):
        if not kept:
            assert service.service is not None
            service.service = replace(service.service, archive=None)
        for n in range(5):
            service.board.store.open(
                f"CAx{n}",
                at=f"2099-01-01T00:00:0{n // 2}.000+00:00",
                direction="inbound",
                from_=TO,
                to=TO,
                status="completed",
            )
        async with httpx.AsyncClient(base_url=url) as client:
            seen, following = [], "/calls?limit=2"
            for _ in range(3):
                page = (await client.get(following)).json()
                seen += [call["call_sid"] for call in page["calls"]]
                following = page["next"] or ""
            whole = (await client.get("/calls")).json()
            wrong = [
                await client.get(f"/calls?{query}")
                for query in ("limit=0", "limit=x", "limit=1001", "before=CAnone")
            ]
    assert seen[:5] == ["CAx4", "CAx3", "CAx2", "CAx1", "CAx0"]
    assert [call["call_sid"] for call in whole["calls"]][:6] == seen[:6]
    assert whole["next"] is None
    assert [answer.status_code for answer in wrong] == [400] * 4
    assert "call_sid" in wrong[-1].json()["error"]["message"]


async def test_a_recording_is_given_to_who_may_see_the_call(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    url = f"sqlite:///{tmp_path}/calls.db"
    environ = {"VOICEBOT_RECORDING__PATH": str(folder), "VOICEBOT_API_KEYS": entry()}
    key = {"Authorization": f"Bearer {API_KEY}"}
    async with running_with_archive(url, **environ) as (_, address):
        audio = bytes(range(256)) * 1_000
        (folder / "CA1.wav").write_bytes(audio)
        async with httpx.AsyncClient(base_url=address) as client:
            found = await client.get("/calls/CA1/recording", headers=key)
            refused = await client.get("/calls/CA1/recording")
            missing = [
                await client.get(f"/calls/{sid}/recording", headers=key)
                for sid in ("CA2", "%2e%2e", "CA1.wav", "..%2fcalls")
            ]
    assert (found.status_code, found.headers["content-type"]) == (200, "audio/wav")
    assert found.content == audio
    assert refused.status_code == 401
    assert [answer.status_code for answer in missing] == [404] * 4
    assert missing[0].json()["error"]["message"] == "there is no recording of this call"


async def test_without_a_folder_it_is_said_that_nothing_is_recorded(tmp_path: Path) -> None:
    async with running_with_archive(f"sqlite:///{tmp_path}/calls.db") as (_, address):
        async with httpx.AsyncClient(base_url=address) as client:
            answer = await client.get("/calls/CA1/recording")
    assert answer.status_code == 404
    assert "VOICEBOT_RECORDING__PATH" in answer.json()["error"]["message"]


async def test_a_call_is_deleted_with_its_recording_once_it_is_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.db"
    database = open_database(url)
    for sid in ("CA1", "CA2"):
        over = databases.record(sid, outcome="hung_up", status="completed")
        database.write([News(over, {0: databases.turn(0, heard="Hello.")})])
    file = tmp_path / "CA1.wav"
    file.write_bytes(b"RIFF")
    environ = {"VOICEBOT_RECORDING__PATH": str(tmp_path)}
    async with running_with_archive(url, **environ) as (app, address):
        async with httpx.AsyncClient(base_url=address) as client:
            await client.post("/twilio/voice", data=WEBHOOK)
            with app.board.live(CALL_SID):
                live = await client.delete(f"/calls/{CALL_SID}")
            answers = [await client.delete(f"/calls/{sid}") for sid in ("CA1", "CA1", CALL_SID)]
            left = [call["call_sid"] for call in (await client.get("/calls")).json()["calls"]]
            assert not file.exists()
    assert (live.status_code, "is live" in live.text) == (409, True)
    assert [answer.status_code for answer in answers] == [204, 404, 204]
    assert left == ["CA2"]
    assert [record.sid for record in database.every()] == ["CA2"]
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM turns").scalar() == 1
    database.engine.dispose()


async def test_a_call_that_cannot_be_deleted_now_is_still_there_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(self: Recorder, sid: str) -> bool:
        raise StoreError("the disk of the recordings has not answered for 5 s")

    def away(self: Database, sid: str) -> None:
        raise OperationalError("DELETE", {}, OSError("gone"))

    environ = {"VOICEBOT_RECORDING__PATH": str(tmp_path)}
    async with running_with_archive(f"sqlite:///{tmp_path}/calls.db", **environ) as (_, address):
        async with httpx.AsyncClient(base_url=address) as client:
            await client.post("/twilio/voice", data=WEBHOOK)
            with monkeypatch.context() as context:
                context.setattr(Recorder, "delete", hangs)
                by_disk = await client.delete(f"/calls/{CALL_SID}")
            assert (await client.get(f"/calls/{CALL_SID}")).status_code == 200
            with monkeypatch.context() as context:
                context.setattr(Database, "forget", away)
                by_database = await client.delete(f"/calls/{CALL_SID}")
    assert (by_disk.status_code, by_database.status_code) == (503, 503)
    assert "database cannot be asked" in by_database.text


async def test_a_call_is_deleted_where_there_is_no_database() -> None:
    async with running() as service:
        async with service.client(LOCAL) as client:
            await client.post("/twilio/voice", data=WEBHOOK)
            assert (await client.delete(f"/calls/{CALL_SID}")).status_code == 204
            assert (await client.get(f"/calls/{CALL_SID}")).status_code == 404


async def test_a_database_that_is_away_is_said_and_live_calls_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Database, *args: Any, **more: Any) -> None:
        raise OperationalError("SELECT", {}, OSError("gone"))

    async with running_with_archive(f"sqlite:///{tmp_path}/calls.db") as (_, url):
        async with httpx.AsyncClient(base_url=url) as client:
            await client.post("/twilio/voice", data=WEBHOOK)
            for name in ("get", "latest"):
                monkeypatch.setattr(Database, name, away)
            listed = await client.get("/calls")
            missing = await client.get("/calls/CAnone")
            ours = await client.get(f"/calls/{CALL_SID}")

    for answer in (listed, missing):
        assert answer.status_code == 503
        assert "database cannot be asked" in answer.json()["error"]["message"]
    assert ours.json()["status"] == "ringing"


@asynccontextmanager
async def running_with_archive(url: str, **environ: str) -> AsyncGenerator[tuple[App, str]]:
    @asynccontextmanager
    async def open_service(board: Switchboard) -> AsyncGenerator[Service]:
        async def serve_media(scope: Scope, receive: Receive, send: Send) -> None:
            raise AssertionError("no stream is opened here")

        async with (
            open_archive(board.settings, board.store, board.metrics) as archive,
            open_recorder(board.settings.recording, 90.0, board.metrics) as recorder,
        ):
            yield Service(serve_media, archive=archive, recorder=recorder)

    app = create_app(load({"VOICEBOT_DATABASE_URL": url, **DEV, **environ}), open_service)
    with trio.fail_after(20):
        async with on_hypercorn(app) as address:
            yield app, address


def test_a_database_that_cannot_be_opened_stops_the_server_and_is_said(tmp_path: Path) -> None:
    nowhere = "sqlite:////nowhere/at/all/calls.db"
    by_hypercorn = hypercorn_cli(tmp_path, VOICEBOT_DATABASE_URL=nowhere, **DEV)
    by_ourselves = subprocess.run(
        [sys.executable, "-m", "voicebot", "serve", "--dev", "--port", "0"],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "VOICEBOT_DATABASE_URL": nowhere},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    for result in (by_hypercorn, by_ourselves):
        assert result.returncode != 0
        assert "VOICEBOT_DATABASE_URL: the database" in result.stderr
    assert "Traceback" not in by_ourselves.stderr
    assert "ready on" not in by_ourselves.stdout


async def test_a_call_is_placed_once_also_over_a_restart(tmp_path: Path) -> None:
    database = {"VOICEBOT_DATABASE_URL": f"sqlite:///{tmp_path}/calls.db"}
    key = {"Idempotency-Key": "k"}
    answers = []
    async with open_fake_twilio() as twilio:
        for _ in range(2):
            settings = load({"TWILIO_API_URL": twilio.url, **DEV, **TWILIO, **database})
            async with on_hypercorn(create_app(settings, open_placing_service)) as url:
                async with httpx.AsyncClient(base_url=url) as client:
                    answers.append(await client.post("/calls", json={"to": TO}, headers=key))
                    other = await client.post("/calls", json={"to": FROM}, headers=key)
                    assert other.status_code == 422

    first, again = answers
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(twilio.asked) == 1


async def test_no_keyed_call_is_placed_while_the_database_is_away_and_later_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Database, *args: Any) -> None:
        raise OperationalError("INSERT", {}, OSError("gone"))

    database = {"VOICEBOT_DATABASE_URL": f"sqlite:///{tmp_path}/calls.db"}
    key = {"Idempotency-Key": "k"}
    async with open_fake_twilio() as twilio:
        settings = load({"TWILIO_API_URL": twilio.url, **DEV, **TWILIO, **database})
        async with on_hypercorn(create_app(settings, open_placing_service)) as url:
            async with httpx.AsyncClient(base_url=url) as client:
                with monkeypatch.context() as context:
                    context.setattr(Database, "begin_request", away)
                    refused = await client.post("/calls", json={"to": TO}, headers=key)
                placed = await client.post("/calls", json={"to": TO}, headers=key)

    assert refused.status_code == 503
    assert "database cannot be asked" in refused.json()["error"]["message"]
    assert placed.status_code == 201
    assert len(twilio.asked) == 1


@asynccontextmanager
async def open_placing_service(board: Switchboard) -> AsyncGenerator[Service]:
    async def serve_media(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("no stream is opened here")

    async with (
        open_archive(board.settings, board.store, board.metrics) as archive,
        open_telephony(board.settings) as phone,
    ):
        yield Service(serve_media, phone, archive=archive)


# The OpenAPI document


async def test_every_route_is_in_the_document_and_no_other() -> None:
    async with running() as service, service.client(LOCAL) as client:
        document = (await client.get("/openapi.json")).json()
        served = {
            (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
            for rule in service.app._quart.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
    described = {
        (path, method)
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert described == served
    assert document["info"]["version"] == __version__


async def test_a_host_that_is_none_is_the_peers_mistake(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as service:
        async with httpx.AsyncClient(base_url=service.url) as client:
            answer = await client.get("/healthz", headers={"Host": "a" * 300})
    assert answer.status_code == 400
    assert "Host" in answer.json()["error"]["message"]
    assert caplog.records == []
