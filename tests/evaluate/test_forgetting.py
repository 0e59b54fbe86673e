import json
from pathlib import Path

import numpy as np
import pytest
import torch

from calque.errors import ConfigError, DataError
from calque.evaluate.baselines.bayes import Bayes
from calque.evaluate.baselines.bigru import BiGRU
from calque.evaluate.baselines.char_cnn import CharCNN, char_cnn, remaining
from calque.evaluate.baselines.cnn import cnn
from calque.evaluate.baselines.network import embedding
from calque.evaluate.baselines.words import Vocabulary, words
from calque.evaluate.forgetting import forgetting
from calque.evaluate.labelled import class_counts, label_names, labelled, of_row, train_and_test
from calque.evaluate.measures import MEASURES
from calque.evaluate.table import Table
from calque.vocab.static import Vectors

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/36-kinyarwanda-kirundi-transfer.json").read_text())
TOPICS = {
    "sport": ["team", "goal", "cup", "game", "ball"],
    "food": ["bean", "salt", "pot", "oil", "fish"],
    "school": ["book", "class", "test", "pen", "chalk"],
}


def cases(kind):
    return [case for case in GOLDEN["cases"] if case["kind"] == kind]


def texts(change="", seed=0, count=90):
    """Short texts whose topic shows in their words; `change` is put at the end of every second word."""
    r = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = list(TOPICS)[number % 3]
        chosen = r.choice(TOPICS[label], 6)
        spoken = [word + (change if place % 2 else "") for place, word in enumerate(chosen)]
        found.append(
            {"id": f"{seed}.{number}", "text": f"{' '.join(spoken)} {seed}x{number}", "label": label}
        )
    return found


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def two(tmp_path):
    return jsonl(tmp_path / "a.jsonl", texts()), jsonl(tmp_path / "b.jsonl", texts("ra", 1))


def run(a, b, **settings):
    return forgetting(a, b, source_language="kin", target_language="run", **{"seeds": (0,), **settings})


def mean(table, system, language, name="accuracy"):
    return next(iter(table.where(system=system, language=language).measure(name))).estimate.value


def scored(gold, given):
    rows = [
        {
            "system": "s",
            "task": "t",
            "language": "eng_Latn",
            "item": str(n),
            "metric": m,
            "value": v,
            "signature": "x",
        }
        for n, (a, b) in enumerate(zip(gold, given, strict=True))
        for m, v in class_counts(f"c{a}", f"c{b}").items()
    ]
    return Table.of(rows)


@pytest.mark.parametrize("case", cases("classification"))
def test_f1_over_classes(case):
    table = scored(case["gold"], case["predicted"])
    value = {
        m: next(iter(table.measure(m))).estimate.value for m in ("accuracy", "macro_f1_gold", "weighted_f1")
    }
    assert value["accuracy"] == pytest.approx(case["accuracy"])
    assert value["macro_f1_gold"] == pytest.approx(case["macro_f1_classes_in_gold"])
    assert value["weighted_f1"] == pytest.approx(case["weighted_f1"])
    occurring = len(set(case["gold"]) | set(case["predicted"]))
    whole = next(iter(table.measure("macro_f1"))).estimate.value
    assert whole * occurring / len(case["classes"]) == pytest.approx(case["macro_f1_all_classes"])


@pytest.mark.parametrize("case", cases("forgetting"), ids=lambda case: case["model"])
def test_forgetting_and_gain_by_the_formula(case):
    before, after = case["acc_A_before"], case["acc_A_after"]
    value = MEASURES["forgetting"].reduce(np.array([before, after]), ("correct.before", "correct"))
    assert value == pytest.approx(case["forgetting_percent"], abs=1e-9)
    sums = np.array([case["acc_B_zero_shot"], case["acc_B_tuned"], 1.0])
    assert MEASURES["gain"].reduce(sums, ("correct.before", "correct", "#")) == pytest.approx(case["gain"])


@pytest.mark.parametrize("case", cases("batched_accuracy"))
def test_accuracy_is_over_items_not_batches(case):
    value = next(iter(scored(case["gold"], case["predicted"]).measure("accuracy"))).estimate.value
    assert value == pytest.approx(case["accuracy"])


