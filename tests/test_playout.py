"""The ledger: what was heard, whatever marks do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.errors import LocalProtocolError
from voicebot.playout import Cut, Epoch, Ledger, Pacing

E0, E1 = Epoch(3, 0), Epoch(3, 1)
LOUD = bytes([0x10])


def opened(position: int = 0) -> Ledger:
    ledger = Ledger(Pacing(mark_grace_ms=1_000))
    ledger.open(E0, position)
    return ledger


def write(ledger: Ledger, milliseconds: int, now: float, *, mark: bool = False) -> str:
    """Write media, and a mark behind it; return the mark's name."""
    ledger.media_written(ledger.open_epoch or E0, LOUD * milliseconds * 8, now)
    name = ""
    if mark:
        name = ledger.next_mark(ledger.open_epoch or E0)
        ledger.mark_written(ledger.open_epoch or E0, name)
    return name


def test_nothing_written_nothing_heard() -> None:
    ledger = opened(800)
    assert ledger.heard(5.0) == 800
    assert ledger.buffered_s(5.0) == 0.0
    assert ledger.played_out()
    assert not ledger.clear_needed()
    assert ledger.close(5.0, cleared=False) == Cut(800, 0, False)


def test_without_marks_the_clock_says_what_was_heard() -> None:
    ledger = opened()
    write(ledger, 200, 10.0)

    assert ledger.heard(10.0) == 0
    assert ledger.heard(10.05) == 400
    assert ledger.heard(11.0) == 1_600
    assert ledger.buffered_s(10.05) == pytest.approx(0.15)


def test_audio_written_ahead_plays_behind_what_was_there() -> None:
    ledger = opened()
    write(ledger, 100, 10.0)
    write(ledger, 100, 10.0)
    assert ledger.heard(10.15) == 1_200
    assert ledger.underruns == 0


def test_audio_written_too_late_plays_when_it_comes_and_counts_as_underrun() -> None:
    ledger = opened()
    write(ledger, 100, 10.0)
    assert ledger.heard(10.4) == 800
    write(ledger, 100, 10.5)
    assert ledger.heard(10.55) == 1_200
    assert (ledger.underruns, round(ledger.underrun_s, 3)) == (1, 0.4)


def test_mark_names_carry_turn_epoch_and_sequence() -> None:
    ledger = opened()
    assert write(ledger, 20, 0.0, mark=True) == "3.0.1"
    assert write(ledger, 20, 0.0, mark=True) == "3.0.2"


def test_a_mark_not_echoed_holds_the_position_back_until_it_is_overdue() -> None:
    ledger = opened()
    write(ledger, 100, 10.0, mark=True)
    write(ledger, 400, 10.0)

    assert ledger.heard(10.2) == 1_600  # it may be on its way
    assert ledger.heard(10.6) == 1_600
    assert ledger.heard(11.25) == 1_600
    assert ledger.heard(11.35) == 4_000


def test_an_echo_proves_what_came_before_it_even_before_the_clock() -> None:
    ledger = opened()
    name = write(ledger, 500, 10.0, mark=True)
    assert ledger.mark_echoed(name, 10.1)
    assert ledger.heard(10.1) == 4_000
    assert ledger.played_out()
    assert not ledger.clear_needed()


def test_echoes_show_by_how_much_the_caller_runs_behind() -> None:
    ledger = opened()
    first = write(ledger, 100, 10.0, mark=True)
    write(ledger, 900, 10.0)

    ledger.mark_echoed(first, 10.3)  # due at 10.1: 200 ms behind

    assert ledger.heard(10.5) == (500 - 200) * 8
    assert ledger.overdue_at() == pytest.approx(11.0 + 0.2 + 1.0)


def test_one_late_echo_among_prompt_ones_does_not_move_the_clock() -> None:
    ledger = opened()
    names = [write(ledger, 100, 10.0, mark=True) for _ in range(3)]
    write(ledger, 700, 10.0)
    for name, at in zip(names, (10.11, 10.6, 10.61), strict=True):
        ledger.mark_echoed(name, at)
    assert ledger.heard(10.71) == 700 * 8


@pytest.mark.parametrize("name", ["3.0.9", "3.1.1", "2.0.1", "", "x", "3.0.1 "])
def test_unknown_marks_change_nothing(name: str) -> None:
    ledger = opened()
    write(ledger, 100, 10.0, mark=True)
    assert not ledger.mark_echoed(name, 10.01)
    assert ledger.heard(10.01) == 80
    assert ledger.stale_marks == 1


def test_a_mark_echoed_twice_counts_once() -> None:
    ledger = opened()
    name = write(ledger, 100, 10.0, mark=True)
    assert ledger.mark_echoed(name, 10.1)
    assert not ledger.mark_echoed(name, 10.1)


