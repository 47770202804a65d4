"""Which numbers may be called: whose country, and what kind of number."""

from __future__ import annotations

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.errors import CallBarred
from voicebot.tolls import KIND_NAMES, Tolls

US, CANADA, BRITAIN, GERMANY = "+12125550142", "+14165550123", "+442079460000", "+4930901820"
AT_HOME = Tolls(home=US)
EVERYWHERE = Tolls(tuple(phonenumbers.SUPPORTED_REGIONS))
COSTLY = {
    "premium": phonenumbers.PhoneNumberType.PREMIUM_RATE,
    "shared_cost": phonenumbers.PhoneNumberType.SHARED_COST,
    "uan": phonenumbers.PhoneNumberType.UAN,
    "pager": phonenumbers.PhoneNumberType.PAGER,
    "personal": phonenumbers.PhoneNumberType.PERSONAL_NUMBER,
}
ORDINARY = (
    phonenumbers.PhoneNumberType.FIXED_LINE,
    phonenumbers.PhoneNumberType.MOBILE,
    phonenumbers.PhoneNumberType.TOLL_FREE,
    phonenumbers.PhoneNumberType.VOIP,
)
# Twilio's lists of fraud name most of these: +1 and not the USA.
ISLANDS = {
    "DO": "809", "JM": "876", "VG": "284", "GD": "473", "TC": "649", "AG": "268", "BB": "246",
    "BS": "242", "DM": "767", "VC": "784", "LC": "758", "KY": "345", "MS": "664", "KN": "869",
    "TT": "868", "AI": "264", "BM": "441", "SX": "721", "PR": "787", "GU": "671",
}  # fmt: skip


def refusal(tolls: Tolls, to: str, from_: str = "") -> str:
    """Return why a number may not be called; empty: it may."""
    try:
        tolls.check(to, from_)
    except CallBarred as exc:
        barred = exc
    else:
        return ""
    assert str(barred).startswith("to ")
    assert barred.hint
    assert barred.retry_after_s is None
    return barred.reason


