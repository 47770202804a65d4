"""Full stops behind words, and how much of the text they need."""

from __future__ import annotations

import pytest

from voicebot.fullstops import FullStops


@pytest.mark.parametrize(
    "word,behind,ends",
    [
        ("house", "T", True),
        ("Dr", "T", False),
        ("MRS", "T", False),
        ("No", "5", False),
        ("No", "+", False),
        ("No", "I", True),
        ("no", "i", True),
        ("etc", "T", True),
        ("etc", "t", False),
        ("etc", "5", False),
        ("etc", "-", False),
        ("etc", "¿", True),
        ("U.S", "T", False),
        ("J.-P", "T", False),
        ("Ph.D", "T", False),
        ("A", "T", False),
        ("a", "T", True),
        ("네", "감", True),
        ("example.com", "T", True),
        ("5", "T", True),
        ("Main-str", "5", False),
        ("p.m", "To", True),
        ("p.m", "Tu", None),
        ("p.m", "T", None),
        ("p.m", "Tue", False),
        ("A.M", "Eastern", False),
        ("a.m", "Easte", None),
        ("a.m", "Easter", None),
        ("a.m", "East\n", True),
        ("p.m", "t", False),
        ("p.m", "5", False),
    ],
)
def test_english(word: str, behind: str, ends: bool | None) -> None:
    assert FullStops("en").ends(word, f"xx{behind}", 2) is ends


@pytest.mark.parametrize(
    "language,word,behind,ends",
    [
        ("de", "3", "M", False),
        ("de", "XIV", "K", False),
        ("de", "2019", "D", True),
        ("de", "3.5", "D", True),
        ("en", "3", "M", True),
        ("en", "bzw", "M", True),
        ("de", "bzw", "M", False),
        ("de-CH", "bzw", "M", False),
        ("en-GB", "bzw", "M", True),
        ("DE", "Mr", "M", False),
        ("it", "dell’Avv", "R", False),
        ("it", "l'ing", "R", False),
        ("en", "avv", "R", True),
        ("fr", "n°", "7", False),
        ("fr", "n°", "L", True),
        ("xx", "bzw", "M", False),
        ("xx", "avv", "M", False),
        ("multi", "3", "M", False),
        ("xx", "house", "M", True),
    ],
)
def test_languages(language: str, word: str, behind: str, ends: bool) -> None:
    assert FullStops(language).ends(word, behind, 0) is ends
