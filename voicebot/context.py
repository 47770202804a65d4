"""How much of a conversation a language model is shown: what it costs, and what is left out.

Pure. The costs are estimates, and too high rather than too low: a conversation that is too long
is refused as a whole, one that is a little shorter is not missed. `dialog.py` keeps all of it.
"""

from __future__ import annotations

import string
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from voicebot.ports import Message, Tool

# The least of Groq's plans takes 8,000 tokens a minute, and counts the 1,024 of the answer. In
# English it is a call of about 20 minutes.
CONTEXT_TOKENS: Final = 6_500

REQUEST_TOKENS: Final = 100  # gpt-oss puts a text of its own before the prompt
MESSAGE_TOKENS: Final = 5  # role, begin and end
CALL_TOKENS: Final = 10  # gpt-oss: channel, recipient and format
STEPS: Final = 4  # a quarter is left out at a time: the beginning stays for some turns
LEAST_TOKENS: Final = 64  # of a message; less of it would tell nothing
MARK: Final = " … [left out] … "

_ASCII: Final = bytes(range(128))
_LETTERS: Final = (string.ascii_letters + " ").encode()


def tokens_of(text: str) -> int:
    """Estimate what a text costs: a token for three bytes, and half a one for each ASCII sign.

    Source: measured with o200k, the vocabulary of gpt-oss, on 80 texts, as a part of what they
    cost: English and German 1.7, Hungarian and Polish 1.0, Russian 2.1, Chinese 1.2, Japanese
    1.3, Hindi 2.9, JSON 1.2 to 1.6, lists of numbers 0.8; of the languages only Lao and Amharic
    are well under 1 (0.5). Older vocabularies need more for other scripts than ours. The usual
    rule, four letters a token, makes 0.3 of Chinese, 0.7 of Polish and 0.5 of JSON.
    """
    raw = text.encode("utf-8", "replace")
    ascii_signs = len(raw.translate(None, _LETTERS)) - len(raw.translate(None, _ASCII))
    return -(-len(raw) // 3) + ascii_signs // 2


def message_tokens(message: Message) -> int:
    """Estimate what a message costs, the tool calls in it included."""
    calls = message.tool_calls
    return (
        MESSAGE_TOKENS
        + tokens_of(message.content)
        + sum(CALL_TOKENS + tokens_of(call.name + call.arguments) for call in calls)
    )


def tool_tokens(tool: Tool) -> int:
    """Estimate what it costs to offer a tool."""
    schema = dict(tool.parameters)  # as Python writes it, which is as long as JSON
    return CALL_TOKENS + tokens_of(f"{tool.name} {tool.description} {schema}")


def shorten(text: str, tokens: int) -> str:
    """Return a text with its middle left out, if it costs more than so many tokens."""
    if tokens_of(text) <= tokens:
        return text

    def cut(kept: int) -> str:
        return text[: kept - kept // 2] + MARK + text[len(text) - kept // 2 :]

    longer = bisect_right(range(len(text)), tokens, key=lambda kept: tokens_of(cut(kept)))
    return cut(max(longer - 1, 0))


def newest(messages: Sequence[Message], tokens: int) -> list[Message]:
    """Return as much of the end of a conversation as costs no more than so many tokens.

    What is left out are whole exchanges: a message of the caller and all that follows it. So no
    tool call is torn from its result, and no answer from its question. The last exchange always
    stays; what is too long in it, or takes half of the room alone, is shortened.

    The oldest are left out by the quarter of the room, and not one by one: servers keep what
    they have computed of a prompt, for as far as the next begins in the same way.
    """
    most = max(LEAST_TOKENS, tokens // 2)
    kept = [_at_most(message, most) for message in messages]
    exchanges: list[list[Message]] = []
    for message in kept:
        if message.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
    step = max(1, tokens // STEPS)
    left_out = -(-max(0, _cost(kept) - tokens) // step) * step
    while left_out > 0 and len(exchanges) > 1:
        left_out -= _cost(exchanges.pop(0))
    kept = [message for exchange in exchanges for message in exchange]
    while _cost(kept) > tokens and most > LEAST_TOKENS:
        most = max(LEAST_TOKENS, most * 3 // 4)
        kept = [_at_most(message, most) for message in kept]
    return kept


def _cost(messages: Sequence[Message]) -> int:
    return sum(map(message_tokens, messages))


def _at_most(message: Message, tokens: int) -> Message:
    if message_tokens(message) <= tokens:
        return message
    bare = replace(message, content="")
    if message_tokens(bare) > tokens:  # half of an object is none
        calls = tuple(replace(call, arguments="{}") for call in message.tool_calls)
        bare = replace(bare, tool_calls=calls)
    return replace(bare, content=shorten(message.content, tokens - message_tokens(bare)))
