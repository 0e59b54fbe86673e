"""WECHSEL against the authors' code, and the identities of its formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.errors import DataError
from calque.vocab.nearest import nearest
from calque.vocab.static import Vectors, WordSpaces
from calque.vocab.wechsel import (
    correspondences,
    reduce_larger,
    rotation,
    softmax,
    subword_vectors,
    wechsel,
    word_mean_vectors,
)


@pytest.fixture(params=["mode_b", "mode_a"])
def case(request, golden, tokens_of, array_of):
    found = golden("08-wechsel", request.param)
    inputs = found["inputs"]
    sides = [
        Vectors(
            tuple(inputs[f"{side}_words"]),
            array_of(inputs[f"{side}_vectors"]),
            np.array(inputs[f"{side}_freqs"]),
        )
        for side in ("source", "target")
    ]
    spaces = WordSpaces(sides[0], sides[1], tuple(map(tuple, inputs["dictionary"])))
    tokens = [tokens_of(inputs[f"{side}_tokenizer"]) for side in ("source", "target")]
    mode = "words" if "without" in found["params"]["mode"] else "subword"
    return found, tokens[0], tokens[1], spaces, array_of(inputs["source_matrix"]), mode


def test_alignment(case):
    found, _, _, spaces, _, _ = case
    rows = correspondences(spaces.source, spaces.target, spaces.pairs)
    assert len(rows) == found["outputs"]["correspondences"]
    turn = rotation(spaces.source, spaces.target, spaces.pairs, spaces.source.matrix, spaces.target.matrix)
    np.testing.assert_allclose(turn @ turn.T, np.eye(len(turn)), atol=1e-10)
    expected = np.array(found["outputs"]["align_matrix"])
    words = spaces.source.matrix[rows[:, 0]]
    np.testing.assert_allclose(words @ turn, words @ expected, atol=1e-7)


def test_subword_vectors(case):
    found, source, target, spaces, _, mode = case
    make = word_mean_vectors if mode == "words" else subword_vectors
    for name, tokens, vectors in (("source", source, spaces.source), ("target", target, spaces.target)):
        expected = np.array(found["outputs"][f"{name}_subword"])
        np.testing.assert_allclose(make(tokens, vectors), expected, atol=1e-8, rtol=1e-6)


def test_target_matrix(case):
    found, source, target, spaces, matrix, mode = case
    for k, tau in found["params"]["k_tau"]:
        expected = found["outputs"][f"k{k}_tau{tau}"]
        vocab_map = wechsel(
            source, target, spaces, mode=mode, neighbours=k, temperature=tau, zero_neighbours=True
        )
        table = vocab_map.apply(matrix)
        sure = [t for t, name in enumerate(target.strings) if name not in expected["ambiguous_tokens"]]
        rows = np.array(expected["target_matrix"])
        np.testing.assert_allclose(table[sure], rows[sure], atol=1e-8, rtol=1e-6)
        missing = {target.strings[token] for token in np.flatnonzero(~vocab_map.covered)}
        assert missing | set(source.roles.values()) == set(expected["not_found"])
        name, neighbours, weights, _ = expected["weights_first_found"]
        if name not in expected["ambiguous_tokens"]:
            row = dict(vocab_map.provenance(target.strings.index(name)))
            shown = [source.show(source.strings.index(old)) for old in neighbours]
            assert row == pytest.approx(dict(zip(shown, weights, strict=True)), abs=1e-8)


def test_softmax_example(golden):
    case = golden("08-wechsel", "softmax_example")
    scores = np.array([case["inputs"]["similarities"]]) / case["params"]["tau"]
    np.testing.assert_allclose(softmax(scores)[0], case["outputs"]["weights"], atol=1e-8)
    np.testing.assert_allclose(softmax(scores * 1e6).sum(), 1)


def test_all_neighbours_at_high_temperature_give_the_mean(case):
    _, source, target, spaces, matrix, mode = case
    options = {"neighbours": 10_000, "temperature": 1e6, "zero_neighbours": True}
    vocab_map = wechsel(source, target, spaces, mode=mode, **options)
    found = np.flatnonzero(vocab_map.how == vocab_map.how_names.index("nearest"))
    table = vocab_map.apply(matrix)
    np.testing.assert_allclose(table[found], np.tile(matrix.mean(0), (len(found), 1)), atol=1e-5)


def test_rotating_or_scaling_the_spaces_changes_nothing(case):
    _, source, target, spaces, matrix, mode = case
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]

    def moved(vectors, factor):
        return Vectors(vectors.words, vectors.matrix @ turn * factor, vectors.counts)

    other = WordSpaces(moved(spaces.source, 3.0), moved(spaces.target, 1.0), spaces.pairs)
    # With all neighbours it does not matter which of two equally near ones comes first.
    options = {"mode": mode, "neighbours": 10_000}
    ours, theirs = (wechsel(source, target, found, **options) for found in (spaces, other))
    np.testing.assert_allclose(theirs.apply(matrix), ours.apply(matrix), atol=1e-6)


def test_known_rotation_is_found():
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    words = tuple(f"w{n}" for n in range(40))
    left = Vectors(words, rng.standard_normal((40, 6)), np.ones(40))
    right = Vectors(words, left.matrix @ turn, np.ones(40))
    found = rotation(left, right, [(word, word) for word in words], left.matrix, right.matrix)
    np.testing.assert_allclose(found, turn, atol=1e-10)


@pytest.mark.parametrize("larger", ["source", "target"])
def test_the_larger_space_is_the_one_that_shrinks(larger):
    rng = np.random.default_rng(4)
    wide = Vectors(("a", "b", "c"), rng.standard_normal((3, 8)), np.ones(3))
    narrow = Vectors(("x", "y", "z"), rng.standard_normal((3, 4)), np.ones(3))
    sides = (wide, narrow) if larger == "source" else (narrow, wide)
    left, right, _, _ = reduce_larger(*sides)
    assert left.shape[1] == right.shape[1] == 4
    kept = right if larger == "source" else left
    np.testing.assert_array_equal(kept, narrow.matrix)
    # Three words lie in three dimensions, so four directions keep all that is between them.
    cut = left if larger == "source" else right
    np.testing.assert_allclose(cut @ cut.T, wide.matrix @ wide.matrix.T, atol=1e-10)


def test_a_dictionary_without_known_words_is_refused(case):
    _, source, target, spaces, _, _ = case
    with pytest.raises(DataError, match="no pair"):
        wechsel(source, target, WordSpaces(spaces.source, spaces.target, (("qq", "zz"),)))


@settings(deadline=None)
@given(st.integers(1, 2500), st.integers(1, 12), st.integers(0, 2**31), st.booleans())
def test_nearest_is_exact_with_lower_places_first(keys, count, seed, zeros):
    rng = np.random.default_rng(seed)
    table = rng.integers(-1, 2, (keys, 4)).astype(np.float32)
    asks = rng.integers(-1, 2, (5, 4)).astype(np.float32)
    places, values = nearest(asks, table, count, zeros=zeros)
    for row, ask in enumerate(asks):
        allowed = [p for p in range(keys) if zeros or table[p].any()] if ask.any() else []
        expected = sorted(allowed, key=lambda p: (-float(table[p] @ ask), p))[:count]
        found = [p for p in places[row].tolist() if p >= 0]
        assert found == expected
        np.testing.assert_allclose(values[row][: len(found)], table[found] @ ask)
