"""The pipe to the speech process: messages survive any cutting, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.errors import RemoteProtocolError
from voicebot.local.wire import Decoder, Kind, Message

messages = st.builds(
    Message, st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=300)
)


@given(st.lists(messages, max_size=5), st.integers(1, 50))
def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut(
    sent: list[Message], step: int
) -> None:
    content = b"".join(message.encode() for message in sent)
    decoder = Decoder()

    received = [
        message
        for start in range(0, len(content), step)
        for message in decoder.push(content[start : start + step])
    ]

    assert received == sent


@pytest.mark.parametrize("content", [b"Loading model\n", b"\x06\0\0\0\1\xff\xff\xff\xff"])
def test_bytes_of_something_else_are_refused(content: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="speech_pipe"):
        Decoder().push(content)
