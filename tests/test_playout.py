"""The ledger: what was heard, whatever marks do."""

from __future__ import annotations

import heapq
import math
import random

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
    assert ledger.buffered_s(10.3) == 0.0


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


def test_audio_written_in_the_moment_in_which_the_last_ends_is_no_underrun() -> None:
    ledger = opened()
    write(ledger, 125, 10.0)
    write(ledger, 125, 10.125)
    assert (ledger.underruns, ledger.underrun_s) == (0, 0.0)


def test_what_is_playing_is_by_the_clock_and_changes_nothing() -> None:
    ledger = opened(position=800)
    assert ledger.playing(10.0) == 800
    name = write(ledger, 300, 10.0, mark=True)
    write(ledger, 300, 10.1)
    assert ledger.playing(10.05) == 800 + 50 * 8
    assert ledger.playing(99.0) == 800 + 600 * 8
    ledger.mark_echoed(name, 10.4)  # a hundred behind
    assert ledger.playing(10.5) == 800 + 400 * 8
    assert ledger.close(10.2, cleared=True).heard < 800 + 400 * 8


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


@pytest.mark.parametrize("following", [Epoch(3, 1), Epoch(4, 0)])
def test_a_late_echo_proves_nothing_about_the_next_epoch(following: Epoch) -> None:
    ledger = opened()
    name = write(ledger, 500, 10.0, mark=True)
    ledger.close(10.1, cleared=True)
    ledger.open(following, 0)
    write(ledger, 500, 10.2, mark=True)

    assert not ledger.mark_echoed(name, 10.21)

    assert ledger.heard(10.25) == 50 * 8
    assert not ledger.played_out()


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
    write(ledger, 20, 10.08)
    assert ledger.playing_dbov(10.09) > -10
    ledger.close(10.02, cleared=True)
    assert ledger.playing_dbov(10.02) == -math.inf


# A clear that is written now stops Twilio where the clock is, less the lag.