@pytest.mark.parametrize("case", cases("char_cnn_size"))
def test_places_that_the_convolutions_leave(case):
    assert remaining(case["characters"]) == case["length_after_convolutions"]
    first = CharCNN(case["characters"], 3).dense[0]
    assert first.in_features == case["flattened"]


@pytest.mark.parametrize("case", cases("label_union"))
def test_classes_go_by_name(case):
    sides = [[of_row({"label": c, "text": "x"}, c) for c in case[f"classes_{s}"]] for s in "AB"]
    names = label_names(*sides)
    assert list(names) == case["union"] and {n: i for i, n in enumerate(names)} == case["id"]


@pytest.mark.parametrize("case", cases("oov"))
def test_unknown_words(case):
    unknown, said = Vocabulary(tuple(case["vocabulary_A"])).unknown(" ".join(case["tokens_B"]))
    assert unknown / said == case["oov_rate"]


def test_words_are_letters_in_lower_case():
    assert words("Ng'ombe ZINAYI, 1,234 mbalame! https://x.y/z e-mail") == [
        "ng'ombe",
        "zinayi",
        "mbalame",
        "e-mail",
    ]


def test_naive_bayes_by_hand():
    made = Bayes(["a a b", "b"], 2)
    made.fit(["a a b", "b"], np.array([0, 1]))
    weight = np.array([2 * (np.log(3 / 2) + 1), np.log(3 / 3) + 1])
    first = weight / np.linalg.norm(weight)
    sums = np.array([first, [0, 1]]) + 1
    likely = np.log(sums / sums.sum(1, keepdims=True)) + np.log(0.5)
    assert list(made.predict(["a", "b", "zz"])) == [likely[:, 0].argmax(), likely[:, 1].argmax(), 0]


def test_padding_changes_nothing_for_the_recurrent_network():
    torch.manual_seed(0)
    module = BiGRU(embedding(("a", "b", "c"), 8, {}), 3, 4).eval()
    short, long = torch.tensor([[2, 3]]), torch.tensor([[2, 3, 0, 0, 0]])
    assert torch.allclose(module(short), module(long), atol=1e-6)


def test_given_vectors_are_copied():
    table = embedding(("a", "b"), 3, {"b": np.ones(3)})
    assert table.weight[3].tolist() == [1, 1, 1] and table.weight[0].tolist() == [0, 0, 0]


def test_text_shorter_than_the_filters_and_without_words():
    network, _ = cnn(["one two three four five six"], 2, {}, seed=0)
    assert len(network.predict(["one", "", "123"])) == 3
    assert len(char_cnn(["abc"], 2, seed=0, characters=123).predict(["", "日本"])) == 2


@pytest.mark.parametrize("model", ["bayes", "bigru", "cnn"])
def test_the_whole_protocol(two, model):
    table = run(*two, model=model, epochs=None if model == "bayes" else 2)
    assert table.values("system") == ["majority", f"{model} A", f"{model} A, B", f"{model} B"]
    assert mean(table, "majority", "kin_Latn") < 0.5
    a0, b0 = (mean(table, f"{model} A", code) for code in ("kin_Latn", "run_Latn"))
    a1, b1 = (mean(table, f"{model} A, B", code) for code in ("kin_Latn", "run_Latn"))
    assert mean(table, f"{model} A, B", "kin_Latn", "forgetting") == pytest.approx(100 * (a0 - a1) / a0)
    assert mean(table, f"{model} A, B", "run_Latn", "gain") == pytest.approx(b1 - b0)
    assert mean(table, f"{model} A", "kin_Latn", "unknown/words") < mean(
        table, f"{model} A", "run_Latn", "unknown/words"
    )
    assert model == "bigru" or (a0 > 0.5 and b1 > 0.5)


def test_characters_and_determinism(tmp_path):
    few = [jsonl(tmp_path / f"{n}.jsonl", texts(seed=n, count=18)) for n in range(2)]
    settings = {"model": "char_cnn", "epochs": 1, "characters": 123}
    first, second = (run(*few, **settings) for _ in range(2))
    assert first.arrow.equals(second.arrow)


