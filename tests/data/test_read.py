import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from calque.data.corpus import Corpus
from calque.errors import DataError, MissingExtra

NYA = ["Pachiyambi panali Mawu.", "Mawu anali ndi Mulungu.", "Iye anali pachiyambi."]
ENG = ["In the beginning was the Word.", "The Word was with God.", "He was in the beginning."]
TMX = """<?xml version="1.0"?><tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="en-GB"><seg>One <bpt i="1">b</bpt>day</seg></tuv>
<tuv xml:lang="ny"><seg>Tsiku limodzi</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Two</seg></tuv><tuv xml:lang="fr"><seg>Deux</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Three</seg></tuv><tuv xml:lang="ny"><seg>Zitatu</seg></tuv></tu></body></tmx>"""


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pairs(found):
    return list(found.pairs("en", "ny"))


@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
def test_plain_text(tmp_path, pack):
    data = "\n".join(NYA).encode()
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[pack](data)
    found = Corpus.open(write(tmp_path / f"a.txt{pack}", data), language="nya")
    assert list(found.texts()) == NYA
    assert list(found.texts()) == NYA, "a second reading gives the same"
    assert [example.id for example in found] == [f"a.txt{pack}:{i}" for i in (1, 2, 3)]
    assert found.notes["kept"] == len(found) == 3


def test_zstd_of_several_frames(tmp_path):
    data = b"".join(zstandard.compress(f"{line}\n".encode()) for line in NYA)
    assert list(Corpus.open(write(tmp_path / "a.txt.zst", data), language="nya").texts()) == NYA


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "en\tny\nhello\tmoni\nthank you\tzikomo\n"),
        ("b.tsv", "hello\tmoni\nthank you\tzikomo"),
        ("c.tsv", "source\ttarget\nhello\tmoni\nthank you\tzikomo\n"),
        ("d.tsv", "Chichewa\tEnglish\nmoni\thello\nzikomo\tthank you\n"),
        ("e.csv", 'document,eng_Latn,nya_Latn\n1,"hello",moni\n1,"thank you",zikomo\n'),
        ("f.csv", 'source,target,document\r\nhello,moni,x\r\nthank you,"zikomo",x\r\n'),
        ("g.jsonl", '{"en": "hello", "ny": "moni", "x": 1}\n\n{"en": "thank you", "ny": "zikomo"}\n'),
        (
            "h.jsonl",
            '{"translation": {"en": "hello", "ny": "moni"}}\n{"source": "thank you", "target": "zikomo"}',
        ),
        ("i.jsonl", '{"src": "hello", "tgt": "moni"}\n{"sides": {"eng_Latn": "thank you", "nya": "zikomo"}}'),
    ],
)
def test_pairs_by_column_names(tmp_path, name, text):
    found = Corpus.open(write(tmp_path / name, text), language="en", to="ny")
    assert pairs(found) == [("hello", "moni"), ("thank you", "zikomo")]
    assert found.languages == ("eng_Latn", "nya_Latn")


def test_one_column_of_several(tmp_path):
    file = write(tmp_path / "a.tsv", "en\tny\nhello\tmoni\nyes\tinde\n")
    assert list(Corpus.open(file, language="ny").texts()) == ["moni", "inde"]


def test_one_column(tmp_path):
    file = write(tmp_path / "a.tsv", "Tonga\nmoni\ninde\n")
    assert list(Corpus.open(file, language="ny").texts()) == ["Tonga", "moni", "inde"]
    file = write(tmp_path / "b.csv", 'text\n"a, ""b""\nc"\nd\n')
    assert list(Corpus.open(file, language="ny").texts()) == ['a, "b"\nc', "d"]
    file = write(tmp_path / "c.jsonl", '"moni"\n{"text": "inde"}\n')
    assert list(Corpus.open(file, language="ny").texts()) == ["moni", "inde"]


def test_quotes_in_tsv_are_characters(tmp_path):
    file = write(tmp_path / "a.tsv", 'he said "yes\tanati "inde\nno\tayi\n')
    assert pairs(Corpus.open(file, language="en", to="ny"))[0] == ('he said "yes', 'anati "inde')


