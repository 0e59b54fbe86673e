import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source

B = benchmark("mgsm")


def item(language="eng_Latn", gold="18"):
    return B.item({"question": "How many?", "answer_number": gold, "where": "m.tsv:7"}, language, "test")


def score(text, language="eng_Latn", gold="18"):
    return B.score(item(language, gold), Answer(text), LanguagePack.of(language))


@pytest.mark.parametrize(
    ("text", "language", "gold", "ours", "published"),
    [
        ("The answer is 18.", "eng_Latn", "18", 1, 1),
        ("১৮", "ben_Beng", "18", 1, 0),
        ("๑๘ ดอลลาร์", "tha_Thai", "18", 1, 0),
        ("సమాధానం ౧౮", "tel_Telu", "18", 1, 0),
        ("5.600", "deu_Latn", "5,600", 1, 1),
        ("5 600 €", "fra_Latn", "5,600", 1, 0),
        ("৫,৬০০", "ben_Beng", "5,600", 1, 0),
        ("18.00", "eng_Latn", "18", 1, 0),
        ("1.8", "eng_Latn", "18", 0, 1),  # the rule drops the decimal mark
        ("The answer is 18, after 3 days.", "eng_Latn", "18", 1, 0),
        ("17", "eng_Latn", "18", 0, 0),
        ("", "eng_Latn", "18", 0, 0),
    ],
)
def test_numbers_are_scored_as_meant_and_as_published(text, language, gold, ours, published):
    found = score(text, language, gold)
    assert (found["correct"], found["correct/published"]) == (ours, published)


def test_an_answer_without_a_number_is_unparsed():
    assert score("I do not know")["unparsed"] == 1.0 and score("18")["unparsed"] == 0.0


def test_problems_are_named_by_their_line_in_every_language(tmp_path):
    for short, text in (
        ("en", "Two and two?\t4\nA thousand?\t1,000\n"),
        ("th", "สองบวกสอง\t4\nหนึ่งพัน\t1,000\n"),
    ):
        (tmp_path / f"mgsm_{short}.tsv").write_text(text, encoding="utf-8")
    source = Source.open(tmp_path)
    english, thai = (source.items(B, code, "test") for code in ("eng_Latn", "tha_Thai"))
    assert [i.id for i in english] == [i.id for i in thai] == ["1", "2"]
    assert english[1].gold == 1000
    assert B.prompt(thai[1], LanguagePack.of("th"), thai[:1]).text.startswith(
        "คำถาม: สองบวกสอง\nคำตอบ: 4\n\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Two and two?\tfour\n", r"mgsm_en\.tsv:1: the answer is 'four', expected a number"),
        ("Two and two?\n", r"mgsm_en\.tsv:1: 1 columns, expected 2"),
        ("\t4\n", r"mgsm_en\.tsv:1: 'question' is blank"),
        ("", "no record in it"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, said):
    (tmp_path / "mgsm_en.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        Source.open(tmp_path).items(B, "eng_Latn", "test")


def test_a_language_or_part_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no mgsm_ny\.tsv"):
        Source.open(tmp_path).items(B, "nya_Latn", "test")
    with pytest.raises(DataError, match="one part, test; asked for 'train'"):
        Source.open(tmp_path).items(B, "eng_Latn", "train")
