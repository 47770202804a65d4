"""A recogniser that takes turns, with a script instead of ears: mu-law in, Flux's messages out.

It hears as `hearing.py` does, and has an opinion on whether the turn is over: the longer the
silence, the surer, and after `SURE_MS` it is certain. Its words appear one by one; all that are
left come out when it first thinks that the turn may be over. Sans-IO, deterministic.

| turn        | what comes                                      | what is told   | turn        |
|-------------|-------------------------------------------------|----------------|-------------|
| none        | a word                                          | StartOfTurn    | ongoing     |
| ongoing     | silence of `eager_eot_threshold`, if it is set  | EagerEndOfTurn | likely over |
| likely over | sound                                           | TurnResumed    | ongoing     |
| either      | silence of `eot_threshold`, or `eot_timeout_ms` | EndOfTurn      | none        |
| any         | `UPDATE_MS` of audio in which none of this is   | Update         | the same    |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from voicebot.standins.hearing import (
    CONFIDENCE,
    SPEECH_DBOV,
    Features,
    Message,
    Recognizer,
    _Utterance,
)

SURE_MS: Final = 400  # so that the default threshold of 0.7 is 280 ms of silence
UPDATE_MS: Final = 240  # "about 0.25 s", in whole frames


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a turn is over; the defaults of `/v2/listen`."""

    eot_threshold: float = 0.7
    eager_eot_threshold: float | None = None
    eot_timeout_ms: int = 5_000

    def message(self) -> Message:
        """Return them as a message names them."""
        return {
            name: value
            for name in ("eot_threshold", "eager_eot_threshold", "eot_timeout_ms")
            if (value := getattr(self, name)) is not None
        }


class TurnTaker(Recognizer):
    """One stream.

    Args:
        text_of: gives the text of the n-th utterance, counted from 0. Empty: no words, no turn.
        speech_final: False as under steady noise, where only the time-out ends a turn.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        text_of: Callable[[int], str],
        request_id: str,
        *,
        speech_dbov: float = SPEECH_DBOV,
        speech_final: bool = True,
    ) -> None:
        features = Features(interim_results=True, endpointing_ms=None, punctuate=True)
        super().__init__(features, text_of, {}, speech_dbov=speech_dbov, speech_final=speech_final)
        self.thresholds = thresholds
        self._request_id = request_id
        self._sequence = 0
        self._turn = 0
        self._began_ms = 0  # of this turn's audio
        self._ongoing = False
        self._likely_over = False
        self._whole = False  # all words have come out

    def numbered(self, message: Message) -> Message:
        """Return a message as it goes out: each has the number after the last one's."""
        self._sequence += 1
        return {**message, "request_id": self._request_id, "sequence_id": self._sequence - 1}

    def force(self) -> Message:
        """End the turn now, if there is one."""
        if self._utterance is None or not self._ongoing:
            return self.numbered(
                {
                    "type": "Warning",
                    "code": "FORCE_END_TURN_NO_ACTIVE_TURN",
                    "description": "ForceEndTurn was received while no turn was active.",
                }
            )
        return self._end_turn("manual")

    def finish(self) -> list[Message]:
        """Return nothing: what is closed has no last words."""
        return []

    def _listen(self, utterance: _Utterance, out: list[Message]) -> None:
        silence_ms = self._now_ms - utterance.voiced_ms
        sure = self._sure(utterance)
        limits = self.thresholds
        if not utterance.words:
            if silence_ms >= SURE_MS:
                self._utterance = None
            self._idle(out)
        elif not self._ongoing:
            self._ongoing = True
            out.append(self._turn_info("StartOfTurn"))
        elif self._likely_over and silence_ms == 0:
            self._likely_over = False
            out.append(self._turn_info("TurnResumed"))
        elif limits.eot_threshold < 1 and sure >= limits.eot_threshold:
            out.append(self._end_turn("model"))
        elif silence_ms >= limits.eot_timeout_ms:
            out.append(self._end_turn("timeout"))
        elif (
            limits.eager_eot_threshold is not None
            and not self._likely_over
            and sure >= limits.eager_eot_threshold
        ):
            self._likely_over = self._whole = True
            out.append(self._turn_info("EagerEndOfTurn"))
        else:
            self._idle(out)

    def _idle(self, out: list[Message]) -> None:
        if self._now_ms - self._sent_ms >= UPDATE_MS:
            out.append(self._turn_info("Update"))

    def _sure(self, utterance: _Utterance | None) -> float:
        if utterance is None or not self._speech_final:
            return 0.0
        return min(1.0, (self._now_ms - utterance.voiced_ms) / SURE_MS)

    def _end_turn(self, trigger: str) -> Message:
        self._whole = True
        message = self._turn_info("EndOfTurn", trigger=trigger)
        self._utterance = None
        self._ongoing = self._likely_over = self._whole = False
        self._turn += 1
        self._began_ms = self._now_ms
        return message

    def _turn_info(self, event: str, **more: Any) -> Message:
        utterance = self._utterance if self._ongoing else None
        words: list[Message] = []
        if utterance is not None:
            shown = len(utterance.words) if self._whole else utterance.spoken()
            words = [
                {
                    "word": word["punctuated_word"],
                    "confidence": CONFIDENCE,
                    "start": word["start"],
                    "end": word["end"],
                }
                for word in self._time_words(utterance, shown)
            ]
        self._sent_ms = self._now_ms
        return self.numbered(
            {
                "type": "TurnInfo",
                "event": event,
                "turn_index": self._turn,
                "audio_window_start": self._began_ms / 1000,
                "audio_window_end": self._now_ms / 1000,
                "transcript": " ".join(word["word"] for word in words),
                "words": words,
                "end_of_turn_confidence": round(self._sure(utterance), 3),
                **more,
            }
        )
