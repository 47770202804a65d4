"""Whole calls in virtual time, for users' tests and ours. See docs/testing.md.

    chat = ScriptedChat(["We are open from nine to five, Monday to Friday."])
    script = Script((caller_says("are you open"), caller_says("stop", InterruptAfter(1_000))))

    call = hold(script, toy_ports(chat=chat), CallPlan("Be brief.", "Hello."))

    assert call.verdict.passed
    assert call.words_heard_in(1) == call.summary.turns[1].heard
    assert chat.requests[1].messages[-1].content == "stop"

Deterministic: no clock but Trio's, nothing random but what is passed in.
"""

from voicebot.simulator import (
    At,
    Cue,
    Identity,
    InterruptAfter,
    Network,
    Script,
    Utterance,
    WhenSilent,
)
from voicebot.testing import toy
from voicebot.testing.bot import hold_bot, hold_bot_call
from voicebot.testing.call import IDENTITY, HeldCall, hold, hold_call, toy_ports
from voicebot.testing.caller import caller_coughs, caller_says
from voicebot.testing.chat import Reply, Request, ScriptedChat
from voicebot.testing.ears import ToyEars
from voicebot.testing.heard import words_heard
from voicebot.testing.recogniser import Opening, ToyRecogniser
from voicebot.testing.seeded import run_seeded
from voicebot.testing.tools import Run, ScriptedTool
from voicebot.testing.voice import Speech, ToySynthesizer

__all__ = [
    "IDENTITY",
    "At",
    "Cue",
    "HeldCall",
    "Identity",
    "InterruptAfter",
    "Network",
    "Opening",
    "Reply",
    "Request",
    "Run",
    "Script",
    "ScriptedChat",
    "ScriptedTool",
    "Speech",
    "ToyEars",
    "ToyRecogniser",
    "ToySynthesizer",
    "Utterance",
    "WhenSilent",
    "caller_coughs",
    "caller_says",
    "hold",
    "hold_bot",
    "hold_bot_call",
    "hold_call",
    "run_seeded",
    "toy",
    "toy_ports",
    "words_heard",
]
