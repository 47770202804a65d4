"""Keys of the calls API: made, written down, read and found again."""

from __future__ import annotations

import hashlib
import hmac
import re

import pytest

from tests.keys import API_KEY, entry
from voicebot.api_keys import ALL, SCOPES, ApiKey, Keyring, new_key, parse_keys
from voicebot.errors import ConfigError

HASH = hashlib.sha256(API_KEY.encode()).hexdigest()


def test_a_new_key_is_found_by_its_entry_and_no_other() -> None:
    key, known = new_key("crm", ["place", "read"])
    other, _ = new_key("crm", ["place", "read"])

    keyring = parse_keys(known.entry)
    assert re.fullmatch(r"vb_[0-9a-f]{64}", key)  # 256 bits, and what scanners look for
    assert keyring.find(key) == known == ApiKey("crm", frozenset({"read", "place"}), known.digest)
    assert keyring.find(other) is None
    assert key not in known.entry
    assert known.entry == f"crm:place+read:{known.digest}"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "vb_",
        HASH,  # who has read the settings has no key
        entry(),
        API_KEY.upper(),
        API_KEY[:-1],
        API_KEY + "0",
        API_KEY + "\n",
        API_KEY.removeprefix("vb_"),
        "vb_" + "5f" * 32,
        "é\ud800",
    ],
)
def test_nothing_else_is_a_key(given: str) -> None:
    assert parse_keys(entry()).find(given) is None
    assert not Keyring()
    assert Keyring().find(given) is None


def test_a_hash_of_a_word_of_ones_own_lets_nobody_in() -> None:
    digest = hashlib.sha256(b"hunter2").hexdigest()
    assert parse_keys(f"me:all:{digest}").find("hunter2") is None


def test_all_keys_are_compared_whichever_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    same = hmac.compare_digest

    def compare(ours: str, theirs: str) -> bool:
        compared.append(ours)
        return same(ours, theirs)

    keys = [new_key(name, ["read"]) for name in "abc"]
    keyring = Keyring([known for _, known in keys])
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key, known in keys:
        compared.clear()
        assert keyring.find(key) == known
        assert len(compared) == 3


@pytest.mark.parametrize("between", [",", " ", ", ", "\n", " , "])
def test_entries_have_commas_or_spaces_between(between: str) -> None:
    other, known = new_key("ops", [ALL])
    keyring = parse_keys(f"{entry('read')}{between}{known.entry}{between}")
    assert [key.name for key in keyring] == ["tests", "ops"]
    assert keyring.find(other) == known
    assert keyring.find(API_KEY) is not None


def test_a_scope_opens_what_it_says_and_all_opens_everything() -> None:
    reader, everything = parse_keys(f"{entry('read')} {new_key('ops', [ALL])[1].entry}")
    assert [scope for scope in SCOPES if reader.may(scope)] == ["read"]
    assert [scope for scope in SCOPES if everything.may(scope)] == list(SCOPES)


def test_while_a_key_is_changed_two_have_its_name() -> None:
    new, known = new_key("tests", ["read"])
    keyring = parse_keys(f"{entry('all')},{known.entry}")
    assert [keyring.find(key).name for key in (API_KEY, new)] == ["tests", "tests"]  # type: ignore[union-attr]  # found


@pytest.mark.parametrize(
    "written, told",
    [
        (API_KEY, "entry 1 is a key itself"),
        (f"me:all:{API_KEY}", "entry 1 is a key itself"),
        ("me:all", "entry 1 must be name:scopes:SHA-256"),
        (f"all:{HASH}", "entry 1 must be name:scopes:SHA-256"),
        (f"me:all:{HASH}:", "entry 1 must be name:scopes:SHA-256"),
        (f"me:all:{HASH[1:]}", "entry 1 must be name:scopes:SHA-256"),
        (f"me:all:{HASH.upper()}", "entry 1 must be name:scopes:SHA-256"),
        (f"Me:all:{HASH}", "entry 1 needs a name"),
        (f":all:{HASH}", "entry 1 needs a name"),
        (f"local:all:{HASH}", "entry 1 needs a name"),
        (f"{'m' * 33}:all:{HASH}", "entry 1 needs a name"),
        (f"me::{HASH}", "entry 1 needs scopes of read, place"),
        (f"me:read+:{HASH}", "entry 1 needs scopes"),
        (f"me:admin:{HASH}", "entry 1 needs scopes"),
        (f"me:read:{HASH} me:all:{HASH}", "entry 2 is of a key that stands here before"),
    ],
)
def test_a_wrong_entry_is_named_by_its_place_and_not_repeated(written: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys(written)
    assert told in str(caught.value)
    assert HASH[:20] not in str(caught.value)
    assert API_KEY not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys(f"Me:admin:{HASH}, x")
    assert [problem[:7] for problem in caught.value.problems] == ["entry 1", "entry 1", "entry 2"]


@pytest.mark.parametrize(
    "name, scopes", [("", ["all"]), ("a b", ["all"]), ("me", []), ("me", [""])]
)
def test_no_key_is_made_that_could_not_be_written_down(name: str, scopes: list[str]) -> None:
    with pytest.raises(ConfigError):
        new_key(name, scopes)
