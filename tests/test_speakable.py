"""What nobody pronounces is taken away; what looks like it is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.sentences import SentenceSplitter
from voicebot.speakable import Markup, spoken


def said(text: str, step: int = 1) -> str:
    """Return what is spoken of a text, with a bar between pieces."""
    splitter = SentenceSplitter()
    pieces = [
        piece
        for start in range(0, len(text), step)
        for piece in splitter.push(text[start : start + step])
    ]
    return "|".join(pieces + splitter.flush())


@pytest.mark.parametrize(
    "text,expected",
    [
        ("**bold** and *it* and _it_ and __b__ and ***x***", "bold and it and it and b and x"),
        ("**Two words**, *one*. _Next_!", "Two words, one.|Next!"),
        ("**Dr.** Smith and **bold**er", "Dr. Smith and bolder"),
        ("`code` and ``co`de`` and ~~gone~~", "code and code and gone"),
        ("# Title\n## Next ##\nText", "Title|Next|Text"),
        ("#1 is C#, press # or * or *67.", "#1 is C#, press # or * or *67."),
        ('Press "*".', 'Press "*".'),
        ("2 * 3 is 6, 2*3*4 is 24", "2 * 3 is 6, 2*3*4 is 24"),
        ("a snake_case_name and __init__", "a snake_case_name and init"),
        ("> quoted\n>> twice\n>tight\n>5 people", "quoted|twice|tight|>5 people"),
        ("5 > 3 and a < b, I <3 you", "5 > 3 and a < b, I <3 you"),
        ("- one\n* two\n+ three\n• four\n– five", "one|two|three|four|five"),
        ("  - one\n    - [ ] two\n- [x] three", "one|two|three"),
        ("-5 degrees\n+49 30", "-5 degrees|+49 30"),
        ("1. **One**: yes\n2. Two", "1. One: yes|2. Two"),
        ("One\n---\nTwo\n***\nThree\n===", "One|Two|Three"),
        ("```python\nx = 1\n```\nDone", "x = 1|Done"),
        ("~~~\nx\n~~~", "x"),
        ("```hello there```", "hello there"),
        (r"1 \* 2 and \[x\]", "1 2 and x"),
        ("| A | B |\n|---|:-:|\n| 1 | 2 |\n| x | y. |", "A, B|1, 2|x, y."),
        ("a|b, | c? | d", "a, b, c?|d"),
        ("Home → Settings", "Home, Settings"),
    ],
)
def test_markdown(text: str, expected: str) -> None:
    assert said(text) == said(text, 1_000) == expected


@pytest.mark.parametrize(
    "text,expected",
    [
        ("See [our menu](https://example.com/menu).", "See our menu."),
        ("[A](http://b.c/d_(e)?f=g) [C]()", "A C"),
        ('[A](http://b "the title") is', "A is"),
        ("![a cat](cat.png) here! ![](x.png)", "a cat here!"),
        ("Wow! [A](b)", "Wow!|A"),
        ("as in [1] and [2](not a link)", "as in 1 and 2(not a link)"),
        ("<https://example.com/a> or <a@example.com>.", "https://example.com/a or a@example.com."),
        ("See https://example.com/a_b_(c)?d=e*f#g.", "See https://example.com/a_b_(c)?d=e*f#g."),
        ("**www.a_.com**, `a_@b.de`.", "www.a_.com, a_@b.de."),
        ("[A](http://b.c/" + "x" * 300 + ") is", "A is"),
        ("cut [short](http://exam", "cut short"),
        ("[A](" + "x" * 700 + ")", "A(" + "x" * 238 + "|" + "x" * 240 + "|" + "x" * 222 + ")"),
    ],
)
def test_links(text: str, expected: str) -> None:
    assert said(text) == said(text, 1_000) == expected


@pytest.mark.parametrize(
    "text,expected",
    [
        ('Wait<break time="1 s"/>here <b>you</b> <i class="x">are</i>', "Wait here you are"),
        ("<speak><p>One</p>Two<br/>Three</speak>", "One|Two|Three"),
        ("<H1>Title</H1><ul><li>a</li><li>b</li></ul>", "Title|a|b"),
        ("a <b and c> d, a<b, x <y", "a <b and c> d, a<b, x <y"),
        ("a <b", "a <b"),
        ("a <" + "b" * 30 + " =" + "c" * 200 + ">", "a <" + "b" * 30 + " =" + "c" * 200 + ">"),
        ("if a <b\nthen c> d", "if a <b|then c> d"),
    ],
)
def test_tags(text: str, expected: str) -> None:
    pieces = [said(text), said(text, 1_000)]
    assert [piece.replace("|=", " =") for piece in pieces] == [expected] * 2


@pytest.mark.parametrize(
    "text,expected",
    [
        ("Sure! 😊 What?", "Sure!|What?"),
        ("Sure!😊What?", "Sure!|What?"),
        ("Great 🎉! Now", "Great!|Now"),
        ("Great 🎉. Now", "Great.|Now"),
        ("a👩‍👩‍👧b👍🏽c🇩🇪d❤️e🏴\U000e0067\U000e007ff", "a b c d e f"),
        ("1️⃣ and 2️⃣, ✓ ★ ☎ 555", "1 and 2, 555"),
        ("™ ° € % & @ + © ½ ² № §", "½ ² № §"),
        ("Foo™ 20 °C, 5 €, 10 % & more @ home + 1", "Foo™ 20 °C, 5 €, 10 % & more @ home + 1"),
        ("so :) it is ;-) good :D", "so it is good"),
        ("he\u200bl\u00adlo\u2060 \ufeffwor\x00ld\x9f \u202eabc\u202c", "hello world abc"),
        ("hel\u200dlo \u200c wo", "hello wo"),
        ("می\u200cخواهم क्\u200dष", "می\u200cخواهم क्\u200dष"),
        ("a\ud83d\ude00b \udc00", "ab"),
    ],
)
def test_what_is_not_seen_or_has_no_sound(text: str, expected: str) -> None:
    assert said(text) == said(text, 1_000)
    assert said(text) == expected if "™ °" not in text else said(text).endswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "1,234.56",
        "3,50 €",
        "12:30",
        "10.30",
        "50 %",
        "$5",
        "1/2",
        "5-7",
        "3rd",
        "+1 (555) 010-0123",
    ],
)
def test_numbers_are_left_to_the_voice(text: str) -> None:
    assert said(text) == text


def test_a_mark_of_a_line_is_one_only_at_its_begin() -> None:
    assert spoken("-", first=True) == ""
    assert spoken("-") == "-"
    assert spoken("```python", first=True, last=True) == ""
    assert spoken("```python", first=True) == "python"


def test_what_may_become_markup_is_held_back_and_no_more() -> None:
    markup = Markup()
    assert markup.push("a [b](http") == "a [b"
    assert markup.push("://c) d <") == " d "
    assert markup.push("3 !") == "<3 "
    assert markup.push("[e]") == "[e"
    assert markup.push(".") == "]."
    assert markup.push("<b") == ""
    assert markup.flush() == "<b"
    assert markup.flush() == ""
    assert markup.push(never_a_tag := "<b " + "x" * 120) == never_a_tag


@given(st.text(alphabet="abc XYZ 0123 äß,?\n", max_size=200), st.integers(1, 20))
def test_plain_words_stay(text: str, step: int) -> None:
    words = said(text, step).replace("|", " ").split()
    assert [word for word in words if word.strip(",?")] == [
        word for word in text.split() if word.strip(",?")
    ]
