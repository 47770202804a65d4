"""Turn-taking decisions, one by one; no clock but the numbers given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.patience import Endpointing
from voicebot.ports import Final, LikelyEnd, Partial, Transcript, UtteranceEnd
from voicebot.turns import (
    EndOfTurn,
    Finalize,
    Guess,
    Instruction,
    Interrupt,
    Interruption,
    RecogniserLate,
    SpeechStarted,
    Turns,
    Verdict,
    WrongGuess,
)

RULES = Endpointing(hangover_ms=350, guesses=0)
YES, NO = Verdict(confirmed=True), Verdict(confirmed=False)


class Caller:
    """Drives the machine in 20 ms steps and collects what it orders.

    A provider is not told to finalize, so that is not among what is taken.
    """

    def __init__(
        self,
        endpointing: Literal["provider", "local"] = "local",
        *,
        language: str = "en",
        rules: Endpointing | None = None,
        **interruption: Any,
    ) -> None:
        self.turns = Turns(rules or RULES, endpointing, Interruption(**interruption), language)
        self.now = 0.0
        self.orders: list[Instruction] = []
        self._told = endpointing == "local"

    def hear(self, voice: bool, seconds: float) -> Caller:
        for _ in range(round(seconds / 0.02)):
            self.now += 0.02
            self.orders += self.turns.frame(voice, 60, self.now)
        return self

    def says(self, transcript: Transcript) -> Caller:
        self.orders += self.turns.transcript(transcript, self.now)
        return self

    def bot(self, *, active: bool) -> Caller:
        if active:
            self.turns.bot_began()
        else:
            self.orders += self.turns.bot_ended(self.now)
        return self

    def take(self) -> list[Instruction]:
        orders, self.orders = self.orders, []
        return [order for order in orders if self._told or order != Finalize()]


def kinds(orders: Iterable[Instruction]) -> list[str]:
    return [type(order).__name__ for order in orders]


# Ears decide the end of the turn.


def test_speech_words_and_silence_are_a_turn() -> None:
    caller = Caller().hear(True, 1.0)
    assert caller.take() == [SpeechStarted(60)]
    assert caller.turns.caller_talking
    caller.hear(False, 0.1)
    assert caller.take() == [Finalize()]
    caller.says(Final("are you open", finalized=True)).hear(False, 0.2)
    assert caller.take() == []
    caller.hear(False, 0.1)
    assert caller.take() == [EndOfTurn("are you open")]
    assert not caller.turns.caller_talking


def test_a_network_that_stalls_in_a_pause_does_not_end_the_turn() -> None:
    """Silence is counted in the caller's audio and not in the time it takes to arrive."""
    caller = Caller().hear(True, 0.5).hear(False, 0.04).says(Final("I want", finalized=True))
    caller.now += 1.0
    caller.hear(False, 0.04).hear(True, 0.3)
    assert "EndOfTurn" not in kinds(caller.take())


def test_a_pause_shorter_than_the_hangover_is_part_of_the_turn() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.1).says(Final("I want", finalized=True))
    caller.hear(False, 0.2).hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("a table", finalized=True)).hear(False, 0.4)
    assert caller.take()[-1] == EndOfTurn("I want a table")


def test_the_turn_waits_for_words_still_being_recognised() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.06).hear(True, 0.3).hear(False, 0.02)
    caller.says(Final("one", finalized=True)).hear(False, 1.0)
    assert "EndOfTurn" not in kinds(caller.orders)
    caller.says(Final("two", finalized=True))
    assert caller.take()[-1] == EndOfTurn("one two")


def test_a_recogniser_that_owes_an_answer_too_long_is_not_waited_for() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.06).hear(True, 0.3).hear(False, 0.02)
    caller.says(Final("one", finalized=True)).hear(False, 2.6)
    assert caller.take()[-2:] == [RecogniserLate(), EndOfTurn("one")]


def test_a_lost_recogniser_owes_only_what_its_successor_will_be_asked() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.06).hear(True, 0.3).hear(False, 0.02)
    caller.turns.recogniser(None, 1, caller.now)
    caller.says(Final("two", finalized=True)).hear(False, 0.4)
    assert caller.take()[-1] == EndOfTurn("two")


def test_noise_without_words_is_no_turn() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.1).says(Final("", finalized=True))
    caller.hear(False, 5.0)
    assert kinds(caller.take()) == ["SpeechStarted", "Finalize", "Nothing"]
    assert not caller.turns.caller_talking


