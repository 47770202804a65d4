"""The receptionist of Trattoria Aurora, scripted: the words of the bot with no language model.

It understands a fixed set of intents by their key words, as a recogniser on a telephone line
spells them, takes a table booking, and streams its answer word by word like a model would. It
is for trying the bot without a key and for tests; a system prompt means nothing to it.

Nothing is kept between answers: the conversation is played again from its messages, so a
reply that was cut short, or a caller's turn that was rewritten, needs no special case.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import trio

from voicebot import ports
from voicebot.brain import booking
from voicebot.brain.booking import Booking, Slot
from voicebot.brain.intents import MONTH, Intent, classify, words_of

HANG_UP: Final = "hang_up"  # the tool that ends the call

HOURS: Final = "We are open Tuesday to Sunday, from noon to ten in the evening."
CLOSED: Final = "On Mondays we are closed."
ABLE: Final = "I can tell you our opening hours and our address, or book a table."
_ANSWERS: Final = {
    Intent.NOTHING: "Sorry, I did not hear anything. Could you say that again?",
    Intent.WHO: f"I am an automated assistant of Trattoria Aurora. {ABLE}",
    Intent.TRANSFER: (
        "I understand that you would like to speak to a person. I cannot transfer calls yet. "
        "Please call again between noon and ten, and my colleagues will be glad to help."
    ),
    Intent.GOODBYE: "Thank you for calling Trattoria Aurora. Goodbye!",
    Intent.WAIT: "Of course, take your time.",
    Intent.HOURS: f"{HOURS} {CLOSED}",
    Intent.ADDRESS: "You will find us at 14 Harbour Street, next to the old fish market.",
    Intent.MENU: (
        "We cook fresh pasta, pizza from the wood oven and fish of the day. Main dishes are "
        "twelve to twenty-four euros, and there is always something vegetarian."
    ),
    Intent.HELP: f"{ABLE} If you have time, ask me for a long story. What would you like?",
    Intent.YES: "Good. What can I do for you?",
    Intent.NO: "All right. Is there anything else I can do for you?",
    Intent.THANKS: "You are welcome. Is there anything else?",
    Intent.SORRY: "No problem at all. How can I help you?",
    Intent.GREETING: "Hello! How can I help you?",
    Intent.CANCEL: "There is no booking to cancel. How can I help you?",
    # More than a minute when spoken: long enough to talk over.
    Intent.STORY: (
        "Gladly. A long time ago, before there was a restaurant here, there was only a harbour, "
        "and in the harbour lived an old fisherman called Matteo. Every morning he rowed out "
        "before the sun was up, and every evening he came home with his nets almost empty. The "
        "other fishermen laughed at him, because Matteo gave back every fish that was too small. "
        "One night in November there was a storm, the worst that anybody could remember. The "
        "waves came over the wall, and all the boats were torn from their ropes. When it was "
        "over, Matteo walked down to the water, and there was a light far out on the sea, green "
        "and pink and gold, moving like a curtain in the wind. He had never seen such a thing. He "
        "took the only boat that was left and rowed towards the light, for one hour, and for "
        "another hour, until his hands were cold and his arms were tired. And there, under the "
        "light, the sea was full of fish, more than he had ever seen, and all of them were large. "
        "They were the small ones that he had let go, year after year, and they had all grown up. "
        "He filled his boat, and he rowed back, and that winter nobody in the harbour was hungry. "
        "With the money he bought this house, and he put a stove into it, and six tables. He "
        "called it Aurora, after the light. His granddaughter still cooks here today, and if you "
        "come in November and look out of the window by the door, you may see it yourself. And "
        "that is the end of the story. Would you like to book a table?"
    ),
}
_QUESTIONS: Final = {
    "day": "For which day would you like the table?",
    "time": "At what time would you like to come?",
    "guests": "For how many guests?",
    "offer": "Would you like to book a table?",
}
# A booking in progress survives these; the question that is open is asked again.
_ASIDES: Final = {Intent.HOURS, Intent.ADDRESS, Intent.MENU, Intent.THANKS, Intent.SORRY}
_SLOTS: Final[dict[str | None, Slot]] = {"day": "day", "time": "time", "guests": "guests"}
_SLOT_NAMES: Final = {"day": ("day", "date"), "time": ("time",), "guests": ("guests", "people")}
# A turn takes 0.15 ms to play again, inline; a booking is done in a tenth of these.
_REMEMBERED: Final = 80
_QUOTED_WORDS: Final = 12  # enough to recognise one's own sentence

_NOTHING_BOOKED: Final = Booking()

Question = Literal["day", "time", "guests", "offer", "confirm"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Where the conversation stands; advanced by one caller's turn at a time."""

    today: datetime.date
    table: Booking = _NOTHING_BOOKED
    asked: Question | None = None  # what the last reply asked for
    noted: Booking | None = None  # a table that was confirmed
    month: str = ""  # said without a day
    reply: str = "Hello, this is Trattoria Aurora. How can I help you?"
    heard: str = ""  # of the last reply, as the history has it

    def hear(self, text: str) -> Conversation:
        """Return the conversation after the caller said this; `reply` is the answer."""
        intent = classify(text)
        words = words_of(text)
        said = booking.read(f"{words} {self.month}".strip(), self.today, _SLOTS.get(self.asked))
        match intent:
            case Intent.REPEAT:
                return self
            case Intent.CONTINUE:
                return self._answer(_rest(self.reply, self.heard), self.asked)
            case Intent.CANCEL if self.asked or self.noted:
                fresh = Conversation(self.today)
                return fresh._answer("All right, I have cancelled that. Anything else?")
            case Intent.HOURS if said.day:
                return self._aside(_hours_on(said.day))
            case _ if intent in _ASIDES:
                return self._aside(_ANSWERS[intent])
            case Intent.STORY:
                return self._answer(_ANSWERS[intent], "offer")
            case Intent.BOOKING | Intent.DETAIL:
                return self._book(said, words)
            case Intent.YES | Intent.NO | Intent.NUMBER | Intent.UNKNOWN if self.asked:
                return self._respond(intent, said, text)
            case Intent.NUMBER:
                return self._answer(f"I heard {_quote(text)}. {_QUESTIONS['offer']}", "offer")
            case Intent.UNKNOWN:
                return self._answer(f"I heard: {_quote(text)}. I am not sure what to do. {ABLE}")
            case _:
                return self._answer(_ANSWERS[intent], self.asked)

    def _respond(self, intent: Intent, said: Booking, text: str) -> Conversation:
        """Take the answer to our own question."""
        words = words_of(text)
        if self.table.merge(said) != self.table:
            return self._book(said, words)
        if self.asked == "offer":
            if intent is Intent.YES:
                return self._ask("Gladly.")
            declined = replace(self, table=_NOTHING_BOOKED, asked=None)
            return declined.hear(text)
        if self.asked != "confirm":
            return self._ask("Sorry, I did not catch that.")
        if intent is Intent.YES:
            done = replace(self, table=_NOTHING_BOOKED, noted=self.table)
            return done._answer(f"Done, I have noted {_table(self.table)}. Anything else?")
        for slot, names in _SLOT_NAMES.items():
            if any(name in words.split() for name in names):
                return replace(self, table=replace(self.table, **{slot: None}))._ask("")
        if intent is Intent.NO:
            return self._answer("What should I change: the day, the time or the guests?", "confirm")
        return self._ask("Sorry, I did not understand.")

    def _book(self, said: Booking, words: str) -> Conversation:
        """Go on with the booking, or begin one."""
        if said.day and said.day.weekday() == booking.CLOSED_WEEKDAY:
            known = replace(self, table=self.table.merge(replace(said, day=None)), month="")
            return known._answer(f"{CLOSED} Which other day would suit you?", "day")
        if said.time and not booking.OPENS <= said.time < booking.CLOSES:
            known = replace(self, table=self.table.merge(replace(said, time=None)))
            return known._answer(f"{HOURS} What time would suit you?", "time")
        merged = replace(self, table=self.table.merge(said), month="")
        if merged.table.day is None and (month := MONTH.search(words)):
            asking = replace(merged, month=month[1])
            return asking._answer(f"Which day in {month[1].capitalize()} would you like?", "day")
        only_day = said.day if said == Booking(day=said.day) else None
        if only_day and self.asked is None and classify(words) is Intent.DETAIL:
            offer = f"{_hours_on(only_day)} Shall I book a table for that day?"
            return merged._answer(offer, "offer")
        return merged._ask("Gladly." if self.asked in {None, "offer"} else "")

    def _ask(self, before: str) -> Conversation:
        """Ask for the next missing thing, or for the whole to be confirmed."""
        missing = self.table.missing
        if missing is None:
            return self._answer(f"{before} So, {_table(self.table)}. Is that right?", "confirm")
        return self._answer(f"{before} {_QUESTIONS[missing]}", missing)

    def _aside(self, answer: str) -> Conversation:
        """Answer a question in the middle of a booking, then come back to it."""
        if self.asked in {None, "offer"}:
            return self._answer(answer)
        return self._ask(answer)

    def _answer(self, reply: str, asked: Question | None = None) -> Conversation:
        reply = reply.strip()
        return replace(self, reply=reply[:1].upper() + reply[1:], asked=asked, heard="")


