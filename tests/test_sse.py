"""Event streams cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.errors import RemoteProtocolError
from voicebot.sse import MAX_EVENT_BYTES, Decoder, Event


def decode(*chunks: bytes) -> list[Event]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@pytest.mark.parametrize(
    "stream, events",
    [
        pytest.param(b"data: a\n\n", [Event("", "a")], id="plain"),
        pytest.param(b"data:a\n\n", [Event("", "a")], id="no space"),
        pytest.param(b"data:  a\n\n", [Event("", " a")], id="only one space goes"),
        pytest.param(b"data: a\r\n\r\n", [Event("", "a")], id="CR LF"),
        pytest.param(b"data: a\r\rdata: b\r\r", [Event("", "a"), Event("", "b")], id="CR"),
        pytest.param(b"data: a\ndata: b\n\n", [Event("", "a\nb")], id="two lines of data"),
        pytest.param(b"data: a\r\ndata: b\r\n\r\n", [Event("", "a\nb")], id="two, CR LF"),
        pytest.param(b"data\n\n", [Event("", "")], id="field without colon"),
        pytest.param(b"event: error\ndata: a\n\n", [Event("error", "a")], id="named"),
        pytest.param(b": ping\n\ndata: a\n\n", [Event("", "a")], id="comment"),
        pytest.param(b"id: 1\nretry: 5\nx: y\ndata: a\n\n", [Event("", "a")], id="other fields"),
        pytest.param(b"event: x\n\ndata: a\n\n", [Event("", "a")], id="name without data is lost"),
        pytest.param(b"\n\n\n", [], id="blank lines"),
        pytest.param(b"data: a\n", [], id="unfinished event"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [Event("", "a")], id="byte order mark"),
        pytest.param("data: é€😀\n\n".encode(), [Event("", "é€😀")], id="beyond ASCII"),
        pytest.param(b"data: \xff\n\n", [Event("", "\ufffd")], id="invalid UTF-8"),
        pytest.param("data: \u2028\x0b\n\n".encode(), [Event("", "\u2028\x0b")], id="no line end"),
    ],
)  # fmt: skip
def test_stream_in_one_piece_and_byte_by_byte_gives_the_same_events(
    stream: bytes, events: list[Event]
) -> None:
    assert decode(stream) == events
    assert decode(*(bytes([byte]) for byte in stream)) == events
    assert decode(b"", stream, b"") == events


# What one line may hold: anything but a line end, and no lone surrogate, which is not UTF-8.
lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(st.builds(Event, lines, st.lists(lines, min_size=1, max_size=3).map("\n".join))),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_what_is_encoded_comes_back_however_it_is_cut(
    events: list[Event], end: str, data: st.DataObject
) -> None:
    stream = "".join(
        f"event: {event.name}{end}"
        + "".join(f"data: {line}{end}" for line in event.data.split("\n"))
        + end
        for event in events
    ).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == events


@pytest.mark.parametrize(
    "line", [b"data: " + b"x" * 65_536 + b"\n", b"x" * 65_536, b"data:\n" * 65_536]
)
def test_endless_event_is_refused_before_it_fills_the_memory(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="oversized_event"):
        decode(*[line] * (MAX_EVENT_BYTES // 65_536 + 1))