def test_an_unasked_empty_final_changes_nothing() -> None:
    caller = Caller().says(Final("", finalized=True)).says(Final("")).says(Partial(""))
    assert caller.take() == []
    assert not caller.turns.caller_talking
    caller.hear(True, 0.5).hear(False, 0.04).says(Final("hello", finalized=True))
    assert caller.hear(False, 0.4).take()[-1] == EndOfTurn("hello")


# Over the bot.


def test_voice_over_the_bot_interrupts_from_its_onset() -> None:
    caller = Caller().bot(active=True).hear(True, 0.02)
    started, interrupt = caller.take()
    assert started == SpeechStarted(60)
    assert isinstance(interrupt, Interrupt)
    assert interrupt.onset == pytest.approx(-0.04)


def test_words_confirm() -> None:
    caller = Caller().bot(active=True).hear(True, 0.4).hear(False, 0.04)
    caller.take()
    caller.says(Final("stop", finalized=True))
    assert caller.take() == [YES]
    caller.hear(False, 0.4)
    assert caller.take() == [EndOfTurn("stop")]


def test_a_partial_confirms_before_the_voice_falls() -> None:
    caller = Caller("provider").bot(active=True).hear(True, 0.2)
    caller.take()
    assert caller.says(Partial("no wait")).take() == [YES]


def test_long_voice_alone_decides_nothing() -> None:
    caller = Caller().bot(active=True).hear(True, 5.0)
    assert kinds(caller.take()) == ["SpeechStarted", "Interrupt"]
    caller.hear(False, 0.04).says(Final("", finalized=True))
    assert caller.take()[-1] == NO


def test_a_sound_without_words_is_refuted() -> None:
    caller = Caller().bot(active=True).hear(True, 0.3).hear(False, 0.04)
    caller.take()
    caller.says(Final("", finalized=True))
    assert caller.take() == [NO]
    assert not caller.turns.caller_talking


@pytest.mark.parametrize("text", ["mm-hm", "Mm-hmm.", "Okay, yeah.", "Right…", "uh-huh uh-huh"])
def test_a_backchannel_is_refuted_and_is_no_turn(text: str) -> None:
    caller = Caller().bot(active=True).hear(True, 0.3).hear(False, 0.04)
    caller.says(Final(text, finalized=True)).hear(False, 3.0).bot(active=False).hear(False, 3.0)
    assert kinds(caller.take()) == ["SpeechStarted", "Interrupt", "Finalize", "Verdict"]


@pytest.mark.parametrize("text", ["okay stop", "wait", "yeah but no", "stop"])
def test_more_than_a_backchannel_is_meant(text: str) -> None:
    caller = Caller().bot(active=True).hear(True, 0.3).hear(False, 0.04)
    caller.says(Final(text, finalized=True)).hear(False, 1.0)
    assert caller.take()[-2:] == [YES, EndOfTurn(text)]


def test_a_backchannel_just_before_the_end_of_the_reply_is_an_answer() -> None:
    caller = Caller().bot(active=True).hear(True, 0.3).hear(False, 0.04)
    caller.says(Final("yeah", finalized=True)).hear(False, 1.0)
    caller.take()
    caller.bot(active=False)
    assert caller.take() == [EndOfTurn("yeah")]


def test_speech_after_a_backchannel_takes_its_place() -> None:
    caller = Caller().bot(active=True).hear(True, 0.3).hear(False, 0.04)
    caller.says(Final("yeah", finalized=True)).hear(True, 0.2).bot(active=False)
    assert EndOfTurn("yeah") not in caller.take()


def test_a_backchannel_while_the_bot_is_silent_is_an_answer() -> None:
    caller = Caller().hear(True, 0.3).hear(False, 0.04).says(Final("okay", finalized=True))
    caller.hear(False, 0.5)
    assert caller.take()[-1] == EndOfTurn("okay")


def test_a_backchannel_after_the_reply_is_an_answer() -> None:
    caller = Caller().bot(active=True).hear(False, 1.0).bot(active=False).hear(False, 5.0)
    caller.hear(True, 0.3).hear(False, 0.04).says(Final("okay", finalized=True))
    caller.hear(False, 0.5)
    assert kinds(caller.take()) == ["SpeechStarted", "Finalize", "EndOfTurn"]


def test_the_reply_ending_while_suspected_leaves_nothing_to_resume() -> None:
    caller = Caller().bot(active=True).hear(True, 0.2)
    caller.take()
    caller.bot(active=False)
    assert caller.take() == [YES]
    caller.hear(False, 0.04).says(Final("yeah", finalized=True)).hear(False, 0.5)
    assert caller.take()[-1] == EndOfTurn("yeah")


