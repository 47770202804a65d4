"""`@tool`: a plain Python function, sync or async, that a bot's language model may call.

The JSON schema that the model is shown comes from the signature and the docstring. What the model
passes is checked against the same types (pydantic, lax: "2" is an int), and what is wrong is an
answer to the model that names each field; the function is not run then.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    NotRequired,
    ParamSpec,
    TypeVar,
    get_type_hints,
    overload,
)

import trio
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from voicebot.call import Call
from voicebot.errors import ConfigError
from voicebot.ports import TOOL_FILLER_AFTER_S, TOOL_TIMEOUT_S, Tool

#: Threads of all sync tools and hooks of a process. A database or an API carries no more calls
#: of ours at once, and an abandoned thread keeps its place until it ends.
THREADS: Final = 16
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what OpenAI's API takes
_WRONG: Final = "not run, the arguments are wrong:"
_DONE: Final = "done"  # told to the model where a function returns nothing

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BotTool(Generic[P, R]):
    """A function as a tool of a bot. Called like the function, it is the function."""

    function: Callable[P, R]
    name: str
    description: str
    parameters: Mapping[str, Any]
    idempotent: bool
    timeout_s: float
    filler: str
    filler_after_s: float
    _arguments: TypeAdapter[dict[str, Any]]
    _call_parameter: str | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def bind(
        self,
        call: Call,
        threads: trio.CapacityLimiter | None,
        say: Callable[[str], str] = lambda text: text,
    ) -> Tool:
        """Return the tool for one call.

        Args:
            threads: where a sync function runs. None: in the loop, for tests in virtual time.
            say: makes what is said of a text of the bot, for the filler.
        """
        return Tool(
            self.name,
            self.description,
            self.parameters,
            partial(self._run, call, threads),
            self.idempotent,
            self.timeout_s,
            abortable=threads is None or inspect.iscoroutinefunction(self.function),
            filler=say(self.filler),
            filler_after_s=self.filler_after_s,
        )

    async def _run(
        self, call: Call, threads: trio.CapacityLimiter | None, given: Mapping[str, Any]
    ) -> str:
        """Check the arguments and run the function; return what the model is told.

        Raises: what the function raises. Cancellation: as `invoke`.
        """
        try:
            arguments = dict(self._arguments.validate_python(dict(given)))
        except ValidationError as exc:
            await trio.lowlevel.checkpoint()
            return f"{_WRONG} {'; '.join(map(_problem, exc.errors()))}"
        if self._call_parameter is not None:
            arguments[self._call_parameter] = call
        return _told(await invoke(partial(self.function, **arguments), threads))


async def invoke(function: Callable[[], Any], threads: trio.CapacityLimiter | None) -> Any:
    """Call a bot's function: an async one here, a sync one in a worker thread.

    Cancellation: an async function is cancelled. A thread cannot be: it is left alone with what
    it does, keeps its place among `threads` until it ends, and nobody hears its result.
    """
    inner = function.func if isinstance(function, partial) else function
    if inspect.iscoroutinefunction(inner) or threads is None:
        result = function()
        if inspect.isawaitable(result):
            return await result
        await trio.lowlevel.checkpoint()
        return result
    return await trio.to_thread.run_sync(function, limiter=threads, abandon_on_cancel=True)


def _told(result: Any) -> str:
    """Return what the model is told of a result: text as it is, anything else as JSON."""
    if result is None:
        return _DONE
    if isinstance(result, str):
        return result
    try:
        return to_json(result).decode()
    except PydanticSerializationError:
        return str(result)


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function"))
    text = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
    return f"{path or 'arguments'}: {text}"


@overload
def tool(function: Callable[P, R], /) -> BotTool[P, R]: ...
@overload
def tool(
    *,
    name: str = ...,
    timeout_s: float = ...,
    idempotent: bool = ...,
    filler: str = ...,
    filler_after_s: float = ...,
) -> Callable[[Callable[P, R]], BotTool[P, R]]: ...
def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str = "",
    timeout_s: float = TOOL_TIMEOUT_S,
    idempotent: bool = True,
    filler: str = "",
    filler_after_s: float = TOOL_FILLER_AFTER_S,
) -> BotTool[P, R] | Callable[[Callable[P, R]], BotTool[P, R]]:
    """Make a tool of a function. Use with or without arguments: `@tool`, `@tool(timeout_s=5)`.

    The first part of the docstring tells the model when to use it, its `Args:` what each
    parameter is. A parameter annotated `Call` is given the call and hidden from the model. What
    the function returns is told to the model; what it raises is told as a failure.

    A sync function runs in a worker thread, so it must not touch what the loop uses. A thread
    cannot be broken off: when the caller interrupts, it finishes and its result is recorded; when
    its time is over, or 0.8 s after the call has ended, it is left alone and its result is lost.

    Args:
        name: what the model calls it; the function's own if empty.
        timeout_s: longer than that, and the model is told that it took too long.
        idempotent: whether running it twice, or breaking it off, does no harm. One that is not is
            finished even if the caller interrupts, and never run twice for one request.
        filler: said when it takes longer than `filler_after_s` in silence, once.
        filler_after_s: seconds.

    Raises:
        ConfigError: the function cannot be a tool; every reason at once.
    """
    if function is None:
        return partial(
            _make,
            name=name,
            timeout_s=timeout_s,
            idempotent=idempotent,
            filler=filler,
            filler_after_s=filler_after_s,
        )
    return _make(function, name, timeout_s, idempotent, filler, filler_after_s)


def _make(
    function: Callable[P, R],
    name: str,
    timeout_s: float,
    idempotent: bool,
    filler: str,
    filler_after_s: float,
) -> BotTool[P, R]:
    if not inspect.isfunction(function):
        raise ConfigError([f"@tool takes a function, and not {function!r}"])
    name = name or function.__name__
    about = f"tool {name}"
    problems = []
    if not _NAME.fullmatch(name):
        problems.append(f"{about}: a name has letters, digits, _ and -, at most 64")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        problems.append(f"{about}: must return its result, and not yield")
    if not _is_time(timeout_s):
        problems.append(f"{about}: timeout_s must be a number of seconds above 0 and up to 600")
    if not _is_time(filler_after_s):
        problems.append(f"{about}: filler_after_s must be a number of seconds above 0")
    if not isinstance(filler, str):
        problems.append(f"{about}: filler must be a text")
    description, documented = _read_docstring(inspect.getdoc(function) or "")
    if not description:
        problems.append(
            f"{about}: has no docstring; the model reads it to know when to use the tool"
        )
    fields, call_parameter = _read_signature(function, about, documented, problems)
    if problems:
        raise ConfigError(problems)
    try:
        arguments: TypeAdapter[dict[str, Any]] = TypeAdapter(_shape("Arguments", fields))
        schema = arguments.json_schema()
    except (PydanticUserError, TypeError) as exc:
        text = str(exc).partition("\n")[0]
        raise ConfigError(
            [f"{about}: a parameter has a type that JSON cannot carry: {text}"]
        ) from exc
    schema.pop("title", None)
    for parameter in schema.get("properties", {}).values():
        parameter.pop("title", None)
    schema.setdefault("properties", {})
    return BotTool(
        function, name, description, schema, idempotent, timeout_s, filler, filler_after_s,
        arguments, call_parameter,
    )  # fmt: skip  # one line each says no more


def _shape(name: str, fields: Mapping[str, Any]) -> Any:
    make: Any = TypedDict  # of fields known at run time only, which a type checker refuses
    shape = make(name, dict(fields))
    shape.__pydantic_config__ = ConfigDict(extra="forbid")
    return shape


def _is_time(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and 0 < seconds <= 600


def _read_signature(
    function: Callable[..., Any], about: str, documented: Mapping[str, str], problems: list[str]
) -> tuple[dict[str, Any], str | None]:
    """Return a field for each parameter that the model gives, and the name of the one for the call.

    Appends to `problems`.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as exc:  # an annotation may be any expression
        problems.append(f"{about}: an annotation cannot be read: {exc}")
        return {}, None
    fields: dict[str, Any] = {}
    call_parameter = None
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name)
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            problems.append(f"{about}: parameter {name} must be one that is passed by name")
        elif hint is Call:
            call_parameter = name
        elif hint is None:
            problems.append(
                f"{about}: parameter {name} has no type; write {name}: str, or what it is"
                + (" (Call, for the call)" if name == "call" else "")
            )
        else:
            annotated = _described(hint)
            if name not in documented and not annotated:
                problems.append(
                    f"{about}: parameter {name} is not described; add it under Args: in the "
                    "docstring, for the model to read"
                )
            details: dict[str, Any] = {}
            if name in documented and not annotated:
                details["description"] = documented[name]
            if parameter.default is not parameter.empty:
                details["json_schema_extra"] = _default(parameter.default)
            whole = Annotated[hint, Field(**details)] if details else hint
            optional = parameter.default is not parameter.empty
            fields[name] = NotRequired[whole] if optional else whole
    known = [*fields, *([call_parameter] if call_parameter else [])]
    if not problems:
        for name in documented:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; is it {near[0]}?" if near else ""
                problems.append(f"{about}: Args: describes {name}, which is no parameter{hint}")
    return fields, call_parameter


def _described(hint: Any) -> bool:
    """Say whether an `Annotated[…, Field(description=…)]` describes it."""
    extras = getattr(hint, "__metadata__", ())
    return any(isinstance(extra, FieldInfo) and extra.description for extra in extras)


def _default(value: Any) -> dict[str, Any]:
    """Return the default for the schema, where JSON has it; the function itself supplies it."""
    if value is None or isinstance(value, str | int | float | bool):
        return {"default": value}
    return {}


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return what a docstring says of the function, and under `Args:` of each parameter."""
    description: list[str] = []
    documented: dict[str, str] = {}
    section, name = "", ""
    for line in text.splitlines():
        heading = re.fullmatch(r"(Args|Arguments|Returns|Raises|Yields|Examples?):", line)
        if heading:
            section, name = heading[1], ""
        elif not section:
            description.append(line)
        elif section in {"Args", "Arguments"}:
            first = re.fullmatch(r" {2,4}\*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*)", line)
            if first:
                name = first[1]
                documented[name] = first[2].strip()
            elif name and line.strip():
                documented[name] = f"{documented[name]} {line.strip()}".strip()
            elif line and not line.startswith(" "):
                section = "after"
    return "\n".join(description).strip(), {n: text for n, text in documented.items() if text}