def _hours_on(day: datetime.date) -> str:
    if day.weekday() == booking.CLOSED_WEEKDAY:
        return CLOSED
    return f"On {booking.spoken_day(day)}, we are open from noon to ten in the evening."


def _table(table: Booking) -> str:
    assert table.day is not None
    assert table.time is not None
    assert table.guests is not None
    guests = booking.spoken_guests(table.guests)
    return (
        f"a table for {guests} on {booking.spoken_day(table.day)}, "
        f"at {booking.spoken_time(table.time)}"
    )


def _quote(text: str) -> str:
    words = text.strip(" .!?,").split()
    return " ".join(words[:_QUOTED_WORDS]) + (" and so on" if len(words) > _QUOTED_WORDS else "")


def _rest(reply: str, heard: str) -> str:
    """Return the reply from the sentence on in which the caller stopped hearing it."""
    spoken, said = reply.split(), heard.split()
    count = 0
    while count < min(len(spoken), len(said)) and spoken[count] == said[count]:
        count += 1
    if count == len(spoken):
        return "That was all. How can I help you?"
    while count and spoken[count - 1][-1] not in ".!?":
        count -= 1
    return " ".join(spoken[count:])


def reply_to(messages: Sequence[ports.Message], today: datetime.date) -> str:
    """Return the whole answer to a conversation; the pure half of `ScriptedBrain`."""
    conversation = Conversation(today)
    for message in messages[-_REMEMBERED:]:
        if message.role == "user":
            conversation = conversation.hear(message.content)
        elif message.role == "assistant" and not (message.tool_calls and not message.content):
            conversation = replace(conversation, heard=message.content)
    return conversation.reply


