"""Invariants of VocabMap and of every method that makes one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from calque.data.lexicon import Lexicon
from calque.errors import ConfigError, DataError
from calque.vocab.focus import focus
from calque.vocab.map import FALLBACK, SPECIAL, VocabMap, build_map, moments
from calque.vocab.mean import mean
from calque.vocab.overlap import overlap
from calque.vocab.random import random
from calque.vocab.static import Vectors, WordSpaces
from calque.vocab.subword import subword
from calque.vocab.tokenizer import train_tokenizer
from calque.vocab.transtoken import transtoken
from calque.vocab.wechsel import wechsel

STOCHASTIC = {"overlap", "subword", "focus", "wechsel", "transtoken"}


@pytest.fixture(scope="session")
def target(english, chichewa, corpus_of):
    return train_tokenizer(english, corpus_of(chichewa), mode="prune_extend", keep=150, min_count=3)


@pytest.fixture(scope="session")
def methods(target):
    lexicon = Lexicon(
        ("house", "king", "children", "people", "The"),
        ("nyumba", "mfumu", "ana", "anthu", "Ana"),
        np.array([9.0, 8.0, 7.0, 6.0, 1.5]),
        np.full(5, 0.5),
    )
    rng = np.random.default_rng(0)

    def vectors(words):
        return Vectors(tuple(words), rng.standard_normal((len(words), 8)), np.arange(len(words), 0, -1))

    spaces = WordSpaces(
        vectors(lexicon.source),
        vectors(lexicon.target),
        tuple(zip(lexicon.source, lexicon.target, strict=True)),
    )
    aux = vectors([name for name in target.strings if len(name) > 2])
    return {
        "random": (random, None),
        "mean": (mean, None),
        "overlap": (overlap, None),
        "subword": (subword, None),
        "focus": (focus, aux),
        "wechsel": (wechsel, spaces),
        "transtoken": (transtoken, lexicon),
    }


@pytest.fixture(params=["random", "mean", "overlap", "subword", "focus", "wechsel", "transtoken"])
def made(request, methods, english, target):
    method, evidence = methods[request.param]
    return request.param, method(english, target, evidence), english, target


def test_every_method_keeps_the_invariants(made):
    name, vocab_map, source, target = made
    weights = vocab_map.input
    assert weights.shape == (len(target), len(source)) == vocab_map.shape
    rows = np.asarray(weights.sum(1)).ravel()
    assert not rows[~vocab_map.covered].any()
    assert np.array_equal(np.diff(weights.indptr) > 0, vocab_map.covered)
    for string in ("<s>", "</s>", "<pad>"):
        row = weights[target.special[string]].tocoo()
        assert (row.col.tolist(), row.data.tolist()) == ([source.special[string]], [1.0])
    if name in STOCHASTIC:
        np.testing.assert_allclose(rows[vocab_map.covered], 1, atol=1e-6)
        assert (weights.data > 0).all()
    fallback = vocab_map.how_names.index(FALLBACK)
    assert np.array_equal(vocab_map.how == fallback, ~vocab_map.covered)


def test_every_method_is_deterministic(made, methods):
    name, vocab_map, source, target = made
    method, evidence = methods[name]
    again = method(source, target, evidence)
    assert (again.input != vocab_map.input).nnz == 0
    assert np.array_equal(again.how, vocab_map.how)


def test_every_map_survives_the_disk(made, tmp_path):
    _, vocab_map, _, _ = made
    vocab_map.save(tmp_path / "map")
    again = VocabMap.load(tmp_path / "map")
    assert (again.input != vocab_map.input).nnz == 0
    for name in ("how_names", "fallback", "seed", "unk", "source_tokens", "target_tokens", "notes"):
        assert getattr(again, name) == getattr(vocab_map, name), name
    table = np.random.default_rng(1).standard_normal((vocab_map.shape[1], 5)).astype(np.float32)
    np.testing.assert_array_equal(again.apply(table), vocab_map.apply(table))


def test_provenance_file_has_a_line_per_token(made, tmp_path):
    _, vocab_map, _, target = made
    vocab_map.save(tmp_path / "map")
    lines = (tmp_path / "map" / "provenance.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
    assert len(lines) == len(target)
    for token, line in enumerate(lines):
        number, _, way, sources, weights = line.split("\t")
        assert int(number) == token
        assert way == vocab_map.how_names[vocab_map.how[token]]
        assert len(sources.split()) == len(weights.split()) == len(vocab_map.provenance(token))


@pytest.mark.parametrize("name", ["overlap", "subword", "focus", "transtoken"])
def test_equal_vocabularies_are_copied(name, methods, target):
    method, evidence = methods[name]
    vocab_map = method(target, target, evidence)
    assert (vocab_map.input != csr_matrix(np.eye(len(target)))).nnz == 0


def test_methods_name_what_they_did(methods, english, target):
    method, evidence = methods["transtoken"]
    vocab_map = method(english, target, evidence)
    token = target.by_surface[b" nyumba"]
    assert vocab_map.how_names[vocab_map.how[token]] == "aligned"
    assert vocab_map.provenance(token)[0][0].strip() in "house"
    token = target.by_surface[b" the"]
    assert vocab_map.how_names[vocab_map.how[token]] == "copy"
    assert vocab_map.counts()[SPECIAL] == 3


def _toy(weights, target_tokens, **options):
    table = csr_matrix(np.asarray(weights, float))
    covered = np.diff(table.indptr) > 0
    given = {"fallback": "normal", "seed": 1234, "unk": 0, **options}
    names = tuple(map(str, range(table.shape[1])))
    ways = np.where(covered, 1, 0).astype(np.uint8)
    return VocabMap(
        table,
        None,
        covered,
        ways,
        ("fallback", "copy"),
        **given,
        source_tokens=names,
        target_tokens=target_tokens,
    )


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(1, 7),
    st.sampled_from(["normal", "mean", "zero", "unk"]),
    st.integers(0, 2**31),
)
def test_blocks_do_not_change_the_result(rows, columns, width, block, fallback, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.2)
    vocab_map = _toy(weights, tuple(map(str, range(rows))), fallback=fallback)
    table = rng.standard_normal((columns + 3, width))
    whole = vocab_map.apply(table, block_rows=rows + 1)
    np.testing.assert_array_equal(vocab_map.apply(table, block_rows=block), whole)
    np.testing.assert_allclose(vocab_map.apply(table.astype(np.float32)), whole, atol=1e-4)
    real = table[:columns]
    draw = np.random.RandomState(1234).normal(real.mean(0), real.std(0), (rows, width))
    expected = {"normal": draw, "zero": np.zeros_like(draw), "mean": np.tile(real.mean(0), (rows, 1))}
    expected["unk"] = np.tile(real[0], (rows, 1))
    gaps = ~vocab_map.covered
    np.testing.assert_allclose(whole[gaps], expected[fallback][gaps], atol=1e-10)
    np.testing.assert_allclose(whole[~gaps], (weights @ real)[~gaps], atol=1e-10)


def test_output_side_has_its_own_weights():
    vocab_map = _toy([[1, 0], [0, 1]], ("a", "b"))
    other = VocabMap(**{**vars(vocab_map), "output": csr_matrix([[0, 2.0], [3.0, 0]])})
    table = np.array([[1.0, 1], [5, 7]])
    np.testing.assert_array_equal(other.apply(table, "output"), [[10, 14], [3, 3]])
    np.testing.assert_array_equal(vocab_map.apply(table, "output"), table)
    assert other.provenance(0, "output") == [("1", 2.0)]


def test_broken_maps_are_refused():
    vocab_map = _toy([[1, 0], [0, 1]], ("a", "b"))
    for change, error in (
        ({"target_tokens": ("a",)}, "shape"),
        ({"covered": np.array([True, False])}, "covered"),
        ({"input": csr_matrix([[np.nan, 0], [0, 1]])}, "not finite"),
        ({"how": np.array([7, 0])}, "way"),
        ({"output": csr_matrix([[1.0, 0], [0, 0]])}, "covered"),
    ):
        with pytest.raises(DataError, match=error):
            VocabMap(**{**vars(vocab_map), **change})
    with pytest.raises(ConfigError, match="unk"):
        _toy([[0, 0]], ("a",), fallback="unk", unk=-1)
    with pytest.raises(DataError, match="shape"):
        vocab_map.apply(np.zeros((1, 3)))


def test_memory_stays_near_the_table():
    import tracemalloc

    rows = 4000
    weights = csr_matrix((np.ones(rows), (np.arange(rows), np.arange(rows))), shape=(rows, rows))
    weights.data[::7] = 0
    weights.eliminate_zeros()
    names = tuple(map(str, range(rows)))
    covered = np.diff(weights.indptr) > 0
    ways = covered.astype(np.uint8)
    vocab_map = VocabMap(weights, None, covered, ways, ("fallback", "copy"), "normal", 1, -1, names, names)
    table = np.ones((rows, 512), np.float32)
    tracemalloc.start()
    vocab_map.apply(table, block_rows=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (peak + table.nbytes) / table.nbytes < 2.5


def test_moments_equal_numpy():
    table = np.random.default_rng(2).standard_normal((5000, 3)) * 3 + 7
    found = moments(table)
    np.testing.assert_allclose(found, (table.mean(0), table.std(0)), rtol=1e-12)


def test_special_tokens_match_by_string_before_role(tokens_of):
    spec = {"merges": [], "kind": "byte-level"}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    source = tokens_of(
        {**spec, "tokens_in_id_order": ["<unk>", "<s>", "</s>", "<pad>", "a"], "special": roles}
    )
    roles = {"bos_token": "[B]", "eos_token": "<pad>"}
    target = tokens_of({**spec, "tokens_in_id_order": ["<unk>", "[B]", "<pad>", "a"], "special": roles})
    weights = csr_matrix((4, 5))
    vocab_map = build_map(source, target, weights, np.zeros(4, int), ("x",), fallback="mean")
    assert vocab_map.provenance(1) == [("<s>", 1.0)]
    assert vocab_map.provenance(2) == [("<pad>", 1.0)]
