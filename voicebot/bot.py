"""`Bot`: what a bot file declares. Says itself what is wrong with it; see `botfile.py` for where.

A field that is left out is as the settings say (`VOICEBOT_PROMPT`, …); one that is given wins
over them, for a file is about one bot and an environment about a server.
"""

from __future__ import annotations

import difflib
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Final

import trio

from voicebot.brain.rules import Rules, no_model
from voicebot.call import BUILT_IN, Call, render, variables_in
from voicebot.config import E164, Settings
from voicebot.errors import ConfigError
from voicebot.keypad import Entry
from voicebot.parting import are_keys
from voicebot.patience import Endpointing
from voicebot.plan import CallPlan, Timeouts
from voicebot.ports import Chat, Tool
from voicebot.record import CallSummary, TurnRecord
from voicebot.speakers import USUAL
from voicebot.tools import BotTool
from voicebot.turns import Interruption

Later = Awaitable[None] | None

GREETING: Final = "Hello. How can I help you?"  # of a bot that has none, nor have the settings
_EMBEDDED_VOICES: Final = frozenset({"auto", "piper", "espeak"})
_TEXTS: Final = (
    *("prompt", "greeting", "consent", "apology", "trouble", "farewell", "goodbye"),
    *("transferring", "warning", "time_up", "stopping"),
)
_LISTS: Final = ("fillers", "reprompts")  # of texts
_GROUPS: Final = {"endpointing": Endpointing, "interruption": Interruption, "timeouts": Timeouts}
_OF_SETTINGS: Final = ("prompt", "greeting", "language", "context_tokens", *_GROUPS)
_OF_PLAN: Final = (
    *("consent", "apology", "trouble", "farewell", "goodbye", "transferring", "warning", "time_up"),
    *("stopping", *_LISTS),
    *("may_hang_up", "may_send_digits", "may_ask_for_keys", "may_wait", "keys", "people"),
)
_OF_SPEAKER: Final = (
    *("apology", "trouble", "farewell", "goodbye", "transferring", "warning", "time_up"),
    *("stopping", *_LISTS),
)
_HOOKS: Final = {
    "on_call_start": ("call",),
    "on_turn": ("call", "turn"),
    "on_call_end": ("call", "summary"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """Another way in which a bot can be heard: in another voice, language, or both.

    `voice` is a Deepgram model, `language` is BCP 47; None is the bot's own. The texts are what
    it says word for word, in that language; None is the bot's own text.
    """

    voice: str | None = None
    language: str | None = None
    apology: str | None = None
    fillers: Sequence[str] | None = None
    trouble: str | None = None
    farewell: str | None = None
    goodbye: str | None = None
    transferring: str | None = None
    reprompts: Sequence[str] | None = None
    warning: str | None = None
    time_up: str | None = None
    stopping: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bot:
    """A bot: what it is, says and can do.

    `prompt` tells the language model what it is; `greeting` is said first, and empty lets the
    caller begin. `voice` is a Deepgram model ("aura-2-thalia-en") or an embedded voice ("piper",
    "espeak"); `language` is BCP 47. `tools` are functions with `@tool`.

    `variables` declares what `{{name}}` in these texts stands for, with a default: metadata of
    `POST /calls` and custom parameters of that name win over it, and `on_call_start` may change
    it for its call. There are also {{caller}}, {{number}}, {{direction}}, {{call_sid}},
    {{today}} and {{now}}.

    Hooks may be sync, then in a worker thread, or async: `on_call_start(call)` before the
    greeting, which waits 1.5 s for it; `on_turn(call, turn)` behind each turn;
    `on_call_end(call, summary)` once the call is over. What goes wrong in them is logged and
    counted, and the call goes on.

    `keys` says when keys that the caller presses are an entry, which the model is told as
    `[pressed 12]`; with `may_ask_for_keys` it may ask for others, also for secret ones.

    `recording=False`: its calls are never recorded, whatever the settings say. `consent` is said
    before the greeting of a call that is recorded; empty, because the greeting says it already.

    `people` are those whom the model may put callers through to: E.164 by name. What keys it may
    press is said by `may_send_digits`: a list of them, or True for any.

    `speakers` are other voices and languages by name, for which the model changes its own when
    the caller wants it. They need Deepgram.

    `brain` answers where no language model is configured. The remaining fields are texts and
    numbers of `CallPlan` and `Timeouts`; None is their default.

    Raises:
        ConfigError: everything that is wrong, at once.
    """

    prompt: str | None = None
    greeting: str | None = None
    voice: str | None = None
    language: str | None = None
    tools: Sequence[BotTool[..., Any]] = ()
    _: KW_ONLY
    variables: Mapping[str, Any] = field(default_factory=dict)
    on_call_start: Callable[[Call], Later] | None = None
    on_turn: Callable[[Call, TurnRecord], Later] | None = None
    on_call_end: Callable[[Call, CallSummary], Later] | None = None
    brain: Chat | None = None
    recording: bool = True
    consent: str | None = None
    apology: str | None = None
    fillers: Sequence[str] | None = None
    trouble: str | None = None
    farewell: str | None = None
    goodbye: str | None = None
    transferring: str | None = None
    reprompts: Sequence[str] | None = None
    warning: str | None = None
    time_up: str | None = None
    stopping: str | None = None
    people: Mapping[str, str] | None = None
    speakers: Mapping[str, Speaker] = field(default_factory=dict)
    may_hang_up: bool | None = None
    may_send_digits: bool | Sequence[str] | None = None
    may_ask_for_keys: bool | None = None
    may_wait: bool | None = None
    keys: Entry | None = None
    context_tokens: int | None = None
    endpointing: Endpointing | None = None
    interruption: Interruption | None = None
    timeouts: Timeouts | None = None

    def __post_init__(self) -> None:
        problems = [*_wrong_types(self), *_wrong_tools(self), *_wrong_hooks(self)]
        if not problems:
            problems = _wrong_variables(self)
        if not problems and isinstance(self.brain, Rules):
            names = [tool.name for tool in self.tools]
            problems = [f"Bot: brain: {each}" for each in self.brain.problems(names)]
        if problems:
            raise ConfigError(problems)

    def settings(self, settings: Settings) -> Settings:
        """Return the settings with what this bot says itself."""
        given = {name: value for name in _OF_SETTINGS if (value := getattr(self, name)) is not None}
        if "greeting" not in given and "greeting" not in settings.model_fields_set:
            given["greeting"] = GREETING
        if self.voice is not None:
            embedded = self.voice in _EMBEDDED_VOICES
            given["voice" if embedded else "deepgram_tts_model"] = self.voice
        return settings.model_copy(update=given)

    def plan(self, base: CallPlan, call: Call, now: datetime) -> CallPlan:
        """Return the plan of one call, its variables in place.

        Args:
            base: the plan by the settings that `settings` returned.
        """
        return self._said(base, call.values(now))

    def resting_plan(self, base: CallPlan) -> CallPlan:
        """Return the plan of a call that says nothing of itself; the rest stays as `{{…}}`."""
        return self._said(base, self.variables)

    def _said(self, base: CallPlan, values: Mapping[str, Any]) -> CallPlan:
        given = {name: value for name in _OF_PLAN if (value := getattr(self, name)) is not None}
        if isinstance(digits := given.get("may_send_digits"), list):
            given["may_send_digits"] = tuple(digits)
        plan = replace(base, recorded=base.recorded and self.recording, **given)
        plan = replace(plan, **_rendered(plan, (*_TEXTS, *_LISTS), values))
        others: dict[str, CallPlan] = {}
        for name, speaker in self.speakers.items():
            own = _rendered(speaker, _OF_SPEAKER, values)
            if speaker.language is not None:
                own["language"] = speaker.language
            others[name] = replace(plan, **own)
        return replace(plan, speakers=others)

    def call_tools(
        self, call: Call, now: datetime, threads: trio.CapacityLimiter | None
    ) -> tuple[Tool, ...]:
        """Return the tools of one call. See `BotTool.bind`."""
        values = call.values(now)
        return tuple(
            tool.bind(call, threads, lambda text: render(text, values)) for tool in self.tools
        )

    def call_brain(self, call: Call | None = None) -> Chat:
        """Return what answers where no language model is configured."""
        brain = self.brain if self.brain is not None else no_model()
        return brain.of(call) if isinstance(brain, Rules) and call is not None else brain

    @property
    def tool_fillers(self) -> list[str]:
        """What its slow tools have said."""
        return [render(tool.filler, self.variables) for tool in self.tools if tool.filler]


def _rendered(source: object, names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of these names that are given, their variables in place."""
    rendered: dict[str, Any] = {}
    for name in names:
        given = getattr(source, name)
        if isinstance(given, str):
            rendered[name] = render(given, values)
        elif given is not None:
            rendered[name] = tuple(render(text, values) for text in given)
    return rendered


def _wrong_types(bot: Bot) -> list[str]:
    problems = [
        f"Bot: {name} must be a text, and is {getattr(bot, name)!r}"
        for name in ("voice", "language", *_TEXTS)
        if not isinstance(getattr(bot, name), str | None)
    ]
    if not isinstance(bot.recording, bool):
        problems.append(f"Bot: recording must be True or False, and is {bot.recording!r}")
    problems += [
        f'Bot: {name} must be a list of texts, like ["One moment, please."]'
        for name in _LISTS
        if not _is_list_of_texts(getattr(bot, name))
    ]
    for name, kind in _GROUPS.items():
        if not isinstance(getattr(bot, name), kind | None):
            problems.append(f"Bot: {name} must be a voicebot.{kind.__module__[9:]}.{kind.__name__}")
    problems += _wrong_speakers(bot)
    if isinstance(bot.voice, str) and not (
        bot.voice in _EMBEDDED_VOICES or bot.voice.startswith("aura-")
    ):
        problems.append(
            f"Bot: there is no voice {bot.voice!r}: piper, espeak, or a model of Deepgram like "
            "aura-2-thalia-en"
        )
    if not isinstance(bot.keys, Entry | None):
        problems.append("Bot: keys must be a voicebot.keypad.Entry, like Entry(length=1)")
    if bot.brain is not None and not callable(getattr(bot.brain, "open_reply", None)):
        problems.append("Bot: brain must be a Chat, like voicebot.brain.rules.Rules")
    people: Any = bot.people  # whatever the file says
    if people is not None and not (
        isinstance(people, Mapping)
        and all(isinstance(number, str) and E164.fullmatch(number) for number in people.values())
    ):
        problems.append('Bot: people must be numbers by name, like {"the shop": "+15550100123"}')
    digits: Any = bot.may_send_digits
    if not isinstance(digits, bool | None) and not (
        isinstance(digits, list | tuple) and digits and all(map(are_keys, digits))
    ):
        problems.append(
            'Bot: may_send_digits must be True, or a list of keys to press, like ["1", "ww2#"]'
        )
    if not isinstance(bot.variables, Mapping):
        problems.append('Bot: variables must be a dict of names and defaults, like {"name": ""}')
    return problems


def _is_list_of_texts(several: Any) -> bool:
    return several is None or (
        isinstance(several, list | tuple) and all(isinstance(text, str) for text in several)
    )


def _wrong_speakers(bot: Bot) -> list[str]:
    speakers: Any = bot.speakers  # whatever the file says
    if not isinstance(speakers, Mapping):
        return ['Bot: speakers must be by name, like {"Spanish": Speaker(language="es")}']
    problems = []
    for name, speaker in speakers.items():
        where = f"Bot: speakers: {name!r}"
        if not isinstance(name, str) or not name or name == USUAL:
            problems.append(f"{where} is no name; {USUAL!r} is the bot itself")
        if not isinstance(speaker, Speaker):
            problems.append(f"{where} must be a voicebot.Speaker")
            continue
        for field_ in ("voice", "language", *_OF_SPEAKER):
            value = getattr(speaker, field_)
            right = _is_list_of_texts(value) if field_ in _LISTS else isinstance(value, str | None)
            if not right:
                kind = "list of texts" if field_ in _LISTS else "text"
                problems.append(f"{where}: {field_} must be a {kind}, and is {value!r}")
        if isinstance(speaker.voice, str) and not speaker.voice.startswith("aura-"):
            problems.append(f"{where}: voice must be a model of Deepgram like aura-2-celeste-es")
    return problems


def _wrong_tools(bot: Bot) -> list[str]:
    tools: Any = bot.tools  # whatever the file says
    if not isinstance(tools, Sequence):
        return ["Bot: tools must be a list of functions with @tool"]
    problems = []
    for each in tools:
        if not isinstance(each, BotTool):
            name = getattr(each, "__name__", repr(each))
            problems.append(f"Bot: tools: {name} is no tool; write @tool above it")
    names = Counter(each.name for each in tools if isinstance(each, BotTool))
    problems += [f"Bot: tools: there are {n} named {name}" for name, n in names.items() if n > 1]
    return problems


def _wrong_hooks(bot: Bot) -> list[str]:
    problems = []
    for name, arguments in _HOOKS.items():
        hook = getattr(bot, name)
        if hook is None:
            continue
        try:
            inspect.signature(hook).bind(*arguments)
        except (TypeError, ValueError):
            given = getattr(hook, "__name__", repr(hook))
            problems.append(f"Bot: {name} is called as {given}({', '.join(arguments)})")
    return problems


def _wrong_variables(bot: Bot) -> list[str]:
    problems = [
        f"Bot: variables: {{{{{name}}}}} is given by the call; choose another name"
        for name in bot.variables
        if name in BUILT_IN
    ]
    known = [*bot.variables, *BUILT_IN]
    texts = {name: [getattr(bot, name) or ""] for name in _TEXTS}
    texts |= {name: list(getattr(bot, name) or ()) for name in _LISTS}
    for who, speaker in bot.speakers.items():
        for name in _OF_SPEAKER:
            given = getattr(speaker, name) or ()
            texts[f"{name} of {who}"] = [given] if isinstance(given, str) else list(given)
    texts |= {f"filler of {tool.name}": [tool.filler] for tool in bot.tools}
    for where, several in texts.items():
        for name in dict.fromkeys(name for text in several for name in variables_in(text)):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"is it {{{{{near[0]}}}}}?" if near else f'add variables={{"{name}": ""}}'
                problems.append(f"Bot: {where}: nobody knows {{{{{name}}}}}; {hint}")
    return problems


#: Names that `Bot` takes, for whoever has mistyped one.
FIELDS: Final = tuple(each.name for each in fields(Bot))
