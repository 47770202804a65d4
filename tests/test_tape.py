"""The two channels of a recording: every byte where it was lived, and none that nobody heard."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.audio import FRAME_BYTES
from voicebot.tape import HOLD_S, KEY_BEFORE_S, KEY_BEHIND_S, RESTART_S, Mixer

QUIET, VOICE, BOT = b"\xff", b"\x11", b"\x22"


def ms(milliseconds: float) -> int:
    return round(milliseconds * 8)


def channels(both: bytes) -> tuple[bytes, bytes]:
    return both[0::2], both[1::2]


def listen(mixer: Mixer, to_ms: int, from_ms: int = 0, *, late: float = 0.0) -> None:
    """Take quiet frames of a caller; each comes when its last sample was spoken, and `late`."""
    for at in range(from_ms, to_ms, 20):
        mixer.caller_said(QUIET * FRAME_BYTES, at, (at + 20) / 1_000 + late)


def stretches(channel: bytes) -> list[tuple[float, float]]:
    """Return where there is sound, in milliseconds."""
    found, at = [], 0
    for silent, run in itertools.groupby(channel, lambda code: code == QUIET[0]):
        length = len(list(run))
        if not silent:
            found.append((at / 8, (at + length) / 8))
        at += length
    return found


# The caller.


def test_the_caller_is_where_the_stamps_say() -> None:
    mixer = Mixer()
    mixer.caller_said(VOICE * FRAME_BYTES, 40, 0.06)
    mixer.caller_said(VOICE * FRAME_BYTES, 1_065, 1.085)
    caller, bot = channels(mixer.take(rest=True))
    assert stretches(caller) == [(40, 60), (1_065, 1_085)]
    assert bot == QUIET * len(caller)


def test_less_than_a_frame_is_jitter_of_the_stamps_and_does_not_add_up() -> None:
    mixer = Mixer()
    for n in range(100):
        mixer.caller_said(VOICE * FRAME_BYTES, 21 * n, n / 50)
    caller, _ = channels(mixer.take(rest=True))
    assert ms(99 * 21) - FRAME_BYTES < len(caller) - FRAME_BYTES <= ms(99 * 21)
    assert caller.count(VOICE) == 100 * FRAME_BYTES


def test_what_comes_twice_is_taken_once() -> None:
    mixer = Mixer()
    for stamp in (0, 20, 0, 40):
        mixer.caller_said(VOICE * FRAME_BYTES, stamp, 0.0)
    caller, _ = channels(mixer.take(rest=True))
    assert caller == VOICE * ms(60)


@pytest.mark.parametrize("jump_ms", [10**9, -60_000])
def test_stamps_of_another_clock_cost_no_silence(jump_ms: int) -> None:
    mixer = Mixer()
    mixer.caller_said(VOICE * FRAME_BYTES, 0, 0.02)
    mixer.caller_said(VOICE * FRAME_BYTES, 20 + jump_ms, 0.04)
    mixer.caller_said(VOICE * FRAME_BYTES, 40 + jump_ms, 0.06)
    assert abs(jump_ms) > RESTART_S * 1_000
    assert channels(mixer.take(rest=True))[0] == VOICE * ms(60)


# What is secret.


def test_a_secret_key_takes_what_was_just_heard_with_it_and_what_follows() -> None:
    mixer = Mixer()
    for n in range(150):
        mixer.caller_said(VOICE * FRAME_BYTES, 20 * n, n / 50)
        if n == 99:
            mixer.hide_key()
    caller, _ = channels(mixer.take(rest=True))
    before, behind = KEY_BEFORE_S * 1_000, KEY_BEHIND_S * 1_000
    assert stretches(caller) == [(0, 2_000 - before), (2_000 + behind, 3_000)]


def test_a_key_at_once_hides_from_the_beginning() -> None:
    mixer = Mixer()
    mixer.hide_key()
    for n in range(50):
        mixer.caller_said(VOICE * FRAME_BYTES, 20 * n, n / 50)
    assert stretches(channels(mixer.take(rest=True))[0]) == [(KEY_BEHIND_S * 1_000, 1_000)]


def test_what_is_hidden_is_as_long_as_it_was() -> None:
    mixer = Mixer()
    for n in range(30):
        mixer.caller_said(VOICE * FRAME_BYTES, 20 * n, n / 50, hidden=10 <= n < 20)
    assert stretches(channels(mixer.take(rest=True))[0]) == [(0, 200), (400, 600)]


# The bot.


def test_the_bot_is_where_twilio_played_it_whatever_the_ways_take() -> None:
    """100 ms to Twilio, 60 ms back: what was written at 1 s was played at 1.1 s of Twilio's."""
    mixer = Mixer()
    listen(mixer, 1_000, late=0.06)
    mixer.bot_said(BOT * ms(60), 1.0)
    mixer.bot_said(BOT * ms(60), 1.01)  # ahead: it plays behind what was written before
    mixer.bot_played(0, 0.16)
    listen(mixer, 2_000, 1_000, late=0.06)
    mixer.bot_cut(0, 0.16)
    assert stretches(channels(mixer.take(rest=True))[1]) == [(1_100, 1_220)]


