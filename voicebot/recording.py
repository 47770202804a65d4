"""Recordings of calls: WAV files, mu-law, the caller left and what they heard of the bot right.

A call hands over a second of audio now and then (`tape.py`) and never waits: one task writes it
in a worker thread. Each block has its place in the file, so what is missing before it, because
the disk was full, away or too slow, is silence, and counted. What waits for the disk is bounded,
and so is what is left free on it.

The lengths in a file's header follow each block, so a file is whole whenever its process dies;
should it die between the two, the next start, or the hour's look, mends the header.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from voicebot import audio
from voicebot.errors import StoreError
from voicebot.floor import Bell
from voicebot.hidden import open_hidden_nursery
from voicebot.metrics import Metrics
from voicebot.ports import Tape
from voicebot.tape import Mixer

BLOCK_BYTES: Final = 2 * audio.BYTES_PER_S  # handed over at once: a second
QUEUED_BYTES: Final = 16 * 1024 * 1024  # a disk may stand still for 25 s under 40 calls
GATHER_S: Final = 0.5  # blocks are gathered so long: two visits a second to the thread
LOOK_S: Final = 3600.0  # from one look at what is too old to the next
ANSWER_S: Final = 5.0  # whoever asks for a file is told by then that the disk does not answer
FLUSH_S: Final = 5.0  # at the end, while the disk does not take what is left

_SID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)  # as in the webhooks: no dot, no slash
_SILENCE: Final = bytes([audio.SILENCE]) * 65_536

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recording:
    """Whether calls are recorded, and for how long recordings are kept."""

    # The folder for one WAV file a call; it is made. Empty: no call is recorded, which is the
    # default because whoever records must have a reason and a right to, and their callers know.
    path: str = ""
    # At most as long as records (VOICEBOT_RETENTION__DAYS), and 0: as long as these.
    days: float = 30.0  # complaints come within a month, and a voice is more personal than a text
    # Said before the greeting, in the language of the bot; empty: the greeting says it itself.
    consent: str = "This call is recorded."  # in most places callers must be told
    # 10^9 bytes that are left on the disk for everything else. With less, what is said from then
    # on is silence in the recordings.
    free_gb: float = 1.0  # records are small, and must be written whatever becomes of recordings


# --- WAV


_HEADER: Final = struct.Struct("<4sI4s4sIHHIIHHH4sII4sI")
_CHANNELS: Final = 2


def header(data_bytes: int) -> bytes:
    """Return the header of a file with so much audio."""
    return _HEADER.pack(
        *(b"RIFF", _HEADER.size - 8 + data_bytes, b"WAVE"),
        *(b"fmt ", 18, 7, _CHANNELS),  # 7 is mu-law
        *(audio.RATE_HZ, _CHANNELS * audio.RATE_HZ, _CHANNELS, 8, 0),
        *(b"fact", 4, data_bytes // _CHANNELS),  # samples of a channel; 7 asks for it
        *(b"data", data_bytes),
    )


def _write_at(path: Path, place: int | None, block: bytes) -> int:
    """Write audio `place` bytes behind the beginning of the audio, or at the end of what there is.

    Returns where it was written. What lies between is silence.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        there = file.seek(0, os.SEEK_END) - _HEADER.size
        if there < 0:
            file.seek(0)
            file.write(header(0))
            there = 0
        if place is None:
            place = there - there % _CHANNELS
        while there < place:
            there += file.write(_SILENCE[: place - there])
        file.seek(_HEADER.size + place)
        file.write(block)
        file.seek(0)
        file.write(header(place + len(block)))  # behind the audio, so it never promises too much
    return place


def _promised(path: Path) -> int | None:
    """Return how much audio a file says that it has; None: it is no recording of ours."""
    with path.open("rb") as file:
        found = file.read(_HEADER.size)
    if len(found) < _HEADER.size:
        return None
    data_bytes: int = _HEADER.unpack(found)[-1]
    return data_bytes if data_bytes < 2**31 and found == header(data_bytes) else None


def _mend(path: Path, promised: int) -> bool:
    """Make the lengths in a file's header those of the file; return whether they were not."""
    there = path.stat().st_size - _HEADER.size
    there -= there % _CHANNELS
    if there == promised:
        return False
    with path.open("r+b") as file:
        file.write(header(there))
    return True


# --- The recorder of a process


