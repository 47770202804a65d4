"""A server that is told to stop while people talk to it: real processes, signals and sockets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.e2e.running import PUBLIC_URL, exported, recorded
from tests.e2e.test_real_call import environment
from tests.e2e.test_telephone import COLLEAGUE, KEY, PUTTING, TO, says
from tests.test_serving import free_port
from voicebot.plan import CallPlan
from voicebot.serving import TOGETHER_S
from voicebot.simulator import Script
from voicebot.simulator.call import Utterance, WhenSilent
from voicebot.simulator.dial import Account
from voicebot.simulator.telephone import Person, PhoneCall, Telephone
from voicebot.standins import Standins, open_standins
from voicebot.standins.groq import Reply
from voicebot.standins.twilio import ACCOUNT_SID, AUTH_TOKEN
from voicebot.standins.voice import word_spans
from voicebot.testing.telephone import open_telephone

SERVE = ["-m", "voicebot", "serve", "--port"]
HYPERCORN = ["-m", "hypercorn", "--worker-class", "trio", "--bind"]
APOLOGY = CallPlan("", "").stopping


@dataclass
class Scene:
    """A server in a process of its own, and all that is around it."""

    standins: Standins
    process: trio.Process
    phones: Telephone
    client: httpx.AsyncClient
    environ: dict[str, str]

    async def stop(self, to: int | None = None) -> None:
        """Send SIGTERM, and wait until the server has taken it."""
        os.kill(to or self.process.pid, signal.SIGTERM)
        while (await self.client.get("/readyz")).status_code != 503:  # noqa: ASYNC110  # as above
            await trio.sleep(0.01)

    async def place(self) -> PhoneCall:
        """Have the bot call somebody; return when they talk."""
        answer = await self.client.post("/calls", json={"to": TO})
        assert answer.status_code == 201, answer.text
        call = self.phones.calls[answer.json()["call_sid"]]
        while not call.streaming:  # noqa: ASYNC110  # another program, as far as tests go
            await trio.sleep(0.01)
        return call

    async def over(self) -> int:
        """Wait for the process; return its exit status."""
        status = await self.process.wait()
        with pytest.raises(httpx.TransportError):
            await self.client.get("/healthz")
        return status

    async def records(self) -> dict[str, dict[str, Any]]:
        """Return the records, from the database."""
        return await exported(self.environ)


@asynccontextmanager
async def scene(
    folder: Path,
    replies: Sequence[str | Reply],
    *people: Person,
    command: Sequence[str] = SERVE,
    **more: str,
) -> AsyncGenerator[Scene]:
    """Run a server; `people` are at TO and COLLEAGUE."""
    with trio.fail_after(90):
        async with (
            open_standins(texts=lambda heard: "hello", replies=list(replies)) as standins,
            trio.open_nursery() as nursery,
        ):
            environ = {
                **environment(standins),
                "VOICEBOT_DATABASE_URL": f"sqlite:///{folder}/calls.db",
                "VOICEBOT_TRANSFER_TO": COLLEAGUE,
                "VOICEBOT_DRAIN_S": "60",
                **more,
            }
            port = free_port()
            where = f"127.0.0.1:{port}" if command is HYPERCORN else str(port)
            app = ["voicebot.http:app"] if command is HYPERCORN else []
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, *command, where, *app],
                    env={**os.environ, "PYTHONPATH": os.getcwd(), **environ},
                    stdout=subprocess.DEVNULL,
                    check=False,
                )
            )
            url = f"http://127.0.0.1:{port}"
            at = dict(zip((TO, COLLEAGUE), people, strict=False))
            account = Account(ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL)
            async with (
                httpx.AsyncClient(base_url=url, headers=KEY, trust_env=False) as client,
                open_telephone(standins.twilio, url, account, at) as phones,
            ):
                await ready(client)
                yield Scene(standins, process, phones, client, environ)
            process.kill()


async def ready(client: httpx.AsyncClient) -> None:
    while True:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        await trio.sleep(0.05)


def listener(seconds: float = 60.0) -> Person:
    """Return somebody who only listens."""
    return Person((Script((), hang_up_after_s=seconds),))


@pytest.mark.parametrize("command", [SERVE, HYPERCORN], ids=["serve", "hypercorn"])
async def test_a_live_call_goes_on_and_nobody_new_comes(command: list[str], tmp_path: Path) -> None:
    async with scene(tmp_path, ["Nice to meet you."], Person((says(),)), command=command) as here:
        call = await here.place()
        await here.stop()
        new = await here.phones.call_in(Script(()))
        refused = await here.client.post("/calls", json={"to": TO})
        health = await here.client.get("/healthz")
        await call.over.wait()
        assert await here.over() == 0
        record = (await here.records())[call.sid]
    [text] = new.said
    assert "sorry" in text
    assert (new.recordings, new.errors) == ([], [])
    assert (refused.status_code, health.status_code) == (503, 200)
    assert int(refused.headers["Retry-After"]) > 0
    assert call.errors == []
    assert call.recording.ended.by == "caller"
    assert [turn["heard"] for turn in record["turns"]] == ["Hello.", "Nice to meet you."]
    assert (record["outcome"], record["status"]) == ("hung_up", "completed")
    assert record["duration_s"] is not None  # which Twilio tells when all is over


async def test_a_caller_whom_nobody_takes_is_back_although_the_server_drains(
    tmp_path: Path,
) -> None:
    replies: list[str | Reply] = [PUTTING, "I am sorry, nobody is there."]
    people = Person((says(), Script(()))), Person(does="busy")
    async with scene(tmp_path, replies, *people) as here:
        call = await here.place()
        await here.stop()
        await call.over.wait()
        assert await here.over() == 0
        record = (await here.records())[call.sid]
    assert [one.status for one in call.dialled] == ["busy"]
    assert call.errors == []
    turns = [turn["heard"] for turn in record["turns"]]
    assert turns == ["Hello.", "I am putting you through.", "I am sorry, nobody is there."]


async def test_a_caller_is_put_through_although_the_server_drains(tmp_path: Path) -> None:
    people = Person((says(),)), Person(talks_s=0.5)
    async with scene(tmp_path, [PUTTING], *people) as here:
        call = await here.place()
        await here.stop()
        await call.over.wait()
        assert await here.over() == 0
    [colleague] = call.dialled
    assert (colleague.status, colleague.said) == ("completed", ["Ada wants a refund."])
    assert call.errors == []


@pytest.mark.parametrize("why", ["deadline", "second signal", "second signal to a worker"])
async def test_who_is_left_hears_an_apology_and_is_hung_up_on(why: str, tmp_path: Path) -> None:
    drain_s = "1" if why == "deadline" else "60"
    command = HYPERCORN if "worker" in why else SERVE
    async with scene(tmp_path, [], listener(), command=command, VOICEBOT_DRAIN_S=drain_s) as here:
        call = await here.place()
        await here.stop()
        if why == "second signal":
            here.process.terminate()
        elif why != "deadline":
            await trio.sleep(TOGETHER_S)  # what comes before is no second one
            for child in children(here.process.pid):
                os.kill(child, signal.SIGTERM)
        assert await here.over() == 0
        await call.over.wait()
        record = (await here.records())[call.sid]
        updates = here.standins.twilio.calls[call.sid].updates
    assert updates == [{"Status": "completed"}]
    last = record["turns"][-1]
    assert (last["heard"], last["interrupted"]) == (APOLOGY, False)
    assert not call.recording.played[-1].cut
    assert heard_ms(call) >= spoken_ms(APOLOGY)
    assert (record["outcome"], record["status"]) == ("server_stopped", "completed")
    assert record["summary"]["outcome"] == "server_stopped"


def spoken_ms(text: str) -> float:
    """Return how long the stand-in's voice speaks, up to the end of the last word."""
    return sum(word_spans(part)[-1].end_ms for part in re.findall(r"[^.]+\.", text))


