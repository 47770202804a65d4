"""How much work a call is, counted: messages, steps of its tasks, runs of the model.

Times differ from machine to machine and from minute to minute, so that a loss of a tenth hides in
them; counts do not. A message has one step of each task that has to do with it, and no more: each
further step is a pass through the loop, at what a message itself costs. Real sockets, real ears.
"""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from tests.e2e.running import open_server
from tests.e2e.test_real_call import STORY, TEXTS, caller, environment
from voicebot.deepgram_socket import DeepgramSocket
from voicebot.silero import CHUNK_BYTES, Silero
from voicebot.standins import open_standins


class Steps(trio.abc.Instrument):
    """Counts the steps of a call's tasks."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        name, _, sid = task.name.partition(" ")
        # The simulator's and the stand-ins' tasks are here as well; the call's say whose they are.
        if sid.startswith("CA") or "voicebot.recognising." in name:
            self.of[name.rpartition(".")[2]] += 1


async def test_a_call_takes_no_more_steps_than_it_has_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, told, runs = Steps(), Counter[str](), 0
    send, predict = DeepgramSocket.send, Silero.predict

    async def counted_send(socket: DeepgramSocket, message: str | bytes) -> None:
        told["audio" if isinstance(message, bytes) else "text"] += 1
        await send(socket, message)

    def counted_predict(model: Silero, window: bytes, state: bytes) -> tuple[float, bytes]:
        nonlocal runs
        runs += 1
        return predict(model, window, state)

    with trio.fail_after(90):
        async with open_standins(texts=TEXTS, replies=[STORY] * 4) as standins:
            async with open_server(environment(standins)) as server:
                monkeypatch.setattr(DeepgramSocket, "send", counted_send)
                monkeypatch.setattr(Silero, "predict", counted_predict)
                trio.lowlevel.add_instrument(steps)
                try:
                    recording = await server.call(caller())
                finally:
                    trio.lowlevel.remove_instrument(steps)
                await server.wait_idle()
                record = server.app.board.store.get(recording.identity.call_sid)
    assert record is not None
    assert record.summary is not None
    counts = record.summary["counts"]
    seconds = counts["media_in"] / 50
    assert seconds > 10
    out = counts["media_out"]
    marks = 3 * (record.summary["duration_s"] + 4)  # one for each 240 ms, and at pauses

    # In: a read takes one message, or several that have come.
    assert steps.of["listen"] <= 1.1 * (counts["media_in"] + marks) + 20
    # Out: 80 ms each. Few are less, at the ends of what is there of an answer.
    assert out <= 1.3 * counts["sent_ms"] / 80 + 10
    assert steps.of["write"] <= 1.1 * (out + marks) + 20
    assert steps.of["converse"] <= 2.2 * (out + marks) + 50
    # To the recogniser: 80 ms each, and what edges cut. Each is a step, and one more to be woken.
    assert told["audio"] <= seconds * 1_000 / 80 + 4 * told["text"] + 10
    assert steps.of["_feed_from_ring"] <= 2.2 * told.total() + 20
    # Silero is asked while somebody speaks: here a quarter of the time.
    assert runs <= 0.4 * seconds * 8_000 / CHUNK_BYTES
