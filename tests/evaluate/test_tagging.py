"""Files of tagged words, and answers that give tags in one form or another."""

import pytest

from calque.errors import DataError
from calque.evaluate import tagging
from calque.evaluate.benchmark import Answer, Item

ITEM = Item("1", "eng_Latn", {"words": ["The", "dog", "runs", "."]}, ())
NAMES = ("DET", "NOUN", "VERB", "PUNCT")
CONLLU = """# sent_id = 1
# text = It's here.
1-2\tIt's\t_\t_\t_\t_\t_\t_\t_\t_
1\tIt\tit\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2\t's\tbe\tAUX\tVBZ\t_\t0\troot\t_\t_
2.1\tbeing\tbe\tVERB\t_\t_\t_\t_\t_\t_
3\there\there\tADV\tRB\t_\t2\tadvmod\t_\t_

# sent_id = 2
1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_
"""


def read(path, language="nya_Latn", split="test"):
    return [(row["words"], row["tags"]) for row in tagging.rows(path, language, split)]


def test_columns_and_conllu_are_found_in_folders(tmp_path):
    (tmp_path / "nya").mkdir()
    (tmp_path / "nya" / "test.txt").write_text("Mwana NOUN\nakuona VERB\n\n\nGalu NOUN\n")
    (tmp_path / "nya" / "dev.txt").write_text("-DOCSTART- -X- O\n\nAnna\tNNP\tB-PER\n")
    (tmp_path / "en_x-ud-test.conllu").write_text(CONLLU)
    assert read(tmp_path) == [(["Mwana", "akuona"], ["NOUN", "VERB"]), (["Galu"], ["NOUN"])]
    assert read(tmp_path, split="validation") == [(["Anna"], ["B-PER"])]
    english = list(tagging.rows(tmp_path, "eng_Latn", "test"))
    assert [row["words"] for row in english] == [["It", "'s", "here"], ["Yes"]]
    assert english[0]["tags"] == ["PRON", "AUX", "ADV"]
    assert english[1]["where"].endswith("en_x-ud-test.conllu:10") and english[1]["id"] == "2"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "Mwana NOUN\nakuona\n", r"a\.txt:2: one column, 'akuona'"),
        ("a.txt", "", "an empty file|no sentence"),
        ("a.txt", "\n\n\n", "no sentence in it"),
        ("a.conllu", "# only a comment\n", "no sentence in it"),
        ("a.conllu", "1\tIt\tit\tPRON\n", r"a\.conllu:1: 4 columns; CoNLL-U has 10"),
        ("a.jsonl", '{"words": ["a"]\n', r"a\.jsonl:1: not valid JSON"),
    ],
)
def test_files_that_are_none(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        read(tmp_path / name)


def test_no_file_of_the_language(tmp_path):
    (tmp_path / "kin").mkdir()
    (tmp_path / "kin" / "test.txt").write_text("a X\n")
    (tmp_path / "en_a-ud-test.conllu").write_text(CONLLU)
    (tmp_path / "en_b-ud-test.conllu").write_text(CONLLU)
    with pytest.raises(DataError, match=r"no nya/test\.txt, test\.txt or ny_"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"en_a-ud-test\.conllu and en_b-ud-test\.conllu both fit"):
        read(tmp_path, "eng_Latn")
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "none")
    (tmp_path / "swa").mkdir()
    (tmp_path / "swa" / "test.txt").write_text("b Y\n")
    assert read(tmp_path, "swh_Latn") == [(["b"], ["Y"])]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"words": ["a", "b"], "tags": ["X"]}, "f:3: 1 tags for 2 words"),
        ({"words": [], "tags": []}, "'words' is"),
        ({"words": "a b", "tags": ["X"]}, "expected a list of texts"),
        ({"words": ["a"], "tags": [1]}, "'tags' is"),
        ({"words": ["a"]}, "'tags' is None"),
    ],
)
def test_records_that_are_none(row, says):
    with pytest.raises(DataError, match=says):
        tagging.words_and_tags({**row, "where": "f:3"})


@pytest.mark.parametrize(
    ("text", "tags", "unparsed"),
    [
        ("The\tDET\ndog\tNOUN\nruns\tVERB\n.\tPUNCT", "DET NOUN VERB PUNCT", 0),
        ("The DET\ndog: noun\nruns | VERB\n. / PUNCT", "DET NOUN VERB PUNCT", 0),
        ("The/DET\ndog/NOUN\nruns/VERB\n./PUNCT", "DET NOUN VERB PUNCT", 0),
        ("DET NOUN VERB PUNCT", "DET NOUN VERB PUNCT", 0),
        ('["DET", "NOUN", "VERB", "PUNCT"]', "DET NOUN VERB PUNCT", 0),
        ('Here: [["The", "DET"], ["runs", "VERB"]]', "DET ? VERB ?", 2),
        ('{"The": "DET", "dog": "NOUN"}', "DET NOUN ? ?", 2),
        ("The\tDET\nruns\tVERB", "DET ? VERB ?", 2),
        ("The\tDET\ndog\tANIMAL\nruns\tVERB", "DET ? VERB ?", 2),
        ("cat\tNOUN\nThe\tDET", "DET ? ? ?", 3),
        ("DET\nNOUN\nVERB\nPUNCT\nPUNCT\nPUNCT", "DET NOUN VERB PUNCT", 0),
        ("", "? ? ? ?", 4),
        ("I do not know.", "? ? ? ?", 4),
        ("[1, 2", "? ? ? ?", 4),
    ],
)
def test_answers_in_words(text, tags, unparsed):
    assert tagging.tags_of(ITEM, Answer(text), NAMES, "?") == (tags.split(), unparsed)


def test_answers_of_a_head():
    assert tagging.tags_of(ITEM, Answer("", value=list("ABCD")), NAMES, "?") == (list("ABCD"), 0)
    with pytest.raises(DataError, match="item 1: 3 tags for 4 words"):
        tagging.tags_of(ITEM, Answer("", value=list("ABC")), NAMES, "?")
    written = Answer("DET NOUN VERB PUNCT", value={"truncated": False})
    assert tagging.tags_of(ITEM, written, NAMES, "?").unparsed == 0
