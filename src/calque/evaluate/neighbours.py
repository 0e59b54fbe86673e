"""Where the right answer stands among all candidates, by cosine or by CSLS.

    cosine  s(x, y) = cos(x, y)
    CSLS    s(x, y) = 2 cos(x, y) - r(x) - r(y),  r = mean cosine with the K nearest on the other side

CSLS takes from a candidate what it has in common with every query, so that hubs (near to everything) do not
come first everywhere. Candidates within 1e-6 of the right one stand before it: a model that gives all texts
one vector finds nothing.

Paper: Conneau et al. 2018, arXiv:1710.04087, for CSLS.

Shape letters: Q queries, C candidates, D hidden, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from calque.vocab.nearest import nearest

_EQUAL = 1e-6
_BLOCK = 256


def unit(matrix: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1)


def scores(
    queries_QD: np.ndarray, candidates_CD: np.ndarray, *, neighbours: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(first query, scores of a block of queries with all candidates).

    Args:
        queries_QD: Unit rows.
        candidates_CD: Unit rows.
        neighbours: K of CSLS; 0 gives cosines.
    """
    if neighbours:
        of_query = _nearness(queries_QD, candidates_CD, neighbours)
        of_candidate = _nearness(candidates_CD, queries_QD, neighbours)
    for start in range(0, len(queries_QD), _BLOCK):
        found = queries_QD[start : start + _BLOCK] @ candidates_CD.T
        if neighbours:
            found = 2 * found - of_query[start : start + _BLOCK, None] - of_candidate
        yield start, found


def _nearness(here: np.ndarray, there: np.ndarray, neighbours: int) -> np.ndarray:
    """Mean cosine of each row with its nearest ones on the other side; 0 for a row without a vector."""
    found = nearest(here, there, neighbours)[1]
    known = np.isfinite(found)
    return np.where(known, found, 0).sum(1) / np.maximum(1, known.sum(1))


def gold_ranks(row_C: np.ndarray, gold: Sequence[int]) -> np.ndarray:
    """Ranks from 1 of the right candidates, best first; of equal ones a wrong candidate stands before."""
    wanted = np.sort(row_C[list(gold)])[::-1]
    wrong = np.delete(row_C, list(gold))
    before = np.array([(wrong >= value - _EQUAL).sum() for value in wanted])
    return before + np.arange(1, len(wanted) + 1)


def margin(row_C: np.ndarray, gold: Sequence[int]) -> float:
    """Score of the best right candidate minus that of the best wrong one; 0 where nothing is wrong."""
    wrong = np.delete(row_C, list(gold))
    return float(row_C[list(gold)].max() - wrong.max()) if len(wrong) else 0.0