def test_without_resume_the_verdict_comes_with_the_interruption() -> None:
    caller = Caller(policy="commit").bot(active=True).hear(True, 0.02)
    assert kinds(caller.take()) == ["SpeechStarted", "Interrupt", "Verdict"]


def test_after_the_end_of_a_turn_the_reply_owed_can_be_interrupted() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.04).says(Final("one", finalized=True))
    caller.hear(False, 0.5)
    caller.take()
    caller.hear(True, 0.02)
    assert kinds(caller.take()) == ["SpeechStarted", "Interrupt"]


# The provider decides the end of the turn.


def test_speech_final_ends_the_turn() -> None:
    caller = Caller("provider").hear(True, 0.5).says(Final("are you"))
    caller.says(Partial("open")).hear(False, 0.1).says(Final("open", end_of_turn=True))
    assert caller.take() == [SpeechStarted(60)]
    caller.hear(False, 0.02)
    assert caller.take() == [EndOfTurn("are you open")]


def test_speech_final_is_not_believed_against_a_caller_who_goes_on() -> None:
    """Its rule is a silence of 0.3 s: it may come when the next word has begun."""
    caller = Caller("provider").hear(True, 0.5).hear(False, 0.06)
    caller.says(Final("we are", end_of_turn=True)).hear(False, 0.02).hear(True, 1.0)
    assert "EndOfTurn" not in kinds(caller.take())
    caller.says(Partial("four")).hear(False, 0.3).says(Final("four people", end_of_turn=True))
    assert caller.take() == [EndOfTurn("we are four people")]


def test_speech_final_is_believed_when_the_ears_do_not_let_go_for_noise() -> None:
    caller = Caller("provider").hear(True, 1.0).says(Final("hello", end_of_turn=True))
    caller.hear(True, 0.38)
    assert "EndOfTurn" not in kinds(caller.take())
    assert caller.hear(True, 0.02).take() == [EndOfTurn("hello")]


def test_speech_final_is_believed_at_once_where_the_ears_have_heard_nobody() -> None:
    caller = Caller("provider").hear(False, 1.0).says(Final("hello", end_of_turn=True))
    assert caller.take() == [EndOfTurn("hello")]


def test_speech_final_over_the_bot_is_confirmed_first() -> None:
    caller = Caller("provider").bot(active=True)
    caller.says(Final("hold on", end_of_turn=True))
    assert caller.take() == [Interrupt(0.0), YES, EndOfTurn("hold on")]


def test_utterance_end_ends_the_turn_if_there_are_words() -> None:
    caller = Caller("provider").says(UtteranceEnd())
    assert caller.take() == []
    caller.says(Final("hello")).says(UtteranceEnd())
    assert caller.take() == [EndOfTurn("hello")]


def test_a_caller_who_goes_on_after_speech_final_is_heard_by_the_ears() -> None:
    caller = Caller("provider").hear(True, 1.0).says(Final("hello", end_of_turn=True))
    caller.hear(True, 0.4)
    assert caller.take()[-1] == EndOfTurn("hello")
    caller.hear(True, 0.38)
    assert caller.take() == []
    caller.hear(True, 0.04)
    assert kinds(caller.take()) == ["Interrupt"]


def test_words_that_ended_a_turn_as_a_partial_are_not_said_again_when_final() -> None:
    caller = Caller("provider").says(Final("I want")).says(Partial("a table")).says(UtteranceEnd())
    assert caller.take() == [EndOfTurn("I want a table")]
    caller.says(Final("A table.", end_of_turn=True)).says(Final("for two", end_of_turn=True))
    assert [order for order in caller.take() if isinstance(order, EndOfTurn)] == [
        EndOfTurn("for two")
    ]


def test_words_behind_those_that_ended_a_turn_as_a_partial_are_not_lost() -> None:
    caller = Caller("provider").says(Final("well")).says(Partial("yes")).says(UtteranceEnd())
    assert caller.take() == [EndOfTurn("well yes")]
    caller.says(Final("Yes, on Tuesday.", end_of_turn=True))
    assert caller.take()[-1] == EndOfTurn("on Tuesday.")


def test_the_same_words_said_again_after_they_were_final_are_a_turn_of_their_own() -> None:
    caller = Caller("provider").says(Final("well")).says(Partial("yes")).says(UtteranceEnd())
    assert caller.take() == [EndOfTurn("well yes")]
    assert caller.says(Final("Yes.", end_of_turn=True)).take() == []
    caller.bot(active=False).says(Final("yes", end_of_turn=True))
    assert caller.take()[-1] == EndOfTurn("yes")


