"""Twilio's signatures, TwiML and REST API: against its own vectors and a server on loopback."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET

import pytest
import trio
import trio.testing

from tests.twilio_rest import ACCOUNT_SID, CALL_SID, open_fake_twilio
from voicebot.config import Settings, load
from voicebot.errors import ProviderError, ProviderRejected, ProviderTimeout
from voicebot.outbound import OutboundCall, read_call
from voicebot.plan import CONNECTING, TROUBLE
from voicebot.standins.script import Canned
from voicebot.standins.twilio import RestConduct, open_twilio
from voicebot.telephony import (
    explain,
    open_telephony,
)
from voicebot.twiml import parting_twiml, stream_twiml

AUTH_TOKEN = "planted-secret-0123456789"
TO, FROM = "+15550100123", "+15550100456"
CALL = OutboundCall(TO, FROM)


def settings_for(api_url: str = "http://127.0.0.1:9", **more: str) -> Settings:
    return load(
        {
            "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "TWILIO_FROM_NUMBER": FROM,
            "TWILIO_API_URL": api_url,
            "PUBLIC_URL": "https://bot.example.com",
            **more,
        }
    )


# --- TwiML


def test_stream_twiml_connects_last_with_the_token_as_parameter() -> None:
    text = stream_twiml("wss://h/twilio/stream", "tok&<en", "https://h/twilio/stream-status")
    response = ET.fromstring(text)

    assert [child.tag for child in response] == ["Connect"]
    assert response[0].attrib == {}
    stream = response[0][0]
    assert stream.tag == "Stream"
    assert stream.attrib == {
        "url": "wss://h/twilio/stream",
        "statusCallback": "https://h/twilio/stream-status",
    }
    assert [(one.tag, one.attrib) for one in stream] == [
        ("Parameter", {"name": "token", "value": "tok&<en"})
    ]


# --- REST


async def test_placed_call_asks_twilio_for_everything() -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            async with open_telephony(settings_for(twilio.url)) as telephony:
                call = await telephony.place_call(CALL)

    assert (call.sid, call.status) == (CALL_SID, "queued")
    (asked,) = twilio.asked
    assert asked.method == "POST"
    assert asked.path == f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls.json"
    user, password = base64.b64decode(asked.headers["authorization"].split()[1]).split(b":")
    assert (user.decode(), password.decode()) == (ACCOUNT_SID, AUTH_TOKEN)
    assert asked.form == {
        "To": [TO],
        "From": [FROM],
        "Url": ["https://bot.example.com/twilio/voice"],
        "Method": ["POST"],
        "StatusCallback": ["https://bot.example.com/twilio/status"],
        "StatusCallbackMethod": ["POST"],
        "StatusCallbackEvent": ["initiated", "ringing", "answered", "completed"],
        "Timeout": ["30"],
        "TimeLimit": ["3645"],  # some time after we should have ended it
    }


async def test_life_of_a_call_at_a_strict_twilio() -> None:
    with trio.fail_after(10):
        async with open_twilio(account_sid=ACCOUNT_SID, auth_token=AUTH_TOKEN) as twilio:
            async with open_telephony(settings_for(twilio.url)) as telephony:
                call = await telephony.place_call(CALL)
                twilio.advance(call.sid, "in-progress")
                assert (await telephony.fetch_call(call.sid)).status == "in-progress"
                assert await telephony.end_call(call.sid)
                assert (await telephony.fetch_call(call.sid)).status == "completed"
                assert not await telephony.end_call(call.sid)
                assert not await telephony.end_call("CA" + "f" * 32)
                with pytest.raises(ProviderRejected) as caught:
                    await telephony.place_call(OutboundCall("+15005550001", FROM))  # magic: invalid

    assert caught.value.code == 21211


async def test_environment_of_the_sdk_does_not_move_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TWILIO_EDGE", "sydney")
    monkeypatch.setenv("TWILIO_REGION", "au1")
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            async with open_telephony(settings_for(twilio.url)) as telephony:
                await telephony.place_call(CALL)

    assert len(twilio.asked) == 1


async def test_call_is_fetched_and_ended_by_sid() -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.status = 200
            async with open_telephony(settings_for(twilio.url)) as telephony:
                assert (await telephony.fetch_call(CALL_SID)).status == "queued"
                assert await telephony.end_call(CALL_SID)

    path = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls/{CALL_SID}.json"
    assert [(one.method, one.path) for one in twilio.asked] == [("GET", path), ("POST", path)]
    assert twilio.asked[1].form == {"Status": ["completed"]}


async def test_a_call_can_be_sent_elsewhere() -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            async with open_telephony(settings_for(twilio.url)) as telephony:
                await telephony.redirect_call(CALL_SID, "<Response/>")

    path = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls/{CALL_SID}.json"
    assert [(one.method, one.path) for one in twilio.asked] == [("POST", path)]
    assert twilio.asked[0].form == {"Twiml": ["<Response/>"]}


@pytest.mark.parametrize(
    "say, transfer_to, asked",
    [
        (False, "", {"Status": "completed"}),
        (True, "", {"Twiml": parting_twiml(TROUBLE, "en")}),
        (False, TO, {"Twiml": parting_twiml("", "en", TO)}),
        (True, TO, {"Twiml": parting_twiml(CONNECTING, "en", TO)}),
    ],
)
async def test_a_caller_is_taken_from_a_bot_that_cannot_go_on(
    say: bool, transfer_to: str, asked: dict[str, str]
) -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            settings = settings_for(twilio.url).model_copy(update={"transfer_to": transfer_to})
            twilio.status = 200
            async with open_telephony(settings) as telephony:
                await telephony.hand_over(CALL_SID, say)

    assert [one.form for one in twilio.asked] == [{name: [text] for name, text in asked.items()}]


@pytest.mark.parametrize(
    "text, language, transfer_to, expected",
    [
        ("", "en", "", "<Hangup />"),
        ("Sorry & bye.", "en", "", '<Say language="en-US">Sorry &amp; bye.</Say><Hangup />'),
        ("Pardon.", "fr-CA", "", '<Say language="fr-CA">Pardon.</Say><Hangup />'),
        ("", "en", "+15550100123", "<Dial>+15550100123</Dial><Hangup />"),
        (
            "Moment.",
            "de",
            "+15550100123",
            '<Say language="de-DE">Moment.</Say><Dial>+15550100123</Dial><Hangup />',
        ),
    ],
)
def test_who_cannot_be_served_is_told_and_put_through(
    text: str, language: str, transfer_to: str, expected: str
) -> None:
    twiml = parting_twiml(text, language, transfer_to)

    assert twiml.partition("<Response>")[2] == f"{expected}</Response>"


@pytest.mark.parametrize("status, code", [(400, 21220), (404, 20404)])
async def test_ending_a_call_that_is_over_is_no_error(status: int, code: int) -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.refuse(status, code)
            async with open_telephony(settings_for(twilio.url)) as telephony:
                assert not await telephony.end_call(CALL_SID)


async def test_ending_a_call_with_wrong_credentials_is_an_error() -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.refuse(401, 20003)
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderRejected) as caught:
                    await telephony.end_call(CALL_SID)

    assert (caught.value.status, caught.value.code) == (401, 20003)


@pytest.mark.parametrize(
    "status, code, ours, field, says",
    [
        (400, 21211, 400, "to", "to is not a number"),
        (400, 21212, 400, "from", "from is not a valid caller id"),
        (400, 21210, 400, "from", "from is not a number of this"),
        (400, 21219, 400, "to", "trial"),
        (400, 573005, 400, "to", "trial"),
        (400, 21215, 403, "to", "country"),
        (403, 21215, 403, "to", "country"),
        (401, 20003, 502, None, "credentials"),
        (404, 20404, 502, None, "does not know"),
        (429, 20429, 429, None, "too many requests"),
        (429, 10004, 429, None, "too many calls"),
        (400, 99999, 400, None, "Twilio refused: Unable to create record: no +1555"),
        (500, 20500, 502, None, "Twilio refused"),
    ],
)
async def test_refusal_is_explained(
    status: int, code: int, ours: int, field: str | None, says: str
) -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.refuse(status, code, "no +1555 like this")
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderRejected) as caught:
                    await telephony.place_call(CALL)

    refusal = explain(caught.value)
    assert (refusal.status, refusal.field, refusal.code) == (ours, field, code)
    assert says in refusal.message
    assert refusal.hint


async def test_rfc_9457_refusal_is_a_refusal_too() -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.status = 400
            twilio.answer = {"type": "t", "title": "Bad", "status": 400, "code": 21211}
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderRejected) as caught:
                    await telephony.place_call(CALL)

    assert explain(caught.value).field == "to"


async def test_number_in_a_refusal_is_cut_to_two_digits() -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.refuse(400, 99999, f"cannot call {TO}, sorry")
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderRejected, match="cannot call …23, sorry"):
                    await telephony.place_call(CALL)


@pytest.mark.parametrize("answer", ["<html>", "[]", "null", {}, {"sid": None}, {"sid": 5}])
async def test_nonsense_is_a_provider_error(answer: object) -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.answer = answer
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderError, match="TWILIO_API_URL"):
                    await telephony.place_call(CALL)


async def test_unreachable_twilio_is_a_provider_error() -> None:
    with trio.fail_after(10):
        async with open_telephony(settings_for("http://127.0.0.1:1")) as telephony:
            with pytest.raises(ProviderError, match="cannot be reached") as caught:
                await telephony.place_call(CALL)

    refusal = explain(caught.value)
    assert caught.value.retryable
    assert (refusal.status, "placed" in refusal.hint) == (502, False)


async def test_call_may_have_been_placed_where_the_answer_broke_off() -> None:
    rest = RestConduct(drop_after_bytes=60)
    with trio.fail_after(10):
        async with open_twilio(account_sid=ACCOUNT_SID, auth_token=AUTH_TOKEN, rest=rest) as twilio:
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderError, match="the answer broke off") as caught:
                    await telephony.place_call(CALL)
            assert len(twilio.calls) == 1

    assert not caught.value.retryable
    assert "may have been placed" in explain(caught.value).hint


async def test_page_of_a_proxy_is_no_error_of_twilio() -> None:
    page = RestConduct(instead=Canned(502, "text/html", b"<html>Bad Gateway</html>"))
    with trio.fail_after(10):
        async with open_twilio(account_sid=ACCOUNT_SID, auth_token=AUTH_TOKEN, rest=page) as twilio:
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderRejected) as caught:
                    await telephony.place_call(CALL)

    refusal = explain(caught.value)
    assert (caught.value.status, caught.value.code) == (502, None)
    assert (refusal.status, refusal.code) == (502, None)
    assert "proxies" in refusal.hint
    assert "docs/api/errors" not in refusal.hint


async def test_silent_twilio_is_given_up_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fake_twilio() as twilio:
        twilio.answer = None
        async with open_telephony(settings_for(twilio.url)) as telephony:
            started = trio.current_time()
            with pytest.raises(ProviderTimeout) as caught:
                await telephony.place_call(CALL)
            assert trio.current_time() - started <= 10.0

    assert explain(caught.value).status == 504
    assert "may have been placed" in explain(caught.value).hint


# --- Placing calls


@pytest.mark.parametrize(
    "fields, problems",
    [
        ({"to": TO}, {}),
        ({"to": TO, "from": FROM}, {}),
        ({"to": "+15550100"}, {}),
        ({}, {"to": "is missing"}),
        ({"to": 15550100}, {"to": "must be text"}),
        ({"to": TO, "from": None}, {"from": "must be text"}),
        ({"to": "5550100", "from": "+0155501000", "twiml": 1}, {"to", "from", "twiml"}),
        ({"to": "+1555010012\n"}, {"to"}),
        ({"to": "+1٥٥٥٠١٠٠"}, {"to"}),
        ({"to": "+1234567890123456"}, {"to"}),
    ],
)
def test_every_problem_is_named(
    fields: dict[str, object], problems: dict[str, str] | set[str]
) -> None:
    found = read_call(fields, settings_for())

    if not problems:
        assert isinstance(found, OutboundCall)
        assert (found.to, found.from_) == (fields["to"], fields.get("from", FROM))
    else:
        assert isinstance(found, dict)
        assert found == problems if isinstance(problems, dict) else set(found) == problems


def test_from_is_missing_without_a_default() -> None:
    assert read_call({}, load({})) == {"to": "is missing", "from": "is missing"}


@pytest.mark.parametrize("status", [400, 500])
async def test_secret_is_in_no_error(status: int) -> None:
    with trio.fail_after(10):
        async with open_fake_twilio() as twilio:
            twilio.refuse(status, 21211)
            async with open_telephony(settings_for(twilio.url)) as telephony:
                with pytest.raises(ProviderError) as caught:
                    await telephony.place_call(CALL)

    assert AUTH_TOKEN not in repr(caught.value) + str(explain(caught.value))
    assert AUTH_TOKEN not in repr(caught.value.__cause__)
