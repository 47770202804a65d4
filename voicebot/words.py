"""What words alone tell of a turn: signs of listening, stop words, an unfinished phrase, an echo.

    words = Vocabulary.of("en-US")
    words.only_listening("mm-hm, okay")  # True: says "I am listening", and does not take the floor
    words.stops("hold on a second")      # True: takes it, whatever else is asked for
    words.unfinished("I would like to")  # True: more is to come
    echoed("from nine to five", spoken, voice=True)  # True: the bot's own words, come back

Lists of words and nothing learned: they can be read, corrected, and set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WORD: Final = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Digits at the end of a text, in groups; not those of a time, a price or a date.
_DIGITS: Final = re.compile(r"(?<![\d:.,/$€£-])\d[\d -]*$")

#: Sounds that are written alike in most languages.
_SOUNDS: Final = ("mm", "mmm", "mhm", "mmhm", "mm-hm", "mm-hmm", "hm", "hmm", "uh-huh", "ah", "oh")
_LISTENING: Final = {
    "en": "uh huh okay ok yeah yep right sure",
    "de": "ja jaja okay ok genau gut klar achso aha",
    "es": "sí ajá vale ok okay claro ya bueno",
    "fr": "oui ouais ok okay d'accord voilà bien",
    "it": "sì si ok okay certo va bene già ah",
    "nl": "ja jaja oké ok okay precies goed",
    "pt": "sim ok okay tá certo claro pois",
}
# Phrases, parted by commas.
_STOPS: Final = {
    "en": "stop, wait, hold on, hang on, one moment, one second, just a second, excuse me, "
    "be quiet, shut up, enough, never mind, cancel, no",
    "de": "stopp, stop, halt, warte, warten sie, moment, einen moment, entschuldigung, "
    "ruhe, genug, nein, abbrechen",
    "es": "para, pare, espera, espere, un momento, un segundo, perdón, disculpe, basta, "
    "cállate, no, cancelar",
    "fr": "stop, arrêtez, arrête, attendez, attends, un instant, un moment, une seconde, "
    "pardon, excusez-moi, assez, non, annuler",
    "it": "ferma, fermo, fermi, stop, aspetta, aspetti, un attimo, un momento, scusi, scusa, "
    "basta, no, annulla",
    "nl": "stop, hou op, wacht, wacht even, moment, een moment, sorry, genoeg, nee, annuleren",
    "pt": "pare, para, espere, espera, um momento, um segundo, desculpe, chega, não, cancelar",
}
# A phrase that ends in one of these goes on.
_OPEN: Final = {
    "en": "a an the and or but because if which whose to of from with at about as than my your our "
    "his her their its is are was were am i'm i i'd i'll we we'd he she they can could would "
    "should might must don't very um er well it's there's",
    "de": "der die das den dem ein eine einen einem einer und oder aber weil wenn dass ob zu von "
    "für mit auf in an bei mein meine ihr ihre ist sind war ich wir er sie kann möchte würde "
    "will soll nicht sehr äh ähm also",
    "es": "el la los las un una y o pero porque si que de para por con en a mi su es son era yo "
    "quiero quisiera puedo muy eh este pues",
    "fr": "le la les un une des et ou mais parce que si de pour par avec dans à au du mon ma mes "
    "votre est sont je j'ai nous il elle veux voudrais peux très euh alors",
    "it": "il lo la i gli le un una e o ma perché se che di per con in a al del mio mia suo sua è "
    "sono io vorrei posso molto eh allora",
    "nl": "de het een en of maar omdat als dat van voor met op in aan bij mijn uw is zijn was ik "
    "wij kan wil zou niet heel eh uhm dus",
    "pt": "o a os as um uma e ou mas porque se que de para por com em meu minha seu sua é são eu "
    "queria quero posso muito eh então",
}
_NUMERALS: Final = {
    "en": "zero oh one two three four five six seven eight nine double triple",
    "de": "null eins ein zwei zwo drei vier fünf sechs sieben acht neun",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "nl": "nul een één twee drie vier vijf zes zeven acht negen",
    "pt": "zero um uma dois duas três quatro cinco seis meia sete oito nove",
}
LANGUAGES: Final = tuple(_LISTENING)

DICTATED: Final = 3  # digits in a row at the end: fewer are an answer ("at twenty, for two")
NUMBER_DIGITS: Final = 10  # a telephone number without its country, said to its end
# Of the bot's words in a row that come back. Fewer are often an answer: "Monday or Tuesday?"
ECHO_WORDS: Final = 4
UNHEARD_ECHO_WORDS: Final = 2  # where the ears have heard no voice that says them


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of one language that turn-taking goes by."""

    listening: frozenset[str]
    stopping: tuple[tuple[str, ...], ...]  # phrases
    opening: frozenset[str]
    numerals: frozenset[str]

    @classmethod
    def of(
        cls, language: str, listening: Sequence[str] = (), stopping: Sequence[str] = ()
    ) -> Vocabulary:
        """Return the words of a language by its BCP 47 tag.

        A language that is not known here has the sounds that most share, and no other word.

        Args:
            listening: instead of the list here, if not empty.
            stopping: phrases, likewise.
        """
        tag = language.lower().partition("-")[0]
        return cls(
            frozenset(_lower(listening) or [*_SOUNDS, *_LISTENING.get(tag, "").split()]),
            tuple(
                tuple(words_of(phrase)) for phrase in stopping or _STOPS.get(tag, "").split(", ")
            ),
            frozenset(_OPEN.get(tag, "").split()),
            frozenset(_NUMERALS.get(tag, "").split()),
        )

    def only_listening(self, text: str) -> bool:
        """Return whether there is nothing in the text but signs of listening, or nothing."""
        return all(word in self.listening for word in words_of(text))

    def stops(self, text: str) -> bool:
        """Return whether there is a stop word or phrase in the text."""
        words = words_of(text)
        return any(_within(phrase, words) for phrase in self.stopping if phrase)

    def count(self, text: str) -> int:
        """Return how many words are more than a sign of listening."""
        return sum(word not in self.listening for word in words_of(text))

    def unfinished(self, text: str) -> bool:
        """Return whether the text ends where no sentence does."""
        text = text.rstrip()
        if text.endswith("?"):
            return False
        words = words_of(text)
        if tuple(words) in self.stopping:
            return False
        return text.endswith((",", "-", "…", "...")) or (
            words[-1:] != [] and words[-1] in self.opening
        )

    def dictating(self, text: str) -> bool:
        """Return whether the text ends in a number that may go on, digit by digit."""
        written = _DIGITS.search(text.rstrip(" .,"))
        digits = sum(char.isdigit() for char in written[0]) if written else 0
        for word in reversed(words_of(text[: written.start()] if written else text)):
            if word not in self.numerals:
                break
            digits += 1
        return DICTATED <= digits < NUMBER_DIGITS


def echoed(said: str, spoken: str, *, voice: bool) -> bool:
    """Return whether what was recognised is a stretch of what the bot has just spoken.

    So many words in a row at least, and nothing else around them; the recogniser may have the
    first and the last wrong, of which the echo holds only a part.

    Args:
        voice: whether the ears have heard somebody say it, above the echo they expect.
    """
    words, source = words_of(said), words_of(spoken)
    if not voice:
        return len(words) >= UNHEARD_ECHO_WORDS and _within(words, source)
    for cut in (words, words[1:], words[:-1], words[1:-1]):
        if len(cut) >= ECHO_WORDS and _within(cut, source):
            return True
    return False


def _lower(words: Sequence[str]) -> list[str]:
    return [word.lower() for word in words]


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Return whether the words follow each other somewhere in the whole."""
    length = len(part)
    return any(
        list(whole[start : start + length]) == list(part)
        for start in range(len(whole) - length + 1)
    )