def test_the_same_language_twice(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", texts())
    table = run(path, path, model="bayes", seeds=(0, 1))
    assert mean(table, "bayes A", "kin_Latn") == mean(table, "bayes A", "run_Latn")
    one, two = (table.where(system="bayes A", split=f"test, seed {s}").measure("accuracy") for s in (0, 1))
    assert next(iter(one)).estimate.value == next(iter(two)).estimate.value


def test_other_labels_destroy_zero_shot_alone(tmp_path):
    turned = dict(zip(TOPICS, [*list(TOPICS)[1:], "sport"], strict=True))
    a = jsonl(tmp_path / "a.jsonl", texts())
    b = jsonl(tmp_path / "b.jsonl", [{**row, "label": turned[row["label"]]} for row in texts(seed=1)])
    table = run(a, b, model="cnn", epochs=6)
    assert mean(table, "cnn A", "run_Latn") < 0.3 < 0.6 < mean(table, "cnn A, B", "run_Latn")
    assert mean(table, "cnn A, B", "kin_Latn", "forgetting") > 50


def test_replay_is_another_system(two):
    assert "bayes A, B and 25% of A" in run(*two, model="bayes", replay=0.25).values("system")


def test_given_vectors_are_in_the_signature(two):
    vectors = Vectors(("team", "bean"), np.ones((2, 5)), np.ones(2, np.int64))
    table = forgetting(
        *two, vectors, source_language="kin", target_language="run", model="cnn", epochs=1, seeds=(0,)
    )
    assert "vectors:given" in table.arrow["signature"][0].as_py()


def test_published_columns(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('label,title,content\npolitics,"A, b",c d\nsport,e,\n')
    assert [(e.label, e.text) for e in labelled(path)] == [("politics", "A, b\nc d"), ("sport", "e")]


def test_a_folder_has_its_own_test_part(tmp_path, capsys):
    jsonl(tmp_path / "train.jsonl", texts())
    jsonl(tmp_path / "test.jsonl", [*texts(seed=2, count=9), {**texts()[0], "id": "again"}])
    train, test = train_and_test(tmp_path, 0.5)
    assert (len(train), len(test)) == (90, 10)
    run(tmp_path, tmp_path, model="bayes")
    assert "2 training texts also stand in a test part" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row,message",
    [
        ({"text": "x"}, r"a\.jsonl:1: no label under label"),
        ({"label": "x"}, r"a\.jsonl:1: no text under text"),
        ({"label": ["x"], "text": "y"}, "no label under"),
    ],
)
def test_a_missing_column(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        labelled(jsonl(tmp_path / "a.jsonl", [row]))


def test_wrong_input(tmp_path, two):
    one = jsonl(tmp_path / "one.jsonl", [{**row, "label": "sport"} for row in texts()])
    with pytest.raises(DataError, match=r"one\.jsonl: all training texts have the label 'sport'"):
        run(one, two[1], model="bayes")
    few = jsonl(tmp_path / "few.jsonl", texts(count=6))
    with pytest.raises(
        DataError, match=r"few\.jsonl: \d texts to train on and 1 to test; 10 and 1 are needed"
    ):
        run(few, two[1], model="bayes")
    same = jsonl(tmp_path / "same.jsonl", [{**row, "group": "g"} for row in texts()])
    with pytest.raises(DataError, match="all texts are of the group 'g'"):
        run(same, two[1], model="bayes")
    twice = jsonl(tmp_path / "twice.jsonl", [*texts(), texts()[0]])
    with pytest.raises(DataError, match=r"twice\.jsonl:91: id '0\.0' is given twice"):
        run(twice, two[1], model="bayes")
    with pytest.raises(ConfigError, match="give one or more, each once"):
        run(*two, model="bayes", seeds=(0, 0))
    with pytest.raises(ConfigError, match="no word embeddings"):
        forgetting(*two, Vectors(("a",), np.ones((1, 2)), np.ones(1, np.int64)), source_language="kin",
                   target_language="run", model="bayes")  # fmt: skip
    with pytest.raises(DataError, match="no such file"):
        run(tmp_path / "nothing.jsonl", two[1], model="bayes")