def heard_ms(call: PhoneCall) -> float:
    return sum(played.end_ms - played.start_ms for played in call.recording.played)


async def test_a_third_signal_waits_for_no_last_word(tmp_path: Path) -> None:
    async with scene(tmp_path, [], listener()) as here:
        call = await here.place()
        await here.stop()
        for _ in range(3):
            here.process.terminate()
            await trio.sleep(0.5)  # signals that wait to be taken are one
        assert await here.over() == 0
        await call.over.wait()
        record = (await here.records())[call.sid]
    assert (record["outcome"], record["status"]) == ("cancelled", "completed")


@pytest.mark.parametrize("command", [SERVE, HYPERCORN], ids=["serve", "hypercorn"])
async def test_a_server_that_nobody_talks_to_stops_at_once(
    command: list[str], tmp_path: Path
) -> None:
    async with scene(tmp_path, [], command=command) as here:
        began = trio.current_time()
        here.process.terminate()
        assert await here.process.wait() == 0
        took_s = trio.current_time() - began
    sys.stdout.write(f"\nan idle server stopped in {took_s:.2f} s\n")
    assert took_s < 10.0  # and not after VOICEBOT_DRAIN_S, which is 60


async def test_a_worker_of_hypercorn_that_is_signalled_with_its_parent_drains(
    tmp_path: Path,
) -> None:
    """As systemd does to all processes of a service."""
    async with scene(tmp_path, ["Good."], Person((says(),)), command=HYPERCORN) as here:
        call = await here.place()
        await here.stop()
        for child in children(here.process.pid):
            os.kill(child, signal.SIGTERM)
        await call.over.wait()
        assert await here.over() == 0
        record = (await here.records())[call.sid]
    assert (record["outcome"], call.errors) == ("hung_up", [])


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


