import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import benchmark
from calque.evaluate.source import Source

B = benchmark("ntrex")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "newstest2019-src.eng.txt").write_text("One.\nTwo.\n", encoding="utf-8")
    for name in ("deu", "zho-CN", "swa", "spa-MX"):
        (tmp_path / f"newstest2019-ref.{name}.txt").write_text(f"{name} 1\n{name} 2\n", encoding="utf-8")
    (tmp_path / "DOCUMENT_IDS.tsv").write_text("doc1\ndoc1\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("language", "file"),
    [("deu_Latn", "deu"), ("zho_Hans", "zho-CN"), ("swh_Latn", "swa"), ("spa_Latn", "spa-MX")],
)
def test_each_language_finds_its_file(folder, language, file):
    items = Source.open(folder).items(B, language, "test")
    assert [item.gold for item in items] == [(f"{file} 1",), (f"{file} 2",)]
    assert [item.fields["source"] for item in items] == ["One.", "Two."]
    assert {item.group for item in items} == {"doc1"}


def test_the_other_way_is_possible_and_another_part_is_not(folder):
    source = Source.open(folder)
    assert source.items(B, "eng_Latn", "test:de")[0].gold == ("One.",)
    with pytest.raises(DataError, match="one part, test; asked for 'dev'"):
        source.items(B, "deu_Latn", "dev")
    with pytest.raises(DataError, match=r"no newstest2019-ref\.nya\.txt"):
        source.items(B, "nya_Latn", "test")
