import csv
import string
import unicodedata
from pathlib import Path

import pytest

from calque.errors import ConfigError
from calque.evaluate import pack as module
from calque.evaluate.documents import unspaced
from calque.evaluate.pack import WORDS, LanguagePack
from calque.language import Language

with Path(module.__file__).with_name("packs.tsv").open(encoding="utf-8", newline="") as stream:
    ROWS = {row["code"]: row for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)}

MULTILOKO = (
    "ar bn yue cs nl en fa fr de he hi id it ja km ko ms mr pl pt ro ru zh zh-Hant es sv tl th tr ur vi"
)
OTHERS = "te sw et ht qu ta el eu bg ny rw rn yo zu xh sn am ha ig"


@pytest.mark.parametrize("code", ROWS)
def test_a_row_is_complete_in_its_facts(code):
    row = ROWS[code]
    assert Language.parse(code).code == code
    assert [unicodedata.decimal(digit) for digit in row["digits"]] == list(range(10))
    starts = {ord(digit) - value for value, digit in enumerate(row["digits"])}
    assert len(starts) == 1  # ten digits of one script
    assert row["decimal"] in {".", ",", "٫"}
    assert row["groups"] and row["decimal"] not in row["groups"]
    assert row["unspaced"] == ("yes" if unspaced(code) else "no")
    script = code.partition("_")[2]
    assert row["direction"] == ("rtl" if script in {"Arab", "Hebr"} else "ltr")
    assert row["articles"] == row["articles"].lower()
    assert all(unicodedata.is_normalized("NFC", cell) for cell in row.values())


@pytest.mark.parametrize("code", ROWS)
def test_the_words_of_a_row_have_the_places_that_prompts_fill(code):
    pack = LanguagePack.of(code)
    for word in WORDS:
        names = {name for _, name, _, _ in string.Formatter().parse(pack[word]) if name}
        assert names == {"translate": {"language"}, "produce": {"kind"}}.get(word, set()), word
    assert pack["question"] and pack["answer"] and len(pack.letters) >= 4
    assert pack.borrowed == tuple(word for word in WORDS if not ROWS[code][word])


@pytest.mark.parametrize("name", [*MULTILOKO.split(), *OTHERS.split()])
def test_the_languages_of_the_benchmarks_have_rows_of_their_own(name):
    pack = LanguagePack.of(name)
    assert pack.code in ROWS
    assert not {"question", "answer"} & set(pack.borrowed)


def test_a_language_in_two_scripts_keeps_its_own_row():
    assert LanguagePack.of("zh")["question"] != LanguagePack.of("zh-Hant")["question"]


def test_a_missing_word_is_the_english_one_and_is_said():
    pack = LanguagePack.of("rn")
    assert "translate" in pack.borrowed and pack["translate"] == LanguagePack.of("en")["translate"]
    assert pack.label() == f"run_Latn+{len(pack.borrowed)} English words"
    nothing = LanguagePack.of("bar")
    assert nothing.borrowed == WORDS and nothing.code == "bar_Latn" and nothing.articles == ()


def test_an_unknown_language_is_refused():
    with pytest.raises(ConfigError, match="unknown language 'Klingonese'"):
        LanguagePack.of("Klingonese")
