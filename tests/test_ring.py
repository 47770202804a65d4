"""The ring: order is kept, it is bounded, and edges are never lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.ring import FEED_MS, RING_S, Ring
from voicebot.turns import Finalize, SpeechStarted

FRAME = bytes(range(160))


def test_there_is_something_to_take_when_a_message_is_full() -> None:
    ring = Ring()
    for _ in range(FEED_MS // 20):
        assert not ring.ready
        assert ring.put(FRAME) == 0
    assert ring.ready
    assert ring.take() == FRAME * 3
    assert not ring.ready


def test_an_edge_goes_out_behind_the_audio_before_it_however_little_that_is() -> None:
    ring = Ring()
    ring.put(FRAME)
    ring.put(Finalize())
    ring.put(FRAME)
    assert ring.ready
    assert [ring.take(), ring.take()] == [FRAME, Finalize()]
    assert not ring.ready


def test_nothing_to_take_is_a_bug() -> None:
    with pytest.raises(IndexError):
        Ring().take()


@given(
    st.lists(st.one_of(st.integers(1, 300), st.sampled_from(["start", "end", "take"])), max_size=20)
)
def test_order_is_kept_and_only_the_oldest_audio_goes(script: list[int | str]) -> None:
    ring, number = Ring(), 0
    kept: list[object] = []  # a model: what the ring should hold, frame by frame
    lost = 0
    for step in script:
        match step:
            case "start" | "end":
                edge = SpeechStarted(60) if step == "start" else Finalize()
                kept.append(edge)
                assert ring.put(edge) == 0
            case "take":
                if kept:
                    taken = ring.take()
                    frames = len(taken) // 160 if isinstance(taken, bytes) else 1
                    expected, kept = kept[:frames], kept[frames:]
                    if isinstance(taken, bytes):
                        assert [taken[i : i + 160] for i in range(0, len(taken), 160)] == expected
                    else:
                        assert [taken] == expected
            case int():
                for _ in range(step):
                    number += 1
                    frame = number.to_bytes(2, "big") * 80
                    kept.append(frame)
                    if ring.put(frame):
                        lost += 1
                        kept.remove(next(item for item in kept if isinstance(item, bytes)))
    assert sum(isinstance(item, bytes) for item in kept) <= RING_S * 50
    assert ring.finalizes == sum(isinstance(item, Finalize) for item in kept)
    assert lost == 0 or number > RING_S * 50
