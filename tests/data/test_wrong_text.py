"""Wrong input: one clear message each, which says what, where, and what would be right."""

import gzip

import pytest
import zstandard

from calque.data.corpus import Corpus
from calque.errors import ConfigError, DataError

GZ = gzip.compress(b"line\n" * 1000, mtime=0)
ZST = zstandard.compress(bytes(range(1, 200)) * 50)

FILES = [
    ("missing.txt", None, ["no text at", "missing.txt", "neither a file or folder"]),
    ("a.txt", b"", ["a.txt", "no text in it"]),
    ("a.txt", b"\n  \n\n", ["no text in it", "3 empty"]),
    ("a.txt", b"only\n", ["only one line of text", "one sentence or paragraph on each line"]),
    ("a.txt", b"twice\ntwice\n", ["only one line of text", "1 twice"]),
    (
        "a.txt",
        b"good\nb\xe9se\n",
        ["a.txt:2", "not UTF-8", "0xe9", "byte 2 of the line", "save the file as UTF-8"],
    ),
    ("a.txt", "a\nb".encode("utf-16"), ["UTF-16", "give UTF-8"]),
    ("a.txt", b"%PDF-1.4\n%", ["a PDF file, not text"]),
    ("a.txt", b"PK\x03\x04xxxx", ["zip, Word or Excel"]),
    ("a.txt", b"ab\x00cd", ["binary file"]),
    ("a.txt", b"a\n" * 600_000 + b"b\x00c\n", ["a.txt:600001", "a zero byte"]),
    ("a.txt", GZ, ["gzip file without the ending .gz"]),
    ("a.txt.gz", GZ[:40], ["damaged or cut gzip"]),
    ("a.txt.gz", b"plain", ["damaged or cut gzip"]),
    ("a.txt.zst", ZST[:30], ["cut Zstandard file"]),
    ("a.txt.zst", b"plain text", ["damaged Zstandard"]),
    ("a.doc", b"a\nb\n", ["unknown kind of text file", ".txt, .jsonl"]),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["a.jsonl:2", "not valid JSON"]),
    ("a.jsonl", b"[1]\n[2]\n", ["a.jsonl:1", "should be an object"]),
    ("a.jsonl", b'{"body": "a"}\n', ["a.jsonl:1", "no text for nya_Latn among body", "name it text"]),
    ("a.jsonl", b'{"text": 5}\n', ["a.jsonl:1", "holds int", "should be text"]),
    ("a.tsv", b"text\tdoc\na\t1\nb\n", ["a.tsv:3", "1 columns, should be 2"]),
    ("a.tsv", b"some words\tb\tc\nd\te\tf\n", ["3 columns and no names"]),
    ("a.csv", b'text\n"open\n', ["a.csv", "not valid CSV"]),
    ("a.parquet", b"not parquet at all", ["not a sound Parquet file"]),
    ("a.parquet.gz", GZ, ["Parquet is packed already"]),
    ("a.tmx", b"<tmx><body><tu></body>", ["a.tmx:1", "not valid TMX"]),
]


@pytest.mark.parametrize(("name", "data", "said"), FILES, ids=[f"{row[0]}: {row[2][0]}" for row in FILES])
def test_wrong_file(tmp_path, name, data, said):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as error:
        Corpus.open(tmp_path / name, language="nya")
    for part in said:
        assert part in str(error.value)


def test_parallel_files_of_different_length(tmp_path):
    (tmp_path / "a.en").write_text("1\n2\n3\n4\n")
    (tmp_path / "a.ny").write_text("1\n2\n")
    for one, other, counts in (("en", "ny", ("4 lines", "has 2")), ("ny", "en", ("2 lines", "has 4"))):
        with pytest.raises(DataError) as error:
            Corpus.open(f"{tmp_path}/a.{one},{tmp_path}/a.{other}", language=one, to=other)
        assert all(part in str(error.value) for part in (*counts, "one by one"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (dict(language="Chichewaa"), "did you mean nya"),
        (dict(language="nya", to="nya"), "needs two languages"),
        (dict(language=None), "say the language"),
        (dict(language=None, to="nya"), "say the first one too"),
    ],
)
def test_wrong_language(tmp_path, kind, said):
    (tmp_path / "a.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match=said):
        Corpus.open(tmp_path / "a.txt", **kind)


def test_plain_text_is_not_parallel(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="plain text has one side"):
        Corpus.open(tmp_path / "a.txt", language="en", to="ny")


def test_pair_without_second_language_or_file(tmp_path):
    (tmp_path / "a.en").write_text("a\nb\n")
    with pytest.raises(ConfigError, match="two languages"):
        Corpus.open(f"{tmp_path}/a.en,{tmp_path}/a.ny", language="en")
    with pytest.raises(DataError, match=r"a\.ny: no such file"):
        Corpus.open(f"{tmp_path}/a.en,{tmp_path}/a.ny", language="en", to="ny")


def test_folder_without_text(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no text file in it"):
        Corpus.open(tmp_path, language="nya")


@pytest.mark.parametrize(
    ("ref", "kind", "said"),
    [
        ("kolibri", {}, "has 31 languages; give one of"),
        ("kolibri:kin", {}, "has no kin_Latn"),
        ("smollm2-135m:eng", {}, "is no text"),
        ("bible-eng|bible-nyaa", {}, "did you mean bible-nya"),
        ("bible-nya|bible-nya", {}, "different languages"),
        ("bible-nya", {"language": "eng"}, "is in nya_Latn, not in eng_Latn"),
    ],
)
def test_wrong_asset(ref, kind, said):
    with pytest.raises(ConfigError, match=said):
        Corpus.open(ref, **kind)
