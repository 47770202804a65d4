"""Finds the bot in a Python file or module, and says of every error in it where it is.

Runs before the server listens. A bot file is the operator's own program: it is run, not checked
for what it does.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final

from voicebot.bot import FIELDS, Bot
from voicebot.errors import ConfigError

_UNKNOWN_ARGUMENT: Final = re.compile(
    r"Bot\.__init__\(\) got an unexpected keyword argument '(\w+)'"
)
#: Where no bot file is: of the language, of what is installed, and of this package.
_ELSEWHERE: Final = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
)


def load_bot(spec: str) -> Bot:
    """Return the bot of `bot.py`, `bot.py:name`, `package.module` or `package.module:name`.

    Raises:
        ConfigError: it cannot be had; every problem begins with the file and its line.
    """
    place, _, name = spec.partition(":")
    module = _run_file(Path(place)) if place.endswith(".py") else _import_module(place)
    return _find(module, place, name)


def _find(module: ModuleType, place: str, name: str) -> Bot:
    bots = {key: value for key, value in vars(module).items() if isinstance(value, Bot)}
    distinct = {id(bot): bot for bot in bots.values()}
    if name in bots:
        return bots[name]
    if name:
        near = difflib.get_close_matches(name, vars(module), 1)
        hint = f"; is it {near[0]}?" if near else ""
        raise ConfigError([f"{place}: has no bot named {name}{hint}{_which(place, list(bots))}"])
    if not bots:
        raise ConfigError([f'{place}: has no bot; write: bot = Bot(prompt="You are …")'])
    if len(distinct) > 1:
        raise ConfigError([f"{place}: has {len(distinct)} bots{_which(place, list(bots))}"])
    return next(iter(distinct.values()))


def _which(place: str, names: list[str]) -> str:
    return f"; say which: {' or '.join(f'{place}:{name}' for name in names)}" if names else ""


def _run_file(path: Path) -> ModuleType:
    """Run a file as a module of its own name, with its folder to import from."""
    if not path.is_file():
        raise ConfigError([f"{path}: there is no such file; `voicebot new NAME` writes one"])
    name = f"botfile_{path.stem}"  # never in the way of another module
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ConfigError([f"{path}: is no Python file"])
    module = importlib.util.module_from_spec(found)
    _import_from(path.parent)
    sys.modules[name] = module  # dataclasses and annotations look there
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        del sys.modules[name]
        raise ConfigError(_located(exc, str(path))) from exc
    return module


def _import_module(name: str) -> ModuleType:
    """Import a module as `python -m` would: from the working directory too."""
    _import_from(Path())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{name}.".startswith(f"{exc.name}."):
            hint = f"; for a file write {name}.py" if Path(f"{name}.py").is_file() else ""
            raise ConfigError([f"{name}: there is no such module{hint}"]) from exc
        raise ConfigError(_located(exc, name)) from exc
    except (Exception, SystemExit) as exc:
        raise ConfigError(_located(exc, name)) from exc


def _import_from(folder: Path) -> None:
    if (path := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, path)


def _located(exc: BaseException, place: str) -> list[str]:
    """Return what is wrong, each with the file and line where the bot's author can mend it."""
    if isinstance(exc, SyntaxError):
        return [f"{_shown(exc.filename or place)}:{exc.lineno or 1}: {exc.msg}"]
    line = line_of(exc)
    where = f"{_shown(line[0])}:{line[1]}" if line else place
    if isinstance(exc, ConfigError):
        return [f"{where}: {problem}" for problem in exc.problems]
    text = f"{type(exc).__name__}: {exc}"
    if unknown := _UNKNOWN_ARGUMENT.search(text):
        near = difflib.get_close_matches(unknown[1], FIELDS, 1)
        hint = f"; is it {near[0]}?" if near else ""
        text = f"Bot: there is no {unknown[1]}{hint}"
    return [f"{where}: {text}"]


def line_of(exc: BaseException) -> tuple[str, int] | None:
    """Return the file and the innermost line of an error that are a bot author's own."""
    frames = traceback.extract_tb(exc.__traceback__)
    ours = [
        (frame.filename, frame.lineno or 1)
        for frame in frames
        if not frame.filename.startswith(("<", *_ELSEWHERE))
    ]
    return ours[-1] if ours else None


def _shown(filename: str) -> str:
    """Return a file as it is called from here."""
    path = Path(filename)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename
