"""Several processes on one port: whoever is asked, it is one service, and one that dies is alone.

The processes, their sockets and signals are real. Where a request is to meet a certain worker, it
goes through a router to the port that this worker has of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.databases import database_url, postgres_server
from tests.e2e.running import PUBLIC_URL, exported, recorded
from tests.e2e.test_drain import APOLOGY, listener, ready
from tests.e2e.test_real_call import environment
from tests.e2e.test_telephone import COLLEAGUE, KEY, PUTTING, TO, says
from tests.test_serving import free_port
from voicebot.simulator import Script
from voicebot.simulator.call import Utterance, WhenSilent
from voicebot.simulator.dial import Account
from voicebot.simulator.telephone import Person, PhoneCall, Telephone
from voicebot.standins import Standins, open_standins
from voicebot.standins.groq import Reply, ToolCall
from voicebot.standins.twilio import ACCOUNT_SID, AUTH_TOKEN
from voicebot.testing.telephone import open_telephone

__all__ = ["database_url", "postgres_server"]  # fixtures

Route = Callable[[str], int]  # from the path of a request to the number of the worker
SHARED = 2  # whichever the kernel says


@dataclass
class Team:
    """A supervisor with two workers, and all that is around them."""

    standins: Standins
    process: trio.Process
    phones: Telephone
    clients: tuple[httpx.AsyncClient, ...]  # one for each worker, then one for the shared port
    environ: dict[str, str]
    route: Route = lambda path: 0

    async def place(self, at: int = 0, **more: Any) -> PhoneCall:
        answer = await self.clients[at].post("/calls", json={"to": TO, **more})
        assert answer.status_code == 201, answer.text
        return self.phones.calls[answer.json()["call_sid"]]

    async def place_and_talk(self, at: int = 0) -> PhoneCall:
        call = await self.place(at)
        while not (await self.clients[2].get(f"/calls/{call.sid}")).json().get("live"):  # noqa: ASYNC110  # another program, as far as tests go
            await trio.sleep(0.05)
        return call

    async def ready(self, worker: int) -> None:
        await ready(self.clients[worker])

    async def stop(self) -> None:
        """Have all of it drain, and wait until it is over."""
        self.process.terminate()
        assert await self.process.wait() == 0

    def pids(self) -> list[int]:
        """Return the workers, as started: each thread of the supervisor has its children."""
        threads = os.listdir(f"/proc/{self.process.pid}/task")
        paths = (Path(f"/proc/{self.process.pid}/task/{each}/children") for each in threads)
        return sorted(int(pid) for path in paths for pid in path.read_text().split())

    async def records(self) -> dict[str, dict[str, Any]]:
        """Return the records, from the database."""
        return await exported(self.environ)


@asynccontextmanager
async def team(
    url: str, replies: Sequence[str | Reply], *people: Person, route: Route, **more: str
) -> AsyncGenerator[Team]:
    """Run two workers; `people` are at TO and COLLEAGUE."""
    with trio.fail_after(90):
        async with (
            open_standins(texts=lambda heard: "hello", replies=list(replies)) as standins,
            trio.open_nursery() as nursery,
        ):
            environ = {
                **environment(standins),
                "VOICEBOT_DATABASE_URL": url,
                "VOICEBOT_TRANSFER_TO": COLLEAGUE,
                "VOICEBOT_DRAIN_S": "60",
                "VOICEBOT_WORKERS": "2",
                **more,
            }
            port, own = free_port(), two_ports()
            ports = (own, own + 1, port)
            command = ["-m", "voicebot", "serve", "--port", str(port), "--own-port", str(own)]
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, *command],
                    env={**os.environ, "PYTHONPATH": os.getcwd(), **environ},
                    stdout=subprocess.DEVNULL,
                    check=False,
                )
            )
            here: Team
            router = await nursery.start(serve_router, ports, lambda path: here.route(path))
            urls = [f"http://127.0.0.1:{each}" for each in ports]
            clients = tuple(
                httpx.AsyncClient(base_url=each, headers=KEY, trust_env=False) for each in urls
            )
            at = dict(zip((TO, COLLEAGUE), people, strict=False))
            account = Account(ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL)
            async with open_telephone(standins.twilio, router, account, at) as phones:
                here = Team(standins, process, phones, clients, environ, route)
                for client in clients:
                    await ready(client)
                yield here
            process.kill()
            for client in clients:
                await client.aclose()
            nursery.cancel_scope.cancel()


def two_ports() -> int:
    """Return the first of two free ports that are neighbours."""
    while True:
        port = free_port()
        try:
            with socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            continue


async def serve_router(
    ports: Sequence[int],
    route: Route,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Pass each request on to the worker that `route` says, one to a connection."""

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(client: trio.SocketStream) -> None:
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                data = await client.receive_some()
                if not data:
                    return
                head += bytes(data)
            first, _, rest = head.partition(b"\r\n")
            if b"upgrade: websocket" not in rest.lower():
                rest = b"Connection: close\r\n" + rest
            port = ports[route(first.split()[1].decode())]
            async with await trio.open_tcp_stream("127.0.0.1", port) as server:
                await server.send_all(first + b"\r\n" + rest)
                async with trio.open_nursery() as nursery:  # owns: the way there
                    nursery.start_soon(pump, client, server)
                    await pump(server, client)
                    nursery.cancel_scope.cancel()
        except (OSError, trio.BrokenResourceError):
            pass
        finally:
            await trio.aclose_forcefully(client)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        task_status.started(f"http://127.0.0.1:{port}")


