"""A recogniser with a script instead of ears: mu-law in, Deepgram's v1 messages out.

It hears *that* somebody speaks, and when, from the energy of the audio; *what* is said comes
from the caller of this code. Time is audio time: it advances by what is pushed, never by the
clock. Sans-IO, deterministic.

An utterance begins when `ONSET_MS` of speech have come together and ends after `endpointing`
milliseconds of silence. Its words appear one by one, `WORD_MS` each, while it goes on; all
that are left come out when it ends, spread over the speech that was really there.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from voicebot import audio

Message = dict[str, Any]

SPEECH_DBOV: Final = -42.0  # telephone speech is -32…-20, its pauses well below -45
ONSET_MS: Final = 80  # a click or a cough's edge is shorter, the shortest word is longer
ONSET_GAP_MS: Final = 100  # closure of a stop consonant; a longer hole starts anew
WORD_MS: Final = 320  # three words a second; also how often interim results come
EMPTY_MS: Final = 1_000  # an empty result this often in silence, as is common on the wire
SEGMENT_MS: Final = 4_000  # at this length results become final, speech or not
PAUSE_MS: Final = 100  # silence after which Finalize takes the utterance for finished
FLUSH_MS: Final = 100  # Finalize is answered only where at least this much is pending
UNENDED_MS: Final = 1_000  # with endpointing=false: silence after which words become final
CONFIDENCE: Final = 0.99


@dataclass(frozen=True, slots=True)
class Features:
    """The parameters of `/v1/listen` that change what is sent; its own defaults."""

    interim_results: bool = False
    endpointing_ms: int | None = 10  # None: false
    utterance_end_ms: int | None = None
    vad_events: bool = False
    punctuate: bool = False  # smart_format does it, too


@dataclass(slots=True)
class _Utterance:
    start_ms: int
    voiced_ms: int  # end of the last speech so far
    words: Sequence[str]
    given: int = 0  # words that are final
    given_ms: int = 0  # where the last final word ends

    def spoken(self) -> int:
        """How many words the caller has got out by now."""
        pace = (self.voiced_ms - self.start_ms) // WORD_MS
        return max(self.given, min(len(self.words), max(1, pace)))


class Recognizer:
    """One stream.

    Args:
        text_of: gives the text of the n-th utterance, counted from 0. Empty: no words.
        speech_final: False as under steady noise, where endpointing never fires and only
            UtteranceEnd comes.
    """

    def __init__(
        self,
        features: Features,
        text_of: Callable[[int], str],
        metadata: Message,
        *,
        speech_dbov: float = SPEECH_DBOV,
        speech_final: bool = True,
    ) -> None:
        self._features = features
        self._text_of = text_of
        self._metadata = metadata
        self._speech_dbov = speech_dbov
        self._speech_final = speech_final
        self._pending = bytearray()
        self._now_ms = 0
        self._segment_ms = 0  # where the current result starts
        self._sent_ms = 0  # when the last result went out
        self._onset_ms: int | None = None
        self._onset_loud_ms = 0
        self._loud_until_ms = 0
        self._utterance: _Utterance | None = None
        self._last_word_ms: int | None = None  # not yet followed by UtteranceEnd
        self.utterances = 0

    @property
    def duration_s(self) -> float:
        """Length of the audio so far."""
        return (self._now_ms * audio.BYTES_PER_MS + len(self._pending)) / audio.BYTES_PER_S

    def hear(self, mulaw: bytes) -> list[Message]:
        """Take audio of any length; return what is sent because of it."""
        out: list[Message] = []
        self._pending += mulaw
        whole = len(self._pending) - len(self._pending) % audio.FRAME_BYTES
        for i in range(0, whole, audio.FRAME_BYTES):
            self._frame(bytes(self._pending[i : i + audio.FRAME_BYTES]), out)
        del self._pending[:whole]
        return out

    def finalize(self) -> list[Message]:
        """Flush. Nothing comes where little is pending: the answer is not guaranteed."""
        utterance = self._utterance
        if utterance is None and self._now_ms - self._segment_ms < FLUSH_MS:
            return []
        if utterance is None:
            return [self._final([], from_finalize=True)]
        if self._now_ms - utterance.voiced_ms >= PAUSE_MS:
            return [self._end(speech_final=True, from_finalize=True)]
        return [self._cut(utterance, from_finalize=True)]

    def finish(self) -> list[Message]:
        """Return the results that are still owed when the stream is closed."""
        if self._utterance is not None:
            return [self._end(speech_final=False)]
        return [self._final([])] if self._now_ms > self._segment_ms else []

    def _frame(self, frame: bytes, out: list[Message]) -> None:
        self._now_ms += audio.FRAME_MS
        if audio.dbov(frame) >= self._speech_dbov:
            self._hear_speech(out)
        elif self._now_ms - self._loud_until_ms > ONSET_GAP_MS:
            self._onset_ms = None
        utterance = self._utterance
        if utterance is None:
            self._idle(out)
        else:
            self._listen(utterance, out)
        self._end_words(out)

    def _hear_speech(self, out: list[Message]) -> None:
        self._loud_until_ms = self._now_ms
        if self._utterance is not None:
            self._utterance.voiced_ms = self._now_ms
            if self._utterance.words:
                self._last_word_ms = self._now_ms
            return
        if self._onset_ms is None:
            self._onset_ms = self._now_ms - audio.FRAME_MS
            self._onset_loud_ms = 0
        self._onset_loud_ms += audio.FRAME_MS
        if self._onset_loud_ms <= ONSET_MS:
            return
        words = self._text_of(self.utterances).split()
        self.utterances += 1
        self._utterance = _Utterance(self._onset_ms, self._now_ms, words, 0, self._onset_ms)
        self._sent_ms = self._onset_ms
        if self._features.vad_events:
            onset_s = self._onset_ms / 1000
            out.append({"type": "SpeechStarted", "channel": [0, 1], "timestamp": onset_s})
        self._onset_ms = None

    def _listen(self, utterance: _Utterance, out: list[Message]) -> None:
        silence_ms = self._now_ms - utterance.voiced_ms
        endpointing_ms = self._features.endpointing_ms
        if endpointing_ms is not None and silence_ms >= endpointing_ms and silence_ms > 0:
            out.append(self._end(speech_final=self._speech_final))
        elif endpointing_ms is None and silence_ms >= UNENDED_MS:
            out.append(self._end(speech_final=False))
        elif self._now_ms - self._sent_ms >= WORD_MS:
            self._sent_ms = self._now_ms
            shown = utterance.spoken()
            # Some words stay for the end, so that the last result of a turn is never empty.
            if self._now_ms - self._segment_ms >= SEGMENT_MS and (
                utterance.given < shown < len(utterance.words)
            ):
                out.append(self._cut(utterance))
            elif self._features.interim_results:
                out.append(self._result(self._time_words(utterance, shown)))

    def _idle(self, out: list[Message]) -> None:
        if self._now_ms - self._segment_ms >= SEGMENT_MS:
            out.append(self._final([]))
        elif self._features.interim_results and self._now_ms - self._sent_ms >= EMPTY_MS:
            self._sent_ms = self._now_ms
            out.append(self._result([]))

    def _end_words(self, out: list[Message]) -> None:
        after_ms = self._features.utterance_end_ms
        if after_ms is None or self._last_word_ms is None:
            return
        if self._now_ms - self._last_word_ms >= after_ms:
            last_s = self._last_word_ms / 1000
            out.append({"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": last_s})
            self._last_word_ms = None

    def _end(self, *, speech_final: bool, from_finalize: bool = False) -> Message:
        """End the utterance: every word that is left."""
        utterance = self._utterance
        assert utterance is not None
        self._utterance = None
        words = self._time_words(utterance, len(utterance.words))
        return self._final(words, speech_final=speech_final, from_finalize=from_finalize)

    def _cut(self, utterance: _Utterance, *, from_finalize: bool = False) -> Message:
        """Make final what was said so far, in the middle of an utterance."""
        shown = utterance.spoken()
        words = self._time_words(utterance, shown)
        utterance.given, utterance.given_ms = shown, utterance.voiced_ms
        return self._final(words, from_finalize=from_finalize)

    def _final(
        self, words: list[Message], *, speech_final: bool = False, from_finalize: bool = False
    ) -> Message:
        message = self._result(
            words, is_final=True, speech_final=speech_final, from_finalize=from_finalize
        )
        self._segment_ms = self._sent_ms = self._now_ms
        return message

    def _time_words(self, utterance: _Utterance, upto: int) -> list[Message]:
        """Spread the words that are not final yet over the speech they belong to."""
        words = utterance.words[utterance.given : upto]
        start_s = utterance.given_ms / 1000
        span_s = (utterance.voiced_ms - utterance.given_ms) / 1000
        total = sum(map(len, words))
        timed: list[Message] = []
        before = 0
        for word in words:
            after = before + len(word)
            entry: Message = {
                "word": _bare(word),
                "start": round(start_s + span_s * before / total, 3),
                "end": round(start_s + span_s * after / total, 3),
                "confidence": CONFIDENCE,
            }
            if self._features.punctuate:
                entry["punctuated_word"] = word
            timed.append(entry)
            before = after
        return timed

    def _result(
        self,
        words: list[Message],
        *,
        is_final: bool = False,
        speech_final: bool = False,
        from_finalize: bool = False,
    ) -> Message:
        key = "punctuated_word" if self._features.punctuate else "word"
        return {
            "type": "Results",
            "channel_index": [0, 1],
            "duration": round((self._now_ms - self._segment_ms) / 1000, 3),
            "start": self._segment_ms / 1000,
            "is_final": is_final,
            "speech_final": speech_final,
            "channel": {
                "alternatives": [
                    {
                        "transcript": " ".join(word[key] for word in words),
                        "confidence": CONFIDENCE if words else 0.0,
                        "words": words,
                    }
                ]
            },
            "metadata": self._metadata,
            "from_finalize": from_finalize,
        }


def _bare(word: str) -> str:
    return word.strip(string.punctuation).lower()
