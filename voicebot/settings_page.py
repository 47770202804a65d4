"""Writes `docs/settings.md` from the settings themselves: `python -m voicebot.settings_page`.

What a setting is for stands in `config.py` as its description, or beside the field of its group
as a comment, which is read from the source: so the page cannot say something else.
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import tokenize
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import SecretStr

from voicebot.config import Settings

PAGE: Final = Path(__file__).parent.parent / "docs" / "settings.md"

_HEAD: Final = """\
# Settings

Made by `python -m voicebot.settings_page` from the settings themselves. They are read once, from
the environment and from `.env` in the working directory; the environment wins. What is wrong with
them is said all at once, by name, before the server listens. A bot file may set some for its bot
(`docs/bots.md`).
"""
_TABLE: Final = "| variable | type | default | what for |\n|---|---|---|---|\n"


def page() -> str:
    """Return the whole page."""
    plain, groups = [], []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if is_dataclass(default) and not isinstance(default, type):
            groups.append(_group(name, default))
            continue
        shown = "" if isinstance(default, SecretStr) else _value(default)
        row = (_variable(name, field), _type(field.annotation), shown, field.description or "")
        plain.append(_row(row))
    return f"{_HEAD}\n{_TABLE}{''.join(plain)}{''.join(groups)}"


def _group(name: str, default: Any) -> str:
    kind = type(default)
    comments = _comments(kind)
    rows = "".join(
        _row(
            (
                f"VOICEBOT_{name.upper()}__{field.name.upper()}",
                _type(field.type),
                _value(getattr(default, field.name)),
                comments.get(field.name, ""),
            )
        )
        for field in fields(default)
    )
    doc = inspect.cleandoc(kind.__doc__ or "")
    return f"\n## `VOICEBOT_{name.upper()}__…`\n\n{doc}\n\n{_TABLE}{rows}"


def _comments(kind: type) -> dict[str, str]:
    """Return what stands beside and above the fields of a class, by name."""
    source = inspect.getsource(kind)
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").rstrip()
            on_its_own = token.line.lstrip().startswith("#")
            (alone if on_its_own else beside)[token.start[0]] = text
    found = {}
    [body] = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above, line = [], node.lineno - 1
            while line in alone:
                above.append(alone[line])
                line -= 1
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            parts = [*reversed(above), *(beside[n] for n in lines if n in beside)]
            found[node.target.id] = " ".join(parts)
    return found


def _variable(name: str, field: Any) -> str:
    alias = field.validation_alias
    return str(alias.choices[0]) if alias is not None else f"VOICEBOT_{name.upper()}"


def _type(annotation: Any) -> str:
    if isinstance(annotation, str):
        choices = annotation.removeprefix("Literal[").removesuffix("]")
        return (
            choices.replace(", ", " or ").replace('"', "") if choices != annotation else annotation
        )
    if annotation is SecretStr:
        return "secret"
    if get_origin(annotation) is not None and get_args(annotation):
        return " or ".join(str(choice) for choice in get_args(annotation))
    return getattr(annotation, "__name__", str(annotation))


def _value(value: Any) -> str:
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def _row(cells: tuple[str, str, str, str]) -> str:
    variable, *rest = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    name = f"`{variable}`" if variable.isupper() or "_" in variable else variable
    return f"| {' | '.join((name, *rest))} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"written: {PAGE}\n")