def test_the_clocks_need_not_agree() -> None:
    mixer = Mixer()
    listen(mixer, 1_000, late=5_000.06)
    mixer.bot_said(BOT * ms(60), 5_001.0)
    mixer.bot_played(0, 0.16)
    listen(mixer, 2_000, 1_000, late=5_000.06)
    assert stretches(channels(mixer.take(rest=True))[1]) == [(1_100, 1_160)]


def test_nothing_of_what_was_cleared_is_there() -> None:
    mixer = Mixer()
    listen(mixer, 1_000)
    mixer.bot_said(BOT * ms(100), 1.0)
    mixer.bot_said(BOT * ms(100), 1.0)
    mixer.bot_cut(ms(130), 0.0)
    listen(mixer, 1_500, 1_000)
    mixer.bot_said(BOT * ms(60), 1.5)
    listen(mixer, 2_000, 1_500)
    assert stretches(channels(mixer.take(rest=True))[1]) == [(1_000, 1_070), (1_500, 1_560)]


def test_of_what_the_bot_says_on_behind_the_end_nobody_has_heard() -> None:
    mixer = Mixer()
    listen(mixer, 1_000)
    mixer.bot_said(BOT * ms(200), 0.9)
    caller, bot = channels(mixer.take(rest=True))
    assert stretches(bot) == [(900, 1_000)]
    assert len(bot) == len(caller)


def test_a_run_is_not_torn_by_what_is_not_known_of_the_delay() -> None:
    mixer = Mixer()
    listen(mixer, 1_000)
    for n, delay in enumerate((0.0, 0.05, 0.02, 0.3)):
        mixer.bot_said(BOT * ms(60), 1.0 + 0.06 * n - (0.001 if n else 0))
        mixer.bot_played(0, delay)
    listen(mixer, 2_000, 1_000)
    # Twilio ran dry before the last: that is no jitter.
    assert stretches(channels(mixer.take(rest=True))[1]) == [(1_000, 1_180), (1_480, 1_540)]


def test_without_echoes_the_clock_says_where() -> None:
    mixer = Mixer()
    listen(mixer, 1_000)
    mixer.bot_said(BOT * ms(60), 1.0)
    listen(mixer, 10_000, 1_000)
    assert stretches(channels(mixer.take())[1]) == [(1_000, 1_060)]


def test_a_bot_that_nobody_answers_is_placed_at_the_beginning() -> None:
    mixer = Mixer()
    mixer.bot_said(BOT * ms(60), 1.0)
    mixer.bot_played(0, 0.1)
    listen(mixer, 100)
    assert stretches(channels(mixer.take(rest=True))[1]) == [(0, 60)]


def test_an_absurd_delay_puts_nothing_far_away() -> None:
    mixer = Mixer()
    listen(mixer, 1_000)
    mixer.bot_said(BOT * ms(60), 1.0)
    mixer.bot_played(0, 1e6)
    listen(mixer, 10_000, 1_000)
    assert stretches(channels(mixer.take(rest=True))[1]) == [(6_000, 6_060)]


