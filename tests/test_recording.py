"""Recordings in files: whole, aligned whatever the disk does, and never in the way of a call."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from voicebot import recording
from voicebot.audio import FRAME_BYTES
from voicebot.errors import StoreError
from voicebot.metrics import Metrics
from voicebot.plan import CallPlan
from voicebot.ports import Tape
from voicebot.recording import Recorder, Recording, open_recorder
from voicebot.tape import Mixer
from voicebot.testing import (
    HeldCall,
    InterruptAfter,
    Network,
    Script,
    ScriptedChat,
    caller_coughs,
    caller_says,
    hold,
    toy_ports,
)

SID = "CA" + "1" * 32
VOICE, QUIET = b"\x11", b"\xff"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write at once."""
    monkeypatch.setattr(recording, "GATHER_S", 0.01)


class Disk:
    """A folder with recordings, and the metrics of who writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "recordings"
        self.file = self.folder / f"{SID}.wav"
        self.metrics = Metrics()

    @asynccontextmanager
    async def recorder(
        self, *, days: float = 0.0, records_days: float = 0.0, free_gb: float = 0.0
    ) -> AsyncGenerator[Recorder]:
        settings = Recording(str(self.folder), days, free_gb=free_gb)
        with trio.fail_after(10):
            async with open_recorder(settings, records_days, self.metrics) as recorder:
                assert recorder is not None
                yield recorder

    def dropped_s(self) -> float:
        [line] = [
            line
            for line in self.metrics.text().decode().splitlines()
            if line.startswith("voicebot_recording_dropped_seconds_total")
        ]
        return float(line.split()[1])

    def channels(self, file: Path | None = None) -> tuple[bytes, bytes]:
        """Return what any player reads of a file: the caller, and the bot."""
        data = (file or self.file).read_bytes()
        riff, size, wave = struct.unpack_from("<4sI4s", data)
        assert (riff, size, wave) == (b"RIFF", len(data) - 8, b"WAVE")
        chunks, at = {}, 12
        while at < len(data):
            name, length = struct.unpack_from("<4sI", data, at)
            chunks[name] = data[at + 8 : at + 8 + length]
            at += 8 + length
        assert struct.unpack("<HHIIHHH", chunks[b"fmt "]) == (7, 2, 8_000, 16_000, 2, 8, 0)
        audio = chunks[b"data"]
        assert struct.unpack("<I", chunks[b"fact"]) == (len(audio) // 2,)
        return audio[0::2], audio[1::2]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def say(tape: Tape | None, from_s: float, to_s: float) -> None:
    """Have the caller say something."""
    assert tape is not None
    for at in range(round(from_s * 50), round(to_s * 50)):
        tape.caller_said(VOICE * FRAME_BYTES, at * 20, at / 50)


async def written(recorder: Recorder) -> None:
    """Wait until the disk has everything that was handed over, or it was dropped."""
    while recorder._queued:  # noqa: ASYNC110  # a thread does it
        await trio.sleep(0.005)


async def test_a_call_is_a_file_with_the_caller_left_and_the_bot_right(disk: Disk) -> None:
    async with disk.recorder() as recorder:
        with recorder.tape(SID) as tape:
            say(tape, 0, 3)
            assert tape is not None
            tape.bot_said(b"\x22" * 800, 3.0)
            tape.bot_cut(0, 0.02)
            say(tape, 3, 10)
        assert await recorder.find("CAother") is None
        await written(recorder)
        assert await recorder.find(SID) == disk.file

    caller, bot = disk.channels()
    assert caller == VOICE * 80_000
    assert bot.strip(QUIET) == b"\x22" * 800
    assert bot.index(b"\x22") == 24_320  # a frame comes when it was spoken
    assert disk.file.stat().st_mode & 0o077 == 0
    assert disk.folder.stat().st_mode & 0o077 == 0


async def test_a_file_is_whole_while_its_call_goes_on(disk: Disk) -> None:
    async with disk.recorder() as recorder:
        with recorder.tape(SID) as tape:
            say(tape, 0, 10)
            await written(recorder)
            assert disk.channels()[0] == VOICE * 8_000 * 6


async def test_another_stream_of_the_call_goes_on_in_its_file(disk: Disk) -> None:
    async with disk.recorder() as recorder:
        for seconds in (2, 1):
            with recorder.tape(SID) as tape:
                say(tape, 0, seconds)
    assert disk.channels()[0] == VOICE * 24_000


async def test_nothing_is_recorded_without_a_folder() -> None:
    async with open_recorder(Recording(), 90.0, Metrics()) as recorder:
        assert recorder is None


@pytest.mark.parametrize("sid", ["", ".", "..", "../CA1", "a/b", "a.b", "x" * 65, "CA1\n", "é"])
async def test_a_call_whose_name_is_no_name_for_a_file_has_none(disk: Disk, sid: str) -> None:
    async with disk.recorder() as recorder:
        with recorder.tape(sid) as tape:
            assert tape is None
        assert await recorder.find(sid) is None
        assert not await recorder.delete(sid)
    assert list(disk.folder.iterdir()) == []


async def test_a_folder_that_cannot_be_written_to_is_told_at_the_start(disk: Disk) -> None:
    disk.folder.write_text("a file")
    with pytest.raises(StoreError, match="VOICEBOT_RECORDING__PATH"):
        async with disk.recorder():
            raise AssertionError("it has opened")


# A disk that does not take it.


async def hanging(recorder: Recorder) -> None:
    """Wait until the thread has a block."""
    while not recorder._in_hand:  # noqa: ASYNC110  # a thread does it
        await trio.sleep(0.005)


async def test_what_a_full_disk_did_not_take_is_silence_and_counted(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with disk.recorder(free_gb=1.0) as recorder:
        with recorder.tape(SID) as tape:
            say(tape, 0, 6)
            await written(recorder)
            with monkeypatch.context() as full:
                nothing = os.statvfs_result((4096, 4096, 9, 9, 0, 0, 0, 0, 0, 255))
                full.setattr(os, "statvfs", lambda path: nothing)
                say(tape, 6, 10)
                await written(recorder)
            say(tape, 10, 12)
    caller, _ = disk.channels()
    assert disk.dropped_s() == 4
    assert caller == VOICE * 16_000 + QUIET * 32_000 + VOICE * 48_000
    assert caplog.messages.count("recording_dropped") == 1
    assert caplog.messages.count("recording_again") == 1


async def test_a_write_that_breaks_off_shifts_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recording._write_at

    def half(path: Path, place: int | None, block: bytes) -> int:
        real(path, place, block[: len(block) // 2 + 1])
        raise OSError(28, "No space left on device")

    async with disk.recorder() as recorder:
        with recorder.tape(SID) as tape:
            say(tape, 0, 5)
            await written(recorder)
            with monkeypatch.context() as broken:
                broken.setattr(recording, "_write_at", half)
                say(tape, 5, 6)
                await written(recorder)
            say(tape, 6, 8)
    caller, _ = disk.channels()
    assert len(caller) == 64_000
    assert caller[:8_000] + caller[16_000:] == VOICE * 56_000


async def test_a_disk_that_hangs_costs_no_memory_and_no_time(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "QUEUED_BYTES", 3 * recording.BLOCK_BYTES)
    monkeypatch.setattr(recording, "ANSWER_S", 0.05)
    let_go = threading.Event()
    real = recording._write_at

    def hang(*args: Any) -> int:
        let_go.wait(10)
        return real(*args)

    monkeypatch.setattr(recording, "_write_at", hang)
    async with disk.recorder() as recorder:
        with recorder.tape(SID) as tape:
            say(tape, 0, 5)
            await hanging(recorder)
            say(tape, 5, 24)
            assert recorder._queued <= recording.QUEUED_BYTES
            assert disk.dropped_s() == 17  # of the twenty that are certain
            with pytest.raises(StoreError, match="not answered"):
                await recorder.delete("CAother")
            with monkeypatch.context() as looking:
                looking.setattr(Path, "is_file", lambda path: let_go.wait(10))
                with pytest.raises(StoreError, match="not answered"):
                    await recorder.find(SID)
            let_go.set()
            await written(recorder)
            say(tape, 24, 26)
            await written(recorder)
    caller, _ = disk.channels()
    # What came when there was room again is where it belongs.
    assert len(caller) >= 22 * 8_000
    assert caller[: 3 * 8_000] == VOICE * 24_000
    assert caller[3 * 8_000 : 20 * 8_000] == QUIET * 8_000 * 17
    assert caller[20 * 8_000 : 22 * 8_000] == VOICE * 16_000


async def test_the_end_of_the_service_waits_for_no_disk_that_hangs(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(recording, "FLUSH_S", 0.05)
    monkeypatch.setattr(recording, "_write_at", lambda *args: let_go.wait(10))
    try:
        async with disk.recorder() as recorder:
            with recorder.tape(SID) as tape:
                say(tape, 0, 5)
                await hanging(recorder)
    finally:
        let_go.set()
    assert disk.dropped_s() == 5


async def test_a_call_that_ends_after_the_server_is_waited_for(disk: Disk) -> None:
    async def call(task_status: trio.TaskStatus[None]) -> None:
        with recorder.tape(SID) as tape:
            say(tape, 0, 1)
            task_status.started()
            await closing.wait()

    closing = trio.Event()
    async with trio.open_nursery() as calls:
        async with disk.recorder() as recorder:
            await calls.start(call)
            calls.start_soon(_set_behind, closing)
    assert len(disk.channels()[0]) == 8_000


async def _set_behind(event: trio.Event) -> None:
    """Set the event once everybody waits."""
    await trio.testing.wait_all_tasks_blocked()
    event.set()


# Files that there are.


async def test_a_file_that_was_torn_is_mended_at_the_start(disk: Disk) -> None:
    async with disk.recorder() as recorder:
        with recorder.tape(SID) as tape:
            say(tape, 0, 2)
    with disk.file.open("ab") as file:
        file.write(VOICE * 1_601)  # killed before the header, and in the middle of a sample
    (disk.folder / "CAempty.wav").write_bytes(b"RIFF")
    async with disk.recorder() as recorder:
        await looked(recorder)
        with recorder.tape(SID) as tape:
            say(tape, 0, 1)
    caller, _ = disk.channels()
    assert caller == VOICE * (16_000 + 800 + 8_000)


async def looked(recorder: Recorder) -> None:
    """Wait until the recorder has looked at its files."""
    while recorder._look_at < 0:  # noqa: ASYNC110  # a thread does it
        await trio.sleep(0.005)


@pytest.mark.parametrize(
    "days, records_days, kept",
    [(30, 90, [1]), (30, 0, [1]), (0, 90, [1, 31]), (30, 0.5, []), (0, 0, [1, 31, 91])],
)
async def test_what_is_too_old_goes_and_nothing_else(
    disk: Disk, days: float, records_days: float, kept: list[int]
) -> None:
    disk.folder.mkdir()
    for age in (1, 31, 91):
        for name in (f"CA{age}.wav", f"CA{age}.txt", f"my {age}.wav"):
            (disk.folder / name).write_bytes(recording.header(0))
        (disk.folder / f"music{age}.wav").write_bytes(recording.header(0).replace(b"fact", b"FACT"))
        for name in (f"CA{age}.wav", f"CA{age}.txt", f"my {age}.wav", f"music{age}.wav"):
            then = time.time() - age * 86_400
            os.utime(disk.folder / name, (then, then))
    async with disk.recorder(days=days, records_days=records_days) as recorder:
        await looked(recorder)
    assert sorted(disk.folder.glob("CA*.wav")) == [disk.folder / f"CA{age}.wav" for age in kept]
    for others in ("CA*.txt", "my *", "music*"):
        assert len(list(disk.folder.glob(others))) == 3


async def test_a_recording_is_deleted_with_what_is_still_to_be_written(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with disk.recorder() as recorder:
        with recorder.tape(SID) as tape:
            say(tape, 0, 1)
        await written(recorder)
        with recorder.tape(SID) as tape:
            say(tape, 0, 1)
        assert await recorder.delete(SID)
        assert recorder._queued == 0
        assert not await recorder.delete(SID)
        assert await recorder.find(SID) is None
        disk.file.mkdir()
        with pytest.raises(StoreError, match="cannot be deleted"):
            await recorder.delete(SID)
    assert disk.dropped_s() == 0


async def test_a_file_that_cannot_be_looked_at_keeps_no_other_from_it(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.folder.mkdir()
    for name in ("CA1", "CA3"):
        (disk.folder / f"{name}.wav").write_bytes(recording.header(7) + VOICE * 100)
    (disk.folder / "CA2.wav").mkdir()
    async with disk.recorder() as recorder:
        await looked(recorder)
    for name in ("CA1", "CA3"):
        assert disk.channels(disk.folder / f"{name}.wav")[0] == VOICE * 50
    assert caplog.messages.count("recording_not_looked_at") == 1


# Whole calls, by what came out of the caller's phone.


def held(network: Network, seed: int = 0) -> tuple[HeldCall, bytes, bytes]:
    """Hold a call with three interruptions and a cough; return it, and what was recorded."""
    chance = random.Random(seed)
    words = ["".join(chance.sample("abcdefghijklmnopqrstuvwxyz", 5)) for _ in range(200)]
    replies = [" ".join(words[n : n + 40]) + "." for n in range(0, 200, 40)]
    script = Script(
        (
            caller_says("hello there"),
            *(caller_says("stop", InterruptAfter(chance.randrange(300, 4_000))) for _ in range(3)),
            caller_coughs(InterruptAfter(1_500)),
        )
    )
    mixer = Mixer()
    ports = replace(toy_ports(chat=ScriptedChat(replies)), tape=mixer)
    call = hold(script, ports, CallPlan("x", "Good day to you."), network=network, seed=seed)
    both = mixer.take(rest=True)
    return call, both[0::2], both[1::2]


@pytest.mark.parametrize(
    "network",
    [
        Network(),
        Network(delay_ms=40),
        Network(delay_ms=150),
        Network(delay_ms=40, lost_marks=0.2),
    ],
    ids=["at once", "40 ms", "150 ms", "marks are lost"],
)
def test_on_a_steady_line_it_is_what_was_lived_to_the_sample(network: Network) -> None:
    call, caller, bot = held(network)
    assert len(call.recording.clears) == 4
    assert len(caller) == len(bot) >= len(call.recording.heard) - 2 * FRAME_BYTES
    assert caller == call.recording.caller[: len(caller)]
    assert bot == call.recording.heard[: len(bot)]


@pytest.mark.parametrize(
    "network",
    [
        Network(delay_ms=40, jitter_ms=80, seed=1),
        Network(delay_ms=40, batch_ms=100),
        Network(delay_ms=40, drift=0.001),
        Network(delay_ms=40, stalls=((6.0, 1.0), (14.0, 0.6))),
    ],
    ids=["jitter", "bunches", "drift", "stalls"],
)
def test_on_a_bad_line_it_is_within_a_tenth_of_a_second(network: Network) -> None:
    call, caller, bot = held(network)
    heard = call.recording.heard
    assert caller == call.recording.caller[: len(caller)]
    length, reach = 800, 8_000
    near = found = sounding = 0
    for at in range(0, len(heard) - length, length // 2):
        window = heard[at : at + length]
        if window.count(QUIET) > length // 2:
            continue
        sounding += 1
        begin = max(0, at - reach)
        place = bot.find(window, begin, at + reach)
        found += place >= 0
        near += place >= 0 and abs(place - at) <= 800
    assert near >= 0.97 * sounding  # what was sent into a stall is known to no less than that
    assert sounding > 200
    # Of what was cleared there is nothing: no sound where the phone was silent all around.
    unheard = [
        at
        for at in range(0, len(bot), 80)
        if bot[at : at + 80].count(QUIET) < 80
        and not heard[max(0, at - 800) : at + 880].strip(QUIET)
    ]
    assert len(unheard) * 10 <= (300 if network.stalls else 0)
