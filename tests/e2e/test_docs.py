"""The script of `docs/testing.md` that calls a running server, against a running server."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.e2e.running import PATIENT, open_server
from tests.e2e.test_real_call import STORY
from tests.test_docs import ROOT, blocks, run
from voicebot.simulator import judge
from voicebot.standins import open_standins

NO_TELEPHONE = ("DEEPGRAM", "GROQ")


async def test_the_script_of_the_page_calls_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    _, against_a_server = blocks("testing")
    monkeypatch.chdir(ROOT / "examples" / "callers")
    with monkeypatch.context() as patched:
        patched.setattr(trio, "run", lambda main: None)  # here a loop is running already
        script = run(against_a_server, "testing.md 2")
    script["judge"] = partial(judge, thresholds=PATIENT)

    texts = ("tell me a long story", "wait a moment")
    with trio.fail_after(60):
        async with open_standins(texts=texts, replies=[STORY, "Of course."]) as standins:
            environment = standins.environment().items()
            settings = {k: v for k, v in environment if k.startswith(NO_TELEPHONE)}
            async with open_server({**settings, "VOICEBOT_GREETING": "Hello."}) as server:
                await script["main"](server.url)
                await server.wait_idle()
