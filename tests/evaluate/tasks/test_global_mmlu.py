import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source

B = benchmark("global_mmlu")
HEADER = "sample_id,subject,question,option_a,option_b,option_c,option_d,answer,cultural_sensitivity_label\n"
LINE = 'x/1,law,"Swali, gani?",a,b,c,d,{},CS\n'


def items(folder, text, language="swh_Latn", split="test"):
    (folder / "sw_test.csv").write_text(text, encoding="utf-8")
    return Source.open(folder).items(B, language, split)


def test_questions_marked_as_cultural_are_counted_apart(tmp_path):
    (item,) = items(tmp_path, HEADER + LINE.format("C"))
    found = B.score(item, Answer("", choice=2), LanguagePack.of("sw"))
    assert item.gold == 2 and item.fields["question"] == "Swali, gani?"
    assert (found["correct"], found["sensitive"], found["sensitive_correct"], found["agnostic"]) == (
        1,
        1,
        1,
        0,
    )
    assert B.prompt(item, LanguagePack.of("sw"), ()).text.startswith("Chagua jibu sahihi.\n\nSwali: ")


def test_42_languages_go_by_their_published_names():
    assert len(set(B.languages)) == 42
    assert B.config("fil_Latn") == "fil" and B.config("zho_Hans") == "zh" and B.config("nya_Latn") == "ny"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + LINE.format("E"), r"sw_test\.csv:2: 'answer' is 'E', expected one of A, B, C, D"),
        (HEADER + LINE.format("A") + LINE.format("B"), "two items are named 'x/1'"),
        (HEADER, "no record in it"),
        (LINE.format("A"), "no record in it"),  # a file without its header
        ("question,answer\nx,A\n", "no 'option_a'"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        items(tmp_path, text)


def test_a_language_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no th/\*test\*\.parquet or th_test\.csv"):
        items(tmp_path, HEADER, language="tha_Thai")