def in_turn() -> Route:
    """Return a route that gives each request to the other worker than the one before."""
    asked = [1]

    def route(path: str) -> int:
        asked[0] = 1 - asked[0]
        return asked[0]

    return route


def crosswise(path: str) -> int:
    """Give streams to one, and webhooks to the other."""
    return int(path.startswith("/twilio/stream") and "status" not in path)


@pytest.mark.parametrize("route", [crosswise, in_turn()], ids=["crosswise", "in turn"])
async def test_a_call_is_talked_whichever_worker_each_request_meets(
    route: Route, database_url: str
) -> None:
    async with team(database_url, ["Nice to meet you."], Person((says(),)), route=route) as here:
        call = await here.place(metadata={"name": "Ada"})
        await call.over.wait()
        await here.stop()
        record = (await here.records())[call.sid]
    assert call.errors == []
    assert call.recording.ended.by == "caller"
    assert [turn["heard"] for turn in record["turns"]] == ["Hello.", "Nice to meet you."]
    assert (record["status"], record["metadata"]) == ("completed", {"name": "Ada"})
    assert record["to"] == TO


async def test_a_caller_whom_nobody_takes_is_back_with_the_other_worker_that_knows_it(
    database_url: str,
) -> None:
    replies: list[str | Reply] = [PUTTING, "I am sorry, nobody is there."]
    people = Person((says(), Script(()))), Person(does="busy")
    streams = iter((0, 1))

    def route(path: str) -> int:
        return next(streams) if crosswise(path) else 1 - int("after-dial" in path)

    async with team(database_url, replies, *people, route=route) as here:
        call = await here.place()
        await call.over.wait()
        await here.stop()
        record = (await here.records())[call.sid]
        requests = [chat.messages for chat in here.standins.groq.chats]
    assert [one.status for one in call.dialled] == ["busy"]
    assert call.errors == []
    turns = [turn["heard"] for turn in record["turns"]]
    assert turns == ["Hello.", "I am putting you through.", "I am sorry, nobody is there."]
    assert "nobody took the call (busy)" in str(requests[-1])
    assert "I am putting you through." in str(requests[-1])


async def test_who_is_put_through_by_one_is_announced_by_the_other(tmp_path: Path) -> None:
    people = Person((says(),)), Person(talks_s=0.1)
    url = f"sqlite:///{tmp_path}/calls.db"
    async with team(url, [PUTTING], *people, route=crosswise) as here:
        call = await here.place()
        await call.over.wait()
        await here.stop()
    [colleague] = call.dialled
    assert (colleague.status, colleague.said) == ("completed", ["Ada wants a refund."])
    assert call.errors == []


