"""What Twilio does with a call, simulated: against a server of scripted TwiML."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import pytest
import trio
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]  # no py.typed
from twilio.rest import Client  # type: ignore[import-untyped]  # no py.typed

from tests.servers import Exchange, open_http_server
from voicebot.errors import CallRefused
from voicebot.simulator import Script
from voicebot.simulator.dial import Account
from voicebot.simulator.telephone import Person, PhoneCall, Telephone, open_telephone
from voicebot.simulator.twiml import Connect, Dial, Pause, Play, Say, read_verbs
from voicebot.standins.twilio import open_twilio
from voicebot.testing.telephone import open_telephone as open_on_standin

TO, FROM, OTHER = "+15550100199", "+15550100123", "+15550100177"
TOKEN = "secret"


@dataclass
class Scripted:
    """A server that answers each path with the TwiML that a test says, and keeps what it got."""

    twiml: Mapping[str, str]
    phones: Telephone
    got: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def forms(self, path: str) -> list[dict[str, str]]:
        return [form for asked, form in self.got if asked == path]

    @property
    def statuses(self) -> list[str]:
        forms = sorted(self.forms("/status"), key=lambda form: int(form["SequenceNumber"]))
        return [form["CallStatus"] for form in forms]


@asynccontextmanager
async def scripted(
    twiml: Mapping[str, str], people: Mapping[str, Person], *, pace: float = 0.0
) -> AsyncGenerator[Scripted]:
    async def respond(exchange: Exchange) -> None:
        form = dict(parse_qsl(exchange.body.decode(), keep_blank_values=True))
        signature = exchange.headers["x-twilio-signature"]
        url = f"https://bot.example{exchange.target}"
        assert RequestValidator(TOKEN).validate(url, form, signature)
        here.got.append((exchange.target, form))
        if exchange.target not in twiml:
            await exchange.answer(404 if "status" not in exchange.target else 204, "text/xml", b"")
            return
        body = f"<Response>{twiml[exchange.target]}</Response>".encode()
        await exchange.answer(200, "text/xml", body)

    account = Account(auth_token=TOKEN, public_url="https://bot.example")
    with trio.fail_after(20):
        async with (
            open_http_server(respond) as server,
            open_telephone(server.url, account, people, pace=pace) as phones,
        ):
            here = Scripted(twiml, phones)
            yield here


def form(**more: str) -> list[tuple[str, str]]:
    return [
        ("To", TO),
        ("From", FROM),
        ("Url", "https://bot.example/voice"),
        ("StatusCallback", "https://bot.example/status"),
        *(("StatusCallbackEvent", event) for event in ("initiated", "ringing", "answered")),
        ("StatusCallbackEvent", "completed"),
        *more.items(),
    ]


async def placed(here: Scripted, **more: str) -> PhoneCall:
    here.phones.place("CA1", form(**more))
    call = here.phones.calls["CA1"]
    await call.over.wait()
    return call


async def test_verb_by_verb_and_the_status_of_each_step() -> None:
    twiml = {
        "/voice": f'<Say>Hello.</Say><Play digits="ww12#"/><Dial action="/after">{OTHER}</Dial>'
        "<Say>never</Say>",
        "/after": "<Redirect>/more</Redirect><Say>never</Say>",
        "/more": "<Pause length='0'/><Say>Bye.</Say><Hangup/><Say>never</Say>",
    }
    async with scripted(twiml, {TO: Person(), OTHER: Person()}) as here:
        call = await placed(here)

        assert (call.said, call.digits, call.errors) == (["Hello.", "Bye."], ["ww12#"], [])
        assert here.statuses == ["initiated", "ringing", "in-progress", "completed"]
        [last] = here.forms("/status")[-1:]
        assert (last["CallDuration"], last["Direction"]) == ("0", "outbound-api")
        [after] = here.forms("/after")
        assert (after["DialCallStatus"], after["DialCallDuration"]) == ("completed", "0")
        assert [other.to for other in call.dialled] == [OTHER]


@pytest.mark.parametrize(
    "person, rings, final",
    [
        (Person(does="busy"), "60", ["initiated", "busy"]),
        (Person(does="failed"), "60", ["initiated", "failed"]),
        (Person(does="no-answer"), "0", ["initiated", "ringing", "no-answer"]),
        (Person(rings_s=60.0), "0", ["initiated", "ringing", "no-answer"]),
    ],
)
async def test_a_call_that_is_not_answered_asks_for_nothing(
    person: Person, rings: str, final: list[str]
) -> None:
    async with scripted({"/voice": "<Say>never</Say>"}, {TO: person}) as here:
        call = await placed(here, Timeout=rings)

        assert here.statuses == final
        assert (call.status, call.said, here.forms("/voice")) == (final[-1], [], [])


async def test_a_number_that_nobody_has_is_not_answered() -> None:
    async with scripted({}, {}) as here:
        call = await placed(here, Timeout="0")
        assert call.status == "no-answer"


async def test_a_call_that_rings_is_canceled() -> None:
    async with scripted({}, {TO: Person(rings_s=60.0)}) as here:
        here.phones.place("CA1", form())
        call = here.phones.calls["CA1"]
        here.phones.on_status = lambda call: (
            here.phones.update("CA1", [("Status", "canceled")])
            if call.status == "ringing"
            else None
        )
        await call.over.wait()
        assert here.statuses == ["initiated", "ringing", "canceled"]


async def test_a_machine_is_told_of_with_the_first_request_or_later_by_itself() -> None:
    machine = Person(taken_for="machine_end_beep", detected_s=0.05)
    async with scripted({"/voice": "<Say>Hello.</Say>"}, {TO: machine}) as here:
        await placed(here, MachineDetection="DetectMessageEnd")
        assert here.forms("/voice")[0]["AnsweredBy"] == "machine_end_beep"
    async with scripted(
        {"/voice": "<Pause length='10'/>", "/amd": ""}, {TO: machine}, pace=1.0
    ) as here:
        here.phones.place(
            "CA1",
            form(
                MachineDetection="Enable",
                AsyncAmd="true",
                AsyncAmdStatusCallback="https://bot.example/amd",
            ),
        )
        while not here.forms("/amd"):  # noqa: ASYNC110  # another program, as far as tests go
            await trio.sleep(0.01)
        here.phones.update("CA1", [("Status", "completed")])
        await here.phones.calls["CA1"].over.wait()
        assert "AnsweredBy" not in here.forms("/voice")[0]
        [amd] = here.forms("/amd")
        assert (amd["AnsweredBy"], amd["MachineDetectionDuration"]) == ("machine_end_beep", "50")


async def test_nothing_to_detect_in_time_is_unknown() -> None:
    slow = Person(taken_for="human", detected_s=9.0)
    async with scripted({"/voice": ""}, {TO: slow}) as here:
        await placed(here, MachineDetection="Enable", MachineDetectionTimeout="0")
        assert here.forms("/voice")[0]["AnsweredBy"] == "unknown"


@pytest.mark.parametrize(
    "update",
    [
        [("Twiml", "<Response><Say>Instead.</Say></Response>")],
        [("Url", "https://bot.example/other")],
    ],
)
async def test_a_live_call_goes_on_with_what_the_api_says(update: list[tuple[str, str]]) -> None:
    twiml = {
        "/twilio/voice": "<Pause length='60'/><Say>never</Say>",
        "/other": "<Say>Instead.</Say>",
    }
    async with scripted(twiml, {}, pace=1.0) as here:
        async with trio.open_nursery() as nursery:

            async def update_soon() -> None:
                while not here.forms("/twilio/voice"):  # noqa: ASYNC110  # as above
                    await trio.sleep(0.01)
                [sid] = here.phones.calls
                here.phones.update(sid, update)

            nursery.start_soon(update_soon)
            call = await here.phones.call_in()
        assert (call.said, call.errors, call.status) == (["Instead."], [], "completed")


async def test_what_twilio_would_log_is_kept_and_ends_the_call() -> None:
    async with scripted({"/voice": "<Enqueue/>"}, {TO: Person()}) as here:
        assert (await placed(here)).errors == ["<Enqueue> is no verb that is simulated"]
    async with scripted({}, {TO: Person()}) as here:
        [error] = (await placed(here)).errors
        assert error.endswith("/voice: answered 404")
    async with scripted({"/voice": "<Redirect>/voice</Redirect>"}, {TO: Person()}) as here:
        [error] = (await placed(here)).errors
        assert "goes on for ever" in error


def test_twiml_is_read() -> None:
    [connect, say, play, pause, dial] = read_verbs(
        b'<Response><Connect action="/after"><Stream url="wss://h/s" statusCallback="/ss">'
        b'<Parameter name="a" value="b"/></Stream></Connect><Say language="de-DE"> Hallo </Say>'
        b'<Play>https://h/x.wav</Play><Pause/><Dial callerId="+1" timeout="5">'
        b'<Number url="/whisper">+15550100177</Number></Dial></Response>'
    )
    assert connect == Connect("wss://h/s", {"a": "b"}, "/ss", "/after")
    assert (say, play, pause) == (Say("Hallo", "de-DE"), Play("https://h/x.wav"), Pause(1.0))
    assert dial == Dial("+15550100177", "/whisper", "", "+1", 5.0)


@pytest.mark.parametrize(
    "twiml",
    [
        b"not xml",
        b"<Answer/>",
        b"<Response><Connect/></Response>",
        b"<Response>" + b" " * 70_000 + b"</Response>",
        b'<Response><Connect><Stream url="wss://h"><Parameter name="a" value="'
        + b"x" * 499
        + b'"/></Stream></Connect></Response>',
    ],
)
def test_what_is_no_twiml_is_refused(twiml: bytes) -> None:
    with pytest.raises(CallRefused):
        read_verbs(twiml)


async def test_the_rest_api_calls_when_a_network_stands_behind_it() -> None:
    async def respond(exchange: Exchange) -> None:
        body = b"<Response><Say>Hello.</Say></Response>"
        await exchange.answer(200, "text/xml", body)

    with trio.fail_after(20):
        async with open_twilio() as twilio, open_http_server(respond) as server:
            async with open_on_standin(twilio, server.url, Account(), {TO: Person()}) as phones:
                client = Client("AC" + "0" * 31 + "1", "standin")
                client.api.base_url = twilio.url
                made = await trio.to_thread.run_sync(
                    lambda: client.calls.create(to=TO, from_=FROM, url=f"{server.url}/voice")
                )
                call = phones.calls[made.sid]
                await call.over.wait()
                assert call.said == ["Hello."]
                assert twilio.calls[made.sid].status == "completed"
                came_in = await phones.call_in(Script(()))
                assert twilio.calls[came_in.sid].direction == "inbound"
