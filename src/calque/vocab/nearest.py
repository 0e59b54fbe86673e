"""Nearest neighbours by dot product, exact, with equal vectors computed once."""

from __future__ import annotations

import numpy as np

from calque.progress import bar

_BLOCK_ROWS = 256
_GROUPS_PER_NEIGHBOUR, _GROUP = 50, 16


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
    keys, key_of = _distinct(keys_SM, skip_zeros=not zeros)
    queries, query_of = _distinct(queries_TM, skip_zeros=True)
    width = max(1, min(count, int((key_of >= 0).sum())))
    places = np.full((len(queries) + 1, width), -1, np.int64)
    values = np.full(places.shape, -np.inf, queries_TM.dtype)
    if len(keys) and len(queries):
        table = np.ascontiguousarray(keys_SM[keys].T)
        scores = np.empty((_BLOCK_ROWS, len(keys)), np.result_type(queries_TM, keys_SM))
        twins, begins = _places_of_distinct(key_of, len(keys))
        with bar("nearest tokens", len(queries), "token") as shown:
            for start in range(0, len(queries), _BLOCK_ROWS):
                block = queries_TM[queries[start : start + _BLOCK_ROWS]]
                found = np.matmul(block, table, out=scores[: len(block)])
                rows, columns = _candidates(found, count)
                _put(rows + start, columns, found[rows, columns], (twins, begins), places, values)
                shown.update(len(block))
    # The last row stands for zero queries, whose place is -1.
    return places[query_of], values[query_of]


def _distinct(rows: np.ndarray, *, skip_zeros: bool) -> tuple[np.ndarray, np.ndarray]:
    """First place of each distinct row, and per row the number of its distinct row, or -1."""
    numbers: dict[bytes, int] = {}
    first: list[int] = []
    number_of = np.full(len(rows), -1, np.int64)
    filled = np.any(rows != 0, axis=1)
    for place, row in enumerate(np.ascontiguousarray(rows) + 0.0):
        if filled[place] or not skip_zeros:
            number = numbers.setdefault(row.tobytes(), len(first))
            if number == len(first):
                first.append(place)
            number_of[place] = number
    return np.array(first, np.int64), number_of


def _places_of_distinct(number_of: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """All places sorted by distinct number, and where each number begins among them."""
    order = np.argsort(number_of, kind="stable")
    return order, np.searchsorted(number_of[order], np.arange(count + 1))


def _candidates(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the `count` largest scores of each row, and a few more.

    The maxima of disjoint groups of columns are scores too, so the `count`-th largest maximum of a row is
    reached by its `count` largest scores, and only groups whose maximum reaches it need a second look.
    """
    columns = scores.shape[1]
    groups = min(columns, max(_GROUPS_PER_NEIGHBOUR * count, columns // _GROUP))
    size = columns // groups
    peaks = scores[:, : size * groups].reshape(len(scores), size, groups).max(1)
    rank = max(0, groups - count)
    level = np.partition(peaks, rank, axis=1)[:, rank]
    row, group = np.divmod(np.flatnonzero(peaks >= level[:, None]), groups)
    column = group[:, None] + np.arange(size) * groups
    tail = np.broadcast_to(np.arange(size * groups, columns), (len(scores), columns - size * groups))
    rows = np.concatenate([np.repeat(row, size), np.repeat(np.arange(len(scores)), tail.shape[1])])
    places = np.concatenate([column.ravel(), tail.ravel()])
    reached = scores[rows, places] >= level[rows]
    return rows[reached], places[reached]


def _put(
    rows: np.ndarray,
    columns: np.ndarray,
    scores: np.ndarray,
    members: tuple[np.ndarray, np.ndarray],
    places: np.ndarray,
    values: np.ndarray,
) -> None:
    """Spread candidates to all places that share their vector, and keep the best of each row."""
    twins, begins = members
    sizes = begins[columns + 1] - begins[columns]
    rows, scores = np.repeat(rows, sizes), np.repeat(scores, sizes)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    spots = twins[np.repeat(begins[columns], sizes) + within]
    order = np.lexsort((spots, -scores, rows))
    rows, spots, scores = rows[order], spots[order], scores[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    best = rank < places.shape[1]
    places[rows[best], rank[best]] = spots[best]
    values[rows[best], rank[best]] = scores[best]
