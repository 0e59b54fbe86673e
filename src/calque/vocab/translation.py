"""Token counts from word translations, and what to do with tokens that no translation touches."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags_array

from calque.vocab.map import sparse_rows, special_pairs, stand_in
from calque.vocab.overlap import byte_matches
from calque.vocab.tokens import Tokens

Unit = tuple[Sequence[int], Sequence[int], float]
_SPECIAL_COUNT = 1_000_000_000
_MASS = 1_000
_COUNTERPART = {"bos": "cls", "cls": "bos", "eos": "sep", "sep": "eos", "mask": "pad"}


def word_counts(units: Iterable[Unit], shape: tuple[int, int], *, truncate: bool = False) -> csr_matrix:
    """Token counts C[new, old] from aligned words.

    A word of m old and l new pieces with count c gives every (new, old) cell c/(2m) ("all to all"), and
    c/2 once more along proportional positions ("in order"); one piece on both sides gets c.

    Args:
        units: (old ids, new ids, count) of each aligned pair.
        shape: (V_target, V_source).
        truncate: Integer counts, at least 1 per cell, as the authors' code has them.

    Returns:
        csr (V_target, V_source).
    """
    groups: dict[tuple[int, int], tuple[list, list, list]] = defaultdict(lambda: ([], [], []))
    for old, new, count in units:
        if old and new:
            for part, value in zip(groups[len(old), len(new)], (old, new, count), strict=True):
                part.append(value)
    rows, cols, data = [], [], []
    for (m, n), (old, new, count) in groups.items():
        cells = _cells(np.asarray(count, np.float64), m, n, truncate)
        rows.append(np.repeat(np.asarray(new)[:, :, None], m, 2).ravel())
        cols.append(np.repeat(np.asarray(old)[:, None, :], n, 1).ravel())
        data.append(cells.ravel())
    if not rows:
        return csr_matrix(shape)
    table = coo_matrix((np.concatenate(data), (np.concatenate(rows), np.concatenate(cols))), shape=shape)
    counts = csr_matrix(table)
    counts.eliminate_zeros()
    return counts


def _cells(count: np.ndarray, m: int, n: int, truncate: bool) -> np.ndarray:
    """(words, n, m) counts that words of m old and n new pieces hand to their cells."""
    step_old, step_new = n // math.gcd(m, n), m // math.gcd(m, n)
    met = np.zeros((n, m))
    for place in range(m * step_old):
        met[place // step_new, place // step_old] += 1
    if not truncate:
        return count[:, None, None] * (0.5 / m + 0.5 / step_new * met)
    whole = np.floor(count)
    if m == n == 1:
        return whole[:, None, None]
    half = np.maximum(1, whole // 2)[:, None, None]
    return np.maximum(1, half // m) + np.maximum(1, half // step_new) * met


def plus_one(source: Tokens, target: Tokens) -> csr_matrix:
    """Counts that need no evidence: numbers, tokens with equal bytes (+1), special tokens (+1e9)."""
    cells: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for new, old in _number_pairs(source, target):
        cells[new][old] += 1
    for new, old in enumerate(byte_matches(source, target).tolist()):
        if old >= 0:
            cells[new][old] += 1
    for new, old in special_pairs(source, target).items():
        cells[new][old] += 1
    for new, old in _counterparts(source, target):
        cells[new][old] += _SPECIAL_COUNT
    return sparse_rows(cells, (len(target), len(source)))


def _number_pairs(source: Tokens, target: Tokens) -> Iterable[tuple[int, int]]:
    """(new, first old token) of numbers that are one new token, with and without a leading blank."""
    known, old_known = target.by_surface, source.by_surface
    for number in [*map(str, range(9999)), *(f"0{rest}" for rest in range(99))]:
        bare = number.encode()
        if bare in known and (first := [old_known.get(bare), *source.encode(number)]):
            yield known[bare], next(old for old in first if old is not None)
        if bare not in known and b" " + bare not in known:
            continue
        for form in (number, " " + number):
            new, old = target.encode(form), source.encode(form)
            if len(new) == 1 and old:
                yield new[0], old[0]


def _counterparts(source: Tokens, target: Tokens) -> Iterable[tuple[int, int]]:
    unknown = stand_in(source)
    for role in target.roles:
        other = _COUNTERPART.get(role, role)
        old = source.special.get(role, source.special.get(other, unknown))
        if role in target.special and old >= 0:
            yield target.special[role], old


def smooth(
    counts: csr_matrix, source: Tokens, target: Tokens, *, truncate: bool = False
) -> tuple[csr_matrix, np.ndarray]:
    """Rows for tokens without counts, from their longer and shorter relatives that have some.

    For a token x these are the counted tokens that begin with x, and the counted tokens inside x, longest
    first without those that lie in one named before. Each hands over its counts scaled to a mass of 1000,
    doubled for old tokens with a leading blank. The set of counted tokens is frozen before the walk, so
    the result does not depend on the order of the vocabulary.

    Args:
        counts: csr (V_target, V_source).
        source: Old vocabulary.
        target: New vocabulary.
        truncate: Integer shares of at least 1, as the authors' code has them.

    Returns:
        The counts with new rows, and a bool (V_target,) mask of the rows that are new.
    """
    counted = np.diff(counts.indptr) > 0
    relatives = _relatives(target, counted)
    chosen = sparse_rows(relatives, (len(target), len(target)))
    more = csr_matrix(chosen @ _shares(counts, source, truncate))
    return csr_matrix(counts + more), np.diff(more.indptr) > 0


def _shares(counts: csr_matrix, source: Tokens, truncate: bool) -> csr_matrix:
    """Rows scaled to a mass of 1000, old tokens with a leading blank counted twice."""
    totals = np.asarray(counts.sum(1)).ravel()
    blank = np.array([(surface or b"").startswith(b" ") for surface in source.surface])
    scale = np.where(blank, 2.0 * _MASS, 1.0 * _MASS)
    shares = csr_matrix(counts, copy=True)
    shares.data = shares.data * scale[shares.indices]
    if truncate:
        shares.data = np.maximum(1, shares.data // np.repeat(totals, np.diff(shares.indptr)))
        return shares
    inverse = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return csr_matrix(diags_array(inverse) @ shares)


def _relatives(target: Tokens, counted: np.ndarray) -> dict[int, dict[int, float]]:
    known = {surface: place for place, surface in enumerate(target.surface) if surface and counted[place]}
    ordered = sorted(known)
    longest = max(map(len, ordered), default=0)
    found: dict[int, dict[int, float]] = {}
    for token, surface in enumerate(target.surface):
        if counted[token] or not surface:
            continue
        row: dict[int, float] = defaultdict(float)
        start = bisect_left(ordered, surface)
        while start < len(ordered) and ordered[start].startswith(surface):
            row[known[ordered[start]]] += 1
            start += 1
        for inner in _inside(surface, known, longest):
            row[inner] += 1
        if row:
            found[token] = row
    return found


def _inside(surface: bytes, known: dict[bytes, int], longest: int) -> list[int]:
    """Counted tokens inside a token, longest first, without those inside a longer one."""
    taken: list[bytes] = []
    for size in range(min(longest, len(surface)), 0, -1):
        for start in range(len(surface) - size + 1):
            piece = surface[start : start + size]
            if piece in known and not any(piece in other for other in taken):
                taken.append(piece)
    return [known[piece] for piece in taken]


def row_stochastic(counts: csr_matrix) -> csr_matrix:
    """Rows divided by their sums; empty rows stay empty."""
    totals = np.asarray(counts.sum(1)).ravel()
    inverse = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return csr_matrix(diags_array(inverse) @ counts)
