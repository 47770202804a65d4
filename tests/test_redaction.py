"""What is written down of a call, by the settings; and that it can be written at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.databases import record, summary, tool, turn
from voicebot.config import load
from voicebot.errors import ConfigError
from voicebot.redaction import MASK, Redaction

SAID = turn(
    1,
    "my PIN is 4711, table for 2 at 19:30",
    "Thank you, 4711.",
    tools=[tool(arguments={"pin": 4711, "guests": 2, "note": ["4711"]}, result="4711 ok")],
)


def test_everything_is_kept_unless_it_is_said_otherwise() -> None:
    whole = record(summary=summary(SAID), turns=(SAID,))

    assert Redaction().record(whole) == whole


def test_long_runs_of_digits_are_masked_wherever_words_are() -> None:
    [kept] = Redaction(words="digits").record(record(turns=(SAID,))).turns

    assert kept["caller"] == f"my PIN is {MASK}, table for 2 at 19:30"
    assert kept["heard"] == kept["generated"] == f"Thank you, {MASK}."
    assert kept["tools"][0]["arguments"] == {"pin": MASK, "guests": 2, "note": [MASK]}
    assert kept["tools"][0]["result"] == f"{MASK} ok"
    assert kept["began"] == SAID["began"]


@pytest.mark.parametrize(
    "text",
    ["4111111111111111", "4111 1111 1111 1111", "078-05-1120", "1. 2. 3. 4", "+1 555 0100 199"],
)
def test_digits_are_found_however_they_are_grouped(text: str) -> None:
    masked = Redaction(words="digits").turn(turn(0, f"it is {text}, yes"))["caller"]

    assert not any(c.isdigit() for c in masked)
    assert masked.endswith(", yes")


def test_data_of_a_call_is_redacted_on_its_own() -> None:
    data = {"name": "Ann", "card": 41111111}
    whole = record(turns=(SAID,), metadata=data, parameters={"a": "b"})

    kept = Redaction(data="digits").record(whole)
    assert (kept.metadata, kept.parameters) == ({"name": "Ann", "card": MASK}, {"a": "b"})
    assert kept.turns == (SAID,)
    kept = Redaction(data="none").record(whole)
    assert (kept.metadata, kept.parameters) == ({"name": "", "card": ""}, {"a": ""})


def test_no_words_leaves_times_and_names() -> None:
    whole = Redaction(words="none").record(record(summary=summary(SAID)))

    assert whole.summary is not None
    [kept] = whole.summary["turns"]
    assert (kept["caller"], kept["heard"], kept["generated"]) == ("", "", "")
    assert kept["tools"] == [tool(arguments={}, result="")]
    assert kept["began"] == SAID["began"]
    assert whole.summary["counts"] == {"gaps": 0}


@pytest.mark.parametrize(
    "numbers, kept",
    [("keep", "+15550100123"), ("last4", "…0123"), ("none", "")],
)
def test_numbers(numbers: Any, kept: str) -> None:
    whole = Redaction(numbers=numbers).record(record())

    assert whole.from_ == kept
    assert Redaction(numbers="last4").record(record(from_="0123")).from_ == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(), JSON, st.sampled_from(["keep", "digits", "none"]))
def test_whatever_was_said_can_be_written(text: str, value: Any, words: Any) -> None:
    said = turn(0, text, tools=[tool(arguments={"x": value}, result=text)])
    whole = Redaction(words=words).record(record(from_=text, metadata={"m": value}, turns=(said,)))

    written = json.dumps(whole.as_json(), ensure_ascii=False, allow_nan=False)
    assert written.encode()  # no half of a surrogate pair
    assert "\\u0000" not in written


def test_what_no_database_takes_is_made_to_fit() -> None:
    odd = {"a\0": "b\0\ud800", "c": float("nan"), "d": (True, None, 1.5), "e": Redaction}

    assert Redaction().record(record(metadata=odd)).metadata == {
        "a": "b?",
        "c": None,
        "d": [True, None, 1.5],
        "e": str(Redaction),
    }


def test_settings_by_name() -> None:
    settings = load({"VOICEBOT_REDACTION__WORDS": "none", "VOICEBOT_RETENTION__DAYS": "7"})
    assert (settings.redaction.words, settings.retention.days) == ("none", 7)
    with pytest.raises(ConfigError, match="VOICEBOT_REDACTION__NUMBERS"):
        load({"VOICEBOT_REDACTION__NUMBERS": "some"})
    with pytest.raises(ConfigError, match="VOICEBOT_RETENTION__DAYS"):
        load({"VOICEBOT_RETENTION__DAYS": "-1"})


@pytest.mark.parametrize("url", ["calls.db", "mysql://u:planted@h/d", "sqlite://", "planted"])
def test_what_is_no_database_is_refused_before_the_server_listens(url: str) -> None:
    with pytest.raises(ConfigError, match="VOICEBOT_DATABASE_URL: must be") as caught:
        load({"VOICEBOT_DATABASE_URL": url})
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "sqlite:///a.db", "sqlite:////var/lib/a.db", "postgresql://u:p@h/d", "postgres://h/d"],
)
def test_what_is_a_database(url: str) -> None:
    settings = load({"VOICEBOT_DATABASE_URL": url})
    assert settings.database_url.get_secret_value() == url
    assert "u:p" not in repr(settings)