@pytest.mark.parametrize("text", ["another table", "b", "for two", "zzz"])
def test_words_that_are_not_those_of_the_partial_that_ended_a_turn_are_new(text: str) -> None:
    caller = Caller("provider").says(Final("I want")).says(Partial("a table")).says(UtteranceEnd())
    caller.take()
    caller.says(Final(text, end_of_turn=True))
    assert caller.take()[-1] == EndOfTurn(text)


def test_a_voice_that_goes_on_behind_a_backchannel_does_not_interrupt_again() -> None:
    caller = Caller("provider").bot(active=True).hear(True, 0.5)
    caller.says(Final("yeah", end_of_turn=True))
    assert caller.take()[-1] == NO
    assert caller.hear(True, 3.0).take() == []


def test_nothing_is_owed_by_a_provider() -> None:
    caller = Caller("provider").hear(True, 0.5).hear(False, 5.0)
    assert Finalize() in caller.orders  # for who may follow it, and must be asked
    assert RecogniserLate() not in caller.orders


def test_a_turn_goes_on_with_a_recogniser_that_must_be_asked() -> None:
    caller = Caller("provider").hear(True, 0.5).says(Final("a table")).says(Partial("for"))
    caller.hear(False, 0.1)
    caller.turns.recogniser(None, 1, caller.now)
    caller.turns.recogniser("local", 1, caller.now)
    caller.hear(False, 1.0)
    assert "EndOfTurn" not in kinds(caller.orders)  # the words behind are still being recognised
    caller.says(Final("for two", finalized=True)).hear(False, 0.4)
    assert caller.take()[-1] == EndOfTurn("a table for two")


def test_a_turn_goes_on_with_a_recogniser_that_decides() -> None:
    caller = Caller("local").hear(True, 0.5).says(Final("a table")).hear(False, 0.1)
    caller.turns.recogniser("provider", 1, caller.now)
    caller.hear(False, 2.7)
    assert not {"EndOfTurn", "RecogniserLate"} & set(kinds(caller.orders))
    caller.says(Final("for two", end_of_turn=True)).hear(False, 0.4)
    assert caller.take()[-1] == EndOfTurn("a table for two")


def test_who_never_opened_does_not_decide() -> None:
    caller = Caller("provider").hear(True, 0.5).says(Final("a table")).hear(False, 0.1)
    caller.turns.recogniser(None, 1, caller.now)
    caller.hear(False, 2.0)
    assert "EndOfTurn" not in kinds(caller.orders)


def test_the_next_recogniser_has_all_its_time() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 2.4)
    caller.turns.recogniser("local", 1, caller.now)
    caller.hear(False, 2.3)
    assert RecogniserLate() not in caller.orders
    caller.hear(False, 0.3)
    assert RecogniserLate() in caller.take()


def test_words_that_were_answered_are_not_when_they_come_again_one_by_one() -> None:
    caller = Caller("provider").hear(True, 0.5).says(Partial("a table for two")).hear(False, 4.0)
    assert caller.take()[-1] == EndOfTurn("a table for two")
    for text in ("a", "a table", "a table for two"):
        assert caller.says(Partial(text)).take() == []
    caller.says(Final("a table")).says(Final("for two"))
    assert not caller.turns.caller_talking
    assert kinds(caller.says(Partial("a table")).take()) == ["Interrupt", "Verdict"]  # said anew


def test_an_empty_speech_final_is_no_turn() -> None:
    assert Caller("provider").says(Final("", end_of_turn=True)).take() == []


def test_a_provider_that_never_says_the_end_is_not_waited_for() -> None:
    caller = Caller("provider").hear(True, 0.5).says(Partial("hel")).says(Final("hello"))
    caller.says(Partial("are you there")).hear(False, 2.9)
    assert "EndOfTurn" not in kinds(caller.take())
    caller.hear(False, 0.2)
    assert caller.take() == [EndOfTurn("hello are you there")]


def test_a_sound_for_which_the_provider_has_no_words_is_refuted() -> None:
    caller = Caller("provider").bot(active=True).hear(True, 0.3).hear(False, 0.3)
    assert NO not in caller.take()
    caller.hear(False, 0.2)
    assert caller.take() == [NO]


def test_a_providers_backchannel_is_refuted_when_it_ends() -> None:
    caller = Caller("provider").bot(active=True).hear(True, 0.3).says(Partial("yeah"))
    caller.says(Final("yeah", end_of_turn=True))
    assert caller.take()[-1] == NO


