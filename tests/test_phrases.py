"""What is said word for word is learned once, in the order in which it will be needed."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import CHAR, FakeVoice, plan
from voicebot.errors import ProviderError
from voicebot.phrases import AGAIN_S, Phrases, open_phrases

Clock = trio.testing.MockClock
PLAN = plan(
    greeting="Hello. Who is it?",
    fillers=("Wait.",),
    apology="Sorry. Again?",
    trouble="Broken. Goodbye.",
    farewell="Nobody there. Goodbye.",
    goodbye="Goodbye.",
    reprompts=("There?",),
    warning="Soon.",
    time_up="Over. Goodbye.",
    stopping="Stopping. Goodbye.",
)
PIECES = ["Hello.", "Who is it?", "Wait.", "Sorry.", "Again?", "Broken.", "Goodbye."]
PIECES += ["Nobody there.", "There?", "Soon.", "Over.", "Stopping."]


class Down(FakeVoice):
    """Fails until a time."""

    until: float = 0.0

    async def _chunks(self, text: str, index: int) -> Any:
        if trio.current_time() < self.until and text == "Sorry.":
            raise ProviderError("voice", "down", retryable=True)
        async for chunk in super()._chunks(text, index):
            yield chunk


async def test_every_piece_is_learned_once_the_most_urgent_first(autojump_clock: Clock) -> None:
    voice = FakeVoice()
    async with open_phrases(PLAN, voice) as phrases:
        assert phrases.missing == PIECES
        assert phrases.get("Hello.") is None
        await trio.sleep(5.0)

        assert voice.texts == PIECES
        assert phrases.missing == []
        sound = phrases.get("Wait.")
        assert sound is not None
        assert len(sound) == len("Wait.") * CHAR
        assert phrases.get("Anything else.") is None
        await trio.sleep(100.0)
    assert voice.texts == PIECES


async def test_what_fails_is_tried_again_later_and_nothing_twice(autojump_clock: Clock) -> None:
    voice = Down()
    voice.until = trio.current_time() + 10.0
    async with open_phrases(PLAN, voice) as phrases:
        await trio.sleep(5.0)
        assert phrases.missing[0] == "Sorry."
        assert phrases.get("Wait.") is not None
        await trio.sleep(AGAIN_S)
        assert phrases.missing == []
    assert [text for text in voice.texts if text != "Sorry."] == [
        piece for piece in PIECES if piece != "Sorry."
    ]


async def test_a_service_that_stops_waits_for_no_phrase(autojump_clock: Clock) -> None:
    began = trio.current_time()
    async with open_phrases(PLAN, FakeVoice(first=5.0)):
        await trio.sleep(1.0)

    assert trio.current_time() == began + 1.0


async def test_half_a_sound_is_none(autojump_clock: Clock) -> None:
    phrases = Phrases(PLAN)

    with pytest.raises(ProviderError):
        await phrases.learn(FakeVoice(fail_on=0, fail_late=True))

    assert phrases.missing == PIECES


async def test_errors_of_the_service_come_out_as_they_are(autojump_clock: Clock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_phrases(PLAN, FakeVoice()):
            _ = 1 // 0
