import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.errors import ConfigError, DataError, ModelError
from calque.evaluate.neighbours import gold_ranks, margin, scores, unit
from calque.evaluate.pooled import Encoded, Pooled, _weights
from calque.evaluate.vectors import Judged, Search, spearman_sums, vectors

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden/16-lexical-specialization-babelnet.json").read_text()
)
E, N = "eng_Latn", "nya_Latn"
WORDS = [("house", "nyumba"), ("hill", "phiri"), ("word", "mawu"), ("word", "liwu"), ("cat", "mphaka")]


def cases(kind):
    return [case for case in GOLDEN["cases"] if case["kind"] == kind]


def dictionary(words=WORDS):
    return Corpus.of(Example(str(n), {E: one, N: two}) for n, (one, two) in enumerate(words))


def values(table, metric, **where):
    return [row["value"] for row in table.where(metric=metric, **where).rows()]


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    from calque.model.checkpoint import Checkpoint

    folder = tmp_path_factory.mktemp("models")
    return {
        "decoder": Checkpoint.at(tiny.model(folder / "llama", "llama-tied")),
        "encoder": Checkpoint.at(tiny.model(folder / "bert", "bert")),
    }


@pytest.mark.parametrize("case", cases("bli"))
def test_ranks_of_words_are_those_of_the_authors(case):
    if "recipe" in case:
        r = np.random.default_rng(32)
        vocabulary = np.round(r.standard_normal((1000, 16)), 2)
        gold = r.choice(1000, 200, replace=False)
        source = np.round(vocabulary[gold] + 1.2 * r.standard_normal((200, 16)), 2)
    else:
        source, vocabulary = np.array(case["source"]), np.array(case["target_vocabulary"])
    ranks = [
        int(gold_ranks(line, [case["gold"][row]])[0])
        for start, block in scores(unit(source), unit(vocabulary), neighbours=0)
        for row, line in enumerate(block, start)
    ]
    assert ranks == case["ranks"]
    assert np.mean(1 / np.array(ranks)) == pytest.approx(case["mrr"], abs=1e-9)
    assert np.mean(np.array(ranks) == 1) == pytest.approx(case["p_at_1"], abs=1e-9)


@pytest.mark.parametrize("case", cases("xlsim"))
def test_similarity_is_that_of_the_authors(case):
    names = [str(n) for n in range(len(case["human"]))]
    test = Judged((E, N), names, names, names, np.array(case["human"]))
    found = {(E, n): np.array(v) for n, v in zip(names, case["left"], strict=True)}
    found |= {(N, n): np.array(v) for n, v in zip(names, case["right"], strict=True)}
    rows = list(test.score("x", found, 0))
    cosines = [row["value"] for row in rows if row["metric"] == "cosine"]
    assert cosines == pytest.approx(case["cosine"], abs=1e-9)
    s = {
        key: sum(r["value"] for r in rows if r["metric"] == f"spearman.{key}")
        for key in ["n", "x", "y", "xy", "xx", "yy"]
    }
    top = s["n"] * s["xy"] - s["x"] * s["y"]
    bottom = np.sqrt((s["n"] * s["xx"] - s["x"] ** 2) * (s["n"] * s["yy"] - s["y"] ** 2))
    assert top / bottom == pytest.approx(case["spearman"], abs=1e-9)


@pytest.mark.parametrize("case", cases("pool"))
def test_pooling_leaves_special_tokens_out(case):
    hidden = np.array(case["hidden"])
    encoded = []
    for mask in case["attention_mask"]:
        seen = sum(mask)
        encoded.append(Encoded(range(seen), [0 < place < seen - 1 for place in range(seen)]))
    weights = _weights(encoded, "mean").numpy()
    pooled = (hidden[:, : weights.shape[1]] * weights[:, :, None]).sum(1)
    assert pooled == pytest.approx(np.array(case["word_vectors"]), abs=1e-6)


@pytest.mark.parametrize("case", cases("vocabulary_lookup"))
def test_words_are_looked_up_as_written_then_in_lower_case(case, capsys):
    from calque.evaluate.vectors import _search

    listed = [Example(word, {E: f"q {word}", N: word}) for word in case["words"]]
    search = _search(listed, E, N, case["vocabulary"], by_text=True)
    found = dict(zip(search.queries, (gold[0] for gold in search.gold), strict=True))
    assert [found.get(f"q {word}") for word in case["words"]] == case["index"]
    assert "2 of 6 translations are not in the vocabulary" in capsys.readouterr().err