def test_a_backchannel_whose_end_the_provider_says_late_is_refuted() -> None:
    caller = Caller("provider").bot(active=True).hear(True, 0.3).says(Final("yeah"))
    caller.hear(False, 0.5).says(UtteranceEnd())
    assert caller.take()[-1] == NO


@pytest.mark.parametrize("endpointing", ["provider", "local"])
@given(data=st.data())
def test_every_interruption_gets_one_verdict_and_no_word_is_lost_or_doubled(
    endpointing: Literal["provider", "local"], data: st.DataObject
) -> None:
    caller = Caller(endpointing)
    given_words: list[str] = []
    active = False
    steps = data.draw(
        st.lists(st.sampled_from(["voice", "quiet", "word", "end", "bot"]), max_size=40)
    )
    for index, step in enumerate(steps):
        match step:
            case "voice" | "quiet":
                caller.hear(step == "voice", data.draw(st.floats(0.02, 1.2)))
            case "word":
                given_words.append(f"w{index}")
                local = endpointing == "local"
                caller.says(Final(given_words[-1], end_of_turn=not local, finalized=local))
            case "end":
                caller.says(UtteranceEnd())
            case "bot":
                active = not active
                caller.bot(active=active)
    # Whatever happened, quiet settles it.
    caller.hear(False, 8.0)
    orders = caller.take()
    assert not caller.turns.caller_talking
    check_verdicts(orders)
    said = " ".join(order.text for order in orders if isinstance(order, EndOfTurn))
    assert said.split() == given_words


def check_verdicts(orders: Sequence[Instruction]) -> None:
    """Each interruption is followed by exactly one verdict, before the next one."""
    waiting = False
    for order in orders:
        if isinstance(order, Interrupt):
            assert not waiting
            waiting = True
        elif isinstance(order, Verdict):
            assert waiting
            waiting = False
    assert not waiting


# What words do to it.


@pytest.mark.parametrize("text", ["stop", "hold on", "wait wait"])
def test_a_stop_word_needs_no_company(text: str) -> None:
    caller = Caller("provider", confirm_words=3).bot(active=True).hear(True, 0.2)
    caller.take()
    assert caller.says(Partial(text)).take() == [YES]


def test_fewer_words_than_asked_for_are_meant_only_when_they_are_all() -> None:
    caller = Caller("provider", confirm_words=2).bot(active=True).hear(True, 0.2)
    caller.take()
    assert caller.says(Partial("tuesday")).take() == []
    assert caller.says(Partial("okay tuesday")).take() == []
    caller.hear(False, 0.2).says(Final("Tuesday.", end_of_turn=True))
    assert caller.take() == [YES, EndOfTurn("Tuesday.")]


def test_as_many_words_as_asked_for_are_meant_at_once() -> None:
    caller = Caller("provider", confirm_words=2).bot(active=True).hear(True, 0.2)
    caller.take()
    assert caller.says(Partial("on tuesday")).take() == [YES]


def test_a_voice_of_the_length_asked_for_is_meant_without_words() -> None:
    caller = Caller(confirm_ms=500).bot(active=True).hear(True, 0.5)
    assert kinds(caller.take()) == ["SpeechStarted", "Interrupt"]
    caller.hear(True, 0.02)
    assert caller.take() == [YES]


def test_a_shorter_voice_is_not() -> None:
    caller = Caller(confirm_ms=500).bot(active=True).hear(True, 0.48).hear(False, 0.04)
    caller.says(Final("", finalized=True))
    assert [order for order in caller.take() if isinstance(order, Verdict)] == [NO]


def test_what_is_a_sign_of_listening_goes_by_the_language() -> None:
    caller = Caller(language="de").bot(active=True).hear(True, 0.3).hear(False, 0.04)
    caller.says(Final("Ja, genau.", finalized=True))
    assert caller.take()[-1] == NO
    caller = Caller(language="en").bot(active=True).hear(True, 0.3).hear(False, 0.04)
    caller.says(Final("Ja, genau.", finalized=True))
    assert caller.take()[-1] == YES


SPOKEN = "We are open from nine to five, Monday to Friday"


def test_the_bots_own_words_over_the_bot_are_no_interruption() -> None:
    caller = Caller("provider").bot(active=True)
    caller.orders += caller.turns.transcript(Partial("from nine to five"), 5.0, SPOKEN)
    caller.orders += caller.turns.transcript(
        Final("from nine to five", end_of_turn=True), 5.2, SPOKEN
    )
    assert caller.take() == []


