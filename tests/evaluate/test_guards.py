import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.data.identify import looks_like
from calque.errors import ConfigError
from calque.evaluate.benchmark import Answer, Item
from calque.evaluate.documents import repetition
from calque.evaluate.guards import copied, guards
from calque.evaluate.pack import LanguagePack
from calque.language import Language

EN = LanguagePack.of("en")
GERMAN = "Die Kinder gehen am Morgen durch den Wald zur Schule."
ENGLISH = "The children walk through the forest to school in the morning."
CHICHEWA = "Ana amayenda m'nkhalango kupita kusukulu m'mawa uliwonse."


def checked(text, language="deu_Latn", **more):
    return guards(Item("1", language, more.pop("fields", {}), "x"), Answer(text), EN, **more)


@pytest.mark.parametrize(
    ("text", "language", "right"),
    [
        (GERMAN, "deu_Latn", True),
        (ENGLISH, "deu_Latn", False),
        (CHICHEWA, "nya_Latn", True),  # a language that the identifier does not know
        (ENGLISH, "nya_Latn", False),
        ("孩子们早上穿过森林去学校。", "zho_Hans", True),
        ("孩子们早上穿过森林去学校。", "tha_Thai", False),
        ("Berlin", "nya_Latn", None),
        ("1990", "deu_Latn", None),
        ("", "deu_Latn", None),
    ],
)
def test_a_sentence_is_taken_for_its_language_or_not(text, language, right):
    assert looks_like(text, Language(language)) is right


def test_an_answer_in_another_language_is_off_target():
    assert checked(ENGLISH)["off_target"] == 1.0 and checked(GERMAN)["off_target"] == 0.0
    short = checked("Berlin")
    assert short["identified"] == 0.0 and short["off_target"] == 0.0
    assert checked(ENGLISH, fields={"answer_language": "eng_Latn"})["off_target"] == 0.0


def test_a_copy_of_the_source_is_seen():
    whole = checked(f"  {ENGLISH.upper()} ", fields={"source": ENGLISH})
    assert whole["copied"] == 1.0 and whole["copied_exact"] == 1.0
    part = checked(GERMAN, source=ENGLISH)
    assert 0.0 <= part["copied"] < 0.3 and part["copied_exact"] == 0.0
    assert "copied" not in checked(GERMAN)
    assert copied("abc", "abc") == 1.0 and copied("", "abc") == 0.0


def test_nothing_and_the_same_again_are_seen():
    assert checked(" \n")["empty"] == 1.0 and checked(GERMAN)["empty"] == 0.0
    assert checked("nein nein nein nein nein")["repeated"] == pytest.approx(0.75)
    assert checked("いいえいいえいいえ", "jpn_Jpan")["repeated"] > 0.5
    assert repetition([]) == repetition(["one"]) == 0.0


def test_truncation_is_told_only_where_it_is_known():
    assert "truncated" not in checked(GERMAN)
    assert checked(GERMAN, truncated=True)["truncated"] == 1.0
    cut = guards(Item("1", "deu_Latn", {}, "x"), Answer(GERMAN, value={"truncated": True}), EN)
    assert cut["truncated"] == 1.0


def test_an_unknown_language_is_refused():
    with pytest.raises(ConfigError, match="unknown language"):
        checked(GERMAN, "xxx_Latn")


@given(st.text(max_size=60), st.text(max_size=60))
def test_every_guard_lies_between_0_and_1(source, text):
    assert all(0.0 <= value <= 1.0 for value in checked(text, source=source).values())
