"""The Media Streams codec against the documented messages, and against nonsense."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot import twilio
from voicebot.errors import RemoteProtocolError

# Source: twilio.com/docs/voice/media-streams/websocket-messages, shapes verbatim.
CONNECTED = '{"event":"connected","protocol":"Call","version":"1.0.0"}'
START = (
    '{"event":"start","sequenceNumber":"1","start":{"accountSid":"AC1","streamSid":"MZ1",'
    '"callSid":"CA1","tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw",'
    '"sampleRate":8000,"channels":1},"customParameters":{"k":"v"}},"streamSid":"MZ1"}'
)
MEDIA = (
    '{"event":"media","sequenceNumber":"3","media":{"track":"inbound","chunk":"1",'
    '"timestamp":"5","payload":"//8="},"streamSid":"MZ1"}'
)
DTMF = (
    '{"event":"dtmf","streamSid":"MZ1","sequenceNumber":"5",'
    '"dtmf":{"track":"inbound_track","digit":"1"}}'
)
MARK = '{"event":"mark","sequenceNumber":"4","streamSid":"MZ1","mark":{"name":"m"}}'
STOP = (
    '{"event":"stop","sequenceNumber":"5","stop":{"accountSid":"AC1","callSid":"CA1"},'
    '"streamSid":"MZ1"}'
)


MEDIA_EVENT = twilio.Media(5, b"\xff\xff")


def started() -> twilio.MediaStream:
    stream = twilio.MediaStream()
    stream.receive(CONNECTED)
    stream.receive(START)
    return stream


def changed(message: str, path: str, value: Any) -> str:
    """Return the message with one field set, or taken away where the value is `...`."""
    fields = json.loads(message)
    *parents, last = path.split(".")
    node = fields
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return json.dumps(fields)


def test_documented_messages_in_order() -> None:
    stream = twilio.MediaStream()

    assert stream.receive(CONNECTED) == twilio.Connected("Call", "1.0.0")
    assert stream.receive(START) == twilio.Start("MZ1", "CA1", "AC1", {"k": "v"})
    assert stream.receive(MEDIA) == twilio.Media(5, b"\xff\xff")
    assert stream.receive(MARK) == twilio.Mark("m")
    assert stream.receive(DTMF) == twilio.Dtmf("1")
    assert stream.receive(changed(STOP, "sequenceNumber", "6")) == twilio.Stop()


def test_start_without_custom_parameters_or_format() -> None:
    stream = twilio.MediaStream()
    message = changed(changed(START, "start.customParameters", ...), "start.mediaFormat", ...)
    assert stream.receive(message) == twilio.Start("MZ1", "CA1", "AC1", {})


@pytest.mark.parametrize(
    "message,kind",
    [
        (b"{}", "binary_message"),
        ("{", "not_json"),
        ("[" * 5_000, "not_json"),
        ("[]", "not_an_object"),
        ("{}", "unknown_event"),
        ('{"event":"other"}', "unknown_event"),
        (CONNECTED, "late_connected"),
        (changed(MEDIA, "streamSid", "MZ2"), "wrong_stream_sid"),
        (changed(MEDIA, "streamSid", ...), "wrong_stream_sid"),
        (changed(MARK, "streamSid", "MZ2"), "wrong_stream_sid"),
        (changed(DTMF, "streamSid", "MZ2"), "wrong_stream_sid"),
        (changed(MEDIA, "media", "x"), "missing_field"),
        (changed(MEDIA, "media.payload", ...), "missing_field"),
        (changed(MEDIA, "media.payload", "?"), "bad_base64"),
        (changed(MEDIA, "media.payload", "//8"), "bad_base64"),
        (changed(MEDIA, "media.payload", "é///"), "bad_base64"),
        (changed(MEDIA, "media.payload", ""), "empty_media"),
        (changed(MEDIA, "media.payload", "/" * 60_000), "oversized_media"),
        (changed(MEDIA, "media.timestamp", 5), "missing_field"),
        (changed(MEDIA, "media.timestamp", "²"), "missing_field"),
        (changed(MEDIA, "media.timestamp", "-1"), "missing_field"),
        (changed(MEDIA, "media.track", "outbound"), "foreign_track"),
        (changed(MARK, "mark.name", ""), "missing_field"),
        (changed(MARK, "mark.name", "x" * 201), "missing_field"),
        (changed(DTMF, "dtmf.digit", "12"), "bad_digit"),
        (changed(DTMF, "dtmf.digit", "x"), "bad_digit"),
    ],
)
def test_what_a_stream_survives(message: str | bytes, kind: str) -> None:
    stream = started()

    anomaly = stream.receive(message)

    assert isinstance(anomaly, twilio.Anomaly)
    assert anomaly.kind == kind
    assert stream.receive(MEDIA) == twilio.Media(5, b"\xff\xff")


@pytest.mark.parametrize(
    "message,kind",
    [(MEDIA, "media_before_start"), (MARK, "mark_before_start"), (DTMF, "dtmf_before_start")],
)
def test_nothing_counts_before_start(message: str, kind: str) -> None:
    stream = twilio.MediaStream()
    assert stream.receive(message) == twilio.Anomaly(kind)
    assert stream.start is None


@pytest.mark.parametrize("path", ["start.streamSid", "start.callSid", "start.accountSid", "start"])
def test_start_with_a_field_missing_does_not_start(path: str) -> None:
    stream = twilio.MediaStream()
    anomaly = stream.receive(changed(START, path, ...))
    assert isinstance(anomaly, twilio.Anomaly)
    assert anomaly.kind == "missing_field"
    assert stream.start is None


def test_start_with_another_audio_format_does_not_start() -> None:
    stream = twilio.MediaStream()
    anomaly = stream.receive(changed(START, "start.mediaFormat.sampleRate", 16_000))
    assert isinstance(anomaly, twilio.Anomaly)
    assert anomaly.kind == "unsupported_media_format"


def test_a_second_start_is_fatal() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        started().receive(START)
    assert (caught.value.kind, caught.value.close_code) == ("second_start", 1008)


def test_what_is_out_of_order_neither_starts_nor_ends_a_stream() -> None:
    stream = twilio.MediaStream()
    stream.receive(STOP)  # number 5, before any start
    early = stream.receive(START)
    assert isinstance(early, twilio.Anomaly)
    assert (early.kind, stream.start) == ("out_of_order", None)

    stream = started()
    late = stream.receive(changed(STOP, "sequenceNumber", "1"))
    assert isinstance(late, twilio.Anomaly)
    assert (late.kind, stream.ended) == ("out_of_order", False)


@pytest.mark.parametrize("message", ["x" * 70_000, b"x" * 70_000])
def test_an_oversized_message_is_fatal(message: str | bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        started().receive(message)
    assert (caught.value.kind, caught.value.close_code) == ("oversized_message", 1009)


LONG = 65_000


@pytest.mark.parametrize(
    "message,kind",
    [
        ("[" * LONG, "not_json"),
        ('{"a":' * (LONG // 5), "not_json"),
        ("[" * (LONG // 2) + "]" * (LONG // 2), "not_json"),  # deeper than Python goes
        (f'{{"event":"x","a":{"[" * 90}{"]" * 90}}}', "too_deep"),
        (changed(MEDIA, "media.x", [[[[[[[1]]]]]]]), "too_deep"),
        (f'{{"event":{"9" * LONG}}}', "not_json"),
        (f'{{"event":-{"9" * LONG}}}', "not_json"),
        (f'{{"event":0.{"9" * LONG}}}', "not_json"),
        (f'{{"event":1e{"9" * LONG}}}', "not_json"),
        ('{"event":NaN}', "not_json"),
        ('{"event":-Infinity}', "not_json"),
        ('{"event":"x"' + ',"event":"x"' * (LONG // 12) + "}", "unknown_event"),
        ("{" + ",".join(f'"{n}":[]' for n in range(6_000)) + "}", "unknown_event"),
        ('{"event":"mark","streamSid":"MZ1","mark":{"name":"\\ud800"}}', "missing_field"),
        ('{"event":"\\ud800"}', "unknown_event"),
        ('{"event":"' + "\\ud83d" * (LONG // 6) + '"}', "unknown_event"),
        ("\\" * LONG, "not_json"),
        ('"' + "\\u" * (LONG // 2), "not_json"),
    ],
)
def test_json_that_is_meant_to_cost_is_an_anomaly(message: str, kind: str) -> None:
    stream = started()
    anomaly = stream.receive(message)
    assert isinstance(anomaly, twilio.Anomaly)
    assert anomaly.kind == kind
    assert len(anomaly.detail) <= 200
    json.dumps(anomaly.detail, ensure_ascii=False).encode()  # as the log does
    assert stream.receive(MEDIA) == twilio.Media(5, b"\xff\xff")


def test_what_is_as_deep_as_it_may_be_counts() -> None:
    assert started().receive(changed(MEDIA, "media.x", [[[[[[1]]]]]])) == MEDIA_EVENT
    brackets = "[{" * 50  # in a text they have no depth
    assert started().receive(changed(MEDIA, "media.x", brackets)) == MEDIA_EVENT


def test_of_a_name_that_comes_twice_the_last_counts() -> None:
    twice = MEDIA.replace('"payload":"//8="', '"payload":"AAAA","payload":"//8="')
    assert started().receive(twice) == MEDIA_EVENT


def test_parameters_can_be_written_whatever_they_are() -> None:
    message = changed(START, "start.customParameters", {"k\ud800": "v\udfff", "n": 7})
    start = twilio.MediaStream().receive(message)
    assert isinstance(start, twilio.Start)
    assert start.parameters == {"k?": "v?", "n": "7"}


def test_nothing_counts_after_stop() -> None:
    stream = started()
    stream.receive(STOP)
    assert stream.ended
    assert stream.receive(STOP) == twilio.Anomaly("after_stop", "stop")
    assert stream.receive(changed(MEDIA, "sequenceNumber", "9")) == twilio.Anomaly(
        "after_stop", "media"
    )


def test_a_sequence_that_goes_back_is_an_anomaly() -> None:
    stream = started()
    stream.receive(changed(MEDIA, "sequenceNumber", "7"))
    assert stream.receive(MEDIA) == twilio.Anomaly("out_of_order", "3 after 7")
    assert stream.receive(changed(MEDIA, "sequenceNumber", "8")) == twilio.Media(5, b"\xff\xff")


@pytest.mark.parametrize("number", [..., 7, "x", "9" * 20])
def test_a_message_without_a_usable_sequence_number_counts(number: Any) -> None:
    assert started().receive(changed(MEDIA, "sequenceNumber", number)) == twilio.Media(
        5, b"\xff\xff"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


@given(st.text() | st.binary() | JSON.map(json.dumps))
def test_nonsense_is_an_anomaly_and_never_an_error(message: str | bytes) -> None:
    assert isinstance(started().receive(message), twilio.Anomaly)


@given(
    st.sampled_from(["start", "media", "mark", "dtmf", "stop", "connected"]),
    st.dictionaries(
        st.sampled_from(["media", "mark", "dtmf", "start", "streamSid", "sequenceNumber"]),
        JSON | st.dictionaries(st.sampled_from(["payload", "timestamp", "name", "digit"]), JSON),
    ),
)
def test_known_events_with_any_fields_are_never_an_error(
    event: str, fields: dict[str, Any]
) -> None:
    twilio.MediaStream().receive(json.dumps({**fields, "event": event}))


# To Twilio: exactly these fields, or Twilio answers with warning 31951.


@given(st.binary(min_size=1, max_size=500))
def test_encode_media(audio: bytes) -> None:
    assert json.loads(twilio.encode("MZ1", twilio.SendMedia(audio))) == {
        "event": "media",
        "streamSid": "MZ1",
        "media": {"payload": base64.b64encode(audio).decode()},
    }


def test_encode_mark_and_clear() -> None:
    assert json.loads(twilio.encode("MZ1", twilio.SendMark("1.0.2"))) == {
        "event": "mark",
        "streamSid": "MZ1",
        "mark": {"name": "1.0.2"},
    }
    assert json.loads(twilio.encode("MZ1", twilio.SendClear())) == {
        "event": "clear",
        "streamSid": "MZ1",
    }
