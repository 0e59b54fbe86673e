import pytest

from calque.data.columns import sentences, spans
from calque.data.corpus import Corpus
from calque.data.example import Span
from calque.errors import DataError

TWO = "-DOCSTART- O\n\nAnna B-PER\nBanda I-PER\nakuona O\nLilongwe B-LOC\n\n\nMvula O\n"
TREE = (
    "# text = Zapita.\n1-2\tZapita\t_\t_\t_\t_\t_\t_\t_\t_\n1\tZa\tza\tPRON\t_\t_\t_\t_\t_\t_\n"
    "2\tpita\tpita\tVERB\t_\t_\t_\t_\t_\t_\n2.1\tx\tx\tX\t_\t_\t_\t_\t_\t_\n"
)


def read(text, universal=False):
    return list(sentences("f", enumerate(text.split("\n"), 1), universal=universal))


def test_words_and_tags_of_each_sentence_with_its_line():
    assert read(TWO) == [
        (3, ["Anna", "Banda", "akuona", "Lilongwe"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (9, ["Mvula"], ["O"]),
    ]


def test_conllu_gives_universal_tags_without_ranges_and_empty_words():
    assert read(TREE, universal=True) == [(3, ["Za", "pita"], ["PRON", "VERB"])]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O"], [(0, 5, "PER")]),
        (["B-PER", "B-PER", "O"], [(0, 2, "PER"), (3, 5, "PER")]),
        (["O", "I-PER", "E-PER"], [(3, 8, "PER")]),
        (["I-PER", "I-LOC", "S-LOC"], [(0, 2, "PER"), (3, 5, "LOC"), (6, 8, "LOC")]),
        (["NOUN", "NOUN", "VERB"], [(0, 2, "NOUN"), (3, 5, "NOUN"), (6, 8, "VERB")]),
        (["O", "O", "O"], []),
    ],
)
def test_tags_are_spans_of_the_joined_words(tags, expected):
    assert spans(["ab", "cd", "ef"], tags) == tuple(Span(*one) for one in expected)


def test_a_file_of_tagged_words_is_a_corpus(tmp_path):
    (tmp_path / "a.conll").write_text(TWO)
    first, second = Corpus.open(tmp_path / "a.conll", language="nya_Latn")
    assert first.sides == {"nya_Latn": "Anna Banda akuona Lilongwe"}
    assert first.spans == {"nya_Latn": (Span(0, 10, "PER"), Span(18, 26, "LOC"))}
    assert second.sides == {"nya_Latn": "Mvula"}
    (tmp_path / "b.conllu").write_text(f"{TREE}\n1\tInde\tinde\tINTJ\t_\t_\t_\t_\t_\t_\n")
    only, _ = Corpus.open(tmp_path / "b.conllu", language="nya_Latn")
    assert only.spans["nya_Latn"] == (Span(0, 2, "PRON"), Span(3, 7, "VERB"))


@pytest.mark.parametrize(("ending", "line"), [("conll", "Anna"), ("conllu", "1\tAnna\tAnna\tNOUN")])
def test_a_line_with_other_columns_names_its_place(tmp_path, ending, line):
    (tmp_path / f"a.{ending}").write_text(f"{line}\n")
    with pytest.raises(DataError, match=rf"a\.{ending}:1: (one column|4 columns)"):
        Corpus.open(tmp_path / f"a.{ending}", language="nya_Latn")