def test_csls_by_hand():
    queries, candidates = np.eye(2), unit(np.array([[1.0, 0.0], [0.6, 0.8]]))
    found = np.concatenate([block for _, block in scores(queries, candidates, neighbours=2)])
    near_q, near_c = [(1 + 0.6) / 2, (0 + 0.8) / 2], [(1 + 0) / 2, (0.6 + 0.8) / 2]
    by_hand = [
        [2 * c - near_q[q] - near_c[n] for n, c in enumerate(line)]
        for q, line in enumerate([[1, 0.6], [0, 0.8]])
    ]
    assert found == pytest.approx(np.array(by_hand))
    same = np.concatenate([b for _, b in scores(np.ones((1, 1)), np.ones((1, 1)), neighbours=10)])
    assert same == pytest.approx(np.zeros((1, 1)))


def test_equal_candidates_stand_before_the_right_one():
    assert list(gold_ranks(np.ones(5), [2])) == [5]
    assert list(gold_ranks(np.array([0.9, 0.5, 0.7]), [0, 1])) == [1, 3]
    assert margin(np.array([0.9, 0.5, 0.7]), [0, 1]) == pytest.approx(0.2)


@given(st.integers(2, 12), st.integers(0, 99), st.floats(0.1, 50))
def test_ranks_do_not_change_when_vectors_are_scaled(n, seed, factor):
    r = np.random.default_rng(seed)
    queries, candidates = r.standard_normal((n, 4)), r.standard_normal((n, 4))
    ranks = [
        [
            gold_ranks(line, [row])[0]
            for s, b in scores(unit(q), unit(candidates), neighbours=3)
            for row, line in enumerate(b, s)
        ]
        for q in (queries, queries * factor)
    ]
    assert ranks[0] == ranks[1]


def test_several_translations_count_once_each():
    words = [text for pair in WORDS for text in pair]
    found = {
        (code, text): np.eye(len(set(words)))[i]
        for code in (E, N)
        for i, text in enumerate(dict.fromkeys(words))
    }
    mean = found[E, "word"] + 0.1 * found[E, "cat"]
    found |= {
        (N, "mawu"): mean,
        (N, "phiri"): 0.9 * mean + found[E, "hill"],
        (N, "nyumba"): found[E, "house"],
    }
    from calque.evaluate.vectors import _search

    test = _search(list(dictionary()), E, N, None, by_text=True)
    rows = {(r["item"], r["metric"]): r["value"] for r in test.score("x", found, 0)}
    assert len(test.queries) == 4 and len(test.candidates) == 5
    assert rows["word", "p@1"] == 1 and rows["word", "ap"] == pytest.approx((1 + 2 / 5) / 2)
    assert rows["house", "rr"] == 1 and rows["cat", "p@1"] == 0


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_a_text_finds_itself(systems, name):
    texts = Corpus.of(Example(str(n), {E: t, N: t}) for n, t in enumerate([*tiny.ENGLISH, *tiny.CHICHEWA]))
    table = vectors({name: systems[name]}, texts, kind="retrieval", layers=(0, -1))
    assert set(values(table, "p@1")) == {1.0} and min(values(table, "margin")) > 0
    assert table.values("task") == ["retrieval/layer 0", "retrieval/layer 2"]
    assert len(values(table, "p@1")) == 2 * 2 * 6


def test_batches_and_company_change_nothing(systems):
    texts = [*tiny.ENGLISH, *tiny.CHICHEWA, "a"]
    model = Pooled.open("decoder", systems["decoder"], torch.float32)
    given = {"layers": [1, 2], "pooling": "mean", "length": 64}
    together = model.embed(texts, batch_tokens=4096, **given)
    alone = model.embed(texts, batch_tokens=4, **given)
    for layer in (1, 2):
        assert together[layer] == pytest.approx(alone[layer], abs=1e-5)


def test_a_word_of_one_token_is_its_state(systems):
    model = Pooled.open("decoder", systems["decoder"], torch.float32)
    (entry,) = model.encode(["a"], 64)
    assert entry.pooled == [False, True] and entry.ids[0] == model.start
    states = model.trunk(torch.tensor([entry.ids]), output_hidden_states=True).hidden_states
    vector = model.embed(["a"], layers=[-1], pooling="mean", length=64, batch_tokens=64)[2][0]
    assert vector == pytest.approx(states[-1][0, 1].detach().numpy(), abs=1e-6)


def test_swapped_sides_swap_directions(systems):
    one = Corpus.of(
        Example(str(n), {E: a, N: b})
        for n, (a, b) in enumerate(zip(tiny.ENGLISH, tiny.CHICHEWA, strict=True))
    )
    two = Corpus.of(Example(e.id, dict(reversed(e.sides.items()))) for e in one)
    first, second = (vectors({"m": systems["decoder"]}, c, kind="retrieval") for c in (one, two))
    for code in (E, N):
        assert values(first, "margin", language=code) == pytest.approx(
            values(second, "margin", language=code), abs=1e-6
        )


