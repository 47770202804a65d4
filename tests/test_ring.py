"""The ring: order is kept, it is bounded, edges are never lost, and nothing is told twice."""

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
    assert ring.take() == FRAME * (FEED_MS // 20)
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


# A recogniser that is lost.


def frame(number: int) -> bytes:
    return number.to_bytes(2, "big") * 80


def sent(*items: bytes | SpeechStarted | Finalize) -> Ring:
    """Return a ring all of which a recogniser was sent."""
    ring = Ring()
    for item in items:
        ring.put(item)
    drain(ring)
    return ring


def drain(ring: Ring) -> list[bytes | SpeechStarted | Finalize]:
    """Take all there is, audio frame by frame."""
    taken: list[bytes | SpeechStarted | Finalize] = []
    while True:
        try:
            item = ring.take()
        except IndexError:
            return taken
        if isinstance(item, bytes):
            taken += [item[i : i + 160] for i in range(0, len(item), 160)]
        else:
            taken.append(item)


def test_what_was_not_accounted_for_is_told_again_with_its_edges_and_before_what_waits() -> None:
    start, end = SpeechStarted(60), Finalize()
    ring = sent(frame(0), start, frame(1), end)
    ring.put(frame(2))
    assert ring.rewind() == 0
    assert (ring.finalizes, ring.ready) == (1, True)
    assert drain(ring) == [frame(0), start, frame(1), end, frame(2)]
    assert ring.rewind() == 0  # and lost once more
    assert drain(ring) == [frame(0), start, frame(1), end, frame(2)]


def test_what_was_accounted_for_is_not() -> None:
    ring = sent(*map(frame, range(4)))
    ring.settle(59, finalized=False)  # whole frames only
    ring.rewind()
    assert drain(ring) == [frame(2), frame(3)]
    ring.settle(20, finalized=False)  # of what the next one was sent
    ring.rewind()
    assert drain(ring) == [frame(3)]
    ring.settle(1_000, finalized=False)
    ring.rewind()
    assert drain(ring) == []
    assert not ring.ready


def test_who_does_not_say_up_to_where_means_its_request_or_else_all() -> None:
    ring = sent(frame(0), Finalize(), frame(1), Finalize(), frame(2))
    ring.settle(None, finalized=True)
    ring.rewind()
    assert drain(ring) == [frame(1), Finalize(), frame(2)]
    ring.settle(None, finalized=False)
    ring.rewind()
    assert drain(ring) == []


def test_speech_whose_beginning_was_accounted_for_begins_where_it_is_told_again() -> None:
    ring = sent(frame(0), SpeechStarted(60), frame(1), frame(2))
    ring.settle(40, finalized=False)
    ring.rewind()
    assert drain(ring) == [SpeechStarted(0), frame(2)]
    ring.rewind()
    assert drain(ring) == [SpeechStarted(0), frame(2)]
    ring.put(Finalize())
    drain(ring)
    ring.settle(None, finalized=True)
    ring.put(frame(3))
    ring.rewind()
    assert drain(ring) == [frame(3)]


@pytest.mark.parametrize("speaks", [True, False])
def test_what_was_sent_goes_first_and_costs_what_was_said_in_it_if_the_recogniser_is_lost(
    speaks: bool,
) -> None:
    full, ring = int(RING_S * 50), Ring()
    if speaks:
        ring.put(SpeechStarted(0))
    for number in range(full):
        assert ring.put(frame(number)) == 0
        drain(ring)
        assert ring.put(Finalize() if not speaks else SpeechStarted(0)) == 0
        drain(ring)
    for number in range(full, full + 30):
        assert ring.put(frame(number)) == 0
    assert ring.rewind() == (600 if speaks else 0)
    kept = [item for item in drain(ring) if isinstance(item, bytes)]
    assert kept == [frame(number) for number in range(30, full + 30)]
    assert ring.rewind() == 0


def test_speech_that_was_accounted_for_before_it_had_to_go_costs_nothing() -> None:
    ring = sent(SpeechStarted(0), *map(frame, range(int(RING_S * 50) + 30)))
    for number in range(30):
        ring.put(frame(number))
    ring.settle(5_000, finalized=False)
    assert ring.rewind() == 0


def test_what_had_to_go_is_not_accounted_for_by_an_answer_about_what_was_before() -> None:
    ring = sent(SpeechStarted(0), *map(frame, range(int(RING_S * 50) + 30)))
    for number in range(30):
        ring.put(frame(number))
    ring.settle(400, finalized=False)  # of the 600 ms
    assert ring.rewind() == 600


@given(
    st.lists(
        st.one_of(
            st.integers(1, 40),
            st.sampled_from(["start", "end", "take", "take", "lost"]),
            st.floats(0, 1),
        ),
        max_size=40,
    )
)
def test_all_audio_is_accounted_for_once_however_often_it_is_told(
    script: list[int | str | float],
) -> None:
    ring, number = Ring(), 0
    heard: list[bytes] = []  # what one recogniser after the other has accounted for
    told: list[bytes] = []  # to this one
    settled = 0  # of that
    for step in script:
        match step:
            case int():
                for _ in range(min(step, 499 - number)):
                    ring.put(frame(number))
                    number += 1
            case "start" | "end":
                ring.put(SpeechStarted(0) if step == "start" else Finalize())
            case "take":
                told += [item for item in drain(ring) if isinstance(item, bytes)]
            case float():
                upto = max(settled, round(len(told) * step))
                heard, settled = heard + told[settled:upto], upto
                ring.settle(upto * 20, finalized=False)
            case _:
                assert ring.rewind() == 0
                told, settled = [], 0
    ring.rewind()
    rest = [item for item in drain(ring) if isinstance(item, bytes)]
    assert heard + rest == [frame(i) for i in range(number)]