def test_the_bots_own_words_do_not_confirm_what_its_echo_began() -> None:
    caller = Caller("provider").bot(active=True).hear(True, 0.3)
    caller.take()
    caller.orders += caller.turns.transcript(Partial("from nine to five"), caller.now, SPOKEN)
    assert caller.take() == []
    caller.orders += caller.turns.transcript(
        Final("from nine to five", end_of_turn=True), caller.now, SPOKEN
    )
    caller.hear(False, 0.7)
    assert caller.take() == [NO]


def test_a_few_of_the_bots_words_said_by_a_voice_are_an_answer() -> None:
    caller = Caller("provider").bot(active=True).hear(True, 0.3)
    caller.take()
    caller.orders += caller.turns.transcript(Partial("Monday"), caller.now, SPOKEN)
    assert caller.take() == [YES]


def test_a_few_of_the_bots_words_long_after_a_voice_are_an_echo() -> None:
    caller = Caller("provider").hear(True, 0.3).hear(False, 2.0).bot(active=True)
    caller.take()
    caller.orders += caller.turns.transcript(Partial("nine to five"), caller.now, SPOKEN)
    assert caller.take() == []


def test_an_echo_does_not_hide_the_answer_to_a_finalize() -> None:
    caller = Caller().bot(active=True).hear(True, 0.5).hear(False, 0.02)
    caller.orders += caller.turns.transcript(
        Final("open from nine to five", finalized=True), caller.now, SPOKEN
    )
    assert caller.take()[-1] == NO


# How long a silence is waited for.


def test_an_unfinished_phrase_is_waited_for() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("I would like to", finalized=True)).hear(False, 0.7)
    caller.hear(True, 0.5).hear(False, 0.1).says(Final("book a table", finalized=True))
    caller.hear(False, 3.0)
    ends = [order for order in caller.take() if isinstance(order, EndOfTurn)]
    assert ends == [EndOfTurn("I would like to book a table")]


def test_an_unfinished_phrase_is_not_waited_for_ever() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.02)
    caller.says(Final("I would like to", finalized=True)).hear(False, 0.96)
    assert "EndOfTurn" not in kinds(caller.take())
    assert caller.hear(False, 0.04).take() == [EndOfTurn("I would like to")]


def test_digits_are_waited_for() -> None:
    caller = Caller().hear(True, 0.5).hear(False, 0.1).says(Final("555", finalized=True))
    caller.hear(False, 1.1).hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("0101234", finalized=True)).hear(False, 0.3)
    ends = [order for order in caller.take() if isinstance(order, EndOfTurn)]
    assert ends == [EndOfTurn("555 0101234")]


def test_a_caller_who_was_cut_off_is_given_longer() -> None:
    caller = Caller()
    for pause in (0.6, 0.6):
        caller.hear(True, 0.5).hear(False, 0.1).says(Final("for two", finalized=True))
        caller.hear(False, pause)
    ends = [order for order in caller.take() if isinstance(order, EndOfTurn)]
    # The second time 0.7 s are a pause: the caller went on behind them the first time.
    assert ends == [EndOfTurn("for two")]
    caller.hear(True, 0.5).hear(False, 0.1).says(Final("please", finalized=True)).hear(False, 2.0)
    ends = [order for order in caller.take() if isinstance(order, EndOfTurn)]
    assert ends == [EndOfTurn("for two please")]


def test_a_caller_who_interrupts_an_answer_was_not_cut_off() -> None:
    caller = Caller()
    for _ in range(2):
        caller.hear(True, 0.5).hear(False, 0.1).says(Final("for two", finalized=True))
        caller.hear(False, 0.4)
        caller.turns.bot_audible()
        caller.hear(False, 0.2)
    ends = [order for order in caller.take() if isinstance(order, EndOfTurn)]
    assert ends == [EndOfTurn("for two")] * 2


def test_a_providers_end_of_an_unfinished_phrase_is_held_back() -> None:
    caller = Caller("provider").hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("I would like to", end_of_turn=True)).hear(False, 0.6).hear(True, 0.5)
    assert "EndOfTurn" not in kinds(caller.take())
    caller.hear(False, 0.2).says(Final("book a table", end_of_turn=True))
    assert caller.take() == [EndOfTurn("I would like to book a table")]


@pytest.mark.parametrize("settled_by", ["silence", "utterance end"])
def test_a_providers_end_is_not_held_back_for_ever(settled_by: str) -> None:
    caller = Caller("provider").hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("I would like to", end_of_turn=True))
    caller.take()
    if settled_by == "silence":
        caller.hear(False, 0.88)
        assert caller.take() == []
        caller.hear(False, 0.04)
    else:
        caller.says(UtteranceEnd())
    assert caller.take() == [EndOfTurn("I would like to")]


