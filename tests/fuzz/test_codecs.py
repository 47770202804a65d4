"""Every codec against well-formed messages that were changed, and against nonsense."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import BINARY, SEEDS, TARGETS, join

#: Inputs for each codec; `many.py` asks for more.
INPUTS = int(os.environ.get("VOICEBOT_FUZZ_INPUTS", "150" if os.environ.get("CI") else "50"))

_NUMBERS = (
    st.integers()
    | st.floats()  # JSON as Python reads it has NaN and infinity
    | st.sampled_from([2**63, -1, 10**400])
)
_TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "1", "01", "-1", "²", "MZ1", "9" * 30, "\ud800", "<think>", "</think>", "é" * 300]
)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value inside a message."""
    if not isinstance(value, dict | list):
        return []
    found = []
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        found += [(*path, key), *_places(one, (*path, key))]
    return found


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _changed(value[path[0]], path[1:], new)
    return copy


@st.composite
def _message(draw: st.DrawFn, seeds: list[Any]) -> bytes:
    kind = draw(st.integers(0, 9))
    if not seeds or kind == 9:
        return draw(st.binary(max_size=40) | st.binary(max_size=40).map(lambda data: BINARY + data))
    if kind == 8:
        return json.dumps(draw(_JSON)).encode("utf-8", "surrogatepass")
    message = draw(st.sampled_from(seeds))
    for _ in range(max(0, kind - 4)):
        message = _changed(message, draw(st.sampled_from(_places(message))), draw(_JSON))
        if not isinstance(message, dict | list) or not _places(message):
            break
    text = json.dumps(message).encode("utf-8", "surrogatepass")
    if kind == 7:
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.binary(max_size=4)) + text[cut:]
    return text


@pytest.mark.parametrize("name", TARGETS)
def test_a_codec_keeps_its_promises_whatever_it_is_given(name: str) -> None:
    @settings(max_examples=INPUTS, suppress_health_check=list(HealthCheck))
    @given(st.lists(_message(SEEDS[name]), max_size=12), st.binary(max_size=8))
    def check(messages: list[bytes], tail: bytes) -> None:
        TARGETS[name](join(name, messages) + tail)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_good_inputs(name: str) -> None:
    TARGETS[name](join(name, [json.dumps(seed).encode() for seed in SEEDS[name]]))


def test_a_stream_of_seeds_is_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzing would prove nothing if its inputs were turned away at the door."""
    from voicebot import twilio

    seen = set()
    receive = twilio.MediaStream.receive

    def spy(self: twilio.MediaStream, message: str | bytes) -> twilio.Event | twilio.Anomaly:
        event = receive(self, message)
        seen.add(type(event))
        return event

    monkeypatch.setattr(twilio.MediaStream, "receive", spy)
    TARGETS["twilio_stream"](
        join("twilio_stream", [json.dumps(seed).encode() for seed in SEEDS["twilio_stream"]])
    )
    assert seen == {
        *(twilio.Connected, twilio.Start, twilio.Media),
        *(twilio.Dtmf, twilio.Mark, twilio.Stop),
    }