def test_what_is_new_is_held_back_until_its_place_is_known() -> None:
    mixer = Mixer()
    listen(mixer, 3_000)
    assert mixer.take() == b""
    listen(mixer, 6_000, 3_000)
    assert len(mixer.take()) == 2 * ms(6_000 - HOLD_S * 1_000)
    assert len(mixer.take(rest=True)) == 2 * ms(HOLD_S * 1_000)
    assert mixer.take(rest=True) == b""


# Everything at once, and a model that does not hurry.


@dataclass
class Naive:
    """The bot's channel as a list of what was played, worked out at the end."""

    kept: bytearray = field(default_factory=bytearray)
    epoch: bytearray = field(default_factory=bytearray)
    at: list[float] = field(default_factory=list)  # when each kept byte played, in ms
    epoch_at: list[float] = field(default_factory=list)
    end: float = 0.0

    def said(self, chunk: bytes, now: float) -> None:
        begin = max(now, self.end)
        self.epoch += chunk
        self.epoch_at += [begin + n / 8 for n in range(len(chunk))]
        self.end = begin + len(chunk) / 8

    def cut(self, discarded: int) -> None:
        keep = len(self.epoch) - discarded
        self.kept += self.epoch[:keep]
        self.at += self.epoch_at[:keep]
        self.epoch.clear()
        self.epoch_at.clear()
        self.end = 0.0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("frames"), st.integers(1, 60)),
            st.tuples(st.just("gap"), st.integers(20, 900)),
            st.tuples(st.just("bot"), st.integers(1, 3)),
            st.tuples(st.just("echo"), st.integers(0, 4_000)),
            st.tuples(st.just("cut"), st.just(0)),
            st.tuples(st.just("take"), st.just(0)),
        ),
        max_size=60,
    ),
    st.integers(0, 200),
    st.integers(0, 200),
)
def test_a_call_in_pieces_is_the_call_as_it_was(
    events: list[tuple[str, int]], there_ms: int, back_ms: int
) -> None:
    """On a line that takes `there_ms` and `back_ms` every byte is where it was, to the sample."""
    mixer, naive, given_away = Mixer(), Naive(), bytearray()
    caller: list[tuple[int, int, int]] = []
    delay = (there_ms + back_ms) / 1_000
    codes = itertools.cycle(range(1, 200))
    now = 0  # milliseconds; what Twilio sends now comes `back_ms` later

    def frame() -> None:
        nonlocal now
        code = next(codes)
        caller.append((now, now + 20, code))
        mixer.caller_said(bytes([code]) * FRAME_BYTES, now, (now + 20 + back_ms) / 1_000)
        now += 20

    mixer.bot_played(0, delay)
    frame()
    unproved = 0
    for what, amount in events:
        ours = now + back_ms
        if what == "frames":
            for _ in range(amount):
                frame()
        elif what == "gap":
            now += amount
            frame()
        elif what == "bot" and naive.end <= ours + 400:
            for _ in range(amount):
                chunk = bytes([next(codes)]) * ms(60)
                mixer.bot_said(chunk, ours / 1_000)
                naive.said(chunk, ours)
                unproved += len(chunk)
        elif what == "echo":
            # It proves no more than has been played.
            unplayed = sum(at + there_ms + back_ms >= ours for at in naive.epoch_at)
            unproved = min(unproved, max(amount, unplayed))
            mixer.bot_played(unproved, delay)
        elif what == "cut":
            # Twilio hears of it `there_ms` later, as it did of the audio.
            discarded = sum(at >= ours for at in naive.epoch_at)
            mixer.bot_cut(discarded, delay)
            naive.cut(discarded)
            unproved = 0
        else:
            given_away += mixer.take()
    given_away += mixer.take(rest=True)
    naive.cut(0)

    expected_caller, expected_bot = bytearray(QUIET * ms(now)), bytearray(QUIET * ms(now))
    for begin, end, code in caller:
        expected_caller[ms(begin) : ms(end)] = bytes([code]) * ms(end - begin)
    for at, code in zip(naive.at, naive.kept, strict=True):
        if ms(at + there_ms) < len(expected_bot):
            expected_bot[ms(at + there_ms)] = code
    assert channels(bytes(given_away)) == (bytes(expected_caller), bytes(expected_bot))