def test_words_behind_a_providers_end_that_was_held_back_belong_to_the_turn() -> None:
    caller = Caller("provider").hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("I would like to", end_of_turn=True)).says(Partial("book"))
    caller.hear(False, 2.0)
    assert "EndOfTurn" not in kinds(caller.take())
    caller.says(Final("book a table", end_of_turn=True))
    assert caller.take() == [EndOfTurn("I would like to book a table")]


# Guesses: the caller has probably finished.

GUESSING = Endpointing(hangover_ms=350, guesses=2)


def test_what_the_caller_has_probably_said_is_guessed_before_the_silence_is_long_enough() -> None:
    caller = Caller(rules=GUESSING).hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("for two", finalized=True))
    assert caller.take()[-1] == Guess("for two")
    caller.hear(False, 0.3)
    assert caller.take() == [EndOfTurn("for two")]


def test_a_guess_is_taken_back_when_the_caller_goes_on() -> None:
    caller = Caller(rules=GUESSING).hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("for two", finalized=True)).hear(False, 0.1).hear(True, 0.02)
    assert kinds(caller.take())[-3:] == ["Guess", "SpeechStarted", "WrongGuess"]
    caller.hear(True, 0.3).hear(False, 0.1).says(Final("please", finalized=True))
    assert caller.take()[-1] == Guess("for two please")
    caller.hear(False, 0.3)
    assert caller.take() == [EndOfTurn("for two please")]


def test_a_providers_end_that_the_ears_do_not_agree_to_yet_is_a_guess() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).says(Partial("for two"))
    caller.hear(False, 0.02)
    assert "Guess" not in kinds(caller.take())  # its last word may still be missing
    caller.says(Final("for two", end_of_turn=True))
    assert caller.take() == [Guess("for two")]
    caller.hear(False, 0.1)
    assert caller.take() == [EndOfTurn("for two")]


def test_an_end_that_a_provider_expects_is_a_guess_and_its_final_makes_it_right() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).says(Partial("for two"))
    caller.hear(False, 0.02)
    caller.take()
    caller.says(LikelyEnd("for two"))
    assert caller.take() == [Guess("for two")]
    caller.hear(False, 0.5)
    assert caller.take() == []  # it does not end the turn
    caller.says(Final("For two.", end_of_turn=True))
    assert caller.take() == [EndOfTurn("For two.")]


def test_an_expected_end_is_taken_back_by_a_partial_even_of_the_same_words() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.02)
    caller.says(LikelyEnd("for two")).says(Partial("for two"))
    assert kinds(caller.take())[-2:] == ["Guess", "WrongGuess"]
    caller.hear(False, 0.5)
    assert caller.take() == []
    caller.says(LikelyEnd("for two please"))
    assert caller.take() == [Guess("for two please")]


def test_an_expected_end_with_other_words_than_the_end_was_wrong() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.2)
    caller.says(LikelyEnd("for two"))
    caller.take()
    caller.says(Final("for you", end_of_turn=True))
    # Whoever guessed compares the words of the end with its own.
    assert caller.take() == [EndOfTurn("for you")]
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.02)
    caller.says(LikelyEnd("for two")).says(Final("for you", end_of_turn=True))
    assert caller.take()[-2:] == [WrongGuess(), Guess("for you")]
    caller.hear(False, 0.1)
    assert caller.take() == [EndOfTurn("for you")]


def test_an_expected_end_ends_no_turn_that_was_held_back() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.1)
    caller.says(Final("I would like to", end_of_turn=True)).says(LikelyEnd("book a table"))
    caller.hear(False, 1.0)
    assert caller.take()[-1] == Guess("I would like to book a table")
    caller.says(Final("book a table", end_of_turn=True))
    assert caller.take() == [EndOfTurn("I would like to book a table")]


def test_an_end_that_is_expected_while_the_ears_hear_somebody_waits_for_them() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).says(LikelyEnd("for two"))
    caller.hear(True, 0.1)
    assert kinds(caller.take()) == ["SpeechStarted"]
    caller.hear(False, 0.02)
    assert caller.take() == [Guess("for two")]
    caller.hear(True, 0.02)
    assert caller.take() == [SpeechStarted(60), WrongGuess()]


def test_an_expected_end_is_of_its_own_turn_only() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.2)
    caller.says(LikelyEnd("for two")).hear(False, 3.2)
    assert caller.take()[-1] == EndOfTurn("for two")  # its end never came
    caller.bot(active=False).says(UtteranceEnd()).hear(True, 0.3).hear(False, 0.02)
    caller.says(Final("please"))
    assert "Guess" not in kinds(caller.take())