def written(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def examples(*kinds: int) -> st.SearchStrategy[tuple[str, str]]:
    """Draw a number of one of these kinds, with its country."""
    there = [
        (country, written(number))
        for country in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in kinds
        if (number := phonenumbers.example_number_for_type(country, kind)) is not None
        # Where a kind has no numbers of its own, its example is of another.
        and phonenumbers.number_type(number) in kinds
    ]
    return st.sampled_from(there)


# --- Countries


def test_by_default_the_country_of_our_own_number_may_be_called() -> None:
    assert refusal(AT_HOME, US) == ""
    assert refusal(AT_HOME, CANADA) == "country"
    assert refusal(Tolls(home=CANADA), CANADA) == ""
    assert refusal(Tolls(home=CANADA), US) == "country"
    assert refusal(Tolls(home=BRITAIN), BRITAIN) == ""
    assert refusal(Tolls(home=BRITAIN), GERMANY) == "country"


def test_without_one_it_is_the_country_of_the_number_that_calls_and_else_none() -> None:
    assert refusal(Tolls(), US, BRITAIN) == "country"
    assert refusal(Tolls(), BRITAIN, BRITAIN) == ""
    assert refusal(AT_HOME, BRITAIN, BRITAIN) == "country"  # the settings' own counts
    assert refusal(Tolls(), US) == "country"
    assert refusal(Tolls(home="+881612345678"), US) == "country"
    assert refusal(Tolls(home="+881612345678"), "+881612345679") == "international"


@pytest.mark.parametrize("country, area", ISLANDS.items())
def test_plus_one_is_not_one_country(country: str, area: str) -> None:
    number = f"+1{area}5550100"
    with pytest.raises(CallBarred, match=f"to is in {country}, and this server calls US only"):
        AT_HOME.check(number)
    assert refusal(Tolls(("US", "CA")), number) == "country"
    assert refusal(Tolls((country,)), number) == ""


@pytest.mark.parametrize(
    "countries, to, said",
    [
        (("US", "CA"), CANADA, ""),
        (("us",), US, ""),
        (("+44",), BRITAIN, ""),
        (("+4420",), BRITAIN, ""),
        (("+4421",), BRITAIN, "country"),
        (("+44", "US"), US, ""),
        (("+44",), US, "country"),
        (("+1212",), US, ""),
        (("+1212",), "+12025550123", "country"),
    ],
)
def test_countries_and_prefixes_are_what_they_say(
    countries: tuple[str, ...], to: str, said: str
) -> None:
    assert refusal(Tolls(countries, home=GERMANY), to) == said


@pytest.mark.parametrize("countries", ["+1", "+", "+8", "+0", "+44x", "XX", "001", "USA", "44"])
def test_what_is_no_country_is_said(countries: str) -> None:
    with pytest.raises(ValueError, match="countr"):
        Tolls((countries,))


def test_a_kind_that_there_is_not_is_said() -> None:
    with pytest.raises(ValueError, match="premium, shared_cost"):
        Tolls((), ("expensive",))


@pytest.mark.parametrize(
    "number",
    ["+881612345678", "+870773111632", "+883510012345", "+88213300655", "+979123456789"],
)
def test_what_is_in_no_country_takes_a_prefix_of_its_own(number: str) -> None:
    assert refusal(EVERYWHERE, number) == "international"
    assert refusal(Tolls((number[:4],)), number) == ("premium" if "+979" in number else "")
    assert refusal(Tolls((number[:4],), KIND_NAMES), number) == ""


# --- Kinds


@pytest.mark.parametrize("name, kind", COSTLY.items())
def test_costly_kinds_are_refused_in_every_country(name: str, kind: int) -> None:
    seen = 0
    for country in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.example_number_for_type(country, kind)
        if number is not None and phonenumbers.number_type(number) == kind:
            seen += 1
            assert refusal(EVERYWHERE, written(number)) == name, written(number)
            allowed = Tolls((country,), (name,))
            assert refusal(allowed, written(number)) in {"", "country"}, written(number)
    assert seen > 5


@given(examples(*ORDINARY))
def test_ordinary_numbers_are_called_where_their_country_is_allowed(
    example: tuple[str, str],
) -> None:
    _, number = example
    assert refusal(EVERYWHERE, number) == ""
    belongs = phonenumbers.region_code_for_number(phonenumbers.parse(number))
    assert belongs is not None
    assert refusal(Tolls((belongs,)), number) == ""
    other = "US" if belongs != "US" else "GB"
    assert refusal(Tolls((other,)), number) == "country"


@given(examples(*COSTLY.values()), st.text("0123456789", min_size=1, max_size=4))
def test_digits_behind_a_costly_number_do_not_make_it_cheap(
    example: tuple[str, str], more: str
) -> None:
    number = (example[1] + more)[:16]
    kind = phonenumbers.number_type(phonenumbers.parse(number))
    if kind == phonenumbers.PhoneNumberType.UNKNOWN:
        assert refusal(EVERYWHERE, number) != ""


def test_a_costly_number_within_one_that_is_ordinary_and_too_long_is_costly() -> None:
    # +81 60 1234567 follows its owner, and +81 60 12345670 is ordinary: which of them an exchange
    # takes this for is its own affair.
    assert refusal(EVERYWHERE, "+8160123456700") == "personal"


@given(st.from_regex(r"\A\+[1-9][0-9]{6,14}\Z"))
def test_every_number_is_answered_and_none_of_a_country_that_is_not_allowed(number: str) -> None:
    said = refusal(AT_HOME, number)
    assert said in {"", "number", "country", "international", *KIND_NAMES}
    if not said:
        parsed = phonenumbers.parse(number)
        assert parsed.country_code == 1
        assert phonenumbers.region_code_for_number(parsed) in ("US", None)


@pytest.mark.parametrize("number", ["+15550100123", "+15555550199", "+447700900123"])
def test_fictional_numbers_are_called_as_those_of_their_country(number: str) -> None:
    assert refusal(Tolls(("US", "GB")), number) == ""
    assert refusal(Tolls(("DE",)), number) == "country"
    assert refusal(Tolls(home=number), number) == ""


@pytest.mark.parametrize(
    "number, said",
    [
        ("+19005551234", "premium"),
        ("+449098790000", "premium"),
        ("+4990012345678", "premium"),  # one digit more than there are
        ("+15005550006", "personal"),
        ("+447012345678", "personal"),
        ("+4911833", "short"),  # directory enquiries, at two euros a minute
        ("+12125550", "short"),
        ("+15550100", "short"),
        ("+121255501423", "number"),
        ("+999123456789", "number"),
        ("+4402079460000", "number"),  # written with a trunk prefix: not what is dialled
    ],
)
def test_numbers_that_nobody_has_reason_to_call(number: str, said: str) -> None:
    assert refusal(Tolls(("US", "GB", "DE")), number) == said


def test_a_kind_may_be_allowed() -> None:
    allowed = Tolls(("US", "DE"), ("premium", "short"))
    assert refusal(allowed, "+19005551234") == ""
    assert refusal(allowed, "+4911833") == ""
    assert refusal(allowed, "+15005550006") == "personal"
