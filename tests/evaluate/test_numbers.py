import unicodedata
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.evaluate.numbers import ascii_digits, number, plain, readings
from calque.evaluate.pack import LanguagePack


@pytest.mark.parametrize(
    ("text", "language", "value"),
    [
        ("উত্তর হল ৫,৬০০", "bn", "5600"),
        ("١٬٢٣٤٫٥", "ar", "2469/2"),
        ("۳٫۱۴", "fa", "157/50"),
        ("คำตอบคือ ๑๘", "th", "18"),
        ("３０円", "ja", "30"),
        ("6½", "en", "13/2"),
        ("2 3/4", "de", "11/4"),
        ("-1/2", "en", "-1/2"),
        ("−7", "en", "-7"),
        ("a loss of -$5", "en", "-5"),
        (".5", "en", "1/2"),
        ("50%", "en", "50"),
        ("It is 18.", "en", "18"),
        ("pages 5-7", "en", "7"),
        ("25 m²", "en", "25"),
        ("12.05.2020", "de", "2020"),
        ("12/05/2020", "en", "2020"),
        ("5.600", "de", "5600"),
        ("5,600", "de", "28/5"),
        ("5,600", "en", "5600"),
        ("3.14", "de", "157/50"),
        ("80\u202f000 €", "fr", "80000"),
        ("12 345", "en", "345"),
        ("1.234.567,89", "pt", "123456789/100"),
        ("1,00,000", "hi", "100000"),
        ("0,600", "de", "3/5"),
        ("1/0", "en", "0"),
    ],
)
def test_a_number_is_read_as_its_language_writes_it(text, language, value):
    assert number(text, LanguagePack.of(language)) == Fraction(value)


def test_without_a_number_there_is_none():
    assert number("bez odpovědi", LanguagePack.of("cs")) is None
    assert readings("", LanguagePack.of("en"), "first") == ()


def test_the_first_number_and_the_other_reading_can_be_asked_for():
    german = LanguagePack.of("de")
    assert number("3 von 10", german, "first") == 3
    assert readings("5,600", german) == (Fraction(28, 5), 5600)
    assert plain("1.234,50", german) == "1234.50" and plain("12.05.2020", german) == "12 05 2020"


@given(st.integers(0, 10**9), st.sampled_from(["bn", "te", "th", "ar", "hi", "fa", "my", "de", "fr", "en"]))
def test_what_a_language_writes_is_read_back(value, language):
    pack = LanguagePack.of(language)
    for mark in ("", pack.groups[0]):
        written = f"{value:,}".replace(",", mark).translate(str.maketrans("0123456789", pack.digits))
        assert number(f"x {written} y", pack) == value
    decimal = f"{value}{pack.decimal}25".translate(str.maketrans("0123456789", pack.digits))
    assert number(decimal, pack) == value + Fraction(1, 4)


@given(st.characters(categories=["Nd"]))
def test_every_decimal_digit_of_unicode_is_one(ch):
    assert ascii_digits(ch) == str(unicodedata.decimal(ch))