@asynccontextmanager
async def open_recorder(
    settings: Recording, records_days: float, metrics: Metrics
) -> AsyncGenerator[Recorder | None]:
    """Record calls in a folder; None where none is set.

    On leaving, what is left is written, for at most `FLUSH_S`.

    Args:
        records_days: how long records of calls are kept, which a recording does not outlive.

    Raises:
        StoreError: the folder cannot be made or written to.

    Owns: the writing task and its thread. Ends when: the block is left.
    """
    if not settings.path:
        yield None
        return
    days = min((days for days in (settings.days, records_days) if days), default=0.0)
    recorder = Recorder(Path(settings.path), days, settings.free_gb, metrics)
    await trio.to_thread.run_sync(recorder.check)
    try:
        async with open_hidden_nursery("the service has ended") as nursery:
            nursery.start_soon(recorder.write_on, name="recorder")
            yield recorder
    finally:
        with trio.move_on_after(FLUSH_S, shield=True):
            await recorder.finish()
        recorder.give_up_rest()


class Recorder:
    """What of the calls is not in its file yet, and the files themselves."""

    def __init__(self, folder: Path, days: float, free_gb: float, metrics: Metrics) -> None:
        self.folder: Final = folder
        self._days = days
        self._free_bytes = free_gb * 1e9
        self._metrics = metrics
        self._blocks: deque[_Block] = deque()
        self._in_hand: list[_Block] = []  # of the thread
        self._queued = 0  # bytes of both
        self._told = Bell()
        self._tapes = 0  # calls that are being recorded
        self._look_at = -inf
        self._trouble = False  # audio is being dropped
        self._writing = trio.CapacityLimiter(1)

    # --- Calls

    @contextmanager
    def tape(self, sid: str) -> Iterator[Tape | None]:
        """Record a stream of a call while the block runs, behind earlier ones; never fails.

        None where the name of the call is no name for a file.
        """
        path = self.path(sid)
        if path is None:
            _log.error("not_recorded", extra={"reason": "the SID is no name for a file"})
            yield None
            return
        track = _Track(path, self._add)
        self._tapes += 1
        try:
            yield track
        finally:
            self._tapes -= 1
            track.finish()
            self._told.ring()

    def path(self, sid: str) -> Path | None:
        """Return where the recording of a call is, if there is one; None: there can be none."""
        return path_of(self.folder, sid)

    async def find(self, sid: str) -> Path | None:
        """Return where the recording of a call is; None: there is none.

        Raises:
            StoreError: the disk does not answer.
        """
        path = self.path(sid)
        if path is None:
            return None
        with trio.move_on_after(ANSWER_S):
            there = await trio.to_thread.run_sync(path.is_file, abandon_on_cancel=True)
            return path if there else None
        raise StoreError(f"the disk of the recordings has not answered for {ANSWER_S:g} s")

    async def delete(self, sid: str) -> bool:
        """Delete the recording of a call that is over; return whether there was one.

        Raises:
            StoreError: it cannot be deleted, or the disk does not answer: it may be, later.
        """
        path = self.path(sid)
        if path is None:
            return False
        for block in [block for block in self._blocks if block.track.path == path]:
            self._blocks.remove(block)
            self._queued -= len(block.audio)
        with trio.move_on_after(ANSWER_S):
            try:
                await trio.to_thread.run_sync(
                    path.unlink, abandon_on_cancel=True, limiter=self._writing
                )
            except FileNotFoundError:
                return False
            except OSError as exc:
                raise StoreError(f"the recording cannot be deleted: {exc.strerror}") from exc
            return True
        raise StoreError(f"the disk of the recordings has not answered for {ANSWER_S:g} s")

    # --- Writing

    def check(self) -> None:
        """Make the folder, and see that it can be written to.

        Raises:
            StoreError: it cannot.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.folder / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as exc:
            raise StoreError(
                f"VOICEBOT_RECORDING__PATH: {self.folder} cannot be written to: {exc.strerror}"
            ) from exc

    def _add(self, block: _Block) -> None:
        if self._queued + len(block.audio) > QUEUED_BYTES:
            self._drop(block, "the disk does not keep up")
            return
        self._blocks.append(block)
        self._queued += len(block.audio)
        self._told.ring()

    def _drop(self, block: _Block, reason: str) -> None:
        self._metrics.recording_dropped.inc(len(block.audio) / BLOCK_BYTES)
        if not self._trouble:
            _log.error("recording_dropped", extra={"reason": reason})
        self._trouble = True

    async def write_on(self) -> None:
        """Write what there is, again and again, and look for what is too old; never returns.

        Cancellation: at once; the write under way goes on in its thread.
        """
        while True:
            if not self._blocks:
                with trio.move_on_at(self._look_at):
                    await self._told.wait()
            if trio.current_time() >= self._look_at:
                await self._in_thread(self._look)
                self._look_at = trio.current_time() + LOOK_S
            await trio.sleep(GATHER_S)
            await self._write_some()

    async def _write_some(self) -> None:
        if not self._blocks:
            return
        self._in_hand = list(self._blocks)
        self._blocks.clear()
        failures = await self._in_thread(self._write, self._in_hand)
        self._queued -= sum(len(block.audio) for block in self._in_hand)
        self._in_hand = []
        for block, reason in failures:
            self._drop(block, reason)
        if not failures and self._trouble:
            _log.warning("recording_again")
            self._trouble = False

    def _write(self, blocks: list[_Block]) -> list[tuple[_Block, str]]:
        """Write blocks in a thread; return those that were not, and why."""
        failures = []
        for block in blocks:
            try:
                self._write_block(block)
            except Exception as exc:  # whatever it is, other blocks are to be written
                failures.append((block, f"{type(exc).__name__}: {exc}"))
        return failures

    def _write_block(self, block: _Block) -> None:
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < self._free_bytes:
            raise OSError(errno.ENOSPC, "less is free than VOICEBOT_RECORDING__FREE_GB")
        track = block.track
        if track.base is None:
            # Where an earlier stream of the call ended; of what was dropped since there is silence.
            track.base = _write_at(track.path, None, b"")
        _write_at(track.path, track.base + block.at, block.audio)

    def _look(self) -> None:
        """Delete what is too old and mend what was torn, in a thread."""
        oldest = time.time() - self._days * 86_400 if self._days else -inf
        gone = mended = 0
        for file in self.folder.glob("*.wav"):  # a folder that is away has none
            try:
                promised = _promised(file)
                if promised is None or path_of(self.folder, file.stem) is None:
                    continue  # somebody's music
                if file.stat().st_mtime < oldest:
                    file.unlink()
                    gone += 1
                else:
                    mended += _mend(file, promised)
            except OSError as exc:  # the others are looked at, and this one again in an hour
                _log.error("recording_not_looked_at", extra={"error": str(exc)})
        if gone or mended:
            _log.info("recordings_looked_at", extra={"expired": gone, "mended": mended})

    async def _in_thread(self, sync: Callable[..., T], *args: Any) -> T:
        # A disk may hang for ever. The thread keeps the limiter, so nothing overtakes it.
        return await trio.to_thread.run_sync(
            sync, *args, abandon_on_cancel=True, limiter=self._writing
        )

    async def finish(self) -> None:
        """Write until nothing is left and no call is recorded.

        Cancellation: at once; a thread that hangs is left behind.
        """
        async with self._writing:
            self._in_hand = []  # what the thread was left with is written
        while self._blocks or self._tapes:
            await self._write_some()
            if self._tapes and not self._blocks:
                await self._told.wait()

    def give_up_rest(self) -> None:
        """Count what was not written in time."""
        for block in (*self._in_hand, *self._blocks):
            self._drop(block, f"the disk did not take it within {FLUSH_S:g} s of the end")


def path_of(folder: Path, sid: str) -> Path | None:
    """Return where the recording of a call is, if there is one; None: it is no SID."""
    return folder / f"{sid}.wav" if _SID.fullmatch(sid) else None


class _Track(Mixer):
    """A stream that is being recorded."""

    def __init__(self, path: Path, add: Callable[[_Block], None]) -> None:
        super().__init__()
        self.path = path
        self.base: int | None = None  # where in the file it begins; of the writing thread
        self._add = add
        self._at = 0
        self._taken = 0

    def caller_said(
        self, payload: bytes, timestamp_ms: int, now: float, *, hidden: bool = False
    ) -> None:
        super().caller_said(payload, timestamp_ms, now, hidden=hidden)
        self._taken += _CHANNELS * len(payload)
        if self._taken >= BLOCK_BYTES:
            self._taken = 0
            self._hand_over(self.take())

    def finish(self) -> None:
        """Hand over the rest."""
        self._hand_over(self.take(rest=True))

    def _hand_over(self, block: bytes) -> None:
        if block:
            self._add(_Block(self, self._at, block))
            self._at += len(block)


@dataclass(frozen=True, slots=True)
class _Block:
    """Audio of a track, of both channels, `at` bytes behind the beginning of the track."""

    track: _Track
    at: int
    audio: bytes
