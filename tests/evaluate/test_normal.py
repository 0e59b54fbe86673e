import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.errors import MissingExtra
from calque.evaluate import normal
from calque.evaluate.normal import exact, intended, published, published_squad, short_answer, token_f1, tokens
from calque.evaluate.pack import LanguagePack

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/25-multiloko.json").read_text(encoding="utf-8"))
CASES = GOLDEN["cases"]
EN = LanguagePack.of("en")


@pytest.mark.parametrize(
    "case", [c for c in CASES if c["kind"] == "normalise"], ids=lambda c: repr(c["text"])
)
def test_the_published_form_is_that_of_the_authors(case):
    assert published(case["text"]) == case["normalised"]


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "item"])
def test_the_published_scores_are_those_of_the_authors(case):
    found = short_answer(case["prediction"], case["targets"], EN)
    assert found["em/published"] == case["em"]
    assert found["f1/published"] == pytest.approx(case["f1"], abs=1e-9)
    assert found["edit_similarity"] == pytest.approx(case["edit_similarity"], abs=1e-9)
    assert 100 * found["chrf"] == pytest.approx(case["chrf"], abs=1e-6)


def test_squad_s_form_keeps_the_marks_of_other_scripts():
    assert published_squad("«Les» U.S.A.") == "«les» usa"
    assert published_squad("「東京」") == "「東京」" and published("「東京」") == "東京"


@pytest.mark.parametrize(
    ("text", "language", "form"),
    [
        ("U.S.A.", "en", "usa"),
        ("The Beatles", "en", "beatles"),
        ("the", "en", "the"),
        ("A", "en", "a"),
        ("a casa", "pt", "casa"),
        ("a casa", "it", "a casa"),
        ("l'Été", "fr", "été"),
        ("l’été", "fr", "été"),
        ("un", "fr", "un"),
        ("Ο Παρθενώνας", "el", "παρθενώνασ"),
        ("الكتاب", "ar", "كتاب"),
        ("قطب\u200cزاده", "fa", "قطب زاده"),
        ("সর্দা\u200cর", "bn", "সর্দার"),
        ("১৯৬৯", "bn", "1969"),
        ("3,14", "de", "3.14"),
        ("1.234", "de", "1234"),
        ("-5", "en", "-5"),
        ("12.05.2020", "de", "12 05 2020"),
        ("İSTANBUL", "tr", "istanbul"),
        ("ISPARTA", "tr", "ısparta"),
        ("Ｔｏｋｙｏ", "ja", "tokyo"),
        ("हिन्दी।", "hi", "हिन्दी"),
        ("؟سوال", "fa", "سوال"),
        ("!!!", "en", "!!!"),
        ("  ", "en", ""),
    ],
)
def test_the_intended_form_follows_the_language(text, language, form):
    assert intended(text, LanguagePack.of(language)) == form


@pytest.mark.parametrize(
    ("answer", "gold", "language", "same"),
    [
        ("12 km.", "12km", "en", 1.0),
        ("3.14", "314", "en", 0.0),
        ("3.14", "3,14", "de", 1.0),
        ("1 2", "12", "en", 0.0),
        ("", "A", "en", 0.0),
        ("the", "A", "en", 0.0),
        ("the cat", "cat", "en", 1.0),
        ("the cat", "cat", "zh", 0.0),
        ("๑๘", "18", "th", 1.0),
        ("東京", "「東京」", "ja", 1.0),
        ("e-mail", "email", "en", 1.0),
        ("5", "-5", "en", 0.0),
    ],
)
def test_exact_match_as_a_reader_would_have_it(answer, gold, language, same):
    assert exact(answer, [gold], LanguagePack.of(language)) == same


def test_an_answer_that_the_published_form_empties_matches_only_itself():
    """Published: a gold answer "A" becomes nothing and an empty answer is right."""
    found = short_answer("", ["A"], EN)
    assert (found["em/published"], found["em"], found["f1"]) == (1.0, 0.0, 0.0)
    assert short_answer("A", ["A"], EN)["em"] == 1.0


def test_tokens_are_characters_where_there_are_no_blanks():
    assert tokens("東京 2020年 Tokyo", LanguagePack.of("ja")) == ["東", "京", "2020", "年", "tokyo"]
    assert tokens("နေပြည်တော်", LanguagePack.of("my")) == ["နေ", "ပြ", "ည်", "တေ", "ာ်"]
    assert tokens("한국 사람", LanguagePack.of("ko")) == ["한국", "사람"]
    assert short_answer("東京都", ["東京"], LanguagePack.of("ja"))["f1"] == pytest.approx(0.8)
    assert short_answer("東京都", ["東京"], LanguagePack.of("ja"))["f1/published"] == 0.0
    assert token_f1([], [[]]) == 0.0


LANGUAGES = st.sampled_from(["en", "fr", "de", "ar", "he", "bn", "th", "ja", "tr", "fa", "el", "zh"])


@given(st.text(max_size=30), LANGUAGES)
def test_an_answer_matches_itself_and_its_form_is_stable(text, language):
    pack = LanguagePack.of(language)
    form = intended(text, pack)
    assert bool(form) == bool(text.split()) or not form.strip()
    if exact(text, [text], pack) == 1.0:
        found = short_answer(text, [text, "other"], pack)
        assert found["em"] == 1.0 and found["f1"] == pytest.approx(1.0)


@given(st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=3), st.text(max_size=12))
def test_one_more_accepted_answer_never_lowers_a_match(answer, golds, more):
    before, after = short_answer(answer, golds, EN), short_answer(answer, [*golds, more], EN)
    for name in ("em", "f1", "em/published", "f1/published", "edit_similarity"):
        assert after[name] >= before[name]


@pytest.mark.slow  # uroman reads its tables for seconds
def test_romanised_answers_match_across_scripts():
    pytest.importorskip("uroman")
    russian = LanguagePack.of("ru")
    assert exact("Moskva", ["Москва"], russian) == 0.0
    assert normal.romanized_exact("Moskva", ["Москва"], russian) == 1.0
    assert normal.romanized_exact("", ["Москва"], russian) == 0.0


def test_romanising_without_uroman_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uroman", None)
    normal._uroman.cache_clear()
    with pytest.raises(MissingExtra, match=r"calque\[romanize\]"):
        normal.romanize("Москва", "rus")
    normal._uroman.cache_clear()
