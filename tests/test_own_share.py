"""What `bench.own_share` reads out of a call's record."""

from __future__ import annotations

from typing import Any

from bench.own_share import Share, shares


def turn(caller: str, *at: float | None) -> dict[str, Any]:
    stages = ("began", "first_text", "first_audio", "first_media")
    return {"caller": caller, **dict(zip(stages, at, strict=True))}


def summary(ends: list[float], *turns: dict[str, Any]) -> dict[str, Any]:
    timeline = [{"at": end, "what": "end_of_turn"} for end in ends]
    return {"timeline": [{"at": 0.5, "what": "sent"}, *timeline], "turns": turns}


def test_a_reply_is_counted_from_the_last_end_of_turn_before_it() -> None:
    record = summary(
        [2.0, 3.0, 7.0],
        turn("", 0.0, 0.001, 0.004, 0.005),
        turn("a table", 3.001, 3.009, 3.013, 3.014),
        turn("for two", 7.0, 7.005, 7.02, 7.021),
    )
    assert shares(record) == ([Share(1, 9, 13, 14), Share(0, 5, 20, 21)], 0)


def test_a_turn_without_media_is_no_share_and_is_counted() -> None:
    record = summary([1.0], turn("a table", 1.0, 1.01, None, None))
    assert shares(record) == ([], 1)
