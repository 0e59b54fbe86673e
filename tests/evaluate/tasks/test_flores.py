import numpy as np
import pytest

from calque.errors import ConfigError, DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.guards import guards
from calque.evaluate.measures import MEASURES
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source

B = benchmark("flores")
NYA = LanguagePack.of("ny")
ENGLISH = "The rain came late this year.\nThe lake is very deep.\n"
CHICHEWA = "Mvula inabwera mochedwa chaka chino.\nNyanjayo ndi yakuya kwambiri.\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "devtest").mkdir()
    for code, text in (("eng_Latn", ENGLISH), ("nya_Latn", CHICHEWA)):
        (tmp_path / f"devtest/{code}.devtest").write_text(text, encoding="utf-8")
    (tmp_path / "metadata_devtest.tsv").write_text("URL\tdomain\nu1\tnews\nu2\tnews\n", encoding="utf-8")
    return tmp_path


def test_either_side_may_be_translated_into(folder):
    source = Source.open(folder)
    into = source.items(B, "nya_Latn", "test")
    back = source.items(B, "eng_Latn", "devtest:ny")
    assert into[0].fields["source"] == back[0].gold[0] == "The rain came late this year."
    assert [i.group for i in into] == ["u1", "u2"] and [i.id for i in into] == ["1", "2"]
    text = B.prompt(into[1], NYA, into[:1]).text
    assert text.endswith("The lake is very deep.\nKumasulira (Chichewa):")
    assert text.startswith("The rain came late this year.\nKumasulira (Chichewa): Mvula inabwera")


def test_the_measures_of_a_right_translation_are_perfect_and_of_none_nothing(folder):
    items = Source.open(folder).items(B, "nya_Latn", "test")
    for answers, wanted in ((lambda i: i.gold[0], 100.0), (lambda i: "", 0.0)):
        counts = [B.score(item, Answer(answers(item)), NYA) for item in items]
        for name in ("bleu", "chrf", "chrf++"):
            needs = MEASURES[name].needs
            sums = [sum(c[n] for c in counts) for n in needs]
            assert float(MEASURES[name].reduce(np.array(sums), needs)) == pytest.approx(wanted)


def test_the_source_said_back_is_a_copy_off_target(folder):
    item = Source.open(folder).items(B, "nya_Latn", "test")[0]
    found = guards(item, Answer(item.fields["source"]), NYA)
    assert found["copied_exact"] == 1.0 and found["off_target"] == 1.0


def test_languages_without_blanks_are_cut_into_characters():
    from calque.evaluate.translating import tokenizer

    wanted = {"zh": "zh", "yue": "zh", "th": "char", "ja": "char", "ny": "13a"}
    assert {code: tokenizer(LanguagePack.of(code)) for code in wanted} == wanted


def test_files_that_do_not_go_in_pairs_are_refused(folder):
    source = Source.open(folder)
    with pytest.raises(ConfigError, match="translation from eng_Latn into itself"):
        source.items(B, "eng_Latn", "test")
    with pytest.raises(DataError, match=r"no tha_Thai\.devtest"):
        source.items(B, "tha_Thai", "test")
    with pytest.raises(DataError, match="parts dev and devtest; asked for 'train'"):
        source.items(B, "nya_Latn", "train")
    path = folder / "devtest/nya_Latn.devtest"
    for text, said in (
        ("Mvula.\n", "has 2 lines and .*nya_Latn.devtest 1; they must go in pairs"),
        ("Mvula.\n\n", r"nya_Latn\.devtest:2: a blank line"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            source.items(B, "nya_Latn", "test")
    path.write_text(CHICHEWA, encoding="utf-8")
    (folder / "metadata_devtest.tsv").write_text("URL\nu1\n", encoding="utf-8")
    with pytest.raises(DataError, match="has 2 lines, its list of documents 1"):
        source.items(B, "nya_Latn", "test")
