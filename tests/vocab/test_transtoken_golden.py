"""Counts, mapping and embeddings of the authors' trans-tokenization code."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from calque.vocab.map import build_map
from calque.vocab.translation import plus_one, row_stochastic, smooth, word_counts


def _units(lines, source, target):
    for old, new, _, count in lines:
        if "<eps>" not in (old, new) and int(count) >= 10:
            yield (
                [source.strings.index(piece) for piece in old.split("—")],
                [target.strings.index(piece) for piece in new.split("—")],
                count,
            )


def _named(matrix, source, target, token):
    row = matrix[target.strings.index(token)].tocoo()
    return {source.strings[col]: value for col, value in zip(row.col, row.data, strict=True)}


@pytest.fixture(params=["worked_untied", "worked_tied"])
def worked(request, golden, tokens_of):
    case = golden("35-trans-tokenization", request.param)
    old, new = (case["inputs"][f"{side}_tokenizer"] for side in ("old", "new"))
    lines = case["inputs"]["alignment_lines"]
    # The alignment names two pieces that the new tokenizer has not; the authors' dictionaries hold them too.
    pieces = {piece for line in lines for piece in line[1].split("—")} - {"<eps>"}
    absent = sorted(pieces - set(new["tokens_in_id_order"]))
    new = {**new, "tokens_in_id_order": [*new["tokens_in_id_order"], *absent]}
    source, target = tokens_of(old), tokens_of(new)
    shape = (len(target), len(source))
    counts = word_counts(_units(lines, source, target), shape, truncate=True)
    return case, source, target, csr_matrix(counts + plus_one(source, target))


def test_counts_before_smoothing_are_exact(worked):
    case, source, target, counts = worked
    for token, expected in case["outputs"]["counts_before_smoothing"].items():
        assert _named(counts, source, target, token) == expected, token


def test_mapping_after_smoothing(worked):
    case, source, target, counts = worked
    smoothed, _ = smooth(counts, source, target, truncate=True)
    weights = row_stochastic(smoothed)
    unmapped = case["outputs"]["unmapped_to_unk"]
    for expected in (case["outputs"]["mapping"], case["outputs"]["mapping_frozen"]):
        for token, row in expected.items():
            if token in unmapped:
                assert _named(weights, source, target, token) == {}
            else:
                assert _named(weights, source, target, token) == pytest.approx(row, abs=1e-8), token


def test_embedding_rows(worked, array_of):
    case, source, target, counts = worked
    smoothed, made = smooth(counts, source, target, truncate=True)
    vocab_map = build_map(
        source, target, row_stochastic(smoothed), made.astype(int), ("aligned", "relatives"), fallback="unk"
    )
    tables = [("input_rows", "old_embeddings"), ("output_rows", "old_head")]
    for rows, table in tables[: 1 if case["outputs"]["output_tied"] else 2]:
        result = vocab_map.apply(array_of(case["inputs"][table]).astype(np.float32))
        for token, expected in case["outputs"][rows].items():
            found = result[target.strings.index(token)]
            np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=token)


def test_word_schemes(golden):
    for scheme in golden("35-trans-tokenization", "word_schemes")["outputs"]["schemes"]:
        m, n, count = scheme["old_pieces"], scheme["new_pieces"], scheme["count"]
        counts = word_counts([(range(m), range(n), count)], (n, m), truncate=True).toarray()
        expected = np.zeros((n, m))
        for name in ("all_to_all", "in_order"):
            for new, row in scheme[name].items():
                for old, value in row.items():
                    expected[int(new[1:]) - 1, int(old[1:]) - 1] += value
        np.testing.assert_array_equal(counts, expected)
