"""FOCUS against the authors' code, and sparsemax against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.vocab.focus import WAYS, focus, shared_tokens, sparsemax
from calque.vocab.static import Vectors

KINDS = {"exact_match": "copy", "numerical_symbol": "same symbol", "fuzzy_match": "fuzzy copy"}


@pytest.fixture(params=["exact_only", "fuzzy", "symbols_only"])
def case(request, golden, tokens_of, array_of):
    found = golden("91-focus", request.param)
    inputs = found["inputs"]
    source, target = tokens_of(inputs["source_tokenizer"]), tokens_of(inputs["target_tokenizer"])
    words = tuple(inputs["aux_tokens"])
    vectors = Vectors(words, array_of(inputs["aux_vectors"]).astype(np.float32), np.ones(len(words)))
    return found, source, target, vectors, array_of(inputs["source_embeddings"]).astype(np.float32)


@pytest.mark.parametrize("match", ["bytes", "canonical"])
def test_shared_tokens(case, match):
    found, source, target, _, _ = case
    names = {"exact": "exact_match_all", "symbols": "match_symbols", "fuzzy": "fuzzy_match_all"}
    options = {name: found["params"][theirs] for name, theirs in names.items()}
    shared = shared_tokens(source, target, match=match, **options)
    readable = {target.strings[new]: [source.strings[old], WAYS[way]] for new, (old, way) in shared.items()}
    expected = {new: [old, KINDS[kind]] for new, (old, kind) in found["outputs"]["overlap"].items()}
    if match == "bytes":
        # Special tokens have no bytes; every map copies them anyway.
        readable, expected = (
            {t: r for t, r in d.items() if t not in target.special} for d in (readable, expected)
        )
    assert readable == expected


@pytest.mark.parametrize("match", ["bytes", "canonical"])
def test_rows_and_weights(case, match):
    found, source, target, vectors, matrix = case
    outputs = found["outputs"]
    vocab_map = focus(source, target, vectors, match=match, **found["params"])
    table = vocab_map.apply(matrix)
    for token, expected in outputs["rows"].items():
        row = table[target.strings.index(token)]
        np.testing.assert_allclose(row, expected, atol=2e-6, rtol=1e-5, err_msg=token)
    for token, expected in outputs["sparsemax_weights"].items():
        by_old: dict[str, float] = {}
        for new, weight in expected.items():
            old = outputs["overlap"][new][0]
            by_old[old] = by_old.get(old, 0.0) + weight
        row = vocab_map.input[target.strings.index(token)].tocoo()
        weights = {source.strings[col]: value for col, value in zip(row.col, row.data, strict=True)}
        assert weights == pytest.approx(by_old, abs=2e-6), token
    missing = [target.strings[token] for token in np.flatnonzero(~vocab_map.covered)]
    assert sorted(missing) == sorted(outputs["random_tokens"])


def test_sparsemax_golden(golden):
    case = golden("91-focus", "sparsemax")
    for scores, expected in zip(case["inputs"]["scores"], case["outputs"]["weights"], strict=True):
        np.testing.assert_allclose(sparsemax(np.array([scores]))[0], expected, atol=1e-8)


@given(st.integers(1, 600), st.integers(0, 2**31), st.sampled_from([0.001, 0.1, 3.0]))
def test_sparsemax_is_the_projection_onto_the_simplex(width, seed, scale):
    scores = np.random.default_rng(seed).standard_normal((2, width)) * scale
    weights = sparsemax(scores)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-9)
    assert (weights >= 0).all()
    for row, score in zip(weights, scores, strict=True):
        # Optimality: every weight that is not zero has the same distance to its score, the rest a larger one.
        gap = score - row
        assert np.ptp(gap[row > 0]) < 1e-9
        assert (gap[row == 0] <= gap[row > 0].max() + 1e-9).all()


def test_bytes_that_are_no_character_keep_their_own_rows(tokens_of):
    spec = {"merges": [], "kind": "byte-level", "special": {"unk_token": "<unk>"}}
    source = tokens_of({**spec, "tokens_in_id_order": ["<unk>", "a", "â", "Ķ", "ģ"]})
    target = tokens_of({**spec, "tokens_in_id_order": ["<unk>", "ģ", "â", "Ķ"]})
    options = {"exact": True, "symbols": False, "fuzzy": False}
    by_bytes = shared_tokens(source, target, match="bytes", **options)
    assert {new: old for new, (old, _) in by_bytes.items() if new} == {1: 4, 2: 2, 3: 3}
    by_text = shared_tokens(source, target, match="canonical", **options)
    assert len({old for new, (old, _) in by_text.items() if new}) == 1
