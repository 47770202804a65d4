"""Deltas to speakable pieces: tables by language, and what must hold for any text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voicebot.sentences import MAX_PIECE_CHARS, SentenceSplitter

HELD_CHARS = 1_500  # a piece, a word behind it, and what may become markup


def split(text: str, language: str = "en", step: int = 1) -> list[str]:
    """Push the text in deltas of one length, as a model streams it."""
    splitter = SentenceSplitter(language)
    pieces = [
        piece
        for start in range(0, len(text), step)
        for piece in splitter.push(text[start : start + step])
    ]
    return pieces + splitter.flush()


# What is expected has a bar where a piece ends.
ENGLISH = """
Yes.| No!| Why?
Sure.| We have a table at eight.
Okay!| What time?
It costs 3.50 euros.| Fine.
It is 1,000.50 or 1.000,50 in all.| Good.
Version 1.2.3 is out.| It is v1.2.3.| Get it.
We closed in 2019.| Then we opened again.
We close at nine.| 10 is too late.
Ask Dr. Smith.| He knows.
Ask Mr. and Mrs. Jones, Prof. Lee or St. John.| They know.
Ask J. K. Rowling, J. Smith, e.g. today.| Now.
Take fruit, i.e. Apples, vs. Pears.| Done.
It is in U.S. dollars, not U.K. pounds.| Good.
The U.S. Army called.| I see.
We sell books, etc. and more.| We sell books, etc.| They are old.
We open at 9 a.m. and close at 5 p.m. today.| Welcome.
Come at 5 p.m.| Tomorrow we are closed.
Come at 5 p.m.| The door is open.
Come at 5 p.m. 10 people did.| Yes.
Open from 9 a.m. to 5 p.m. Monday to Friday.| Come by.
Open 9 a.m. - 5 p.m. (Eastern time).| Come by.
Call at 5 p.m. Eastern.| Or at 6 p.m.| Then we close.
Ask Acme Inc. or Foo Ltd. about it.| We work for Acme Inc.| It is large.
It is room No. 5, ext. 12, on p. 7.| Good.
No.| I do not think so.
It is on Jan. 5.| It was in Jan.| It was cold.
Our tel. +1 555 is new.| Yes.
So... maybe.| Hmm…| I see.
Well...| I see.| Wait...| What?
What?!| No!!!| Really?
Visit www.example.com.| Or https://example.com/a.b?c=d.| Thanks.
Is it https://example.com/?q=a.b&c=1?| Yes.
Mail john.smith@example.co.uk.| We answer.
Call +1 (555) 010-0123.| Or 555-0100.| Bye.
He said "go."| Then he left.
He said “Go!”| Then (that was it.)| We left.
"Stop!" he said.| "Why?" she asked.
He is here (I think.)| Yes.
It is approx. five, max. 10.| Good.
Wow!| that is good.
I like node.js.| And you?
This is Plan B. Then comes more.| Good.
Good.| — Bye.
iPhone 15 is out.| It is good.
Mixed.| 네.| 감사합니다.
"""
GERMAN = """
Ja.| Nein!| Warum?
Das kostet 3,50 Euro.| Gut.
Das kostet 1.000,50 Euro.| Gut.
Um 10.30 Uhr.| Gut.
Wir haben bis 18.30.| Danach ist zu.
Am 3. Mai haben wir zu.| Danach nicht.
Am 3.5.2026 ist zu.| Am 24.12. auch.| Schade.
Im 2. Stock, beim 1. Zimmer.| Gut.
Im 19. Jahrhundert.| Papst Paul II. Er kam.
Das war 2019.| Dann kam mehr.
Fragen Sie Dr. Meier, Hr. Klein oder Fr. Groß.| Danke.
Das ist z. B. morgen, d. h. Montag, u. a. Dienstag.| Gut.
Das ist z.B. Montag, d.h. bald.| Gut.
Wir haben Brot usw. und Butter.| Wir haben Brot usw.| Gut.
Es sind ca. 5 Minuten, ggf. Mehr, bzw. Weniger.| Gut.
Hauptstr. 5, Nr. 7 oder Str. 9 b.| Gut.
Er ist in der Hauptstr.| Dort wohnt er.
Wir haben 5 Mio. Kunden.| Danke.
Er sagte: »Ja!«| Dann ging er.
Er sagte „Ja.“| Dann ging er.
Tel. +49 30 1234567.| Danke.
Das ist Art. 5 hier.| Diese Art.| Gut.
"""
FRENCH = """
Oui.| Non !| Pourquoi ?
Bonjour M. Dupont.| Ça va ?
C’est 3,50 euros.| D’accord.
Voyez Mme. Martin et le Dr. Petit, 5 av. Foch.| Merci.
C’est à 10 h.| 30 personnes.
Il dit « Ça va ? » et part.| Bien.
« Oui ! »| Il part.
Allez-y.| Merci.
Par ex. Paris, p. ex. Lyon, etc. ou ailleurs.| Bien.
Appelez le 01 23 45 67 89.| Merci.
J.-P. Sartre écrit.| Oui.
Art. 5, n° 7, vol. 2.| Bien.
"""
SPANISH = """
¡Hola!| ¿Qué tal?| Bien.
¿Cómo está Ud. hoy?| ¡Muy bien!| Gracias.
El Sr. García y la Sra. López.| Gracias.
Cuesta 3,50 euros.| Vale.
Está en la Av. Mayor núm. 5, pág. 3.| Vale.
Por ej. Madrid, p. ej. Sevilla.| Vale.
A las 5 p.m.| ¿Le va bien?
A las 5 p.m.| ¡Perfecto!
En EE. UU. es así.| Vale.
Vale.| ¿Sí?| ¡No!
"""
ITALIAN = """
Ciao!| Come va?| Bene.
Il sig. Rossi, la sig.ra Bianchi e il dott. Verdi.| Grazie.
Costa 3,50 euro.| Va bene.
Ad es. Roma, p. es. Milano, ecc. e altro.| Bene.
Via Roma n. 5, pag. 3.| Bene.
Alle 10.30.| Grazie.
La Dott.ssa Neri e l’Ing. Blu.| Sì.
Pane, ecc.| Grazie.
"""
PORTUGUESE = """
Olá!| Tudo bem?| Sim.
O Sr. Silva e a Sra. Costa.| Obrigado.
O Dr. Lima, a Profa. Reis.| Sim.
Custa 3,50 euros.| Sim.
Na Av. Brasil, núm. 5, apto. 3.| Sim.
Por ex. Lisboa, p. ex. Porto.| Sim.
Às 10.30.| Obrigado.
"""
DUTCH = """
Ja.| Nee!| Waarom?
De dhr. Jansen, mevr. Bakker en drs. Vos.| Dank u.
Het kost 3,50 euro.| Goed.
Dat is bijv. Maandag, d.w.z. Morgen, o.a. Dinsdag.| Goed.
Kalverstr. 5, nr. 7.| Goed.
Brood enz. en boter.| Brood enz.| Goed.
Om 10.30 uur.| Goed.
"""
OTHERS = [
    ("ja", "はい。| そうです。| いいですか？| はい！"),
    ("ja", "「はい。」|と言った。|『本当？！』|うん。"),
    ("zh-CN", "好的。|我帮您查一下。|请稍等！|谢谢？！|再见……好"),
    ("hi", "नमस्ते।| आप कैसे हैं?| मैं ठीक हूँ।|धन्यवाद॥| हाँ"),
    ("ar", "مرحبا.| كيف حالك؟| نعم!"),
    ("ur", "ہاں۔| کیا؟| نہیں"),
    ("ko", "네.| 감사합니다.| 안녕"),
    ("da", "Den 3. Juni.| Tak."),
    ("sv", "Hr. Berg kommer.| Dr. Holm också."),
    ("multi", "Am 3. Mai kommt la Sra. López.| Gut."),
    ("DE-at", "Am 3. Mai.| Gut."),
    ("en-GB", "In room 3.| Good."),
]
TABLES = {
    "en": ENGLISH,
    "de": GERMAN,
    "fr": FRENCH,
    "es": SPANISH,
    "it": ITALIAN,
    "pt": PORTUGUESE,
    "nl": DUTCH,
}
LINES = [
    "Yes.|\tNo.|\nWhy",
    "One|\nTwo|\n\nThree",
    "One|\r\nTwo|\u2028Three",
    "1. First|\n2. Second one.|\n10. Tenth.| (3.) Third",
    "1.\nFirst|\n(2)\nSecond",
    "Two of them:|\n1. Yes.| Surely.|\n2. No.",
    "Ask Dr.|\nSmith",
]
CASES = [
    *((tag, line) for tag, table in TABLES.items() for line in table.strip().splitlines()),
    *OTHERS,
    *(("en", text) for text in LINES),
]


@pytest.mark.parametrize("language,case", CASES)
def test_sentences(language: str, case: str) -> None:
    text = case.replace("|", "")
    pieces = [" ".join(piece.split()) for piece in case.split("|")]
    assert split(f"First.\n{text}", language) == ["First.", *pieces]


def test_a_text_without_capitals() -> None:
    text = "sure. what time? ok. e.g. at five, etc. or so. fine"
    pieces = ["sure.", "what time?", "ok.", "e.g. at five, etc. or so.", "fine"]
    assert split(text) == pieces
    assert split(f"5! {text}") == ["5!", *pieces]
    assert split(f"Ok! {text}") == ["Ok!", "sure. what time?", "ok. e.g. at five, etc. or so. fine"]


@pytest.mark.parametrize("text", ["", "  \n ", "…", "— ?!", "😊", "**", "---\n***\n| |"])
def test_what_has_no_sound_is_no_piece(text: str) -> None:
    assert split(text) == []


# The first piece.


def test_only_the_first_piece_may_end_at_a_comma() -> None:
    text = "We are open every day but Monday, from noon on, and we close at ten, more or less."
    assert split(text) == [
        "We are open every day but Monday,",
        "from noon on, and we close at ten, more or less.",
    ]


@pytest.mark.parametrize("mark", [",", ";", ":", " –", " —"])
def test_marks_of_a_clause(mark: str) -> None:
    assert split(f"There is a table for two{mark} by the door.")[1] == "by the door."


def test_a_short_first_clause_waits_for_the_sentence() -> None:
    assert split("Yes, of course. Sure.") == ["Yes, of course.", "Sure."]
    assert split("We do have one at seven, then. Sure.")[0] == "We do have one at seven,"
    assert split("We do have one at four, then. Sure.")[0] == "We do have one at four, then."


def test_a_first_clause_of_wide_signs_may_be_shorter() -> None:
    assert split("我帮您查一查，请稍等，谢谢。好") == ["我帮您查一查，请稍等，", "谢谢。", "好"]


def test_a_first_piece_does_not_end_before_a_number() -> None:
    """It mostly belongs to what is before it."""
    assert split("Your table is booked for Monday, 3 May, at 8. Bye.") == [
        "Your table is booked for Monday, 3 May,",
        "at 8.",
        "Bye.",
    ]
    assert split("We are open on weekdays from 9 – 5 and on Sundays.")[1:] == []


def test_a_short_first_sentence_is_spoken_at_once() -> None:
    splitter = SentenceSplitter()
    assert splitter.push("Sure. W") == ["Sure."]


# When a piece is given.


@pytest.mark.parametrize(
    "before,shows",
    [
        ("Yes.", " N"),
        ("Yes!", " N"),
        ("Yes. ", "N"),
        ("Yes. (", "N"),
        ("Yes. **", "N"),
        ("Yes", "\n"),
        ("No.", " I"),
        ("At 5 p.m.", " I"),
        ("At 5 p.m. T", "o"),
        ("好的。", "我"),
        ("नमस्ते।", " म"),
        ("We are open every day but Monday,", " a"),
        ("Yes.", "😊 N"),
        ("Yes?", " <3"),
    ],
)
def test_a_piece_is_given_as_soon_as_the_text_shows_that_it_ended(before: str, shows: str) -> None:
    splitter = SentenceSplitter()
    assert splitter.push(before) == []
    assert [len(splitter.push(char)) for char in shows] == [0] * (len(shows) - 1) + [1]


def test_the_example_of_the_module() -> None:
    splitter = SentenceSplitter("en-US")
    assert splitter.push("Dr. Smith is in at 3.") == []
    assert splitter.push("30 p.m. An") == ["Dr. Smith is in at 3.30 p.m."]
    assert splitter.flush() == ["An"]


def test_more_may_follow_a_flush() -> None:
    splitter = SentenceSplitter()
    assert splitter.push("Let me see") == []
    assert splitter.flush() == ["Let me see"]
    assert splitter.push("- Here it is, as far as I can tell. B") == [
        "Here it is, as far as I can tell."
    ]
    assert splitter.flush() == ["B"]


@pytest.mark.parametrize("text", ["At 5 p.m. T", "Yes. <b", "Yes. [A](http://b", "Yes. ("])
def test_nothing_is_left_behind_a_flush(text: str) -> None:
    splitter = SentenceSplitter()
    pieces = splitter.push(text) + splitter.flush()
    assert pieces[0] in ("At 5 p.m.", "Yes.")
    assert splitter.push("Next. O") == ["Next."]


# Pieces that would be too long.


def test_a_sentence_without_end_is_cut_at_a_space() -> None:
    pieces = split("word " * 200)
    assert all(len(piece) <= MAX_PIECE_CHARS for piece in pieces)
    assert [len(piece) for piece in pieces[:2]] == [239, 239]
    assert " ".join(pieces) == ("word " * 200).strip()


def test_a_long_piece_is_cut_at_a_clause_if_one_is_in_reach() -> None:
    head = "Go! "
    assert split(f"{head}{'word ' * 30}word, {'word ' * 30}")[1] == f"{'word ' * 30}word,"
    assert split(f"{head}word, {'word ' * 60}")[1] == f"word, {'word ' * 46}word"
    assert len(split(f"{head}{'字' * 200}，{'字' * 100}")[1]) == 201


@pytest.mark.parametrize(
    "whole",
    ["+1 (555) 010-0123", "555 010 0123", "https://example.com/a/b", "john.smith@example.com"],
)
@pytest.mark.parametrize("before", range(215, 241))
def test_a_cut_is_not_inside_a_number_or_an_address(whole: str, before: int) -> None:
    pieces = split(f"Go! {'w' * 100} {'w' * (before - 101)} {whole} {'word ' * 20}")
    assert any(whole in piece for piece in pieces)


def test_digits_without_end_are_cut_between_them() -> None:
    pieces = split("5 " * 200)
    assert " ".join(pieces) == ("5 " * 200).strip()
    assert max(map(len, pieces)) <= MAX_PIECE_CHARS


@pytest.mark.parametrize("step", [1, 7, 2_000])
def test_a_word_without_end_is_cut_anywhere(step: int) -> None:
    pieces = split("x" * 1_000, step=step)
    assert [len(piece) for piece in pieces] == [240, 240, 240, 240, 40]


def test_a_cut_is_not_between_a_letter_and_its_vowel_sign() -> None:
    pieces = split("ที่" * 300)
    assert "".join(pieces) == "ที่" * 300
    assert {piece[0] for piece in pieces} == {"ท"}
    assert len(split("a" + "\u0301" * 1_000)) < 12  # unless there are no letters


# What must hold for any text.

PARTS = st.sampled_from(
    [
        *"ab cD.,!?\n15_*`#>|<[]()\"'»«…。，」-–=/:\\~½",
        *("](", "![", "<b", "<br>", '<a x="', "</b>", "e.g.", "Dr.", "p.m.", "Mon", "T", "No."),
        *("x" * 60, "y" * 239, "z" * 241, "   ", "http://a.b/c_d", "a@b.de", "3.", "42", "1) "),
        *(
            "😊",
            "👩‍👩‍👧",
            "1\ufe0f\u20e3",
            "\u200b",
            "\u200d",
            "\ufe0f",
            "🇩🇪",
            "\ud83d",
            "\u0301",
            "मे",
            "é",
        ),
        *("```", "~~~py", "---", "\r\n", "\u2028", ' "t")', "Hauptstr.", "→", " « ", "？！"),
    ]
)
TEXTS = st.one_of(st.lists(PARTS, max_size=60).map("".join), st.text(max_size=300))
LANGUAGES = st.sampled_from(["en", "de", "fr", "xx"])


@given(TEXTS, LANGUAGES, st.lists(st.integers(0, 400)))
@example("](x<b)", "en", [5])
@example("a" * 239 + "。b", "en", [240])
def test_the_pieces_do_not_depend_on_the_deltas(text: str, language: str, cuts: list[int]) -> None:
    splitter, pieces, start = SentenceSplitter(language), list[str](), 0
    for cut in sorted(cuts):
        pieces += splitter.push(text[start:cut])
        start = max(start, cut)
    pieces += splitter.push(text[start:]) + splitter.flush()

    assert pieces == split(text, language, step=10_000)
    assert pieces == split(text, language)


@given(TEXTS, LANGUAGES)
def test_every_piece_can_be_spoken(text: str, language: str) -> None:
    for piece in split(text, language):
        assert any(map(str.isalnum, piece))
        assert piece == piece.strip()
        assert len(piece) <= MAX_PIECE_CHARS
        piece.encode()


WORDS = st.text(alphabet="abcdeABÉ0123456789.,!?:;$%&@+-/'\"()…。", min_size=1, max_size=12)


@given(st.lists(st.tuples(WORDS, st.sampled_from([" ", "\n", ", ", ". "])), max_size=80))
def test_nothing_is_lost_or_said_twice(parts: list[tuple[str, str]]) -> None:
    """All that is not markup is there, in its order, but for pieces that have no sound."""
    text = "".join(part for pair in parts for part in pair)
    said = "".join("".join(split(text, step=5)).split())
    letters = [char for char in text if char.isalnum()]
    assert [char for char in said if char.isalnum()] == letters
    rest = iter("".join(text.split()))
    assert all(char in rest for char in said)


ADVERSARIAL = [
    *(
        "x",
        ".",
        " ",
        ". ",
        "! ",
        "\n",
        "Dr. ",
        "5 p.m. T ",
        "3. ",
        "1 ",
        ", ",
        "e.g.",
        "…",
        "。",
        "，",
    ),
    *(
        "<",
        "<a ",
        "<aaaa bbbb ",
        "](",
        "]((",
        '](a "',
        "![",
        "*",
        "**a",
        "_",
        "`",
        "#",
        "|",
        "((",
        '"',
    ),
    *("😊", "\u200d", "\u0301", "»", "« a ", "\ud83d"),
]


@pytest.mark.parametrize("pattern", ADVERSARIAL)
def test_what_is_kept_is_bounded_whatever_comes(pattern: str) -> None:
    """Each delta is looked at with no more than this before it, so the work is linear."""
    splitter, text = SentenceSplitter("de"), (pattern * 6_000)[:6_000]
    for char in text:
        splitter.push(char)
        kept = [value for value in vars(splitter).values() if isinstance(value, str)]
        assert len(splitter._markup._held) + sum(map(len, kept)) <= HELD_CHARS


@pytest.mark.parametrize("pattern", ADVERSARIAL)
def test_a_long_text_may_come_at_once(pattern: str) -> None:
    text = (pattern * 50_000)[:50_000]  # were a step quadratic, this would take minutes
    assert sum(map(len, split(text, step=50_000))) <= 2 * len(text)


@pytest.mark.parametrize(
    "text, whole, rest",
    [
        ("It is noon. We are", ["It is noon."], ["We are"]),
        ("It is noon. We are open.", ["It is noon.", "We are open."], []),
        ('He said "no."', ['He said "no."'], []),
        ("我们开门。今天", ["我们开门。"], ["今天"]),
        ("We are open,", [], ["We are open,"]),
        ("", [], []),
    ],
)
def test_of_a_text_that_was_cut_off_the_whole_sentences_are_told_apart(
    text: str, whole: list[str], rest: list[str]
) -> None:
    splitter = SentenceSplitter()

    assert splitter.push(text) + splitter.settle() == whole
    assert splitter.flush() == rest
