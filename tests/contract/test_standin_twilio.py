"""The Twilio stand-in as a client meets it: the vendor's SDK on Trio, and plain requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
import trio
from twilio.base.exceptions import (  # type: ignore[import-untyped]  # ships no types
    TwilioRestException,
)
from twilio.http import AsyncHttpClient  # type: ignore[import-untyped]  # ditto
from twilio.http.response import Response  # type: ignore[import-untyped]  # ditto
from twilio.rest import Client  # type: ignore[import-untyped]  # ditto

from voicebot.standins.twilio import ACCOUNT_SID, AUTH_TOKEN, RestConduct, Twilio, open_twilio
from voicebot.standins.twilio_rules import TOO_MANY_REQUESTS, UNVERIFIED_TO

CALLS: Final = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls"
FORM: Final = {"To": "+15550100123", "From": "+15550100999", "Url": "https://bot.test/voice"}


class HttpxClient(AsyncHttpClient):  # type: ignore[misc]  # untyped base
    """The SDK's transport on httpx, for these tests only."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        super().__init__(None, is_async=True)
        self._client = client

    async def request(self, method: str, url: str, **kw: Any) -> Response:
        response = await self._client.request(
            method,
            url,
            params=kw["params"],
            data=kw["data"],
            auth=kw["auth"],
            headers=kw["headers"],
        )
        return Response(response.status_code, response.text, dict(response.headers))


@asynccontextmanager
async def open_sdk(twilio: Twilio) -> AsyncGenerator[Client]:
    async with httpx.AsyncClient(verify=False) as http:
        client = Client(ACCOUNT_SID, AUTH_TOKEN, http_client=HttpxClient(http))
        client.api.base_url = twilio.url
        yield client


@asynccontextmanager
async def open_http(twilio: Twilio) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        verify=False, base_url=twilio.url, auth=(ACCOUNT_SID, AUTH_TOKEN)
    ) as client:
        yield client


async def test_create_answers_201_with_the_whole_call() -> None:
    with trio.fail_after(5):
        async with open_twilio() as twilio, open_http(twilio) as client:
            response = await client.post(f"{CALLS}.json", data=FORM)

    sid = "CA" + "0" * 31 + "1"
    assert response.status_code == 201
    assert response.json() == {
        "sid": sid,
        "account_sid": ACCOUNT_SID,
        "parent_call_sid": None,
        "to": "+15550100123",
        "to_formatted": "+15550100123",
        "from": "+15550100999",
        "from_formatted": "+15550100999",
        "phone_number_sid": None,
        "status": "queued",
        "start_time": None,
        "end_time": None,
        "duration": None,
        "price": None,
        "price_unit": "USD",
        "direction": "outbound-api",
        "answered_by": None,
        "api_version": "2010-04-01",
        "forwarded_from": None,
        "group_sid": None,
        "caller_name": None,
        "queue_time": "0",
        "trunk_sid": None,
        "date_created": "Thu, 01 Jan 2026 00:00:00 +0000",
        "date_updated": "Thu, 01 Jan 2026 00:00:00 +0000",
        "uri": f"{CALLS}/{sid}.json",
        "subresource_uris": {
            "notifications": f"{CALLS}/{sid}/Notifications.json",
            "recordings": f"{CALLS}/{sid}/Recordings.json",
            "payments": f"{CALLS}/{sid}/Payments.json",
            "events": f"{CALLS}/{sid}/Events.json",
            "siprec": f"{CALLS}/{sid}/Siprec.json",
            "streams": f"{CALLS}/{sid}/Streams.json",
            "transcriptions": f"{CALLS}/{sid}/Transcriptions.json",
            "user_defined_messages": f"{CALLS}/{sid}/UserDefinedMessages.json",
            "user_defined_message_subscriptions": (
                f"{CALLS}/{sid}/UserDefinedMessageSubscriptions.json"
            ),
        },
    }


async def test_the_sdk_creates_fetches_and_ends_a_call() -> None:
    with trio.fail_after(5):
        async with open_twilio() as twilio, open_sdk(twilio) as client:
            call = await client.calls.create_async(
                to=FORM["To"],
                from_=FORM["From"],
                url=FORM["Url"],
                status_callback="https://bot.test/status",
                status_callback_event=["initiated", "answered", "completed"],
            )
            assert call.status == "queued"
            twilio.advance(call.sid or "", "in-progress")
            fetched = await client.calls(call.sid or "").fetch_async()
            ended = await client.calls(call.sid or "").update_async(status="completed")
            with pytest.raises(TwilioRestException) as again:
                await client.calls(call.sid or "").update_async(status="completed")
            with pytest.raises(TwilioRestException) as unknown:
                await client.calls("CA" + "f" * 32).update_async(status="completed")

    assert (fetched.status, ended.status, ended.duration) == ("in-progress", "completed", "0")
    assert (again.value.status, again.value.code) == (400, 21220)
    assert (unknown.value.status, unknown.value.code) == (404, 20404)
    (seen,) = twilio.calls.values()
    assert [value for name, value in seen.form if name == "StatusCallbackEvent"] == [
        "initiated",
        "answered",
        "completed",
    ]
    assert seen.updates == [{"Status": "completed"}]