def marked(ledger: Ledger, begin: float, *, every_ms: int, total_ms: int) -> list[str]:
    """Write audio that plays without a gap from `begin`, a mark behind each part of it."""
    return [write(ledger, every_ms, begin, mark=True) for _ in range(total_ms // every_ms)]


def test_a_slow_network_does_not_move_where_a_clear_stops() -> None:
    """Media and clear travel alike: what the echoes are late by is the way, and no lag."""
    ledger = opened()
    names = marked(ledger, 10.0, every_ms=100, total_ms=1_000)
    for i, name in enumerate(names[:4]):
        ledger.mark_echoed(name, 10.1 + 0.1 * i + 0.25)  # 250 ms there and back

    assert ledger.heard(10.65) == 400 * 8  # of what was heard when the last echo was sent
    assert ledger.close(10.65, cleared=True).heard == 650 * 8


def test_a_listener_who_lags_behind_the_clock_heard_less_when_cleared() -> None:
    ledger = opened()
    names = marked(ledger, 10.0, every_ms=100, total_ms=1_000)
    ledger.mark_echoed(names[0], 10.1 + 0.1)  # the round trip, from then on known
    ledger.close(10.2, cleared=True)
    ledger.open(E1, 0)
    names = marked(ledger, 20.0, every_ms=100, total_ms=1_000)
    for i, name in enumerate(names[:4]):
        ledger.mark_echoed(name, 20.1 + 0.1 * i + 0.1 + 0.3)  # Twilio began 300 ms late

    assert ledger.close(20.81, cleared=True).heard == 510 * 8


def test_the_smallest_round_trip_of_the_call_is_the_round_trip() -> None:
    ledger = opened()
    names = marked(ledger, 10.0, every_ms=100, total_ms=1_000)
    for i, delay in enumerate((0.3, 0.1, 0.3, 0.3)):
        ledger.mark_echoed(names[i], 10.1 + 0.1 * i + delay)
    ledger.close(10.9, cleared=True)
    ledger.open(E1, 0)
    names = marked(ledger, 20.0, every_ms=100, total_ms=1_000)
    for i, name in enumerate(names[:4]):
        ledger.mark_echoed(name, 20.1 + 0.1 * i + 0.8)

    # 800 ms behind the clock, of which 100 are the way.
    assert ledger.close(21.21, cleared=True).heard == (1_210 - 700) * 8


def test_lag_ends_with_the_run_it_was_measured_in() -> None:
    ledger = opened()
    first = write(ledger, 200, 10.0, mark=True)
    ledger.mark_echoed(first, 10.2 + 0.1)
    second = write(ledger, 200, 10.2, mark=True)
    ledger.mark_echoed(second, 10.4 + 0.1 + 0.3)  # Twilio ran dry for a while
    write(ledger, 400, 11.0)  # and starts anew with what comes after a pause

    assert ledger.heard(11.3) == (400 + 200) * 8
    assert ledger.close(11.3, cleared=True).heard == (400 + 300) * 8


def test_until_an_echo_of_a_run_is_there_the_round_trip_is_what_an_echo_takes() -> None:
    ledger = opened()
    first = write(ledger, 200, 10.0, mark=True)
    ledger.mark_echoed(first, 10.3)
    ledger.close(10.3, cleared=False)
    ledger.open(E1, 0)
    write(ledger, 400, 20.0)

    assert ledger.heard(20.3) == 200 * 8
    assert ledger.overdue_at() == pytest.approx(20.4 + 0.1 + 1.0)
    assert ledger.playing_dbov(20.05) > -10
    assert ledger.playing_dbov(20.45) > -10  # it hears the end of it at 20.5
    assert ledger.playing_dbov(20.55) == -math.inf


@pytest.mark.parametrize("lost", ["never echoed", "overtaken"])
def test_in_a_call_that_loses_marks_a_missing_echo_proves_nothing(lost: str) -> None:
    ledger = opened()
    first, second = (write(ledger, 100, 10.0, mark=True) for _ in range(2))
    if lost == "overtaken":
        assert ledger.mark_echoed(second, 10.2)
        assert not ledger.mark_echoed(first, 10.2)
    else:
        assert ledger.heard(11.4) == 200 * 8  # both are overdue by a second and more
    ledger.close(11.4, cleared=False)
    ledger.open(E1, 0)
    write(ledger, 100, 20.0, mark=True)
    write(ledger, 900, 20.0)

    assert ledger.heard(20.9) > 600 * 8


def test_in_a_call_that_loses_none_a_missing_echo_holds_the_clock() -> None:
    ledger = opened()
    first, second = (write(ledger, 100, 10.0, mark=True) for _ in range(2))
    ledger.mark_echoed(first, 10.1)
    ledger.mark_echoed(second, 10.2)
    write(ledger, 100, 10.2, mark=True)
    write(ledger, 900, 10.2)

    assert ledger.heard(10.9) == 300 * 8
    assert ledger.close(10.9, cleared=True).heard == 300 * 8


def test_a_mark_is_waited_for_no_longer_than_its_grace() -> None:
    ledger = opened()
    write(ledger, 100, 10.0, mark=True)
    write(ledger, 2_900, 10.0)

    assert ledger.heard(11.299) == 100 * 8
    assert ledger.heard(11.3) == 1_300 * 8


def test_the_first_mark_of_a_call_is_not_late_before_the_round_trip_is_known() -> None:
    """A network that takes 100 ms each way; the caller speaks into the greeting's third word."""
    ledger = opened()
    write(ledger, 240, 10.0, mark=True)  # its echo comes at 10.44
    write(ledger, 360, 10.2)

    assert ledger.close(10.43, cleared=True).heard >= (430 - 150) * 8


# A line that stalls shows in the caller's audio, which comes late and all at once.


def listening(ledger: Ledger, begin: float, until: float, *, way: float = 0.0) -> None:
    """Take the caller's audio, 20 ms at a time, stamped by a clock of Twilio's own."""
    for frame in range(round((until - begin) / 0.02)):
        at = begin + 0.02 * frame
        ledger.caller_heard(round(at * 1_000) - 3_000, at + 0.02 + way)


def stalled(ledger: Ledger, begin: float, until: float) -> None:
    """Take, at once, the caller's audio of a time in which the line was stalled."""
    for frame in range(round((until - begin) / 0.02)):
        ledger.caller_heard(round((begin + 0.02 * frame) * 1_000) - 3_000, until + 0.001 * frame)


def test_a_stall_before_the_first_echo_of_a_call_is_no_round_trip() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.5)
    write(ledger, 300, 10.0)
    name = write(ledger, 100, 10.1, mark=True)
    for i in range(2, 16):
        write(ledger, 100, 10.0 + 0.1 * i)
    stalled(ledger, 10.5, 11.0)
    ledger.mark_echoed(name, 11.05)

    assert ledger.close(11.112, cleared=True).heard == (700 + 112) * 8


def test_a_first_echo_in_front_of_the_burst_is_no_round_trip_either() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.5)
    names = [write(ledger, 300, 10.0, mark=True)]
    names += [write(ledger, 100, 10.0 + 0.1 * i, mark=True) for i in range(1, 16)]
    ledger.mark_echoed(names[0], 10.999)
    stalled(ledger, 10.5, 11.0)
    ledger.mark_echoed(names[1], 11.1)

    assert ledger.close(11.112, cleared=True).heard == pytest.approx((700 + 112) * 8, abs=8)


