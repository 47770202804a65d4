"""The pages for users: their Python runs, their links lead somewhere, and what they name exists."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from voicebot import outbound, telephony
from voicebot.brain.rules import Rules
from voicebot.call_record import LOST
from voicebot.metrics import Metrics
from voicebot.record import Outcome

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = "\n".join(path.read_text() for path in (ROOT / "voicebot").rglob("*.py"))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(name: str) -> list[str]:
    """Return the Python of a page."""
    return re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)


def run(block: str, where: str, **given: Any) -> dict[str, Any]:
    """Run a block as a module, and return its names."""
    names: dict[str, Any] = {"__name__": "docs", **given}
    exec(compile(block, where, "exec", dont_inherit=True), names)  # our own documentation
    return names


def checks_of(names: dict[str, Any]) -> list[Callable[[], None]]:
    return [value for name, value in names.items() if name.startswith("test_")]


class Calendar:
    """What the bot of the page books into."""

    def __init__(self) -> None:
        self.booked: list[tuple[Any, ...]] = []

    async def add(self, *booking: Any, phone: str) -> None:
        self.booked.append((*booking, phone))


def test_the_bot_of_the_page_and_its_test_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bot_file, speakers, brain_file, test_file = blocks("bots")
    calendar, module = Calendar(), ModuleType("bot")
    bot = run(bot_file, "bots.md 1", calendar=calendar)["bot"]
    assert list(run(speakers, "bots.md 2")["bot"].speakers) == ["Spanish", "a man's voice"]
    brain = run(brain_file, "bots.md 3")["brain"]
    assert isinstance(brain, Rules)
    vars(module)["bot"] = replace(bot, brain=brain)
    monkeypatch.setitem(sys.modules, "bot", module)

    tests = checks_of(run(test_file, "bots.md 4"))
    for test in tests:
        test()

    assert [booking[1] for booking in calendar.booked] == [4] * len(tests) != []


def test_the_test_of_the_page_about_testing_passes() -> None:
    in_virtual_time, _ = blocks("testing")  # the other: tests/e2e/test_docs.py
    tests = checks_of(run(in_virtual_time, "testing.md 1"))
    for test in tests:
        test()
    assert tests


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_a_page_links_to_is_there(path: Path) -> None:
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    pages = re.findall(r"`((?:docs|bench|examples|scripts|tests)/[\w/]+\.?\w*)`", text)
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing + [name for name in pages if not (ROOT / name).exists()] == []


def test_every_outcome_and_every_refusal_is_explained() -> None:
    text = page("troubleshooting")
    outcomes = {outcome.value for outcome in Outcome} | {LOST}
    explained = text[text.index("## By outcome") :]
    assert {outcome for outcome in outcomes if f"`{outcome}`" not in explained} == set()
    codes = {*telephony._REFUSALS, *telephony._SAME_REFUSAL}
    assert {code for code in codes if not re.search(rf"\b{code}\b", text)} == set()


def test_what_the_page_says_to_look_for_is_in_the_code() -> None:
    names = set(re.findall(r"`((?!voicebot_)[a-z]+(?:_[a-z]+)+)`", page("troubleshooting")))
    assert len(names) > 20
    assert {name for name in names if not re.search(rf"\b{name}\b", CODE)} == set()


def test_every_variable_that_a_page_names_is_a_setting() -> None:
    settings = set(re.findall(r"^\| `([A-Z_0-9]+)`", page("settings"), re.MULTILINE))
    for path in PAGES:
        named = set(re.findall(r"\bVOICEBOT_[A-Z0-9_]*[A-Z0-9]\b(?!__)", path.read_text()))
        assert {name for name in named - settings if f"{name}__…" not in path.read_text()} == set()


def test_every_field_of_a_call_is_on_the_page() -> None:
    rows = re.findall(r"^\| (`.*?) \|", page("outbound"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(outbound._CHECKS) - named == set()


def test_every_metric_on_the_page_is_measured() -> None:
    metrics = Metrics()
    metrics.show_breakers("llm", lambda: [])
    metrics.show_refused({})
    metrics.build.info({"version": "0"})
    types = dict(re.findall(r"^# TYPE (voicebot_\w+) (\w+)$", metrics.text().decode(), re.M))
    assert len(types) > 40
    assert set(re.findall(r"`(voicebot_\w+)", page("deployment"))) == set(types)