async def test_keys_are_pressed_between_streams_of_two_workers(tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text(
        "from voicebot import Bot\nbot = Bot(greeting='Hello.', may_send_digits=True)\n"
    )
    keys = Reply("One moment.", (ToolCall("send_digits", '{"digits": "12#"}'),))
    streams = iter((0, 1))
    async with team(
        f"sqlite:///{tmp_path}/calls.db",
        [keys, "That is done."],
        Person((says(), Script(()))),
        route=lambda path: next(streams) if crosswise(path) else 1,
        VOICEBOT_BOT=f"{tmp_path}/bot.py",
    ) as here:
        call = await here.place()
        await call.over.wait()
        await here.stop()
        record = (await here.records())[call.sid]
    assert "".join(call.digits) == "12#"
    assert [turn["heard"] for turn in record["turns"]][-1] == "That is done."
    assert call.errors == []


async def test_a_machine_of_which_the_other_worker_hears_gets_its_message(
    database_url: str,
) -> None:
    machine = Person(taken_for="machine_end_beep", detected_s=1.0)
    async with team(database_url, [], machine, route=crosswise) as here:
        call = await here.place(voicemail="Please call us back.")
        await call.over.wait()
        await here.stop()
        record = (await here.records())[call.sid]
    assert call.errors == []
    assert (record["answered_by"], record["outcome"]) == ("machine_end_beep", "voicemail")
    assert record["turns"][-1]["heard"] == "Please call us back."


async def test_a_call_is_hung_up_on_by_whichever_worker_is_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.db"
    async with team(url, [], listener(), route=crosswise) as here:
        call = await here.place_and_talk()
        live = await here.clients[0].delete(f"/calls/{call.sid}")
        done = await here.clients[0].post(f"/calls/{call.sid}/hangup")
        await call.over.wait()
        assert (live.status_code, done.json()["hung_up"]) == (409, True)
        path = f"/calls/{call.sid}"
        while (await here.clients[1].get(path)).json()["duration_s"] is None:  # noqa: ASYNC110  # Twilio tells it last
            await trio.sleep(0.05)
        assert (await here.clients[1].delete(path)).status_code == 204
        answers = [await client.get(f"/calls/{call.sid}") for client in here.clients]
        assert [answer.status_code for answer in answers] == [404] * 3, answers[0].text[:300]
        await here.stop()


async def test_the_last_of_a_days_minutes_goes_to_one(database_url: str) -> None:
    people = listener(1.0)
    more = {"VOICEBOT_OUTBOUND__MINUTES_PER_DAY": "63"}
    async with team(database_url, [], people, route=crosswise, **more) as here:
        answers: list[int] = []

        async def place(client: httpx.AsyncClient) -> None:
            answers.append((await client.post("/calls", json={"to": TO})).status_code)

        async with trio.open_nursery() as nursery:
            for client in here.clients * 2:
                nursery.start_soon(place, client)
        assert sorted(answers) == [201, 429, 429, 429, 429, 429]
        [call] = here.phones.calls.values()
        await call.over.wait()
        await here.stop()


async def test_a_worker_that_is_killed_takes_its_calls_and_no_other(tmp_path: Path) -> None:
    """Calls of both are live; callers go on coming, by the port that the workers share."""
    url = f"sqlite:///{tmp_path}/calls.db"
    route = in_turn()
    async with team(url, ["Good."] * 50, route=route) as here:
        here.phones.people.update({TO: listener(40.0)})
        streams = in_turn()
        here.route = lambda path: streams(path) if crosswise(path) else 0
        calls = [await here.place_and_talk() for _ in range(4)]
        processes = {await process_of(here, call) for call in calls}
        assert len(processes) == 2, processes
        before = here.pids()
        health = [(await client.get("/readyz")).json()["lines_taken"] for client in here.clients]
        assert health[:2] == [2, 2]
        os.kill(before[1], signal.SIGKILL)
        # By the shared port: nothing waits in the socket of the dead one.
        statuses = []
        for _ in range(40):
            async with httpx.AsyncClient(base_url=here.clients[2].base_url, timeout=3.0) as client:
                statuses.append((await client.get("/healthz")).status_code)
        assert statuses == [200] * 40
        await here.ready(1)
        assert len(here.pids()) == 2
        assert set(here.pids()) != set(before)
        outcomes = [await outcome(here, call) for call in calls]
        assert sorted(outcomes, key=str) == [None, None, "lost", "lost"]
        survivors = [call for call, what in zip(calls, outcomes, strict=True) if what is None]
        assert all(call.streaming for call in survivors)
        new = await here.place_and_talk(at=1)
        assert new.errors == []
        for call in (*survivors, new):
            await here.clients[1].post(f"/calls/{call.sid}/hangup")
            await call.over.wait()
            assert call.errors == []
        await here.stop()
        ended = await here.records()
    assert [ended[call.sid]["outcome"] for call in survivors] == ["hung_up"] * 2


async def process_of(here: Team, call: PhoneCall) -> str:
    """Return which process holds a call, when the one that is asked knows of it."""
    with trio.fail_after(10):
        while True:
            record = (await here.clients[0].get(f"/calls/{call.sid}")).json()
            if record["process"] is not None:
                return str(record["process"])
            await trio.sleep(0.1)


async def outcome(here: Team, call: PhoneCall) -> str | None:
    """Return the outcome of a call, when those of the dead are known."""
    while True:
        record = (await here.clients[0].get(f"/calls/{call.sid}")).json()
        if record["outcome"] is not None or call.streaming:
            found: str | None = record["outcome"]
            return found
        await trio.sleep(0.1)


async def test_both_drain_under_load(tmp_path: Path) -> None:
    """Half of the callers end by themselves; the others are there at the deadline."""
    talk = tuple(Utterance("more", recorded("im-sorry", 1.0), WhenSilent()) for _ in range(2))
    url, number = f"sqlite:///{tmp_path}/calls.db", 10
    more = {"VOICEBOT_DRAIN_S": "15"}
    async with team(url, ["There is more."] * 100, route=lambda path: SHARED, **more) as here:
        async with trio.open_nursery() as callers:  # owns: the phones
            for each in range(number):
                script = Script((), hang_up_after_s=60.0) if each % 2 else Script(talk)
                callers.start_soon(here.phones.call_in, script)
            while sum(call.streaming for call in here.phones.calls.values()) < number:  # noqa: ASYNC110  # another program, as far as tests go
                await trio.sleep(0.02)
            here.process.terminate()
        assert await here.process.wait() == 0
        records = await here.records()
    outcomes: dict[str, int] = {}
    for sid, call in here.phones.calls.items():
        record = records[sid]
        outcomes[record["outcome"]] = outcomes.get(record["outcome"], 0) + 1
        assert call.errors == []
        if record["outcome"] == "server_stopped":
            assert record["turns"][-1]["heard"] == APOLOGY
    assert outcomes == {"hung_up": number // 2, "server_stopped": number // 2}


async def test_who_has_gone_from_above_is_missed(tmp_path: Path) -> None:
    async with team(f"sqlite:///{tmp_path}/calls.db", [], route=crosswise) as here:
        workers = here.pids()
        assert len(workers) == 2
        here.process.kill()
        with trio.fail_after(20):
            while any(os.path.exists(f"/proc/{pid}") for pid in workers):  # noqa: ASYNC110, ASYNC240  # as above
                await trio.sleep(0.05)


async def start(tmp_path: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    """Start a team that cannot be; return its exit status and what it says."""
    command = [sys.executable, "-m", "voicebot", "serve", "--dev", "--workers", "2", *arguments]
    with trio.fail_after(60):
        done = await trio.run_process(
            command,
            env={**os.environ, "PYTHONPATH": os.getcwd(), **environ},
            cwd=tmp_path,
            check=False,
            capture_stderr=True,
            capture_stdout=True,
        )
    assert b"ready on" not in done.stdout
    return done.returncode, done.stderr.decode()


KEYS = {
    "DEEPGRAM_API_KEY": "x", "DEEPGRAM_URL": "http://127.0.0.1:1",
    "GROQ_API_KEY": "x", "GROQ_BASE_URL": "http://127.0.0.1:1",
}  # fmt: skip


async def test_a_port_that_somebody_has_is_not_shared_with_them(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = str(taken.getsockname()[1])
        status, said = await start(tmp_path, "--port", port, **KEYS)
    assert status == 1
    assert said.count("cannot listen on") == 1


async def test_what_no_worker_can_start_with_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "calls.db").write_bytes(b"this is no database" * 100)
    url = {"VOICEBOT_DATABASE_URL": "sqlite:///calls.db"}
    status, said = await start(tmp_path, "--port", "0", **KEYS, **url)
    assert status == 1
    assert said.count("VOICEBOT_DATABASE_URL: the database") == 1


async def test_a_team_without_a_database_is_none(tmp_path: Path) -> None:
    status, said = await start(tmp_path, "--port", "0", **KEYS, VOICEBOT_DATABASE_URL="")
    assert status == 2
    assert "VOICEBOT_DATABASE_URL" in said