def says_goodbye(messages: Sequence[ports.Message]) -> bool:
    """Return whether the caller's last words end the call."""
    said = [message.content for message in messages if message.role == "user"]
    return bool(said) and classify(said[-1]) is Intent.GOODBYE


class ScriptedBrain:
    """Streams scripted answers; implements `ports.Chat`.

    Units: `first_delay_s` until the first word, then `words_per_second`. The defaults hide
    nothing of the bot's own speed; a language model's are 0.2 and about 100.
    """

    def __init__(
        self,
        *,
        words_per_second: float = 400.0,
        first_delay_s: float = 0.0,
        today: Callable[[], datetime.date] = datetime.date.today,
    ) -> None:
        self._interval_s = 1.0 / words_per_second
        self._first_delay_s = first_delay_s
        self._today = today
        self._calls = itertools.count(1)

    @asynccontextmanager
    async def open_reply(
        self, messages: Sequence[ports.Message], tools: Sequence[ports.Tool] = ()
    ) -> AsyncGenerator[AsyncIterator[str | ports.ToolCall]]:
        """Stream the answer to the last thing the caller said.

        A goodbye is followed by a call of `hang_up` where that is offered, and by nothing
        once it was made: no other tool is ever called.
        """
        parts: list[str | ports.ToolCall] = []
        if not (messages and messages[-1].role == "tool"):
            parts += re.findall(r"\S+\s*", reply_to(messages, self._today()))
            if says_goodbye(messages) and any(tool.name == HANG_UP for tool in tools):
                parts.append(ports.ToolCall(f"call_{next(self._calls)}", HANG_UP, "{}"))
        yield _Parts(parts, self._first_delay_s, self._interval_s)


class _Parts(AsyncIterator[str | ports.ToolCall]):
    """The words of an answer, each with the space behind it, and what is done after them."""

    def __init__(
        self, parts: Sequence[str | ports.ToolCall], first_delay_s: float, interval_s: float
    ) -> None:
        self._rest = iter(parts)
        self._delay_s = first_delay_s
        self._interval_s = interval_s

    async def __anext__(self) -> str | ports.ToolCall:
        await trio.sleep(self._delay_s)
        self._delay_s = self._interval_s
        part = next(self._rest, None)
        if part is None:
            raise StopAsyncIteration
        return part
