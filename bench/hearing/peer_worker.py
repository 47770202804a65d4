"""Pipecat's analyzer, run by `peer.py` in an environment of its own.

Each line on stdin is a JSON object: `params`, of Pipecat's `VADParams`, and `pcm`, a line of a call
as base64 of 16 bit at 8,000 Hz. Each is played to a new analyzer, as a call has one, 20 ms at a
time, as a media message of Twilio brings it. The answer is a line of JSON: at the end of which
frame it would say that the caller began or stopped, and the CPU that all its threads took.

Imports nothing of voicebot: what is not installed here cannot be mixed up with what is measured.
It has asyncio because Pipecat has; nothing of the bot does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from importlib.metadata import version
from typing import Any, Final

# Never installed where types are checked.
from pipecat.audio.vad.silero import SileroVADAnalyzer  # type: ignore[import-not-found]
from pipecat.audio.vad.vad_analyzer import VADParams, VADState  # type: ignore[import-not-found]

RATE_HZ: Final = 8_000
FRAME_BYTES: Final = RATE_HZ // 50 * 2


async def hear(params: dict[str, float], pcm: bytes) -> dict[str, Any]:
    """Play a line; return the number of each frame with which speech began (True) or stopped."""
    analyzer = SileroVADAnalyzer(sample_rate=RATE_HZ, params=VADParams(**params))
    analyzer.set_sample_rate(RATE_HZ)  # as its pipeline does when it starts
    changes = []
    speaking = False
    start = time.process_time()
    for at in range(0, len(pcm) - FRAME_BYTES + 1, FRAME_BYTES):
        state = await analyzer.analyze_audio(pcm[at : at + FRAME_BYTES])
        # Its controller tells nobody of the states between.
        if state is (VADState.QUIET if speaking else VADState.SPEAKING):
            speaking = not speaking
            changes.append([at // FRAME_BYTES, speaking])
    cpu_s = time.process_time() - start
    await analyzer.cleanup()
    return {"changes": changes, "cpu_s": cpu_s}


async def main() -> None:
    """Say what is installed and what it does by itself, then answer until stdin ends."""
    packages = {name: version(name) for name in ("pipecat-ai", "onnxruntime", "numpy")}
    print(json.dumps({"packages": packages, "defaults": VADParams().model_dump()}), flush=True)
    for line in sys.stdin:  # nothing else runs in this loop while it waits
        task = json.loads(line)
        answer = await hear(task["params"], base64.b64decode(task["pcm"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