def test_csls_and_vocabulary_are_in_the_signature_and_the_result(systems):
    vocabulary = Corpus.of(Example(w, {N: w}) for w in ["nyumba", "phiri", "mawu", "galu", "mkango"])
    table = vectors({"m": systems["decoder"]}, dictionary(), vocabulary, kind="bli", by="csls", neighbours=2)
    assert "by:csls2" in table.arrow["signature"][0].as_py()
    assert table.values("item") == ["house", "hill", "word"]
    assert table.values("language") == [N] and table.values("prompt_language") == [E]


def test_similarity_of_words_of_one_language(systems):
    judged = [("cat", "house", "1.5"), ("cat", "cat", "9"), ("hill", "word", 0)]
    pairs = Corpus.of(Example(str(n), {E: a}, question=b, target=t) for n, (a, b, t) in enumerate(judged))
    table = vectors({"m": systems["encoder"]}, pairs, kind="similarity")
    assert values(table, "cosine")[1] == pytest.approx(1) and values(table, "judgement") == [1.5, 9, 0]
    view = table.measure("spearman")
    assert -1 <= next(iter(view)).estimate.value <= 1


def test_ranks_of_ties_are_shared():
    sums = spearman_sums(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert list(sums["spearman.x"]) == [-0.5, -0.5, 1] and list(sums["spearman.y"]) == [-1, 0, 1]


WRONG = [
    ("no system", {}, dictionary(), {"kind": "bli"}, ConfigError, "no system to test"),
    ("no layer", None, dictionary(), {"kind": "bli", "layers": ()}, ConfigError, "no layer to test"),
    (
        "layer 9",
        None,
        dictionary(),
        {"kind": "bli", "layers": (9,)},
        ConfigError,
        "layer 9: this model has 0",
    ),
    ("first", None, dictionary(), {"kind": "bli", "pooling": "first"}, ConfigError, "no special token"),
    ("empty", None, dictionary(()), {"kind": "bli"}, DataError, "a search needs two sides"),
    ("one pair", None, dictionary(WORDS[:1]), {"kind": "retrieval"}, DataError, "nothing to choose from"),
    ("no judgement", None, dictionary(), {"kind": "similarity"}, DataError, "pair 0: judgement None"),
]


@pytest.mark.parametrize("corpus,settings,error,message", [w[2:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input(systems, corpus, settings, error, message, request):
    given = {} if message == "no system to test" else {"m": systems["decoder"]}
    with pytest.raises(error, match=message):
        vectors(given, corpus, **settings)


def test_judgements_that_are_all_the_same_are_refused(systems):
    pairs = Corpus.of(Example(str(n), {E: a, N: b}, target="3") for n, (a, b) in enumerate(WORDS))
    with pytest.raises(DataError, match=r"judged 3\.0 to 3\.0: a correlation needs"):
        vectors({"m": systems["decoder"]}, pairs, kind="similarity")


def test_similarities_that_are_all_the_same_are_refused():
    test = Judged((E, N), ["1", "2", "3"], ["a"] * 3, ["b"] * 3, np.array([1.0, 2, 3]))
    with pytest.raises(ModelError, match=r"the similarity 1\.0000"):
        list(test.score("x", {(E, "a"): np.ones(2), (N, "b"): np.ones(2)}, 0))


def test_a_word_without_a_vector_finds_nothing_and_is_said(capsys):
    test = Search(E, N, ["a", "b"], ["a", "b"], ["x", "y"], [[0], [1]])
    found = {(E, "a"): np.zeros(2), (E, "b"): np.ones(2), (N, "x"): np.array([1.0, 0]), (N, "y"): np.ones(2)}
    rows = {(r["item"], r["metric"]): r["value"] for r in test.score("m", found, 0)}
    assert rows["a", "missing"] == 1 and rows["a", "rr"] == 0 and rows["b", "p@1"] == 1
    assert "m: 1 texts without a vector" in capsys.readouterr().err
    dark = {key: np.zeros(2) for key in found}
    with pytest.raises(ModelError, match="no vector for any text"):
        list(test.score("m", dark, 0))


def test_a_vocabulary_without_any_translation_is_refused(systems):
    vocabulary = Corpus.of(Example(w, {N: w}) for w in ["galu", "mkango"])
    with pytest.raises(DataError, match="none of 5 translations into nya_Latn is in the vocabulary"):
        vectors({"m": systems["decoder"]}, dictionary(), vocabulary, kind="bli")
    with pytest.raises(ConfigError, match="only bli has"):
        vectors({"m": systems["decoder"]}, dictionary(), vocabulary, kind="retrieval")


def test_a_damaged_model_is_named(tmp_path):
    from calque.model.checkpoint import Checkpoint

    folder = tiny.model(tmp_path / "m", "llama-tied")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="layer 2: the vector of 'house' is no number"):
        vectors({"m": Checkpoint.at(folder)}, dictionary(), kind="bli")
