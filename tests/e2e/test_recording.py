"""A recording by a real server against the simulator's own of the same call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import trio

from tests.e2e.running import open_server, recorded
from tests.e2e.test_real_call import STORY, TEXTS, caller, environment
from tests.e2e.test_records import served
from tests.e2e.test_telephone import KEY, PUTTING, says, world
from voicebot import Bot
from voicebot.audio import SILENCE
from voicebot.errors import VoicebotError
from voicebot.simulator.call import Script, Utterance, WhenSilent, run_call
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.simulator.telephone import Person
from voicebot.standins import open_standins
from voicebot.standins.groq import Reply

QUIET = bytes([SILENCE])
HEADER_BYTES = 58
NEAR = 100 * 8  # a tenth of a second, in samples


def channels(wav: bytes) -> tuple[bytes, bytes]:
    assert wav[:4] == b"RIFF"
    assert int.from_bytes(wav[HEADER_BYTES - 4 : HEADER_BYTES], "little") == len(wav) - HEADER_BYTES
    return wav[HEADER_BYTES::2], wav[HEADER_BYTES + 1 :: 2]


def strays(bot: bytes, heard: bytes) -> Iterator[str]:
    """Yield where the recorded bot is not what came out of the caller's phone."""
    length = 800
    for at in range(0, min(len(bot), len(heard)) - length, length // 2):
        window = heard[at : at + length]
        if window.count(QUIET) < length // 2:
            around = bot[max(0, at - NEAR) : at + length + NEAR]
            if window not in around:
                yield f"at {at / 8:.0f} ms something is missing"
    for at in range(0, len(bot), 80):
        around = heard[max(0, at - NEAR) : at + 80 + NEAR]
        if bot[at : at + 80].strip(QUIET) and not around.strip(QUIET):
            yield f"at {at / 8:.0f} ms there is what nobody heard"


async def test_a_recording_is_what_was_said_and_heard(tmp_path: Path) -> None:
    with trio.fail_after(90):
        async with open_standins(texts=TEXTS, replies=[STORY] * 4) as standins:
            environ = {**environment(standins), "VOICEBOT_RECORDING__PATH": str(tmp_path)}
            async with open_server(environ) as server:
                call = await server.call(caller())
                await server.wait_idle()
                sid = call.identity.call_sid
                record = server.app.board.store.get(sid)
                while not (tmp_path / f"{sid}.wav").exists():  # noqa: ASYNC110  # a thread does it
                    await trio.sleep(0.02)
            wav = (tmp_path / f"{sid}.wav").read_bytes()

    assert len(call.clears) == 3
    left, bot = channels(wav)
    assert len(left) > len(call.caller) - 4_000
    assert left == call.caller[: len(left)]
    assert bot.strip(QUIET)
    # Where the machine was busy a run of audio may have a hole that is a little elsewhere.
    wrong = list(strays(bot, call.heard))
    assert len(wrong) <= len(call.heard) // 800 // 50, wrong
    for clear in call.clears:
        begin = round(clear.effect_ms * 8) + NEAR
        silent = [p.start_ms for p in call.played if p.start_ms > clear.effect_ms]
        end = round(min(silent) * 8) - NEAR if silent else len(bot)
        assert not bot[begin : max(begin, end)].strip(QUIET)
    assert record is not None
    assert record.summary is not None
    assert record.summary["turns"][0]["heard"] == "This call is recorded. Hello."


async def test_a_caller_who_comes_back_is_in_the_same_file(tmp_path: Path) -> None:
    people = Person((says(), Script(()))), Person(does="busy")
    replies: list[str | Reply] = [PUTTING, "I am sorry, nobody is there."]
    async with world(replies, *people, VOICEBOT_RECORDING__PATH=str(tmp_path)) as here:
        call, record = await here.place()
        while here.server.app.service.recorder._queued:  # type: ignore[union-attr]  # noqa: ASYNC110  # a thread does it
            await trio.sleep(0.02)
        wav = await here.client.get(f"/calls/{call.sid}/recording", headers=KEY)
        deleted = await here.client.delete(f"/calls/{call.sid}", headers=KEY)
        gone = await here.client.get(f"/calls/{call.sid}", headers=KEY)
    left, _ = channels(wav.content)
    first, second = call.recordings
    both = len(first.caller) + len(second.caller)
    assert both - 8_000 < len(left) <= both
    said = [turn["heard"] for turn in record["summary"]["turns"]]
    assert said[0] == "This call is recorded. Hello."
    assert "recorded" not in said[-1]
    assert (deleted.status_code, gone.status_code) == (204, 404)
    assert not (tmp_path / f"{call.sid}.wav").exists()


async def test_a_bot_that_must_never_record_does_not(tmp_path: Path) -> None:
    bot = Bot(greeting="Hello.", recording=False)
    person = Person((says(),))
    async with world(["Good."], person, bot=bot, VOICEBOT_RECORDING__PATH=str(tmp_path)) as here:
        call, record = await here.place()
        wav = await here.client.get(f"/calls/{call.sid}/recording")
    assert [turn["heard"] for turn in record["summary"]["turns"]] == ["Hello.", "Good."]
    assert wav.status_code == 404
    assert not (tmp_path / f"{call.sid}.wav").exists()


async def test_kill_9_leaves_a_recording_of_all_but_the_last_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    environ = {
        "VOICEBOT_DATABASE_URL": f"sqlite:///{tmp_path}/calls.db",
        "VOICEBOT_GREETING": "Hello.",
        "VOICEBOT_RECORDING__PATH": str(folder),
    }
    script = Script((Utterance("hello", recorded("hello-world", 1.5), WhenSilent()),), limit_s=60)

    async def hold(url: str) -> None:
        try:
            answer = await dial(url, Account())
            async with open_line(url, answer.stream_url, Account()) as line:
                await run_call(line, script, answer.identity)
        except VoicebotError:
            pass  # the server is killed

    def size() -> int:
        return sum(file.stat().st_size for file in folder.glob("*.wav"))

    with trio.fail_after(90):
        async with open_standins(
            texts=lambda heard: "tell me more", replies=lambda messages: STORY * 3
        ) as standins:
            environ = {**standins.environment(), **environ}
            for name in ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"):
                environ.pop(name)
            async with served(environ) as (url, process), trio.open_nursery() as phone:
                phone.start_soon(hold, url)
                while size() < HEADER_BYTES + 3 * 16_000:  # noqa: ASYNC110  # another program
                    await trio.sleep(0.05)
                process.kill()
                await process.wait()
                phone.cancel_scope.cancel()
            [file] = folder.glob("*.wav")
            with file.open("ab") as torn:
                torn.write(QUIET * 321)  # as if between the audio and its header
            async with served(environ) as (url, _), httpx.AsyncClient(base_url=url) as client:
                while True:
                    answer = await client.get(f"/calls/{file.stem}/recording")
                    if int.from_bytes(answer.content[54:58], "little") % 16_000:
                        break
                    await trio.sleep(0.05)
    left, bot = channels(answer.content[:-1])
    assert len(left) >= 3 * 8_000
    assert left.strip(QUIET)
    assert bot.strip(QUIET)
