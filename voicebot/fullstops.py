"""What a full stop is: the end of a sentence, or a part of the word before it.

    stops = FullStops("en")
    stops.ends("Dr", "Smith", 0)   # False
    stops.ends("p.m", "Tomor", 0)  # True
    stops.ends("p.m", "T", 0)      # None: it may become "Tuesday"

Lists of words and nothing learned: they can be read and corrected. In doubt the sentence goes
on, so a list may hold a word that does end one now and then.
"""

from __future__ import annotations

import re
from typing import Final

# Behind one of these no sentence ends.
_NEVER: Final = {
    "de": "dr prof hr fr frl dipl ing mag st ca bzw evtl ggf inkl exkl zzgl vgl sog bspw geb tel "
    "mio mrd tsd a d h i m o s u v z",
    "en": "mr mrs ms messrs dr prof st mt ft rev hon gen col maj capt lt sgt sen rep gov vs viz cf "
    "approx esp incl",
    "es": "sr sra srta sres dr dra dn dña lic ing arq prof profa ud uds vd vds av avda ej aprox "
    "gral ee sto sta tel p m",
    "fr": "mm mme mlle mmes dr pr prof me st ste av bd boul env ex cf éd tél p",
    "it": "sig sigg sig.ra sig.na dr dott dott.ssa dr.ssa prof prof.ssa avv ing arch geom rag egr "
    "gent spett es c.so v.le p.zza l.go ss tel p n",
    "nl": "dhr mevr mw mej mr dr drs ir ing prof ds bijv bv ca evt resp incl excl zgn st tel "
    "a d i m o",
    "pt": "sr sra srta srs sras dr dra drs prof profa eng exmo exma av ex aprox tel p",
}
# Nor behind one of these before a number: "No. 5", but "No. I think not."
_NUMBERED: Final = {
    "de": "nr abs art bd kap abb max min ziff hausnr whg",
    "en": "no nos p v tel ext fig sec ch vol art est pp ver max min apt jan feb mar apr jun jul "
    "aug sep sept oct nov dec",
    "es": "núm pág págs art cap vol fig ext apdo",
    "fr": "no n° art chap vol fig",
    "it": "num pag pagg art cap fig vol int cell",
    "nl": "nr art blz max min fig hfst",
    "pt": "núm nº pág págs art cap vol fig apto ramal",
}
# Behind one of these only before a capital letter.
_SELDOM: Final = frozenset(
    ("a.m", "p.m", "etc", "usw", "ecc", "enz", "inc", "ltd", "corp", "co", "jr")
)
# "9 a.m. Monday", "5 p.m. Eastern"
_HOURS: Final = ("a.m", "p.m")
_BEHIND_HOURS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "Eastern", "Pacific")
_LONGEST: Final = max(map(len, _BEHIND_HOURS))
# Where nobody writes "am 3. Mai"; any other language may.
_NO_ORDINALS: Final = frozenset(_NEVER) - {"de"}
_ORDINAL: Final = re.compile(r"\d{1,3}|[IVX]+")
_INITIALS: Final = re.compile(r"[^\W\d_]{1,2}(?:\.-?[^\W\d_]{1,2})+")  # U.S, Ph.D, J.-P, e.g
_APOSTROPHE: Final = re.compile("['’]")


class FullStops:
    """The full stops of one language.

    Args:
        language: BCP 47. Its abbreviations are known, and the English ones. A language that is
            not known here may be any of those that are.
    """

    def __init__(self, language: str) -> None:
        tag = language.lower().partition("-")[0]
        known = (tag, "en") if tag in _NEVER else tuple(_NEVER)
        self._never = frozenset(word for one in known for word in _NEVER[one].split())
        self._numbered = frozenset(word for one in known for word in _NUMBERED[one].split())
        self._ordinals = tag not in _NO_ORDINALS

    def ends(self, word: str, text: str, at: int) -> bool | None:
        """Return whether a sentence ends behind a word and its full stop.

        Args:
            text: holds at `at`, and may hold from there on, what follows the space behind them.

        Returns:
            None if it takes more of the text to know.
        """
        following, lower = text[at], _APOSTROPHE.split(word.lower())[-1]  # l'avv, dell’Ing
        if lower in _SELDOM:
            if not following.isalpha() or following.islower():
                return following in "¿¡"
            return self._ends_hours(text[at : at + _LONGEST]) if lower in _HOURS else True
        initials = _INITIALS.fullmatch(word) or (len(word) == 1 and word.isupper())
        if initials or lower in self._never:
            return False
        if self._ordinals and _ORDINAL.fullmatch(word):
            return False
        numbered = lower in self._numbered or lower.endswith("str")  # Hauptstr. 5
        return not (numbered and (following.isdigit() or following in "+#"))

    def _ends_hours(self, text: str) -> bool | None:
        if text.startswith(_BEHIND_HOURS):
            return False
        return None if any(name.startswith(text) for name in _BEHIND_HOURS) else True