@pytest.mark.parametrize("text", ["", "I would like to", "it is 555"])
def test_an_expected_end_of_what_is_not_finished_is_no_guess(text: str) -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.02)
    caller.says(LikelyEnd(text)).hear(False, 0.2)
    assert "Guess" not in kinds(caller.take())


def test_an_expected_end_over_the_bot_is_no_guess_and_no_end() -> None:
    caller = Caller("provider", rules=GUESSING).bot(active=True).hear(True, 0.3)
    caller.says(LikelyEnd("no wait")).hear(False, 0.5)
    assert kinds(caller.take()) == ["SpeechStarted", "Interrupt", "Verdict"]


def test_words_of_a_turn_that_ended_without_its_provider_do_not_begin_another() -> None:
    """A provider of whole turns tells them again and again until it says the end itself."""
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).says(Partial("a table"))
    caller.hear(False, 3.2)
    assert caller.take()[-1] == EndOfTurn("a table")
    caller.says(Partial("A table.")).says(LikelyEnd("A table."))
    assert caller.take() == []
    caller.says(Partial("A table for two"))
    assert kinds(caller.take()) == ["Interrupt", "Verdict"]
    caller.says(Final("A table for two.", end_of_turn=True))
    assert caller.take() == [EndOfTurn("for two.")]


def test_a_guess_is_taken_back_when_there_are_more_words() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.02)
    caller.says(Final("for two", end_of_turn=True)).says(Partial("please"))
    assert kinds(caller.take())[-2:] == ["Guess", "WrongGuess"]
    caller.says(Final("please", end_of_turn=True))
    assert caller.take() == [Guess("for two please")]
    caller.hear(False, 0.1)
    assert caller.take() == [EndOfTurn("for two please")]


def test_there_are_only_so_many_guesses_in_a_turn() -> None:
    caller = Caller("provider", rules=GUESSING).hear(True, 0.5).hear(False, 0.02)
    for word in ("red", "blue", "green", "black"):
        caller.says(Partial(word)).says(Final(word, end_of_turn=True))
    assert kinds(caller.take()).count("Guess") == 2
    caller.hear(False, 0.2)
    assert caller.take() == [EndOfTurn("red blue green black")]
    caller.bot(active=False).hear(True, 0.5).hear(False, 0.02)
    caller.says(Final("five", end_of_turn=True))
    assert kinds(caller.take())[-1] == "Guess"  # another turn


@pytest.mark.parametrize("text", ["I would like to", "it is 555"])
def test_what_is_not_finished_is_no_guess(text: str) -> None:
    caller = Caller(rules=GUESSING).hear(True, 0.5).hear(False, 0.1)
    caller.says(Final(text, finalized=True)).hear(False, 0.4)
    assert "Guess" not in kinds(caller.take())


def test_words_over_the_bot_are_no_guess() -> None:
    caller = Caller("provider", rules=GUESSING).bot(active=True).hear(True, 0.5)
    caller.says(Partial("no wait")).hear(False, 0.2)
    assert kinds(caller.take()) == ["SpeechStarted", "Interrupt", "Verdict"]


@pytest.mark.parametrize("endpointing", ["provider", "local"])
@given(data=st.data())
def test_every_guess_is_settled(
    endpointing: Literal["provider", "local"], data: st.DataObject
) -> None:
    """By the end of the turn or by being taken back, and before the next one."""
    caller = Caller(endpointing, rules=GUESSING)
    steps = data.draw(
        st.lists(
            st.sampled_from(["voice", "quiet", "word", "part", "likely", "end", "bot"]), max_size=40
        )
    )
    active = False
    for index, step in enumerate(steps):
        match step:
            case "voice" | "quiet":
                caller.hear(step == "voice", data.draw(st.floats(0.02, 1.2)))
            case "word":
                local = endpointing == "local"
                caller.says(Final(f"w{index}", end_of_turn=not local, finalized=local))
            case "part":
                caller.says(Partial(f"w{index}"))
            case "likely":
                caller.says(LikelyEnd(f"w{index}"))
            case "end":
                caller.says(UtteranceEnd())
            case "bot":
                active = not active
                caller.bot(active=active)
    caller.hear(False, 8.0)
    open_guess: str | None = None
    for order in caller.take():
        match order:
            case Guess(text):
                assert open_guess is None
                open_guess = text
            case WrongGuess():
                assert open_guess is not None
                open_guess = None
            case EndOfTurn():
                open_guess = None
            case Interrupt():
                assert open_guess is None
    assert open_guess is None
