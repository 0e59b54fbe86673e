"""Sentence pairs as numbers, in batches of equal shape, and the table of the word pairs that meet in them.

Shape letters: B pairs of a batch, I source words, J target words (both padded), K word pairs in the table.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from calque.errors import DataError
from calque.progress import say

_PLACE_BITS = 18
_MOST_CODES = 1 << (63 - _PLACE_BITS)
_PLACE = (1 << _PLACE_BITS) - 1
_PENDING = 1 << 24
_SLACK = 1.25


@dataclass(frozen=True, eq=False)
class Side:
    """The sentences of one language; the most frequent word has number 0, so hot table rows lie together.

    Attributes:
        words: the vocabulary, by number.
        counts: int64 (V,), how often each word occurs.
        flat: int32 (tokens,), word numbers of all sentences, one after the other.
        offsets: int64 (pairs + 1,), where each sentence begins in `flat`.
    """

    words: tuple[str, ...]
    counts: np.ndarray
    flat: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 (pairs,), words of each sentence."""
        return np.diff(self.offsets)

    def padded(self, pairs: np.ndarray) -> np.ndarray:
        """int32 (B, longest): word numbers of these sentences, -1 behind their ends."""
        lengths = self.lengths[pairs]
        place = np.arange(lengths.max(initial=0))
        here = np.minimum(self.offsets[pairs][:, None] + place, max(len(self.flat) - 1, 0))
        return np.where(place < lengths[:, None], self.flat[here], np.int32(-1))


def encode(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> tuple[Side, Side]:
    """Number the words of both sides while the pairs stream by; 4 bytes a word are kept."""
    flats, known = (array("i"), array("i")), (dict[str, int](), dict[str, int]())
    ends = (array("q", [0]), array("q", [0]))
    for pair in pairs:
        for flat, words, end, sentence in zip(flats, known, ends, pair, strict=True):
            flat.extend([words.setdefault(word, len(words)) for word in sentence])
            end.append(len(flat))
    first, second = (
        _ranked(*side)
        for side in zip(map(list, known), map(np.asarray, flats), map(np.asarray, ends), strict=True)
    )
    return first, second


def _ranked(words: list[str], flat: np.ndarray, offsets: np.ndarray) -> Side:
    counts = np.bincount(flat, minlength=len(words))
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(words), np.int32)
    rank[order] = np.arange(len(words), dtype=np.int32)
    return Side(tuple(words[k] for k in order), counts[order], rank[flat], offsets)


@dataclass(frozen=True, eq=False)
class Batch:
    """Sentence pairs of similar lengths, padded.

    Attributes:
        pairs: int64 (B,), which pairs.
        source: int32 (B, I), target: int32 (B, J); word numbers, -1 for padding.
        lengths: words of the source sentences (B,) and of the target sentences (B,).
    """

    pairs: np.ndarray
    source: np.ndarray
    target: np.ndarray
    lengths: tuple[np.ndarray, np.ndarray]


