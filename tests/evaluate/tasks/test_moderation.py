"""Moderation as a task: values read from answers, refusals apart, macro-F1 over all classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.errors import DataError
from calque.evaluate import moderation
from calque.evaluate.benchmark import Answer
from calque.evaluate.measures import measure
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source
from calque.evaluate.tasks.moderation import BENCHMARK

PACK = LanguagePack.of("eng_Latn")
ROW = {"id": "7", "text": "I take the train.", "train": 1, "food": 0, "where": "f:2"}


def score(text, row=ROW, value=None):
    return BENCHMARK.score(BENCHMARK.item(row, "eng_Latn", "test"), Answer(text, value=value), PACK)


def total(name, found):
    of = measure(name, found[0].keys())
    columns = of.columns(found[0].keys())
    assert columns
    return float(of.reduce(np.array([[one[c] for c in columns] for one in found]).sum(0), columns))


@pytest.mark.parametrize(
    ("text", "values", "refused"),
    [
        ('{"train": 1, "food": 0}', ("1", "0"), False),
        ('Here you are: {"train": "１", "food": "٢"} because', ("1", "2"), False),
        ("train: 1\nfood = 2", ("1", "2"), False),
        ("Food 0; TRAIN: ２", ("2", "0"), False),
        ("1 0", ("1", "0"), False),
        ("1, 0, 2", ("1", "0"), False),
        ('{"train": 1}', ("1", None), False),
        ('{"train": 3, "food": true}', (None, None), False),
        ("1", (None, None), False),
        ("12 or 1.5", (None, None), False),
        ("", (None, None), False),
        ("I’m sorry, I can't help with this.", (None, None), True),
        ("申し訳ありませんが、お答えできません。", (None, None), True),
        ("对不起，我不能回答。", (None, None), True),
        ('I cannot say more than {"train": 0, "food": 0}', ("0", "0"), False),
    ],
)
def test_answers(text, values, refused):
    told = moderation.read(text, ("train", "food"))
    assert tuple(told.values.values()) == values and told.refused is refused


def test_outcomes_are_kept_apart():
    refused, lost, right = (
        score("I cannot answer."),
        score("maybe"),
        score("", value={"train": 1, "food": "0"}),
    )
    assert (refused["refused"], refused["unparsed"], refused["correct"]) == (1, 0, 0)
    assert (lost["refused"], lost["unparsed"], lost["correct"]) == (0, 1, 0)
    assert right["correct"] == 1 and refused["train.fn.1"] == 1 and refused["binary.train.fn"] == 1


@given(st.lists(st.tuples(st.sampled_from("012"), st.sampled_from("012")), min_size=1, max_size=12))
def test_macro_f1_is_the_mean_over_three_classes(pairs):
    """The definition of the card, an absent class being 0."""
    found = [score(f"train: {made}", {"text": "x", "train": gold}) for gold, made in pairs]
    each = []
    for kind in "012":
        tp = sum(g == m == kind for g, m in pairs)
        wrong = sum((g == kind) != (m == kind) for g, m in pairs)
        each.append(2 * tp / (2 * tp + wrong) if tp else 0.0)
    assert total("train.macro_f1_all", found) == pytest.approx(sum(each) / 3, abs=1e-12)
    assert total("macro_f1_all", found) == pytest.approx(sum(each) / 3, abs=1e-12)


def test_constant_answers_and_categories():
    golds = [("0", "1"), ("0", "0"), ("2", "1")]
    found = [score('{"a": 0, "b": 1}', {"text": "x", "a": a, "b": b}) for a, b in golds]
    assert total("a.macro_f1_all", found) == pytest.approx(0.8 / 3)
    assert total("macro_f1_all", found) == pytest.approx((0.8 / 3 + 0.8 / 3) / 2)


def test_instructions_change_and_posts_do_not():
    shot, item = (
        BENCHMARK.item({**row, "where": "s:1"}, "jpn_Jpan", "test")
        for row in BENCHMARK.sample["jpn_Jpan"][:2]
    )
    texts = [
        BENCHMARK.prompt(item, LanguagePack.of(code), [shot]).text
        for code in ("jpn_Jpan", "zho_Hans", "nya_Latn")
    ]
    assert texts[0].startswith("あなた") and texts[1].startswith("你是") and texts[2].startswith("You review")
    assert all("アンナはご飯を炊いた。" in text and '"train": 1' in text for text in texts)


def test_files_of_several_languages(tmp_path):
    (tmp_path / "test.csv").write_text(
        "id,lang,text,split,OD,ED\n1,zh,a,test,0,1\n2,ja,b,test,2,0\n3,zh,c,train,0,0\n"
    )
    items = Source.open(tmp_path / "test.csv").items(BENCHMARK, "zho_Hans", "test")
    assert [item.id for item in items] == ["1"] and items[0].gold == {"OD": "0", "ED": "1"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x"}, "f:2: no category"),
        ({"text": "x", "a": 3}, "'a' is '3'; a category is 0, 1 or 2"),
        ({"text": "x", "a": ""}, "'a' is ''"),
        ({"text": " ", "a": 0}, "'text' is blank"),
        ({"a": 0}, "no 'text'"),
    ],
)
def test_wrong_records(row, says):
    with pytest.raises(DataError, match=says):
        BENCHMARK.item({**row, "where": "f:2"}, "eng_Latn", "test")