def test_marks_out_of_order_never_move_the_position_back() -> None:
    ledger = opened()
    first, second = (write(ledger, 100, 10.0, mark=True) for _ in range(2))
    assert ledger.mark_echoed(second, 10.2)
    assert not ledger.mark_echoed(first, 10.25)
    assert ledger.heard(10.25) == 1_600


def test_a_mark_that_comes_after_it_was_given_up_does_not_take_back_what_was_told() -> None:
    ledger = opened()
    lost = write(ledger, 100, 10.0, mark=True)
    write(ledger, 3_000, 10.0)
    told = ledger.heard(11.6)
    assert told == 1_600 * 8
    ledger.mark_echoed(lost, 11.6)  # 1.5 s late: the clock now believes in that delay
    assert ledger.heard(11.6) == told


def test_close_freezes_and_the_echoes_of_a_clear_prove_nothing() -> None:
    ledger = opened()
    name = write(ledger, 500, 10.0, mark=True)
    assert ledger.clear_needed()

    assert ledger.close(10.1, cleared=True) == Cut(800, 3_200, True)

    assert ledger.open_epoch is None
    assert not ledger.mark_echoed(name, 10.11)
    ledger.open(E1, 640)
    assert ledger.heard(10.2) == 640
    assert not ledger.mark_echoed(name, 10.21)
    write(ledger, 100, 11.0)
    assert ledger.heard(11.05) == 640 + 400


def test_media_of_a_closed_epoch_is_a_bug() -> None:
    ledger = opened()
    write(ledger, 100, 10.0)
    ledger.close(10.05, cleared=True)
    with pytest.raises(LocalProtocolError, match="is written while"):
        ledger.media_written(E0, LOUD, 10.06)
    ledger.open(E1, 0)
    for write_something in (
        lambda: ledger.media_written(E0, LOUD, 10.06),
        lambda: ledger.next_mark(E0),
        lambda: ledger.mark_written(E0, "3.0.1"),
    ):
        with pytest.raises(LocalProtocolError, match="is written while"):
            write_something()


def test_opening_twice_and_closing_nothing_are_bugs() -> None:
    ledger = opened()
    with pytest.raises(LocalProtocolError, match="opened while"):
        ledger.open(E1, 0)
    ledger.close(0.0, cleared=False)
    with pytest.raises(LocalProtocolError, match="no epoch"):
        ledger.close(0.0, cleared=False)


def test_level_of_what_plays_now() -> None:
    ledger = opened()
    assert ledger.playing_dbov(10.0) == -math.inf
    write(ledger, 40, 10.0)
    ledger.media_written(E0, b"\xff" * 320, 10.0)
    assert ledger.playing_dbov(10.01) > -10
    assert ledger.playing_dbov(10.05) < -90
    assert ledger.playing_dbov(10.09) == -math.inf
    ledger.close(10.02, cleared=True)
    assert ledger.playing_dbov(10.02) == -math.inf


class Player:
    """An independent model of Twilio: when each byte plays, and when each mark is reached."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.runs: list[tuple[float, int]] = []

    def write(self, size: int, at: float) -> None:
        begin = max(at, self.free_at)
        self.runs.append((begin, size))
        self.free_at = begin + size / 8_000

    def played(self, now: float) -> int:
        return sum(min(size, max(0, int((now - begin) * 8_000))) for begin, size in self.runs)


@given(
    st.lists(
        st.tuples(
            st.integers(20, 200),  # ms of audio
            st.floats(0, 0.25),  # pause before writing
            st.booleans(),  # a mark behind it
            st.sampled_from(["prompt", "lost", "late"]),
        ),
        min_size=1,
        max_size=25,
    ),
    st.floats(0, 0.15),  # network, one way
    st.floats(0, 1),  # where to look
)
def test_heard_is_near_the_truth_and_never_goes_back(
    messages: list[tuple[int, float, bool, str]], network: float, look: float
) -> None:
    ledger, player = opened(), Player()
    now, echoes = 100.0, []
    for size_ms, pause, mark, fate in messages:
        now += pause
        name = write(ledger, size_ms, now, mark=mark)
        player.write(size_ms * 8, now + network)
        if mark and fate != "lost":
            delay = network + (0.4 if fate == "late" else 0.0)
            echoes.append((player.free_at + delay, name))
    events = sorted(echoes)
    end = now + look * 4
    before = -1
    for at in sorted({*(at for at, _ in events if at <= end), end}):
        for name in [name for due, name in events if due == at]:
            ledger.mark_echoed(name, at)
        if at < now:
            continue
        heard = ledger.heard(at)
        assert before <= heard <= ledger.written
        # The ledger may be told late (network both ways, late echoes), and it may not know
        # yet that the network is slow; it is never ahead of the truth by more than that.
        assert heard <= player.played(at + 2 * network) + 8
        before = heard
    assert ledger.heard(now + 60) == ledger.written
