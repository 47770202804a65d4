"""Which numbers may be called: by the country they are in, and by what kind of number they are.

Synchronous. What a number is, its numbering plan says, in Google's data (`phonenumbers`). A country
code is not a country: +1 is that of 25, and some are called for the toll that comes back to whoever
had them called. So a country is allowed by its two letters, and a part of one by a prefix.

Numbers that are in no plan are fictional, or newer than the data. They count as the first country
of their code and are refused for their kind only: also where digits behind a known number make it
unknown, since exchanges that have dialled enough ignore the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import phonenumbers
from phonenumbers import PhoneNumber, PhoneNumberType, ValidationResult

from voicebot.errors import CallBarred

COUNTRIES: Final = "VOICEBOT_OUTBOUND__COUNTRIES"
KINDS: Final = "VOICEBOT_OUTBOUND__KINDS"

#: Kinds that cost the caller more than a call, with what people call them.
_KINDS: Final[Mapping[int, tuple[str, str]]] = {
    PhoneNumberType.PREMIUM_RATE: ("premium", "a premium rate number"),
    PhoneNumberType.SHARED_COST: ("shared_cost", "a shared cost number"),
    PhoneNumberType.UAN: ("uan", "a company's universal number"),
    PhoneNumberType.PAGER: ("pager", "a pager"),
    # In Britain (+44 70) it costs what its owner likes.
    PhoneNumberType.PERSONAL_NUMBER: ("personal", "a personal number that follows its owner"),
}
SHORT: Final = "short"
KIND_NAMES: Final = (*(name for name, _ in _KINDS.values()), SHORT)
_NOWHERE: Final = "001"  # satellites and networks that are in no country
_LEAST_DIGITS: Final = 3  # of a prefix by which a kind is known


class Tolls:
    """The rule of one server.

    Args:
        countries: of two letters ("US"), or prefixes ("+4930"); none: that of `home`, or without
            one that of the number that calls.
        kinds: of `KIND_NAMES`, which may be called all the same.
        home: our own number, E.164.

    Raises:
        ValueError: a country or a kind that there is not; the message says which.
    """

    def __init__(
        self, countries: Sequence[str] = (), kinds: Sequence[str] = (), home: str = ""
    ) -> None:
        self._prefixes = tuple(each for each in countries if each.startswith("+"))
        self._countries = tuple(each.upper() for each in countries if not each.startswith("+"))
        self._kinds = frozenset(kinds)
        for prefix in self._prefixes:
            _check_prefix(prefix)
        for country in self._countries:
            if country not in phonenumbers.SUPPORTED_REGIONS:
                raise ValueError(f"{country} is no country: give two letters, like US, or a prefix")
        for kind in kinds:
            if kind not in KIND_NAMES:
                raise ValueError(f"{kind} is none of {', '.join(KIND_NAMES)}")
        if not countries:
            self._countries = _countries_of(home)

    def check(self, to: str, from_: str = "") -> None:
        """Check that a number may be called. Both are E.164, which has been seen to.

        Raises:
            CallBarred: it may not.
        """
        number = _parsed(to)
        if number is None:
            raise CallBarred("number", "to is in no country's numbering plan", "check the number")
        self._check_country(number, to, from_)
        self._check_kind(number)

    def _check_country(self, number: PhoneNumber, to: str, from_: str) -> None:
        if to.startswith(self._prefixes):
            return
        countries = self._countries
        if not countries and not self._prefixes:
            countries = _countries_of(from_)
        country = _country(number)
        if country == _NOWHERE:
            raise CallBarred(
                "international",
                f"to is in no country: +{number.country_code} is a satellite, a premium service or "
                "an international network",
                f"if it is to be called, put +{number.country_code} into {COUNTRIES}",
                COUNTRIES,
            )
        if country in countries:
            return
        allowed = ", ".join((*countries, *self._prefixes))
        raise CallBarred(
            "country",
            f"to is in {country}, and this server calls {allowed or 'nowhere'} only",
            f"if {country} is to be called, put it into {COUNTRIES}, beside the others",
            COUNTRIES,
        )

    def _check_kind(self, number: PhoneNumber) -> None:
        kind, what = _KINDS.get(_kind(number), ("", ""))
        possible = phonenumbers.is_possible_number_with_reason(number)
        short = (ValidationResult.TOO_SHORT, ValidationResult.IS_POSSIBLE_LOCAL_ONLY)
        if not kind and (possible in short or _is_short(number)):
            kind, what = SHORT, "a short number, or one that lacks digits"
        if kind and kind not in self._kinds:
            hint = f"if such numbers are to be called, put {kind} into {KINDS}"
            raise CallBarred(kind, f"to is {what}", hint, KINDS)
        if not kind and possible != ValidationResult.IS_POSSIBLE:
            raise CallBarred("number", "to has too many digits, or too few", "check the number")


def _parsed(e164: str) -> PhoneNumber | None:
    """Return a number as it will be dialled; None where no plan has it.

    Another way to write a number, with a trunk prefix inside, is none: what would be checked is not
    what is dialled.
    """
    try:
        number = phonenumbers.parse(e164)
    except phonenumbers.NumberParseException:
        return None
    same = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164) == e164
    return number if same else None


def _country(number: PhoneNumber) -> str:
    known = phonenumbers.region_code_for_number(number)
    return known or phonenumbers.region_code_for_country_code(number.country_code or 0)


def _countries_of(number: str) -> tuple[str, ...]:
    """Return the country of a number, if it is in one."""
    parsed = _parsed(number)
    country = _NOWHERE if parsed is None else _country(parsed)
    return () if country == _NOWHERE else (country,)


def _kind(number: PhoneNumber) -> int:
    """Return what kind a number is, or if that is not known, a costly one that it begins with."""
    kind = phonenumbers.number_type(number)
    if kind != PhoneNumberType.UNKNOWN:
        return kind
    digits = phonenumbers.national_significant_number(number)
    for length in range(len(digits) - 1, _LEAST_DIGITS - 1, -1):
        begun = _parsed(f"+{number.country_code}{digits[:length]}")
        if begun is not None and (costly := phonenumbers.number_type(begun)) in _KINDS:
            return costly
    return kind


def _is_short(number: PhoneNumber) -> bool:
    """Say whether a number is one for calls inside of its country, and no other."""
    return phonenumbers.is_valid_short_number(number) and not phonenumbers.is_valid_number(number)


def _check_prefix(prefix: str) -> None:
    digits = prefix[1:]
    if prefix == "+1":
        raise ValueError(
            "+1 is the code of 25 countries: write US or CA, the others likewise, or a longer "
            "prefix, like +1212"
        )
    codes = phonenumbers.COUNTRY_CODE_TO_REGION_CODE
    known = digits.isascii() and digits.isdecimal()
    if not known or not any(int(digits[:n]) in codes for n in (1, 2, 3) if digits[:n]):
        raise ValueError(f"{prefix} begins with no country code: a prefix is like +44 or +4930")