CALLS = 30


async def test_under_load_no_call_is_cut_and_no_record_is_lost(tmp_path: Path) -> None:
    """Half of the callers end by themselves; the others are there at the deadline."""
    talk = tuple(Utterance("more", recorded("im-sorry", 1.0), WhenSilent()) for _ in range(2))
    drain_s = 25.0
    async with scene(
        tmp_path,
        ["There is more to tell."] * 200,
        VOICEBOT_DRAIN_S=str(drain_s),
        VOICEBOT_MAX_CALLS=str(CALLS),
    ) as here:
        ends: dict[str, float] = {}

        async def hold(script: Script) -> None:
            call = await here.phones.call_in(script)
            ends[call.sid] = trio.current_time()

        async with trio.open_nursery() as callers:  # owns: the phones
            for number in range(CALLS):
                stays = number % 2
                callers.start_soon(
                    hold, Script((), hang_up_after_s=80.0) if stays else Script(talk)
                )
            while sum(call.streaming for call in here.phones.calls.values()) < CALLS:  # noqa: ASYNC110  # as above
                await trio.sleep(0.02)
            began = trio.current_time()
            await here.stop()
        assert await here.over() == 0
        records = await here.records()
    deadline = began + drain_s
    outcomes: dict[str, int] = {}
    for sid, call in here.phones.calls.items():
        record = records[sid]
        outcomes[record["outcome"]] = outcomes.get(record["outcome"], 0) + 1
        assert call.errors == []
        assert (record["status"], record["summary"]["outcome"]) == ("completed", record["outcome"])
        if record["outcome"] == "server_stopped":
            assert ends[sid] >= deadline
            assert record["turns"][-1]["heard"] == APOLOGY
        else:
            assert call.recording.ended.by == "caller"
    sys.stdout.write(f"\n{outcomes}, stopped after {max(ends.values()) - began:.1f} s\n")
    assert outcomes == {"hung_up": CALLS - CALLS // 2, "server_stopped": CALLS // 2}
