"""What the bot says word for word, synthesised once: there at once, and when the voice is down.

A greeting needs no provider then, nor does the apology for one that has failed. The sounds are
learned in the background from the first moment of the process, in the order in which they will
be needed, again and again until all are known.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from voicebot.errors import ProviderError
from voicebot.failover import FailoverVoice
from voicebot.hidden import open_hidden_nursery
from voicebot.plan import CallPlan
from voicebot.ports import Synthesizer
from voicebot.sentences import SentenceSplitter
from voicebot.tries import Alternatives

log = logging.getLogger(__name__)

AGAIN_S: Final = 15.0  # an outage lasts minutes; more often would be a load on who is down


class Phrases:
    """The sounds of what is said word for word, by piece (`sentences.py`)."""

    def __init__(self, plan: CallPlan, more: Sequence[str] = ()) -> None:
        texts = [plan.opening, *plan.fillers, plan.apology, plan.trouble, plan.farewell]
        texts += [plan.goodbye, *plan.reprompts, plan.warning, plan.time_up, plan.stopping]
        texts += more
        pieces: list[str] = []
        for text in texts:
            splitter = SentenceSplitter(plan.language)
            pieces += [*splitter.push(text), *splitter.flush()]
        # What only a call knows is not known beforehand.
        known = [piece for piece in pieces if "{{" not in piece]
        self._sounds: dict[str, bytes | None] = dict.fromkeys(known)

    @property
    def missing(self) -> list[str]:
        """The pieces whose sound is not known yet."""
        return [piece for piece, sound in self._sounds.items() if sound is None]

    def get(self, piece: str) -> bytes | None:
        """Return the sound of a piece, mu-law; None where it is not known."""
        return self._sounds.get(piece)

    async def learn(self, voice: Synthesizer) -> None:
        """Have what is missing synthesised, one after the other.

        Raises:
            ProviderError: of the first that fails.
        """
        for piece in self.missing:
            async with voice.open_speech(piece) as chunks:
                self._sounds[piece] = b"".join([chunk async for chunk in chunks])


@asynccontextmanager
async def open_phrases(
    plan: CallPlan, voice: Synthesizer | Alternatives[Synthesizer], more: Sequence[str] = ()
) -> AsyncGenerator[Phrases]:
    """Yield the phrases of a plan, and `more`, which are being learned.

    Owns: the task that learns them. It ends when all are known, or the block is left.
    """
    phrases = Phrases(plan, more)
    voices = Alternatives.of(voice, plan.timeouts.retrying)
    async with open_hidden_nursery("service stops") as nursery:
        nursery.start_soon(_learn, phrases, voices, plan, name="learn phrases")
        yield phrases


async def _learn(phrases: Phrases, voices: Alternatives[Synthesizer], plan: CallPlan) -> None:
    def failed(error: ProviderError, left_alone: bool) -> None:
        log.warning("phrase_failed", extra={"error": str(error), "left_alone": left_alone})

    voice = FailoverVoice(voices, plan.timeouts, failed)
    while phrases.missing:
        try:
            await phrases.learn(voice)
        except ProviderError:
            await trio.sleep(AGAIN_S)
        except Exception:  # a bug in a voice ends calls, and not the service
            log.exception("phrases_given_up")
            return
