"""The numbers by which the ears (`vad.py`) tell the caller's voice from everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Hearing:
    """When the caller counts as speaking.

    Units: probabilities are Silero's; levels are dBov; times are milliseconds of media and are
    cut to whole frames of 20.
    """

    # Starts speech. At 0.15 the slowest onsets, clean or at 10 dB, are heard 20 ms later; at 0.06
    # clicks, breath and busy tones begin to pass.
    rise: float = 0.1
    rise_ms: int = 40  # reached within this: Silero answers every 32 ms
    # webrtcvad's. At 2 it is what the slowest sentences in noise wait for, 0.1 s longer; what it
    # lets pass at 0, Silero does not.
    voiced_mode: Literal[0, 1, 2, 3] = 0
    voiced_ms: int = 40  # of webrtcvad above the gates; one frame alone would pass clicks
    voiced_within_ms: int = 80  # a plosive and its vowel have a gap between them
    # Silero is asked while the caller speaks, and for so long after a voiced frame: else its answer
    # changes nothing, and costs more than all the rest of hearing. And one that hears all of a
    # pause hears the next word later: by 30 to 50 ms, in noise by 200 where it is slow.
    awake_ms: int = 300
    waking_ms: int = 2_000  # so long at first: before it knows the line, ends are seen 10 ms later
    fall: float = 0.35  # keeps speech up; lower, the end of a turn is seen 25 ms later
    release_ms: int = 140  # below `fall` for this long ends speech; gaps inside words are shorter
    doubt_ms: int = (
        240  # the same where `fall` was not reached yet: a weak onset has a word to come
    )

    gate_dbov: float = -45.0  # callers are at -40 and above, the noise of most lines below -50
    over_noise_db: float = 6.0  # noise strays less; at 0 speech in noise gains only 10 ms
    noise_window_ms: int = 2_000  # the quietest 100 ms of this is noise: some pause falls into it

    echo_loss_db: float = 12.0  # return loss assumed until it is learned: a poor phone
    # Above the loudest of the echo's 300 ms, by which the loss is learned: that strays already.
    echo_margin_db: float = 0.0
    echo_hold_ms: int = 300  # an echo is expected this long: the delay of two mobile legs
    echo_window_ms: int = 3_000  # of the bot's voice, to learn from: about a greeting
    suspect_ms: int = 400  # nothing is learned for this long after what may be the caller

    onset_max_ms: int = 300  # speech began at most this long before its rise

    alone_mode: Literal[0, 1, 2, 3] = 3  # webrtcvad without Silero: the strictest
    alone_ms: int = 120  # without a gap, when there is no Silero: at 60 every noise is speech