@pytest.mark.parametrize("lead_ms", [0, 200])
def test_a_stalled_line_has_let_through_what_was_written_before_it_and_no_more(
    lead_ms: int,
) -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.5)
    write(ledger, 100 + lead_ms, 10.0)
    for i in range(1, 10):
        write(ledger, 100, 10.0 + 0.1 * i)
    stalled(ledger, 10.5, 11.0)  # until then 500 ms were written, and the lead

    assert ledger.close(11.012, cleared=True).heard == (500 + lead_ms + 12) * 8


def test_a_stall_may_begin_any_time_after_the_last_audio_that_came() -> None:
    """Seldom audio tells of it late: what was written meanwhile may have been caught by it."""
    ledger = opened()
    for at in (9.8, 9.9):
        ledger.caller_heard(round((at - 9.0) * 1_000), at)
    write(ledger, 200, 9.97)
    ledger.caller_heard(1_000, 10.0)
    write(ledger, 100, 10.07)
    ledger.caller_heard(1_100, 10.6)  # not at 10.1

    assert ledger.close(10.61, cleared=True).heard == 10 * 8


def test_what_comes_in_bunches_behind_a_stall_does_not_take_the_lag_back() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.0)
    write(ledger, 200, 10.0)
    for i in range(1, 7):
        write(ledger, 100, 10.0 + 0.1 * i)
    stalled(ledger, 10.0, 10.5)
    for frame in range(12):  # 250 ms late as well, and no echo has come yet
        ledger.caller_heard(7_300 + 20 * frame, 10.57 + 0.001 * frame)

    assert ledger.close(10.6, cleared=True).heard == 100 * 8


def test_what_began_in_a_stall_begins_when_it_is_over() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.0)
    write(ledger, 300, 10.3)
    stalled(ledger, 10.0, 10.5)

    assert ledger.close(10.51, cleared=True).heard == 10 * 8


def test_an_underrun_in_a_stall_does_not_hide_what_was_held_up_before_it() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.2)
    write(ledger, 300, 10.0)
    write(ledger, 100, 10.25)
    write(ledger, 100, 10.6)  # by the clock all had played at 10.4
    stalled(ledger, 10.2, 10.8)

    assert ledger.close(10.81, cleared=True).heard == 310 * 8


