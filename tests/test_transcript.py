"""What `voicebot simulate` shows of the words of a call, by whatever the server tells."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import trio.testing

from voicebot.simulator.transcript import read_transcript

TURNS = [
    {"caller": "", "heard": "Hello.", "interrupted": False, "tools": []},
    {
        "caller": "book it",
        "heard": "",
        "interrupted": True,
        "tools": [{"name": "book", "arguments": {"day": "né"}, "result": "Booked."}],
    },
]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server answers, one after the other, and again the last: a status, or an object."""
    told: list[Any] = []
    asked: list[httpx.Request] = []
    told.append(asked)

    async def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = told[min(len(asked), len(told) - 1)]
        if isinstance(answer, int):
            return httpx.Response(answer, json={})
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return httpx.Response(200, content=text)

    usual = httpx.AsyncClient

    def client(**given: Any) -> httpx.AsyncClient:
        return usual(transport=httpx.MockTransport(handle), **given)

    monkeypatch.setattr(httpx, "AsyncClient", client)
    return told


async def test_words_tools_and_what_was_interrupted(
    answers: list[Any], autojump_clock: trio.testing.MockClock
) -> None:
    live: dict[str, Any] = {"outcome": None, "turns": []}
    answers += [live, live, {"outcome": "hung_up", "turns": TURNS}]

    said = await read_transcript("http://h/", "CA1", "k")

    assert said.splitlines() == [
        "what was said, by the server's account:",
        "  bot     Hello.",
        "  caller  book it",
        '  tool    book {"day": "né"}: Booked.',
        "  bot     (nothing was heard) [interrupted]",
    ]
    assert len(answers[0]) == 3
    assert str(answers[0][0].url) == "http://h/calls/CA1"
    assert answers[0][0].headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    "answer, said",
    [
        (401, "VOICEBOT_API_KEY"),
        (403, "VOICEBOT_API_KEY"),
        (404, "GET http://h/calls/CA1 has no record of it"),
        ("busy", "has no record of it"),
        ("[]", "has no record of it"),
        ({"outcome": "hung_up"}, "has no record of it"),
        ({"outcome": "hung_up", "turns": [{}]}, "has no record of it"),
        ({"outcome": "hung_up", "turns": 5}, "has no record of it"),
    ],
)
async def test_a_server_that_does_not_tell_is_no_failure_of_the_call(
    answers: list[Any], autojump_clock: trio.testing.MockClock, answer: Any, said: str
) -> None:
    answers.append(answer)
    assert said in await read_transcript("http://h", "CA1", "")
    assert "authorization" not in answers[0][0].headers


async def test_a_record_that_is_never_complete_is_shown_as_far_as_it_goes(
    answers: list[Any], autojump_clock: trio.testing.MockClock
) -> None:
    answers.append({"outcome": None, "turns": TURNS[:1]})
    assert "bot     Hello." in await read_transcript("http://h", "CA1", "")
