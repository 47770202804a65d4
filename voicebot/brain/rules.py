r"""A bot's words by rules: for examples, tests, and bots that need no language model.

    brain = Rules(
        when(r"open|hours", "We are open from nine to five."),
        when(r"table for (?P<guests>\d+)", use("book", {"guests": "{guests}"})),
        when(r"bye", use("hang_up", say="Goodbye.")),
        otherwise="I can tell you our hours, or book a table.",
    )

The first rule whose pattern is found in the caller's words answers. Words are lower case without
punctuation, and numbers are digits, as `booking.normalize` has it. What a tool returns is said as
it is, unless `then` says otherwise; that it failed is said by `failed`.

Nothing is kept between answers: a conversation is played again from its messages, so a reply
that was cut short, a guess that was wrong, or words that were rewritten need no special case.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from voicebot.brain.booking import normalize
from voicebot.call import Call
from voicebot.parting import HANG_UP, SEND_DIGITS, TRANSFER
from voicebot.ports import Message, Tool, ToolCall
from voicebot.toolbox import has_failed

#: Said when a call is back from what has ended its stream, unless `then` says otherwise.
FAILED: Final = "I am sorry, that did not work. Is there anything else that I can do for you?"
#: Tools of the call itself, which a bot need not declare.
BUILT_IN: Final = frozenset(
    {HANG_UP, TRANSFER, SEND_DIGITS, "expect_keys", "wait_for_caller", "switch_voice"}
)
_GROUP: Final = re.compile(r"\{(\w+)\}")
_BACK: Final = {
    HANG_UP: "You are still there. What can I do for you?",
    TRANSFER: "I am sorry, nobody is there. What else can I do for you?",
    SEND_DIGITS: "That is done.",
}


@dataclass(frozen=True, slots=True)
class Said:
    """What a rule's function is given.

    `words` are the caller's, normalised, and `text` as they were recognised; `match` is of the
    rule's pattern. `state` is for the rules: it is filled again by each turn of the conversation
    so far, in order, so a function must put there what follows from the words and nothing else.
    `results` are those of the tools that ran before these words.
    """

    words: str
    text: str
    match: re.Match[str] | None
    state: dict[str, Any]
    results: tuple[str, ...]
    call: Call

    def __getitem__(self, group: str) -> str:
        """Return a named group of the pattern; empty where it took no part."""
        return (self.match[group] if self.match else "") or ""


@dataclass(frozen=True, slots=True)
class Use:
    """An answer that runs a tool. `use` makes one."""

    tool: str
    arguments: Mapping[str, Any]
    say: str
    then: str | Callable[[str], str]


def use(
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    say: str = "",
    then: str | Callable[[str], str] = "{result}",
) -> Use:
    """Answer with a tool.

    Args:
        arguments: texts may have `{group}` of the rule's pattern.
        say: said with the call of the tool.
        then: what is said of its result: a text with `{result}`, or a function of it, which is
            given failures as well.
    """
    return Use(tool, arguments or {}, say, then)


Answer = str | Use | Callable[[Said], "str | Use | None"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the answer to words in which it is found. `when` makes one."""

    pattern: re.Pattern[str]
    answer: Answer


def when(pattern: str, answer: Answer) -> Rule:
    """Make a rule.

    Args:
        pattern: regular expression, looked for anywhere in the caller's words.
        answer: a text, which may have `{group}` of the pattern, `use(…)`, or a function of `Said`
            that returns one of these, or None: then the next rule is asked.
    """
    return Rule(re.compile(pattern), answer)