def stalled_in_a_reply() -> tuple[Ledger, list[str]]:
    """A round trip of 20 ms, and a stall from 10.5 to 11.0 that lets Twilio run dry at 10.7."""
    ledger = opened()
    listening(ledger, 9.0, 10.5)
    ledger.mark_echoed(write(ledger, 100, 10.0, mark=True), 10.12)
    write(ledger, 200, 10.0)
    names = [write(ledger, 100, 10.0 + 0.1 * i, mark=True) for i in range(1, 16)]
    stalled(ledger, 10.5, 11.0)
    return ledger, names


def test_an_echo_that_was_held_up_by_a_stall_says_nothing_of_the_lag() -> None:
    ledger, names = stalled_in_a_reply()
    ledger.mark_echoed(names[2], 11.005)  # due at 10.6

    assert ledger.close(11.112, cleared=True).heard == (700 + 112) * 8


# 20 ms: only the way here was stalled. 520 ms: Twilio was slow to play on.
@pytest.mark.parametrize("mark, behind_ms", [(7, 20), (4, 520)])
def test_the_first_echo_after_a_stall_tells_the_lag(mark: int, behind_ms: int) -> None:
    ledger, names = stalled_in_a_reply()
    due = 10.4 + 0.1 * mark
    now = due + behind_ms / 1_000
    ledger.mark_echoed(names[mark], now)

    lag_ms = behind_ms - 20
    assert ledger.close(now, cleared=True).heard == round(now * 1_000 - 10_000 - lag_ms) * 8


def test_a_stall_shorter_than_the_lead_is_not_heard() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.5)
    for i in range(10):
        write(ledger, 100, 10.0 + 0.1 * i)
    stalled(ledger, 10.5, 10.66)

    assert ledger.close(10.665, cleared=True).heard == 665 * 8


def test_a_stall_in_an_earlier_reply_has_no_effect() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.0)
    write(ledger, 100, 10.0)
    stalled(ledger, 10.0, 10.6)
    ledger.close(10.7, cleared=False)
    listening(ledger, 10.6, 20.5)
    ledger.open(E1, 0)
    write(ledger, 1_000, 20.0)

    assert ledger.close(20.505, cleared=True).heard == 505 * 8


def test_a_way_that_is_long_but_even_is_no_stall() -> None:
    ledger = opened()
    listening(ledger, 9.0, 10.5, way=0.7)
    for i in range(20):
        write(ledger, 100, 10.0 + 0.1 * i)

    assert ledger.close(11.2, cleared=True).heard == 1_200 * 8


def test_a_clock_that_drifts_is_no_stall() -> None:
    """1 ms a second, for ten minutes: only the last seconds say what the shortest way is."""
    ledger = opened()
    for frame in range(30_000):
        ledger.caller_heard(20 * frame, 0.02 * frame * 1.001)
    for i in range(10):
        write(ledger, 100, 600.0 + 0.1 * i)

    assert ledger.close(600.595, cleared=True).heard == 595 * 8


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
        """Return how many bytes have been played."""
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


class Line:
    """One direction of a network: each message takes its time, and none overtakes another."""

    def __init__(
        self, chance: random.Random, delay: float, jitter: float, stall: tuple[float, float]
    ) -> None:
        self._chance, self._delay, self._jitter, self._stall = chance, delay, jitter, stall
        self._last = 0.0

    def arrival(self, now: float) -> float:
        at = now + self._delay + self._chance.uniform(0, self._jitter)
        begin, seconds = self._stall
        if begin <= at < begin + seconds:
            at = begin + seconds
        self._last = max(self._last, at)
        return self._last


