"""Exact order statistics of a stream that is too long to sort: the k-th smallest of billions of numbers.

A float's bits, read as an integer, sort as the float does. So the search for a number is a search for an
integer key: each pass over the stream counts the keys below an interval and collects the different keys
inside it. When too many collect, neighbouring keys are counted together, and a further pass looks into the
one interval that holds the answer. A sample of the stream, where there is one, gives a first interval that
usually needs one pass. The answer is exact either way; the memory is that of `_LIMIT` keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

_LIMIT = 1 << 22  # keys held before they are counted together
_CLUSTER = 16  # neighbours in a tensor are alike

Keys = NDArray[np.signedinteger]


def keys(values: torch.Tensor) -> Keys:
    """Integers (int32 for float32, int64 for float64) that sort as the values do, flattened; NaN not allowed.

    The tensor must be contiguous; it is not changed. -0.0 sorts just below 0.0.
    """
    bits = _bits(values)
    negative = bits >> (bits.itemsize * 8 - 1)
    return bits ^ (negative & np.iinfo(bits.dtype).max)


def magnitude_keys(values: torch.Tensor) -> Keys:
    """Keys of the absolute values; the sign bit is cleared, which is all it takes."""
    bits = _bits(values)
    return bits & np.iinfo(bits.dtype).max


def number(key: int, dtype: np.dtype) -> float:
    """The float that has this key; the inverse of `keys` for keys of int32 or int64."""
    top = int(np.iinfo(dtype).max)
    bits = np.array(key if key >= 0 else key ^ top, dtype=dtype)
    return float(bits.view(np.float32 if dtype == np.int32 else np.float64))


def _bits(values: torch.Tensor) -> Keys:
    kind = {torch.float32: np.int32, torch.float64: np.int64}[values.dtype]
    return values.detach().reshape(-1).numpy().view(kind)


class OrderStatistic:
    """The number at place `rank` (from 0, ascending) of a stream of `size` numbers, seen a few times over.

    Every pass calls `add` for all keys of the stream, in any pieces, and then `close`, until that says True.

    Attributes:
        rank: place in the sorted stream.
        size: length of the stream.
        value: the number, once found.
        below: how many numbers are smaller.
        equal: how many are equal to it.
        hits: by part of the stream: how many equal the first guess.
        guess: the key the sample pointed at; None without a sample.
    """

    def __init__(self, rank: int, size: int) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"place {rank} of a stream of {size} numbers")
        self.rank, self.size = rank, size
        self.value = math.nan
        self.below = self.equal = 0
        self.hits: dict[int, int] = {}
        self.guess: int | None = None
        self.key: int | None = None
        self._low, self._high = -(1 << 63), 1 << 63  # the answer lies in low <= key < high
        self._shift = 0
        self._dtype = np.dtype(np.int32)
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._under = self._held = 0
        self._pieces: list[NDArray[np.int64]] = []
        self._table = np.empty(0, np.int64), np.empty(0, np.int64)

    def sample(self, keys: Keys, alike: int = _CLUSTER) -> None:
        """Guess the interval from keys from all over the stream; `alike` of them tell as much as one."""
        if not len(keys):
            return
        ordered = np.sort(keys)
        share, count = self.rank / self.size, len(ordered)
        spread = 4 * math.sqrt(share * (1 - share) * alike / count) + alike / count
        first, last = math.floor((share - spread) * count), math.ceil((share + spread) * count)
        self.guess = int(ordered[min(count - 1, int(share * count))])
        if first > 0:
            self._low = int(ordered[first])
        if last < count - 1:
            self._high = int(ordered[last]) + 1

    def add(self, keys: Keys, part: int = 0) -> None:
        """Take the next keys of the stream; `part` names the piece of the stream they belong to."""
        self._dtype = keys.dtype
        limits = np.iinfo(keys.dtype)
        low, high = max(self._low, int(limits.min)), min(self._high, int(limits.max) + 1)
        unsigned = np.uint32 if keys.dtype == np.int32 else np.uint64
        # Shifted to start at 0 and read as unsigned, keys below the interval become huge: one comparison.
        moved = np.subtract(keys, keys.dtype.type(low), dtype=keys.dtype).view(unsigned)
        inside = moved[moved < unsigned(high - low)] if high - low <= np.iinfo(unsigned).max else moved
        if low > int(limits.min):
            self._under += int(np.count_nonzero(keys < keys.dtype.type(low)))
        found = inside.astype(np.int64) + low if keys.dtype == np.int32 else inside.view(np.int64) + low
        if self.guess is not None:
            self.hits[part] = self.hits.get(part, 0) + int(np.count_nonzero(found == self.guess))
        self._pieces.append(found >> self._shift)
        self._held += len(found)
        if self._held + len(self._table[0]) > _LIMIT:
            self._condense()

    def _condense(self) -> None:
        """Count equal keys together; where too many different ones remain, neighbours as well."""
        keys, counts = np.unique(np.concatenate([*self._pieces, self._table[0]]), return_counts=True)
        if len(self._table[0]):  # a key of the table stands for as many as it has counted
            counts[np.searchsorted(keys, self._table[0])] += self._table[1] - 1
        while len(keys) > _LIMIT // 2:
            self._shift += 1
            keys >>= 1
            first = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
            keys, counts = keys[first], np.add.reduceat(counts, first)
        self._pieces, self._held = [], 0
        self._table = keys, counts

    def close(self) -> bool:
        """End a pass; False when one more is needed, in a smaller interval."""
        self._condense()
        keys, counts = self._table
        place = int(np.searchsorted(np.cumsum(counts), self.rank - self._under, side="right"))
        if self.rank < self._under:
            self._high, self._low = self._low, -(1 << 63)
        elif place == len(keys):
            self._low, self._high = self._high, 1 << 63
        elif self._shift:
            bin_low = int(keys[place]) << self._shift
            self._low, self._high = max(self._low, bin_low), min(self._high, bin_low + (1 << self._shift))
        else:
            self.key = int(keys[place])
            self.value = number(self.key, self._dtype)
            self.below = self._under + int(counts[:place].sum())
            self.equal = int(counts[place])
        self._shift = 0
        self._begin_pass()
        return self.key is not None


def search(statistics: Iterable[OrderStatistic], stream: Callable[[], Iterable[Keys]]) -> None:
    """Find order statistics of one stream that can be read again and again."""
    open_ones = list(statistics)
    while open_ones:
        for piece in stream():
            for statistic in open_ones:
                statistic.add(piece)
        open_ones = [statistic for statistic in open_ones if not statistic.close()]