@dataclass(frozen=True, slots=True)
class Rules:
    """Answers by rules; implements `ports.Chat`. What a rule's function raises ends the call."""

    rules: tuple[Rule, ...]
    otherwise: Answer
    failed: str
    call: Call = field(default_factory=Call)

    def __init__(
        self,
        *rules: Rule,
        otherwise: Answer = "Sorry, I did not understand that. Could you say it differently?",
        failed: str = FAILED,
        call: Call | None = None,
    ) -> None:
        given = {"rules": rules, "otherwise": otherwise, "failed": failed, "call": call or Call()}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def of(self, call: Call) -> Rules:
        """Return these rules for one call."""
        return Rules(*self.rules, otherwise=self.otherwise, failed=self.failed, call=call)

    def problems(self, tools: Sequence[str]) -> list[str]:
        """Return what is wrong with the rules for a bot that has tools of these names.

        What only a rule's function says is not known before it runs.
        """
        known = [*tools, *BUILT_IN]
        found = []
        for rule in (*self.rules, when("", self.otherwise)):
            answer = rule.answer
            if not isinstance(answer, Use):
                continue
            if answer.tool not in known:
                near = difflib.get_close_matches(answer.tool, known, 1)
                hint = f"; is it {near[0]!r}?" if near else ""
                found.append(f"use({answer.tool!r}): there is no tool of that name{hint}")
            texts = [answer.say, *(v for v in answer.arguments.values() if isinstance(v, str))]
            groups = dict.fromkeys(name for text in texts for name in _GROUP.findall(text))
            found += [
                f"use({answer.tool!r}): {{{group}}} is no group of its pattern: write "
                f"(?P<{group}>…) there"
                for group in groups
                if group not in rule.pattern.groupindex
            ]
        return found

    def reply(self, messages: Sequence[Message], *, may_use: bool = True) -> list[str | ToolCall]:
        """Return the answer to a conversation: its texts, and tools to be run.

        `may_use`: whether tools are offered. They are not while the stream is about to end.
        """
        state: dict[str, Any] = {}
        results: list[str] = []
        answer: str | Use = ""
        for message in messages:
            if message.role == "user":
                answer = self._answer(message.content, state, tuple(results))
            elif message.role == "tool":
                results.append(message.content)
        if messages and messages[-1].role == "tool":
            return self._told(answer, messages, may_use)
        if isinstance(answer, str):
            return [answer]
        calls = sum(len(message.tool_calls) for message in messages)
        call = ToolCall(f"call_{calls + 1}", answer.tool, json.dumps(dict(answer.arguments)))
        return [part for part in (answer.say, call) if part]

    def _answer(self, text: str, state: dict[str, Any], results: tuple[str, ...]) -> str | Use:
        words = normalize(text)
        for rule in self.rules:
            if match := rule.pattern.search(words):
                said = Said(words, text, match, state, results, self.call)
                if (answer := _evaluate(rule.answer, said)) is not None:
                    return answer
        return _evaluate(self.otherwise, Said(words, text, None, state, results, self.call)) or ""

    def _told(
        self, answer: str | Use, messages: Sequence[Message], may_use: bool
    ) -> list[str | ToolCall]:
        """Return what is said of the results that the conversation ends with."""
        last = list(itertools.takewhile(lambda message: message.role == "tool", messages[::-1]))
        result = " ".join(message.content for message in last[::-1])
        if isinstance(answer, str):
            return [result]
        if answer.tool in _BACK:
            if not may_use:
                return []  # the call says itself what is to be said
            if answer.then == "{result}":
                return [_BACK[answer.tool]]  # the result is written for a model
        if callable(answer.then):
            return [answer.then(result)]
        if any(has_failed(message.content) for message in last):
            return [self.failed]
        return [_filled(answer.then, result=result)]

    @asynccontextmanager
    async def open_reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> AsyncGenerator[AsyncIterator[str | ToolCall]]:
        """Give the answer in one piece. See `ports.Chat.open_reply`."""
        yield _Parts(self.reply(messages, may_use=bool(tools)))


def no_model() -> Rules:
    """Return what answers for a bot that has no language model and no brain: it says so."""

    def plain(said: Said) -> str:
        return (
            f"I have no language model yet, so I can only repeat. I heard: {said.text.rstrip('.')}."
        )

    return Rules(otherwise=plain)


def _evaluate(answer: Answer, said: Said) -> str | Use | None:
    if callable(answer):
        return answer(said)
    groups = {
        name: text or "" for name, text in (said.match.groupdict() if said.match else {}).items()
    }
    if isinstance(answer, str):
        return _filled(answer, **groups)
    arguments = {
        name: _filled(value, **groups) if isinstance(value, str) else value
        for name, value in answer.arguments.items()
    }
    return Use(answer.tool, arguments, _filled(answer.say, **groups), answer.then)


def _filled(text: str, **values: str) -> str:
    """Return the text with `{name}` replaced where there is a value; other braces stay."""
    return _GROUP.sub(lambda found: values.get(found[1], found[0]), text)


class _Parts(AsyncIterator[str | ToolCall]):
    def __init__(self, parts: Sequence[str | ToolCall]) -> None:
        self._rest = iter(parts)

    async def __anext__(self) -> str | ToolCall:
        await trio.lowlevel.checkpoint()
        part = next(self._rest, None)
        if part is None:
            raise StopAsyncIteration
        return part