def claim_and_truth(
    there: Line, back: Line, speech: list[tuple[int, float]], cut_at: float
) -> tuple[int, int]:
    """Speak as the call does, the lead ahead and with marks; return both positions at the clear.

    `speech` is ms of audio, each with a pause behind it in which there is none to be spoken.
    Something was said before, so that the round trip is known.
    """
    pacing = Pacing()
    ledger, player = Ledger(pacing), Player()
    begin, step = 100.0, 0.005
    before = Epoch(2, 0)
    ledger.open(before, 0)
    ledger.media_written(before, LOUD * 1_600, begin - 2)
    ledger.mark_written(before, ledger.next_mark(before))
    player.write(1_600, there.arrival(begin - 2))
    ready: list[tuple[float, int]] = []  # when how many bytes are there to be spoken
    at = begin
    for audio_ms, pause in speech:
        ready.append((at, audio_ms * 8))
        at += audio_ms / 1_000 + pause
    # What Twilio says, as it leaves and as it arrives: a mark's name, or a stamp of audio.
    leaving: list[tuple[float, str]] = [(begin - 2 + 0.02 * i, str(20 * i)) for i in range(400)]
    arriving: list[tuple[float, str]] = []
    heapq.heappush(leaving, (player.free_at, "2.0.1"))
    unmarked = 0
    for now in (begin - 2 + step * i for i in range(math.ceil((2 + cut_at) / step))):
        while leaving[0][0] <= now:
            left_at, said = heapq.heappop(leaving)
            arriving.append((back.arrival(left_at), said))
        while arriving and arriving[0][0] <= now:
            came_at, said = arriving.pop(0)
            if "." in said:
                assert ledger.mark_echoed(said, came_at)
            else:
                ledger.caller_heard(int(said), came_at)
        if now < begin:
            continue
        if ledger.open_epoch == before:
            assert ledger.close(now, cleared=False).heard == 1_600
            ledger.open(E0, 0)
        left = sum(size for at, size in ready if at <= now) - ledger.written
        if left and ledger.buffered_s(now) * 1_000 <= pacing.lead_ms - pacing.chunk_ms:
            size = min(left, pacing.chunk_ms * 8)
            ledger.media_written(E0, LOUD * size, now)
            player.write(size, there.arrival(now))
            unmarked += size
            left -= size
        if unmarked >= pacing.mark_every_ms * 8 or (unmarked and not left):
            name = ledger.next_mark(E0)
            ledger.mark_written(E0, name)
            heapq.heappush(leaving, (max(there.arrival(now), player.free_at), name))
            unmarked = 0
    now = begin + cut_at
    written = ledger.written
    cut = ledger.close(now, cleared=True)
    assert cut.heard + cut.discarded == written
    return cut.heard, player.played(there.arrival(now)) - 1_600


SPEECH = st.lists(st.tuples(st.integers(1, 1_500), st.floats(0, 0.8)), min_size=1, max_size=6)


@given(
    chance=st.randoms(use_true_random=False),
    there_s=st.floats(0, 0.08),
    back_s=st.floats(0, 0.08),
    jitter_s=st.floats(0, 0.08),
    speech=SPEECH,
    cut_at=st.floats(0.02, 4),
)
def test_where_a_clear_stops_is_known_to_150_ms_when_marks_behave(
    chance: random.Random,
    there_s: float,
    back_s: float,
    jitter_s: float,
    speech: list[tuple[int, float]],
    cut_at: float,
) -> None:
    there, back = (Line(chance, way_s, jitter_s, (0, 0)) for way_s in (there_s, back_s))

    claim, truth = claim_and_truth(there, back, speech, cut_at)

    assert abs(claim - truth) <= 150 * 8


@given(
    chance=st.randoms(use_true_random=False),
    way_s=st.floats(0, 0.08),
    speech=SPEECH,
    cut_at=st.floats(0.02, 4),
    stall=st.tuples(st.floats(100, 104), st.floats(0, 1)),
)
def test_a_stalled_line_hides_no_more_than_half_a_second_of_what_was_heard(
    chance: random.Random,
    way_s: float,
    speech: list[tuple[int, float]],
    cut_at: float,
    stall: tuple[float, float],
) -> None:
    """Where Twilio is while nothing comes through is known to the last marks and to the lead."""
    there, back = (Line(chance, way_s, 0.02, stall) for _ in range(2))

    claim, truth = claim_and_truth(there, back, speech, cut_at)

    assert abs(claim - truth) <= 500 * 8