async def test_cancelling_works_only_before_the_call_is_answered() -> None:
    with trio.fail_after(5):
        async with open_twilio() as twilio, open_http(twilio) as client:
            first, second = [
                (await client.post(f"{CALLS}.json", data=FORM)).json()["sid"] for _ in range(2)
            ]
            twilio.advance(second, "in-progress")
            cancel = {"Status": "canceled"}
            cancelled = await client.post(f"{CALLS}/{first}.json", data=cancel)
            refused = await client.post(f"{CALLS}/{second}.json", data=cancel)
            moved = await client.post(f"{CALLS}/{second}.json", data={"Twiml": "<Response/>"})

    assert cancelled.json()["status"] == "canceled"
    assert (refused.status_code, refused.json()["code"]) == (400, 21220)
    assert (moved.status_code, moved.json()["status"]) == (200, "in-progress")


@pytest.mark.parametrize(
    "change, status, code",
    [
        ({"To": ""}, 400, 21201),
        ({"To": "12345"}, 400, 21211),
        ({"To": "+15005550001"}, 400, 21211),
        ({"To": "+15005550003"}, 400, 21215),
        ({"To": "+15005550009"}, 400, 21219),
        ({"To": "+15005550029"}, 429, 20429),
        ({"From": "anybody"}, 400, 21212),
        ({"From": "+15005550007"}, 400, 21210),
        ({"Url": "/voice"}, 400, 21205),
        ({"Twiml": "x" * 4_001}, 400, 32018),
    ],
)
async def test_a_call_that_cannot_be_placed_is_refused_in_the_older_format(
    change: dict[str, str], status: int, code: int
) -> None:
    with trio.fail_after(5):
        async with open_twilio() as twilio, open_http(twilio) as client:
            response = await client.post(f"{CALLS}.json", data=FORM | change)

    body = response.json()
    assert body == {
        "code": code,
        "message": body["message"],
        "more_info": f"https://www.twilio.com/docs/errors/{code}",
        "status": status,
    }
    assert response.status_code == status
    assert "{" not in body["message"]
    assert not twilio.calls


async def test_numbers_and_requests_can_be_refused_by_the_test() -> None:
    with trio.fail_after(5):
        async with open_twilio() as twilio, open_http(twilio) as client:
            twilio.refuse_to["+15550100123"] = UNVERIFIED_TO
            number = await client.post(f"{CALLS}.json", data=FORM)
            twilio.refuse_to.clear()
            twilio.conducts.once(RestConduct(refusal=TOO_MANY_REQUESTS))
            limited = await client.post(f"{CALLS}.json", data=FORM)
            served = await client.post(f"{CALLS}.json", data=FORM)

    assert number.json()["code"] == 21219
    assert "+15550100123" in number.json()["message"]
    assert (limited.status_code, limited.json()["code"]) == (429, 20429)
    assert served.status_code == 201


@pytest.mark.parametrize("auth", [None, (ACCOUNT_SID, "wrong"), ("AC1", AUTH_TOKEN)])
async def test_wrong_credentials_are_refused(auth: tuple[str, str] | None) -> None:
    with trio.fail_after(5):
        async with open_twilio() as twilio, httpx.AsyncClient(verify=False, auth=auth) as client:
            response = await client.post(f"{twilio.url}{CALLS}.json", data=FORM)

    assert (response.status_code, response.json()["code"]) == (401, 20003)


async def test_other_accounts_paths_and_methods_are_refused() -> None:
    other = CALLS.replace(ACCOUNT_SID, "AC" + "f" * 32)
    with trio.fail_after(5):
        async with open_twilio() as twilio, open_http(twilio) as client:
            for path in (f"{other}.json", "/", f"{CALLS}/CA1.json", f"{CALLS}"):
                response = await client.post(path, data=FORM)
                assert (response.status_code, response.json()["code"]) == (404, 20404)
            assert (await client.get(f"{CALLS}.json")).status_code == 405
