"""Calls that the server places, puts through, and takes back: what Twilio is told, and tells."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
import trio

from tests.test_http import (
    FROM,
    JSON,
    LOCAL,
    PUBLIC,
    TO,
    TWILIO,
    Running,
    parameter,
    running,
)
from tests.twilio_rest import ACCOUNT_SID, CALL_SID
from voicebot import switchboard
from voicebot.config import load
from voicebot.idempotency import KEEP_S, REMEMBERED, Idempotency, InProgress, KeyReused
from voicebot.onward import AWAY_S, KEPT, Onward
from voicebot.outbound import METADATA_BYTES, OutboundCall, read_call
from voicebot.parting import Ending, Resumption
from voicebot.ports import Message, ToolCall
from voicebot.record import Outcome

SETTINGS = load({"TWILIO_FROM_NUMBER": FROM})
HUMAN = "+15550100777"


async def post(service: Running, body: dict[str, Any], **headers: str) -> Any:
    async with service.client(LOCAL, headers) as client:
        return await client.post("/calls", json=body)


# What may be asked.


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("metadata", ["x"], "must be a JSON object"),
        ("metadata", {"x": "y" * METADATA_BYTES}, "are allowed"),
        ("ring_timeout_s", 4, "from 5 to 600"),
        ("ring_timeout_s", True, "from 5 to 600"),
        ("ring_timeout_s", "30", "from 5 to 600"),
        ("machine_detection", "maybe", "off, before or during"),
        ("machine_detection", [], "off, before or during"),
        ("voicemail", 5, "must be text"),
        ("voicemail", "x" * 1_001, "longer than"),
        ("answer", 5, "is not a known field"),
    ],
)
def test_each_field_says_what_is_wrong_with_it(field: str, value: object, said: str) -> None:
    problems = read_call({"to": TO, field: value}, SETTINGS)
    assert isinstance(problems, dict)
    assert list(problems) == [field]
    assert said in problems[field]


def test_a_message_for_a_machine_needs_to_know_one() -> None:
    call = read_call({"to": TO, "voicemail": "Hello."}, SETTINGS)
    assert call == OutboundCall(TO, FROM, machine_detection="during", voicemail="Hello.")
    refused = read_call({"to": TO, "voicemail": "x", "machine_detection": "off"}, SETTINGS)
    assert refused == {"voicemail": "needs machine_detection, which is off"}


# What Twilio is told.


async def test_options_reach_twilio_and_metadata_stays_here() -> None:
    body = {"to": TO, "metadata": {"name": "Ada"}, "ring_timeout_s": 20, "voicemail": "Hello."}
    async with running(**TWILIO) as service:
        assert (await post(service, body)).status_code == 201
        async with service.client(LOCAL) as client:
            record = (await client.get(f"/calls/{CALL_SID}")).json()
        [asked] = service.twilio.asked
    assert asked.form["Timeout"] == ["20"]
    assert asked.form["MachineDetection"] == ["DetectMessageEnd"]
    assert asked.form["AsyncAmd"] == ["true"]
    assert asked.form["AsyncAmdStatusCallback"] == [f"{PUBLIC}/twilio/amd"]
    assert record["metadata"] == {"name": "Ada"}
    assert "Ada" not in str(asked.form)


async def test_detection_before_the_bot_speaks_is_not_async() -> None:
    async with running(**TWILIO) as service:
        await post(service, {"to": TO, "machine_detection": "before"})
        [asked] = service.twilio.asked
    assert asked.form["MachineDetection"] == ["Enable"]
    assert "AsyncAmd" not in asked.form


async def test_an_answered_call_is_known_before_twilio_has_said_its_name() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="1") as service:
        asked = OutboundCall(TO, FROM, {"name": "Ada"})
        key = service.board.dial(asked)
        answer = await service.webhook(f"/twilio/voice?dial={key}", Direction="outbound-api")
        assert parameter(answer.text)
        assert service.board.asked(CALL_SID) is asked
        service.board.dialled(key, CALL_SID)  # now Twilio's answer is here, too
        service.board.undial(key)
        assert service.board.asked(CALL_SID) is asked
        assert service.board.lines.taken(trio.current_time()) == 1
        await service.webhook("/twilio/status", CallStatus="completed", SequenceNumber="3")
        assert service.board.asked(CALL_SID) is None


async def test_a_call_that_was_refused_leaves_nothing_behind() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="1") as service:
        service.twilio.refuse(400, 21211)
        for _ in range(2):
            assert (await post(service, {"to": TO})).status_code == 400
        assert service.board.lines.taken(trio.current_time()) == 0


# The same request twice.


async def test_the_same_key_places_one_call() -> None:
    async with running(**TWILIO) as service:
        first = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        again = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        other = await post(service, {"to": HUMAN}, **{"Idempotency-Key": "k"})
        assert (first.status_code, again.status_code, other.status_code) == (201, 201, 422)
        assert again.json() == first.json()
        assert again.headers["Idempotency-Replayed"] == "true"
        assert len(service.twilio.asked) == 1
        assert (await post(service, {"to": TO}, **{"Idempotency-Key": ""})).status_code == 400


async def test_what_twilio_has_refused_may_be_asked_again() -> None:
    async with running(**TWILIO) as service:
        service.twilio.refuse(429, 20429)
        refused = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        service.twilio.status, service.twilio.answer = 201, {"sid": CALL_SID, "status": "queued"}
        placed = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
    assert (refused.status_code, placed.status_code) == (429, 201)


@pytest.mark.parametrize("status, code", [(401, 20003), (404, 20404)])
async def test_a_refusal_that_is_our_fault_may_be_asked_again(status: int, code: int) -> None:
    async with running(**TWILIO) as service:
        service.twilio.refuse(status, code)
        refused = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        service.twilio.status, service.twilio.answer = 201, {"sid": CALL_SID, "status": "queued"}
        placed = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
    assert (refused.status_code, placed.status_code) == (502, 201)


async def test_full_lines_are_no_answer_for_a_day() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="1") as service:
        line = service.board.dial(OutboundCall(TO, FROM))
        busy = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        service.board.undial(line)
        placed = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
    assert (busy.status_code, placed.status_code) == (503, 201)


async def test_a_client_that_goes_while_twilio_is_asked_does_not_free_its_key() -> None:
    async with running(**TWILIO) as service:
        service.twilio.answer = None  # never answers
        with trio.move_on_after(0.5):
            await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        known = None
        while known is None:
            await trio.sleep(0.02)
            again = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
            known = again if again.status_code != 409 else None
    assert known.status_code == 504
    assert "may have been placed" in known.text
    assert len(service.twilio.asked) == 1


async def test_requests_whose_end_is_never_told_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(switchboard, "ASKED", 2)
    async with running(**TWILIO) as service:
        for number in range(4):
            service.board.dialled(service.board.dial(OutboundCall(TO, FROM)), f"CA{number}")
        known = [service.board.asked(f"CA{number}") is not None for number in range(4)]
    assert known == [False, False, True, True]


async def test_what_may_have_been_placed_is_not_placed_again() -> None:
    async with running(**TWILIO) as service:
        service.twilio.status, service.twilio.answer = 201, "nonsense"
        first = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        again = await post(service, {"to": TO}, **{"Idempotency-Key": "k"})
        assert (first.status_code, again.status_code) == (502, 502)
        assert again.json() == first.json()
        assert len(service.twilio.asked) == 1


def test_keys_are_forgotten_after_a_day_and_when_there_are_too_many() -> None:
    known = Idempotency()
    assert known.begin("a", b"1", 0.0) is None
    with pytest.raises(InProgress):
        known.begin("a", b"1", 1.0)
    known.end("a", ({"n": 1}, 201))
    assert known.begin("a", b"1", KEEP_S - 1) == ({"n": 1}, 201)
    with pytest.raises(KeyReused):
        known.begin("a", b"2", KEEP_S - 1)
    assert known.begin("a", b"2", KEEP_S) is None
    known.end("a", ({}, 201))
    for number in range(REMEMBERED):
        known.begin(str(number), b"", KEEP_S)
    assert known.begin("a", b"2", KEEP_S) is None
    known.end("gone", ({}, 201))  # as one that was forgotten meanwhile
    assert known.begin("gone", b"", KEEP_S) is None


# Answering machines.


async def test_who_answered_is_on_record_and_told_to_the_service() -> None:
    async with running(**TWILIO) as service:
        await service.webhook("/twilio/voice")
        noted = await service.webhook("/twilio/amd", AnsweredBy="human")
        async with service.client(LOCAL) as client:
            record = (await client.get(f"/calls/{CALL_SID}")).json()
    assert noted.status_code == 204
    assert record["answered_by"] == "human"


@pytest.mark.parametrize("who", ["machine_start", "fax"])
async def test_a_machine_that_nobody_has_a_message_for_is_hung_up_on(who: str) -> None:
    async with running(**TWILIO) as service:
        answer = await service.webhook("/twilio/voice", AnsweredBy=who)
        assert [verb.tag for verb in ET.fromstring(answer.text)] == ["Hangup"]
        assert service.board.lines.taken(trio.current_time()) == 0


async def test_a_machine_with_a_message_for_it_gets_the_stream() -> None:
    async with running(**TWILIO) as service:
        key = service.board.dial(OutboundCall(TO, FROM, voicemail="Hello."))
        path = f"/twilio/voice?dial={key}"
        answer = await service.webhook(
            path, AnsweredBy="machine_end_beep", Direction="outbound-api"
        )
        assert parameter(answer.text)


# Away and back.

HISTORY = (
    Message("user", "a person please"),
    Message("assistant", "One moment.", (ToolCall("t1", "transfer", "{}"),)),
    Message("tool", "being put through", tool_call_id="t1"),
    Message("assistant", "I am putting you through."),
)
SO_FAR = Resumption(HISTORY, 2, 30.0)


def transfer(**more: str) -> Ending:
    return Ending(Outcome.TRANSFERRED, {"to": HUMAN, **more}, "t1", SO_FAR)


async def test_a_stream_that_ends_for_good_ends_the_call() -> None:
    async with running(**TWILIO) as service:
        answer = await service.webhook("/twilio/after-stream")
    assert [verb.tag for verb in ET.fromstring(answer.text)] == ["Hangup"]


async def test_a_caller_is_put_through_and_the_callee_told_whom_they_get() -> None:
    async with running(**TWILIO) as service:
        now = trio.current_time()
        service.board.onward.leave(CALL_SID, transfer(summary="Ada, a refund."), now)
        answer = ET.fromstring((await service.webhook("/twilio/after-stream")).text)
        dial, number = answer.find("Dial"), answer.find("Dial/Number")
        assert dial is not None
        assert number is not None
        assert dial.attrib["action"] == f"{PUBLIC}/twilio/after-dial"
        assert number.text == HUMAN
        whispered = await service.webhook(number.attrib["url"].removeprefix(PUBLIC))
        assert "Ada, a refund." in whispered.text
        over = await service.webhook("/twilio/after-dial", DialCallStatus="completed")
        assert [verb.tag for verb in ET.fromstring(over.text)] == ["Hangup"]
        again = await service.webhook("/twilio/after-dial", DialCallStatus="busy")
        assert [verb.tag for verb in ET.fromstring(again.text)] == ["Hangup"]


async def test_nobody_is_told_anything_where_there_is_nothing_to_tell() -> None:
    async with running(**TWILIO) as service:
        service.board.onward.leave(CALL_SID, transfer(), trio.current_time())
        answer = ET.fromstring((await service.webhook("/twilio/after-stream")).text)
        number = answer.find("Dial/Number")
        assert number is not None
        assert "url" not in number.attrib
        assert "<Say" not in (await service.webhook("/twilio/whisper?call=CAother")).text


async def test_a_caller_whom_nobody_takes_is_back_in_the_same_conversation() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="1") as service:
        first = parameter((await service.webhook("/twilio/voice")).text)
        service.board.redeem(first, CALL_SID, ACCOUNT_SID)
        with service.board.live(CALL_SID):
            service.board.onward.leave(CALL_SID, transfer(), trio.current_time())
        await service.webhook("/twilio/after-stream")
        assert service.board.onward.come_back(CALL_SID, 0.0) is None  # not yet
        service.board.onward.leave(CALL_SID, transfer(), trio.current_time())
        back = await service.webhook("/twilio/after-dial", DialCallStatus="no-answer")
        same = await service.webhook("/twilio/after-dial", DialCallStatus="no-answer")
        assert parameter(back.text) == parameter(same.text) != first
        service.board.redeem(parameter(back.text), CALL_SID, ACCOUNT_SID)
        back_again = service.board.onward.come_back(CALL_SID, trio.current_time() + 5)
        assert back_again is not None
        assert back_again.turns == 2
        assert back_again.elapsed_s > 35.0
        assert [message.content for message in back_again.history] == [
            "a person please",
            "One moment.",
            "nobody took the call (no-answer); you are talking to the caller again: tell them",
            "I am putting you through.",
        ]


async def test_keys_are_pressed_between_two_streams() -> None:
    async with running(**TWILIO) as service:
        ending = Ending(Outcome.PRESSING_KEYS, {"digits": "ww12#"}, "t1", SO_FAR)
        service.board.onward.leave(CALL_SID, ending, trio.current_time())
        answer = ET.fromstring((await service.webhook("/twilio/after-stream")).text)
        assert [verb.tag for verb in answer] == ["Play", "Connect"]
        assert answer[0].attrib == {"digits": "ww12#"}
        back = service.board.onward.come_back(CALL_SID, trio.current_time())
        assert back is not None
        assert back.history[2].content == "the keys were pressed"


async def test_a_caller_who_comes_back_to_full_lines_is_told() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="1") as service:
        service.board.onward.leave(CALL_SID, transfer(), trio.current_time())
        other = "CA" + "7" * 32
        parameter((await service.webhook("/twilio/voice", CallSid=other)).text)
        back = await service.webhook("/twilio/after-dial", DialCallStatus="busy")
        assert "busy" in back.text


def test_calls_that_never_come_back_are_forgotten() -> None:
    onward = Onward()
    onward.leave("old", transfer(), 0.0)
    onward.leave("new", transfer(), AWAY_S)
    assert (onward.ending("old"), onward.ending("new")) == (None, transfer())
    for number in range(KEPT):
        onward.leave(str(number), transfer(), AWAY_S)
    assert onward.ending("new") is None
    assert onward.ending("0") is not None


async def test_a_live_call_is_given_to_somebody_else() -> None:
    async with running(**TWILIO) as service:
        await service.webhook("/twilio/voice")
        path = f"/calls/{CALL_SID}/redirect"
        async with service.client(LOCAL) as client:
            bad = [
                await client.post(path, content=body, headers=JSON)
                for body in ("{}", '{"to": "5"}', '{"to": "+15550100777", "x": 1}', "no")
            ]
            unknown = await client.post("/calls/CAx/redirect", json={"to": HUMAN})
            service.twilio.status = 200
            done = await client.post(path, json={"to": HUMAN})
        assert [answer.status_code for answer in bad] == [400] * 4
        assert (unknown.status_code, done.status_code) == (404, 200)
        [asked] = service.twilio.asked
        assert HUMAN in asked.form["Twiml"][0]
