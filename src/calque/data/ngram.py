"""An interpolated n-gram model of token ids: what followed each token, and each pair of tokens.

Shape letters: V tokens of the vocabulary, T positions, K entries of a sparse table over (position, token).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_COUNTED = 20_000_000  # tokens that are counted at most: about 1 GB while they are sorted


class Followers(NamedTuple):
    """Distributions over the next token, one for each of T positions: a sparse part and a shared rest.

    p_t = sum over entries k with rows_k = t of values_k * onehot(columns_k) + rest_t * base

    Attributes:
        rows: position of each entry, ascending, shape (K,).
        columns: token of each entry, shape (K,).
        values: its probability mass, shape (K,).
        rest: mass that the shared distribution gets, shape (T,).
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    rest: np.ndarray


@dataclass(frozen=True, eq=False)
class _Order:
    """Followers of the contexts of one length, discounted.

    Attributes:
        contexts: sorted keys of the contexts, shape (C,).
        starts: where the followers of each begin, and the end of the last, shape (C + 1,).
        followers: token ids, shape (F,).
        shares: (count - discount) / total, shape (F,).
        rests: mass left to the shorter context, shape (C,).
    """

    contexts: np.ndarray
    starts: np.ndarray
    followers: np.ndarray
    shares: np.ndarray
    rests: np.ndarray

    @classmethod
    def count(cls, keys: np.ndarray, following: np.ndarray, size: int) -> _Order:
        """Count pairs (key of a context, token after it) over `size` tokens."""
        contexts, numbers = np.unique(keys, return_inverse=True)
        pairs, counts = np.unique(numbers.astype(np.int64) * size + following, return_counts=True)
        owner, followers = np.divmod(pairs, size)
        types = np.bincount(owner, minlength=len(contexts))
        totals = np.bincount(owner, weights=counts, minlength=len(contexts))
        discount = _discount(counts)
        starts = np.concatenate([[0], np.cumsum(types)]).astype(np.int64)
        return cls(
            contexts, starts, followers, (counts - discount) / totals[owner], discount * types / totals
        )

    def rows(self, keys: np.ndarray) -> Followers:
        """The followers of these contexts; a context that never came leaves all its mass."""
        if not len(self.contexts):
            nothing = np.zeros(0, dtype=np.int64)
            return Followers(nothing, nothing, np.zeros(0), np.ones(len(keys)))
        places = np.searchsorted(self.contexts, keys).clip(max=len(self.contexts) - 1)
        known = self.contexts[places] == keys
        sizes = np.where(known, self.starts[places + 1] - self.starts[places], 0)
        rows = np.repeat(np.arange(len(keys)), sizes)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        entries = np.repeat(self.starts[places], sizes) + within
        rest = np.where(known, self.rests[places], 1.0)
        return Followers(rows, self.followers[entries], self.shares[entries], rest)


def _discount(counts: np.ndarray) -> float:
    """What is taken off each count: n1 / (n1 + 2 n2), the leave-one-out estimate of Ney et al. 1994."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5


@dataclass(frozen=True, eq=False)
class Ngrams:
    """Absolute discounting, interpolated, of order 2 or 3.

    p(w | u v) = max(c(uvw) - d3, 0) / c(uv.) + rest(uv) p(w | v), likewise p(w | v), and below it the
    frequencies of the tokens.

    Attributes:
        orders: followers of one token, and of two.
        base: frequencies of the tokens, with a little for those that never came, shape (V,).
    """

    orders: tuple[_Order, ...]
    base: np.ndarray

    @classmethod
    def count(cls, ids: np.ndarray, starts: np.ndarray, size: int, *, order: int = 3) -> Ngrams:
        """Count a tokenized text.

        Args:
            ids: tokens of all pieces back to back, shape (N,).
            starts: where each piece begins, shape (P + 1,) or (P,); nothing is counted across it.
            size: V.
            order: tokens of the longest n-gram, 2 or 3.
        """
        ids = np.asarray(ids[:_COUNTED], dtype=np.int64)
        first = np.zeros(len(ids) + 1, dtype=bool)
        first[starts[starts <= len(ids)]] = True
        follows = ~first[1:-1]  # whether token i + 1 is in the piece of token i
        following = ids[1:][follows]
        orders = [_Order.count(ids[:-1][follows], following, size)]
        if order > 2:
            both = follows[:-1] & follows[1:]
            keys = ids[:-2] * size + ids[1:-1]
            orders.append(_Order.count(keys[both], ids[2:][both], size))
        counts = np.bincount(following, minlength=size) + 0.1
        return cls(tuple(orders), counts / counts.sum())

    @classmethod
    def of_documents(cls, documents: Iterable[Sequence[int]], size: int, *, order: int = 3) -> Ngrams:
        """Count token lists, each a piece of its own."""
        arrays = [np.asarray(document, dtype=np.int64) for document in documents]
        starts = np.cumsum([0, *map(len, arrays)])
        joined = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
        return cls.count(joined, starts, size, order=order)

    def followers(self, ids: np.ndarray, lengths: Sequence[int]) -> Followers:
        """What follows each token of some pieces, with as much context as its piece gives.

        Args:
            ids: tokens of the pieces back to back, shape (T,).
            lengths: tokens of each piece; they sum to T.
        """
        pairs = np.roll(ids, 1) * len(self.base) + ids
        pairs[np.cumsum([0, *lengths[:-1]])] = -1  # the first of a piece has nothing before it
        keys = [ids, pairs][: len(self.orders)]
        mass = np.ones(len(ids))
        parts = []
        for order, wanted in zip(reversed(self.orders), reversed(keys), strict=True):
            found = order.rows(wanted)
            parts.append((found.rows, found.columns, found.values * mass[found.rows]))
            mass = mass * found.rest
        rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        by_row = np.argsort(rows, kind="stable")
        return Followers(rows[by_row], columns[by_row], values[by_row], mass)

    def surprise(self, ids: Sequence[int]) -> float:
        """Bits of a token sequence; its first token is given by its frequency."""
        tokens = np.asarray(ids, dtype=np.int64)
        if not len(tokens):
            return 0.0
        found = self.followers(tokens[:-1], [len(tokens) - 1]) if len(tokens) > 1 else None
        probability = self.base[tokens].copy()
        if found is not None:
            probability[1:] *= found.rest
            hit = found.columns == tokens[1:][found.rows]
            np.add.at(probability[1:], found.rows[hit], found.values[hit])
        return float(-np.log2(probability).sum())
