"""Nearest neighbours by dot product, exact, with equal vectors computed once."""

from __future__ import annotations

import numpy as np

from calque.progress import bar

_BLOCK_BYTES = 32 << 20
_GROUP = 16


def nearest(
    queries_TM: np.ndarray, keys_SM: np.ndarray, count: int, *, zeros: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` keys with the largest dot product for each query.

    Args:
        queries_TM: (T, M) unit rows; zero rows get no neighbours.
        keys_SM: (S, M) unit rows.
        count: Neighbours wanted; at most the number of keys that may be one.
        zeros: Zero keys may be neighbours, with dot product 0.

    Returns:
        (T, K) places and dot products, best first, of equal ones the lower place first; -1 and -inf where
        there are fewer.
    """
    keys, members = _distinct(keys_SM, skip_zeros=not zeros)
    queries, askers = _distinct(queries_TM, skip_zeros=True)
    width = min(count, sum(map(len, members)))
    places = np.full((len(queries_TM), max(1, width)), -1, np.int64)
    values = np.full(places.shape, -np.inf, queries_TM.dtype)
    if not width or not len(queries):
        return places, values
    table = keys_SM[keys]
    rows = max(1, _BLOCK_BYTES // (table.itemsize * len(table)))
    with bar("nearest tokens", len(queries), "token") as shown:
        for start in range(0, len(queries), rows):
            block = queries_TM[queries[start : start + rows]]
            best, scores = _top(block @ table.T, min(count, len(table)))
            for row, (found, score) in enumerate(zip(best, scores, strict=True), start):
                place, value = _expand(found, score, members, width)
                places[askers[row], : len(place)] = place
                values[askers[row], : len(place)] = value
            shown.update(len(block))
    return places, values


def _distinct(rows: np.ndarray, *, skip_zeros: bool) -> tuple[np.ndarray, list[list[int]]]:
    """First place of each distinct row, and all places of it, lowest first."""
    found: dict[bytes, list[int]] = {}
    zero = np.zeros(rows.shape[1], rows.dtype).tobytes()
    for place, row in enumerate(np.ascontiguousarray(rows) + 0.0):
        found.setdefault(row.tobytes(), []).append(place)
    if skip_zeros:
        found.pop(zero, None)
    return np.array([places[0] for places in found.values()], np.int64), list(found.values())


def _top(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest per row in descending order; at equal scores the lower place is first."""
    groups = scores.shape[1] // _GROUP
    if groups <= 4 * count:
        candidates = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    else:
        # Only the groups with the largest maxima can hold a member of the result.
        split = groups * _GROUP
        peaks = scores[:, :split].reshape(len(scores), groups, _GROUP).max(2)
        cut = np.partition(peaks, groups - count, axis=1)[:, groups - count]
        return _top_of_groups(scores, peaks, cut, split, count)
    order = np.lexsort((candidates, -scores), axis=1)[:, :count]
    return order, np.take_along_axis(scores, order, 1)


def _top_of_groups(
    scores: np.ndarray, peaks: np.ndarray, cut: np.ndarray, split: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    best = np.empty((len(scores), count), np.int64)
    tail = np.arange(split, scores.shape[1])
    inside = np.arange(_GROUP)
    for row, level in enumerate(cut):
        chosen = np.flatnonzero(peaks[row] >= level)
        candidates = np.concatenate([(chosen[:, None] * _GROUP + inside).ravel(), tail])
        values = scores[row, candidates]
        best[row] = candidates[np.lexsort((candidates, -values))[:count]]
    return best, np.take_along_axis(scores, best, 1)


def _expand(
    found: np.ndarray, scores: np.ndarray, members: list[list[int]], count: int
) -> tuple[list[int], list[float]]:
    """Distinct keys back to all places that share them."""
    pairs = [(-score, place) for key, score in zip(found, scores, strict=True) for place in members[key]]
    pairs.sort()
    return [place for _, place in pairs[:count]], [-score for score, _ in pairs[:count]]
