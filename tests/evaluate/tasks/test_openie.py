"""Open extraction as a task: three published files, prompts, scores."""

import json

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer
from calque.evaluate.measures import measure
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source
from calque.evaluate.tasks.openie import BENCHMARK

PACK = LanguagePack.of("eng_Latn")
FACTS = """sent_id:1\tHe served as the man .
1--> Cluster 1:
He --> served as --> [the] man
He --> served --> as [the] man

sent_id:2\tIt rains .
"""
TABS = "Anna ate bread .\tate\tAnna\tbread\nAnna ate bread .\tis\tAnna\nBen slept .\tslept\tBen\n"
NESTED = {"Anna ate bread .": [{"arg0": "Anna", "pred": "ate", "arg1": "bread", "arg2": "", "loc": ""}]}


def items(path):
    return Source.open(path).items(BENCHMARK, "eng_Latn", "test")


def test_published_files(tmp_path):
    (tmp_path / "benchie_gold_annotations_en.txt").write_text(FACTS)
    first, second = items(tmp_path)
    assert first.fields == {"sentence": "He served as the man .", "kind": "facts"}
    assert len(first.gold) == 1 and len(first.gold[0]) == 2 and second.gold == ()
    (tmp_path / "carb.tsv").write_text(TABS)
    assert [len(item.gold) for item in items(tmp_path / "carb.tsv")] == [2, 1]
    (tmp_path / "re.json").write_text(json.dumps(NESTED))
    assert items(tmp_path / "re.json")[0].gold[0].arguments == ("Anna", "bread")


def test_scores_and_measures(tmp_path):
    (tmp_path / "a.txt").write_text(FACTS)
    first, _ = items(tmp_path / "a.txt")
    found = BENCHMARK.score(first, Answer("He; served; as man\nHe; was; it"), PACK)
    assert found == {"fact.tp": 1, "fact.fp": 1, "fact.fn": 0, "unparsed": 0}
    item = BENCHMARK.item({**BENCHMARK.sample["eng_Latn"][0], "where": "s:1"}, "eng_Latn", "test")
    told = BENCHMARK.prompt(item, PACK, [item]).text
    assert told.count("Anna; was born in; Zomba") == 1 and told.endswith("Answer:")
    perfect = BENCHMARK.score(item, Answer("Anna; was born in; Zomba"), PACK)
    given = BENCHMARK.score(
        item, Answer("", value=[{"relation": "was", "arguments": ["Anna", "Zomba"]}]), PACK
    )
    for name in ("lexical.f1", "carb.f1", "carb/published.f1", "lexical/published.f1"):
        of = measure(name, perfect.keys())
        import numpy as np

        columns = of.columns(perfect.keys())
        assert columns and of.reduce(np.array([perfect[c] for c in columns]), columns) == pytest.approx(1)
    assert 0 < given["carb.precise"] <= 1 and BENCHMARK.score(item, Answer(""), PACK)["lexical.fn"] == 1


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "He --> is --> it\n", r"a\.txt:1: 'He --> is --> it' before any line 'sent_id:'"),
        ("a.txt", "sent_id:1\tA b .\n1--> Cluster 1:\na --> b\n", r"a\.txt:3: 2 parts"),
        ("a.txt", "sent_id:1\tA b .\na --> b --> c\n", "in a cluster"),
        ("a.tsv", "only a sentence\n", r"a\.tsv:1: 1 columns"),
        ("a.json", "[]", "list; expected an object"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"A b .": [{"pred": "b"}]}', "expected a relation and arguments"),
    ],
)
def test_wrong_files(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        items(tmp_path / name)
