"""A Twilio that plays in real time, for users' tests and ours: script, call, recording, verdict.

    line, server_end = open_memory_line()
    nursery.start_soon(my_bot, server_end)
    script = Script((Utterance("stop", mulaw, InterruptAfter(1_500)),))
    recording = await run_call(line, script, network=Network(jitter_ms=80, lost_marks=0.1))
    [clear] = recording.clears
    assert recording.heard_between(clear.effect_ms, clear.effect_ms + 500) == silence(500)
    assert judge(recording).passed

Over real sockets: `dial` and `open_line` in `voicebot.simulator.dial`, or `voicebot simulate`.
Shares no code with the service that it calls, down to the codec.
"""

from voicebot.simulator.call import (
    At,
    Cue,
    Ended,
    Identity,
    InterruptAfter,
    Line,
    MemoryLine,
    Network,
    Recording,
    Script,
    Utterance,
    When,
    WhenSilent,
    open_memory_line,
    run_call,
)
from voicebot.simulator.verdict import Thresholds, Verdict, judge

__all__ = [
    "At",
    "Cue",
    "Ended",
    "Identity",
    "InterruptAfter",
    "Line",
    "MemoryLine",
    "Network",
    "Recording",
    "Script",
    "Thresholds",
    "Utterance",
    "Verdict",
    "When",
    "WhenSilent",
    "judge",
    "open_memory_line",
    "run_call",
]