def batches(source: Side, target: Side, cells: int, longest: int) -> list[np.ndarray]:
    """Group pairs of similar lengths so that a batch, padded, has at most `cells` cells B * I * J.

    Pairs with an empty side, or with more than `longest` words on a side, are in no batch.
    """
    first, second = source.lengths, target.lengths
    usable = np.flatnonzero((first > 0) & (second > 0) & (np.maximum(first, second) <= longest))
    if not len(usable):
        return []
    slab = max(1, int(first[usable].mean() / 8)) if len(usable) < 1_000_000 else 1
    order = usable[np.lexsort((second[usable], first[usable] // slab))]
    groups, start, wide, high, real = [], 0, 0, 0, 0
    for place, (i, j) in enumerate(zip(first[order].tolist(), second[order].tolist(), strict=True)):
        size = (place + 1 - start) * max(wide, i) * max(high, j)
        if place > start and (size > cells or size > _SLACK * (real + i * j) + 1000):
            groups.append(order[start:place])
            start, wide, high, real = place, 0, 0, 0
        wide, high, real = max(wide, i), max(high, j), real + i * j
    return [*groups, order[start:]]


@dataclass(eq=False)
class Cooccurrence:
    """All pairs of a source and a target word that meet in some sentence pair, as a sorted array of codes.

    code = source number * V_target + target number. Where each cell of a batch lies in the table is found
    anew at each pass by sorting the batch's codes, except for the first batches, for which it is remembered
    as long as `keep` bytes hold it: so memory does not grow with the number of sentence pairs.
    """

    source: Side
    target: Side
    groups: Sequence[np.ndarray]
    limit: int
    keep: int
    codes: np.ndarray = field(init=False)
    dropped: int = field(init=False, default=0)
    _known: dict[int, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.source.words) * len(self.target.words) >= _MOST_CODES:
            raise DataError(
                f"vocabularies of {len(self.source.words):,} and {len(self.target.words):,} words are too "
                "large together; lower-case the text, or cut it into smaller units"
            )
        keys, pending, held = np.empty(0, np.int64), [], 0
        for group in self.groups:
            pending.append(_counted(np.sort(self._codes(self.batch(group)).ravel())))
            held += len(pending[-1])
            if held > _PENDING:
                keys, pending, held = self._merge([keys, *pending]), [], 0
        self.codes = self._merge([keys, *pending]) >> _PLACE_BITS
        if self.dropped:
            say(f"{self.dropped:,} weak word pairs dropped to keep the table at {self.limit:,}")

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, group: np.ndarray) -> Batch:
        """The padded sentences of a group of pairs."""
        lengths = (self.source.lengths[group], self.target.lengths[group])
        return Batch(group, self.source.padded(group), self.target.padded(group), lengths)

    def __iter__(self) -> Iterator[tuple[Batch, np.ndarray]]:
        """Each batch with int32 (J, B, I), the place of each cell in the table; len(self) for no place."""
        for number, group in enumerate(self.groups):
            batch = self.batch(group)
            cells = self._known.get(number)
            if cells is None:
                cells = self._places(batch)
                if cells.nbytes <= self.keep:
                    self.keep -= cells.nbytes
                    self._known[number] = cells
            yield batch, cells

    def words(self, entries: slice) -> tuple[np.ndarray, np.ndarray]:
        """(source numbers, target numbers) of a run of entries."""
        source, target = np.divmod(self.codes[entries], len(self.target.words))
        return source, target

    def _codes(self, batch: Batch) -> np.ndarray:
        """int64 (J, B, I); padding has the highest code."""
        width = np.int64(len(self.target.words))
        codes = batch.source.astype(np.int64)[None] * width + batch.target.T[:, :, None]
        codes[(batch.source < 0)[None] | (batch.target.T < 0)[:, :, None]] = _MOST_CODES - 1
        return codes

    def _places(self, batch: Batch) -> np.ndarray:
        """Sort (code, place in the batch) as one number, look the distinct codes up in order, spread back."""
        codes = self._codes(batch)
        keys = np.sort((codes.ravel() << _PLACE_BITS) + np.arange(codes.size))
        ordered = keys >> _PLACE_BITS
        new = np.append(True, ordered[1:] != ordered[:-1])
        wanted = ordered[new]
        found = np.searchsorted(self.codes, wanted)
        missing = self.codes[np.minimum(found, len(self) - 1)] != wanted
        found[missing] = len(self)
        places = np.empty(codes.size, np.int32)
        places[keys & _PLACE] = found.astype(np.int32)[np.cumsum(new) - 1]
        return places.reshape(codes.shape)

    def _merge(self, runs: list[np.ndarray]) -> np.ndarray:
        """One sorted run of (code, how often) keys, without the weakest pairs if it would grow too long."""
        keys = np.concatenate(runs)
        keys.sort()
        codes = keys >> _PLACE_BITS
        starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])) if len(keys) else codes
        counts = np.add.reduceat(keys & _PLACE, starts) if len(keys) else codes
        keys = (codes[starts] << _PLACE_BITS) + np.minimum(counts, _PLACE)
        return keys if len(keys) <= self.limit else self._strongest(keys)

    def _strongest(self, keys: np.ndarray) -> np.ndarray:
        """Three quarters of `limit`: pairs that meet often for how frequent their words are.

        Measured by count^2 / (count of source word * count of target word).
        """
        source, target = np.divmod(keys >> _PLACE_BITS, len(self.target.words))
        strength = (keys & _PLACE).astype(np.float32) ** 2
        strength /= self.source.counts[source].astype(np.float32)
        strength /= self.target.counts[target].astype(np.float32)
        kept = self.limit * 3 // 4
        least = np.partition(strength, len(keys) - kept)[len(keys) - kept]
        strong = strength > least
        strong[np.flatnonzero(strength == least)[: kept - int(strong.sum())]] = True
        self.dropped += len(keys) - kept
        return keys[strong]


def _counted(codes: np.ndarray) -> np.ndarray:
    """Keys (code, how often) of sorted codes, without padding."""
    codes = codes[: np.searchsorted(codes, _MOST_CODES - 1)]
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])) if len(codes) else codes
    return (codes[starts] << _PLACE_BITS) + np.minimum(np.diff(np.append(starts, len(codes))), _PLACE)