def test_parquet(tmp_path):
    rows = pyarrow.table({"text": ["a", "b", None], "doc": ["x", "y", "y"]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    found = Corpus.open(tmp_path / "a.parquet", language="nya")
    assert list(found.texts()) == ["a", "b"]
    assert found.groups() == {"x": 1, "y": 1}
    assert found.notes["empty"] == 1


def test_tmx(tmp_path):
    found = Corpus.open(write(tmp_path / "a.tmx", TMX), language="en", to="ny")
    assert pairs(found) == [("One bday", "Tsiku limodzi"), ("Three", "Zitatu")]
    assert found.notes["one_sided"] == 1


def test_moses_pair(tmp_path):
    write(tmp_path / "a.en", "\n".join([*ENG, ""]))
    write(tmp_path / "a.ny", "\n".join(NYA))
    found = Corpus.open(f"{tmp_path}/a.en,{tmp_path}/a.ny", language="en", to="ny")
    assert pairs(found) == list(zip(ENG, NYA, strict=True))


def test_folder_of_documents(tmp_path, capsys):
    write(tmp_path / "b.txt", "c\nd")
    (tmp_path / "sub").mkdir()
    write(
        tmp_path / "sub" / "a.jsonl.gz",
        gzip.compress(b'{"text": "e", "doc": "1"}\n{"text": "f", "doc": "2"}'),
    )
    write(tmp_path / "notes.docx", "x")
    write(tmp_path / ".hidden.txt", "x")
    found = Corpus.open(tmp_path, language="nya")
    assert found.groups() == {"b.txt": 2, "sub/a.jsonl.gz/1": 1, "sub/a.jsonl.gz/2": 1}
    assert list(found.documents()) == [
        ("b.txt", "c\nd"),
        ("sub/a.jsonl.gz/1", "e"),
        ("sub/a.jsonl.gz/2", "f"),
    ]
    assert "1 files that are no text left out (notes.docx" in capsys.readouterr().err
    assert found.notes["other_files"] == 1


def test_empty_lines_divide_documents(tmp_path):
    file = write(tmp_path / "a.txt", "a\nb\n\nc\n\n\nd\n")
    found = Corpus.open(file, language="nya")
    assert [text for _, text in found.documents()] == ["a\nb", "c", "d"]
    assert found.notes["empty"] == 3


def test_without_empty_lines_fifty_lines_are_a_document(tmp_path):
    file = write(tmp_path / "a.txt", "\n".join(f"line {i}" for i in range(120)) + "\n\n")
    assert Corpus.open(file, language="nya").groups() == {
        "lines 1-50": 50,
        "lines 51-100": 50,
        "lines 101-150": 20,
    }


def test_normal_form_blanks_and_duplicates(tmp_path, capsys):
    file = write(tmp_path / "a.txt", "\ufeff  e\u0301 \r\n\u00e9\nx\nx\ny")
    found = Corpus.open(file, language="nya")
    assert list(found.texts()) == ["\u00e9", "x", "y"]
    assert (found.notes["duplicates"], found.notes["nfc_changed"]) == (2, 1)
    assert "3 of 5 lines kept; dropped: 2 exact duplicates" in capsys.readouterr().err
    assert list(Corpus.open(file, language="nya", nfc=False, dedupe=False).texts()) == [
        "e\u0301",
        "\u00e9",
        "x",
        "x",
        "y",
    ]


def test_a_small_file_is_read_once(tmp_path):
    file = write(tmp_path / "a.txt", "a\n  b\na\n")
    found = Corpus.open(file, language="nya")
    file.unlink()
    assert list(found.texts()) == ["a", "b"]


def test_a_large_file_is_read_again_and_a_change_is_noticed(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", "a\n  b\na\n")
    held = Corpus.open(file, language="nya")
    monkeypatch.setattr("calque.data.sources._HELD", 3)
    found = Corpus.open(file, language="nya")
    assert list(found) == list(held) == list(found)
    write(file, "a\nb\nc\n")
    with pytest.raises(DataError, match="was changed after it was first read"):
        list(found)


def test_saved_corpus_is_opened(tmp_path):
    file = write(tmp_path / "a.tsv", "hello\tmoni\nyes\tinde\n")
    Corpus.open(file, language="en", to="ny").save(tmp_path / "saved")
    assert len(Corpus.open(tmp_path / "saved")) == 2
    assert list(Corpus.open(tmp_path / "saved", language="ny").texts()) == ["moni", "inde"]


def test_hub_needs_its_library(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"calque\[hub\]"):
        Corpus.open("owner/name", language="nya")


def test_hub_data_set(monkeypatch):
    import sys
    import types

    asked = []

    def load_dataset(name, config, streaming):
        asked.append((name, config))
        return {"test": [], "train": [{"text": "moni"}, {"text": "inde"}]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(Corpus.open("owner/name:nya", language="nya").texts()) == ["moni", "inde"]
    assert asked == [("owner/name", "nya")]


def test_a_data_set_is_streamed_by_its_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    write(
        tmp_path / "a.jsonl",
        "".join(json.dumps({"text": line, "label": n}) + "\n" for n, line in enumerate(NYA)),
    )
    real = datasets.load_dataset

    def load_dataset(name, config, streaming):
        return real("json", data_files={"train": str(tmp_path / "a.jsonl")}, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = Corpus.open("owner/name", language="nya")
    assert list(corpus.texts()) == NYA and [e.target for e in corpus] == [0, 1, 2]
    assert type(load_dataset("", None, True)["train"]).__name__ == "IterableDataset"


def test_what_a_row_says_besides_its_text(tmp_path):
    rows = [
        {"text": "Banda ali ku Zomba ", "spans": [[0, 5, "PER"], [13, 18, "LOC"]], "weight": 2},
        {
            "context": "Ali ku Zomba",
            "question": " Ali kuti? ",
            "answers": {"text": ["Zomba"], "answer_start": [7]},
        },
        {"text": "same", "label": "a", "query": "q"},
        {"text": "same", "label": "b", "query": "q"},
        {"text": "same", "label": "b", "query": "q"},
    ]
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = list(Corpus.open(file, language="nya"))
    assert [e.target for e in found] == [None, None, "a", "b"]
    assert found[0].sides["nya_Latn"] == "Banda ali ku Zomba " and found[0].weight == 2
    assert [(s.start, s.end, s.label) for s in found[0].spans["nya_Latn"]] == [(0, 5, "PER"), (13, 18, "LOC")]
    assert found[1].question == "Ali kuti?" and found[1].spans["nya_Latn"][0].start == 7
    Corpus.open(file, language="nya").save(tmp_path / "saved")
    assert list(Corpus.load(tmp_path / "saved")) == found
    for wrong, message in [
        ({"spans": [[0, 99]]}, "span 0..99 lies outside"),
        ({"spans": ["x"]}, "a span is"),
        ({"answers": {"text": ["x"]}}, "answer_start"),
        ({"weight": "much"}, "should be a number"),
        ({"weight": -1}, "0 or more"),
    ]:
        file = write(
            tmp_path / "b.jsonl", json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "two", **wrong})
        )
        with pytest.raises(DataError, match=f"b.jsonl:2.*{message}"):
            Corpus.open(file, language="nya")


def test_hub_that_can_not_be_reached(monkeypatch):
    import sys
    import types

    def load_dataset(name, config, streaming):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match="the hub did not give it"):
        Corpus.open("owner/name", language="nya")


def test_memory_does_not_grow_with_the_text(tmp_path):
    import tracemalloc

    file = tmp_path / "a.jsonl"
    with file.open("w") as stream:
        for number in range(4000):
            stream.write(json.dumps({"text": f"{number} " + "0" * 2000}) + "\n")
    found = Corpus.open(file, language="nya")
    tracemalloc.start()
    count = sum(1 for _ in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000
    assert peak < 6e6, "8 MB of text are streamed in blocks of 1 MB"


def test_a_dictionary_may_begin_with_a_word_that_is_a_language_code(tmp_path):
    path = write(tmp_path / "fr-en.tsv", "de\tof\nchat\tcat\n")
    corpus = Corpus.open(path, language="fr", to="en")
    assert list(corpus.pairs("fr", "en")) == [("de", "of"), ("chat", "cat")]
    path = write(tmp_path / "named.tsv", "en\tfr\nof\tde\ncat\tchat\n")
    named = Corpus.open(path, language="fr", to="en")
    assert list(named.pairs("fr", "en")) == [("de", "of"), ("chat", "cat")]


def test_a_table_carries_labels_and_questions(tmp_path):
    path = write(tmp_path / "pairs.tsv", "text\tquestion\tlabel\ncat\tdog\t3.5\ncar\tcup\t1\n")
    found = [(e.sides["eng_Latn"], e.question, e.target) for e in Corpus.open(path, language="en")]
    assert found == [("cat", "dog", "3.5"), ("car", "cup", "1")]
    path = write(tmp_path / "pairs.jsonl", '{"text": "cat", "label": 3.5}\n{"text": "car", "label": 1}\n')
    assert [e.target for e in Corpus.open(path, language="en")] == ["3.5", 1]
