"""What a bot says and how a call is run: the numbers and texts that one call is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from voicebot import parting
from voicebot.context import CONTEXT_TOKENS
from voicebot.keypad import Entry
from voicebot.parting import Parting
from voicebot.patience import Endpointing
from voicebot.playout import Pacing
from voicebot.tries import Retrying
from voicebot.turns import Interruption

TROUBLE: Final = "I am sorry, something is not working here. Please call again later. Goodbye."
CONNECTING: Final = "I am sorry, something is not working here. I am putting you through."


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds on every wait of a call for somebody else, in seconds, and what happens then.

    The one policy for lateness and failure of providers: how long each is waited for, how often
    it is tried (`tries.py`), and what the caller hears meanwhile.
    """

    media_s: float = 5.0  # no audio of the caller: the stream is dead, whatever TCP says
    call_s: float = 3_600.0  # a call this long is a forgotten handset
    warning_s: float = 60.0  # before that the caller is warned: time for what matters; 0: never
    parting_s: float = 15.0  # after it, to say goodbye; then the line is cut in mid-word

    # Nobody says anything. Measured from what was heard; 0: waited for without end.
    idle_s: float = 12.0  # people who look something up take ten; longer is a forgotten line
    cough_s: float = 1.5  # of silence after a sound without words: the next is being thought of

    # The language model.
    first_token_s: float = 2.5  # of one try: ten times what is usual, and a second fits in
    token_gap_s: float = 4.0  # a model that stalls mid-answer does not come back
    answer_tries: int = 3  # one may be bad luck, two an outage; the third is another model's
    answer_s: float = 6.0  # for all tries: people hang up after a few seconds of silence

    # The voice.
    first_audio_s: float = 4.0  # of one try; 0.2 s is usual, and the embedded voice's worst 3 s
    # Behind what was played: a drip that is slower than speech is a stall as well.
    audio_gap_s: float = 2.0
    speech_tries: int = 3  # as for the model

    # The recogniser.
    transcriber_tries: int = 3  # openings of the recogniser in a row that may fail
    transcriber_pause_s: float = 0.5  # before the second try, then doubled
    transcriber_connect_s: float = 3.0  # TCP, TLS and upgrade; 0.3 s when all is well
    # A stream may fall silent and stay open. Where somebody speaks, Flux says something every
    # 0.25 s of audio and v1 every second, if only that it has nothing new.
    transcriber_stall_s: float = 5.0

    # Providers that are down (`tries.Retrying`).
    breaker_failures: int = 3  # in a row; one or two are bad luck on any network
    breaker_s: float = 20.0  # an outage lasts minutes, a restart seconds

    # What the caller hears meanwhile.
    filler_s: float = 3.0  # of silence, then somebody is still there; longer is a dead line
    failures: int = 2  # replies in a row that could not be given, before the bot gives up

    # An answer waits this long for a tool of the turn before; then it is said to be running.
    tool_patience_s: float = 2.0
    # These two and the close of the socket follow each other, and nothing is left after 2 s.
    tool_grace_s: float = 0.8  # for a tool that must not be torn when the call ends under it
    hang_up_s: float = 0.6  # for the carrier to end the call: a new connection and an answer

    @property
    def retrying(self) -> Retrying:
        """What of it is shared by all calls."""
        return Retrying(self.breaker_failures, self.breaker_s)


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What a bot says and how a call is run."""

    prompt: str
    greeting: str
    recorded: bool = False  # whether the call may be recorded
    consent: str = ""  # said before the greeting where it is
    apology: str = "Sorry, I did not manage that. Could you say it again, please?"
    fillers: tuple[str, ...] = ("One moment, please.", "I am still here, just a moment.")
    reprompts: tuple[str, ...] = ("Are you still there?", "Hello? I cannot hear you.")
    warning: str = "We have one minute left."  # fits `Timeouts.warning_s`
    time_up: str = "I am sorry, our time is up. Goodbye."
    stopping: str = "I am sorry, I have to end our call now. Please call again. Goodbye."
    trouble: str = TROUBLE
    farewell: str = "Sorry, I cannot hear you any more. Please call again. Goodbye."
    goodbye: str = "Goodbye."  # said where the model hangs up without a word
    may_hang_up: bool = True  # whether the model is offered to end the call
    transferring: str = "I am putting you through."  # said where the model says nothing
    people: Mapping[str, str] = field(default_factory=dict)  # E.164 by name: who takes callers
    keys: Entry = field(default_factory=Entry)  # that callers press, unless asked otherwise
    may_ask_for_keys: bool = False  # only bots that want PINs or card numbers have a use for it
    may_wait: bool = True  # whether the model may give the caller time, where `idle_s` is set
    # True: any keys; or what may be pressed at once.
    may_send_digits: bool | tuple[str, ...] = False  # only who talks to machines has a use for it
    context_tokens: int = CONTEXT_TOKENS  # what the model is shown may cost; see `context.py`
    pacing: Pacing = field(default_factory=Pacing)
    endpointing: Endpointing = field(default_factory=Endpointing)
    interruption: Interruption = field(default_factory=Interruption)
    language: str = "en"  # BCP 47, of what is said
    # The other speakers, by name: this plan with their language and words; see `speakers.py`.
    speakers: Mapping[str, CallPlan] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    send_deadline_s: float = 5.0  # a socket that takes no byte for this long is dropped

    @property
    def opening(self) -> str:
        """What the bot says first; empty: the caller begins."""
        consent = self.consent if self.recorded else ""
        return " ".join(filter(None, (consent, self.greeting)))

    @property
    def partings(self) -> tuple[Parting, ...]:
        """The ways in which the model may end the stream."""
        ways = [parting.hang_up(self.goodbye)] if self.may_hang_up else []
        if self.people:
            ways.append(parting.transfer(self.people, self.transferring))
        if self.may_send_digits:
            allowed = self.may_send_digits if isinstance(self.may_send_digits, tuple) else ()
            filler = self.fillers[0] if self.fillers else ""
            ways.append(parting.send_digits(filler, allowed))
        return tuple(ways)
