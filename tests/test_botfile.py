"""Every error in a bot file is told with its file and line, before anything else happens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from voicebot.__main__ import main
from voicebot.botfile import load_bot
from voicebot.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder of its own, and leave no module behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(text: str, name: str = "bot.py") -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def problems(spec: str = "bot.py") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_bot(spec)
    return list(caught.value.problems)


HEAD = "from voicebot import Bot, Call, tool\n\n"  # what follows begins in line 3


@pytest.mark.parametrize(
    "body, told",
    [
        ("def x(:", "bot.py:3: invalid syntax"),
        ("import nosuch", "bot.py:3: ModuleNotFoundError: No module named 'nosuch'"),
        ("x = 1\n1 / 0", "bot.py:4: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "bot.py:3: SystemExit: 3"),
        ('bot = Bot(promt="x")', "bot.py:3: Bot: there is no promt; is it prompt?"),
        ("bot = Bot(prompt=3)", "bot.py:3: Bot: prompt must be a text, and is 3"),
        (
            'bot = Bot(\n    "Talk to {{nam}}.", variables={"name": ""}\n)',
            "bot.py:3: Bot: prompt: nobody knows {{nam}}; is it {{name}}?",
        ),
        (
            'bot = Bot("x", greeting="{{town}}")',
            'bot.py:3: Bot: greeting: nobody knows {{town}}; add variables={"town": ""}',
        ),
        (
            "@tool(tiemout_s=3)\ndef f() -> None:\n    '''Do.'''",
            "bot.py:3: TypeError: tool() got an unexpected keyword argument 'tiemout_s'",
        ),
        (
            "x = 1\n@tool\ndef f(day: str) -> None:\n    '''Do.'''",
            "bot.py:4: tool f: parameter day is not described; add it under Args: in the "
            "docstring, for the model to read",
        ),
        (
            "def f() -> None: ...\nbot = Bot('x', tools=[f])",
            "bot.py:4: Bot: tools: f is no tool; write @tool above it",
        ),
        (
            "bot = Bot('x', on_turn=lambda call: 0)",
            "bot.py:3: Bot: on_turn is called as <lambda>(call, turn)",
        ),
        ("", 'bot.py: has no bot; write: bot = Bot(prompt="You are …")'),
        ("a = Bot('x')\nb = Bot('x')", "bot.py: has 2 bots; say which: bot.py:a or bot.py:b"),
    ],
)
def test_each_error_is_told_with_file_and_line(body: str, told: str) -> None:
    write(HEAD + body)

    assert problems() == [told]


def test_all_that_is_wrong_with_one_bot_is_told_at_once() -> None:
    write(
        HEAD + "bot = Bot(3, voice='bob', fillers='hm', brain=3, timeouts=3, variables=3, tools=3)"
    )

    told = problems()

    assert len(told) == 7
    assert all(line.startswith("bot.py:3: Bot: ") for line in told)


def test_error_in_a_file_that_the_bot_imports_is_told_there() -> None:
    write("import helper\n")
    write("\n\n\nopen('nowhere.txt')\n", "helper.py")

    [told] = problems()

    assert told.startswith("helper.py:4: FileNotFoundError")


def test_file_module_and_name() -> None:
    write(HEAD + "first = Bot('one')\nsecond = Bot('two')\n", "shop/bots.py")

    assert load_bot("shop/bots.py:second").prompt == "two"
    assert load_bot("shop.bots:first").prompt == "one"
    assert problems("shop.bots:frist") == [
        "shop.bots: has no bot named frist; is it first?; say which: "
        "shop.bots:first or shop.bots:second"
    ]


def test_one_bot_under_two_names_is_one() -> None:
    write(HEAD + "bot = Bot('one')\nagain = bot\n")

    assert load_bot("bot.py").prompt == "one"


@pytest.mark.parametrize(
    "spec, told",
    [
        ("nowhere.py", "nowhere.py: there is no such file; `voicebot new NAME` writes one"),
        ("nowhere", "nowhere: there is no such module"),
        ("no.where:bot", "no.where: there is no such module"),
    ],
)
def test_what_is_not_there(spec: str, told: str) -> None:
    assert problems(spec) == [told]


def test_module_that_fails_to_import_another_is_told_with_its_line() -> None:
    write("\nimport nosuch\n", "talk.py")

    assert problems("talk") == ["talk.py:2: ModuleNotFoundError: No module named 'nosuch'"]


@pytest.mark.parametrize("by", ["option", "setting"])
def test_serve_says_it_and_does_not_listen(
    by: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(HEAD + "bot = Bot(promt='x')")
    if by == "setting":
        monkeypatch.setenv("VOICEBOT_BOT", "bot.py")

    status = main(
        ["serve", "--dev", "--port", "0", *(["--bot", "bot.py"] if by == "option" else [])]
    )

    said = capsys.readouterr()
    assert status == 2
    assert "bot.py:3: Bot: there is no promt; is it prompt?" in said.err
    assert "ready on" not in said.out
