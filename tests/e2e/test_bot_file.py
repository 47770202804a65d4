"""`voicebot serve --bot`: a process with a bot file answers a call, and runs the file's tool."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from tests.e2e.running import PATIENT, PUBLIC_URL, recorded
from voicebot.simulator.call import Script, Utterance, WhenSilent, run_call
from voicebot.simulator.dial import SERVE, Account, dial, open_line, open_server
from voicebot.simulator.verdict import judge
from voicebot.standins import Heard, open_standins
from voicebot.standins.groq import Reply, ToolCall
from voicebot.standins.twilio import ACCOUNT_SID, AUTH_TOKEN

BOT = '''\
import json
import threading
from pathlib import Path

from voicebot import Bot, Call, tool
from voicebot.brain.rules import Rules, use, when


@tool(idempotent=False)
def book(guests: int, *, call: Call) -> str:
    """Book a table.

    Args:
        guests: how many come
    """
    call.state["booked"] = [guests, threading.current_thread() is threading.main_thread()]
    return f"Booked for {guests}, {call.variables['name']}."


async def on_call_start(call):
    call.variables["name"] = "Ann"


def on_call_end(call, summary):
    said = [turn.heard for turn in summary.turns]
    Path("ended.json").write_text(json.dumps([call.caller, call.direction, call.state, said]))


bot = Bot(
    greeting="Hello {{name}}.",
    variables={"name": "nobody"},
    tools=[book],
    on_call_start=on_call_start,
    on_call_end=on_call_end,
    brain=Rules(when(r"table for (?P<guests>\\d+)", use("book", {"guests": "{guests}"}))),
)
'''


async def test_a_call_runs_the_tool_of_the_bot_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = trio.Path(tmp_path)
    await (here / "bot.py").write_text(BOT)
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    account = Account(ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL)
    script = Script((Utterance("book", recorded("hello-world"), WhenSilent()),))

    with trio.fail_after(90):
        async with open_standins(texts=("a table for four please",)) as standins:
            environment = {**standins.environment(), "PUBLIC_URL": PUBLIC_URL}
            for name, value in environment.items():
                if not name.startswith("GROQ"):  # the brain of the bot file answers
                    monkeypatch.setenv(name, value)
            async with open_server([*SERVE, "--bot", "bot.py"]) as url:
                answer = await dial(url, account)
                async with open_line(url, answer.stream_url, account) as line:
                    recording = await run_call(line, script, answer.identity)
                while not await (here / "ended.json").exists():  # noqa: ASYNC110  # another process
                    await trio.sleep(0.05)

    assert judge(recording, PATIENT).failures == ()
    caller, direction, state, said = json.loads(await (here / "ended.json").read_text())
    assert direction == "inbound"
    assert caller.startswith("+")
    assert state == {"booked": [4, False]}
    assert said == ["Hello Ann.", "Booked for 4, Ann."]


SPEAKERS = """\
from voicebot import Bot, Speaker

bot = Bot(
    "You are brief.",
    "Hello.",
    speakers={"Spanish": Speaker(language="es", voice="aura-2-celeste-es", goodbye="Adios.")},
)
"""


async def test_a_bot_goes_on_in_another_language_when_the_caller_speaks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await (trio.Path(tmp_path) / "bot.py").write_text(SPEAKERS)
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    account = Account(ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL)
    said = tuple(Utterance(name, recorded("hello-world"), WhenSilent()) for name in ("1", "2"))
    replies = (
        Reply("", (ToolCall("switch_voice", '{"to": "Spanish"}'),)),
        "Claro que si.",
        Reply("", (ToolCall("hang_up"),)),
        "",
    )

    def texts(heard: Heard) -> str:
        spanish = dict(heard.query)["language"] == "es"
        return "muchas gracias" if spanish else "do you speak spanish"

    with trio.fail_after(90):
        async with open_standins(texts=texts, replies=replies) as standins:
            for name, value in (standins.environment() | {"PUBLIC_URL": PUBLIC_URL}).items():
                monkeypatch.setenv(name, value)
            async with open_server([*SERVE, "--bot", "bot.py"]) as url:
                answer = await dial(url, account)
                async with open_line(url, answer.stream_url, account) as line:
                    recording = await run_call(line, Script(said), answer.identity)

    assert recording.ended.by == "bot"
    asked = [json.loads(exchange.body) for exchange in standins.groq.server.exchanges]
    [offered] = [t for t in asked[0]["tools"] if t["function"]["name"] == "switch_voice"]
    assert offered["function"]["parameters"]["properties"]["to"]["enum"] == ["usual", "Spanish"]
    users = [m["content"] for m in asked[-1]["messages"] if m["role"] == "user"]
    assert users == ["do you speak spanish", "muchas gracias"]
    voices = {
        text: dict(speech.exchange.query)["model"]
        for speech in standins.deepgram.speak.speeches
        if (text := json.loads(speech.exchange.body)["text"])
        in ("Hello.", "Claro que si.", "Adios.")
    }
    spanish = "aura-2-celeste-es"
    assert voices.pop("Hello.").endswith("-en")
    assert voices == {"Claro que si.": spanish, "Adios.": spanish}
