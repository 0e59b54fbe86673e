"""Links between the words of sentence pairs, and how those of two directions become one set.

Paper: Koehn, Och and Marcu 2003, "Statistical Phrase-Based Translation" (grow-diag-final).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calque.errors import DataError

Symmetrize = Literal["intersection", "union", "grow-diag", "grow-diag-final", "grow-diag-final-and"]
_BLOCK = 100_000
_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True, eq=False)
class Links:
    """Which words of each sentence pair are linked, 4 bytes a link.

    Attributes:
        offsets: int64 (pairs + 1,); links offsets[k] to offsets[k + 1] belong to pair k.
        source: int16 (links,), position of the source word in its sentence.
        target: int16 (links,), position of the target word; links of a pair are in order of (source, target).
    """

    offsets: np.ndarray
    source: np.ndarray
    target: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[Iterable[tuple[int, int]]]) -> Links:
        """Links from (source position, target position) pairs of each sentence pair."""
        ordered = [sorted(set(pair)) for pair in pairs]
        flat = np.array([link for pair in ordered for link in pair], np.int16).reshape(-1, 2)
        offsets = np.cumsum([0, *map(len, ordered)], dtype=np.int64)
        return cls(offsets, flat[:, 0].copy(), flat[:, 1].copy())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
        """(source positions, target positions) of one pair."""
        if not -len(self) <= pair < len(self):
            raise IndexError(f"pair {pair} of {len(self)}")
        here = slice(*self.offsets[[pair % len(self), pair % len(self) + 1]])
        return self.source[here], self.target[here]

    def lines(self) -> Iterator[str]:
        """Each pair in the "0-0 1-2" notation."""
        for pair in range(len(self)):
            source, target = self[pair]
            yield " ".join(f"{i}-{j}" for i, j in zip(source.tolist(), target.tolist(), strict=True))

    def transpose(self) -> Links:
        """The same links with the sides exchanged."""
        pair = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        order = np.lexsort((self.source, self.target, pair))
        return Links(self.offsets, self.target[order], self.source[order])

    def keys(self) -> np.ndarray:
        """int64 (links,), ascending; one number for (pair, source position, target position)."""
        pair = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return (pair << 32) + (self.source.astype(np.int64) << 16) + self.target


def agreement(one: Links, other: Links) -> float:
    """F1 of the links of two alignments of the same pairs: 2 |A and B| / (|A| + |B|); 1 for no links."""
    total = len(one.source) + len(other.source)
    return 2 * len(np.intersect1d(one.keys(), other.keys(), assume_unique=True)) / total if total else 1.0


def symmetrize(forward: Links, reverse: Links, how: Symmetrize = "grow-diag-final-and") -> Links:
    """Join the links of two directions.

    grow-diag begins with the intersection and adds, until nothing changes, links of the union that touch a
    link already taken (also diagonally) and have a word without a link. "final" then adds the forward, then
    the reverse links that have a word without a link, "final-and" those of which both words are without
    one. One link per pair is added at a time, the first in order of (source, target) that qualifies.

    Args:
        forward: links in which each target word has at most one.
        reverse: links in which each source word has at most one.
        how: rule; each result contains the intersection and lies within the union.

    Raises:
        DataError: the two do not have the same number of pairs.
    """
    if len(forward) != len(reverse):
        raise DataError(f"links of {len(forward)} pairs and of {len(reverse)} pairs can not be joined")
    parts = []
    for start in range(0, len(forward), _BLOCK):
        block = slice(start, start + _BLOCK)
        parts.append(_join(_part(forward, block), _part(reverse, block), how))
    return _concatenated(parts)


def best_links(best: np.ndarray, lengths: np.ndarray, *, of_target: bool) -> Links:
    """Links of one direction.

    Args:
        best: int16 (words,), for each word of one side the position of its word on the other, -1 for none.
        lengths: int64 (pairs,), words of each sentence of that side.
        of_target: whether that side is the target side.
    """
    offsets = _offsets(lengths)
    parts = [
        _best_part(
            best[offsets[start] : offsets[min(start + _BLOCK, len(lengths))]],
            lengths[start : start + _BLOCK],
            of_target=of_target,
        )
        for start in range(0, len(lengths), _BLOCK)
    ]
    return _concatenated(parts)


def _best_part(best: np.ndarray, lengths: np.ndarray, *, of_target: bool) -> Links:
    place = np.arange(len(best)) - np.repeat(_offsets(lengths)[:-1], lengths)
    taken = best >= 0
    pair = np.repeat(np.arange(len(lengths)), lengths)[taken]
    offsets = _offsets(np.bincount(pair, minlength=len(lengths)))
    links = Links(offsets, place[taken].astype(np.int16), best[taken])
    return links.transpose() if of_target else links


def _concatenated(parts: Sequence[Links]) -> Links:
    """Links of one run of pairs after the other."""
    if not parts:
        return Links.of([])
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    source = np.concatenate([part.source for part in parts])
    return Links(_offsets(counts), source, np.concatenate([part.target for part in parts]))


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _part(links: Links, pairs: slice) -> Links:
    offsets = links.offsets[pairs.start : pairs.stop + 1]
    here = slice(offsets[0], offsets[-1])
    return Links(offsets - offsets[0], links.source[here], links.target[here])


def _join(forward: Links, reverse: Links, how: Symmetrize) -> Links:
    one, two = forward.keys(), reverse.keys()
    keys = np.union1d(one, two)
    in_one, in_two = np.isin(keys, one), np.isin(keys, two)
    taken = _rule(keys, in_one, in_two, how)
    keys = keys[taken]
    counts = np.bincount(keys >> 32, minlength=len(forward))
    source, target = (keys >> 16 & 0xFFFF).astype(np.int16), (keys & 0xFFFF).astype(np.int16)
    return Links(_offsets(counts), source, target)


def _rule(keys: np.ndarray, forward: np.ndarray, reverse: np.ndarray, how: Symmetrize) -> np.ndarray:
    if how == "union":
        return forward | reverse
    taken = forward & reverse
    if how == "intersection":
        return taken
    pair = keys >> 32
    words = tuple(
        np.unique(word, return_inverse=True)[1] for word in (keys >> 16, pair << 16 | keys & 0xFFFF)
    )
    _grow(taken, ~taken, pair, words, _neighbours(keys), both_free=False)
    if how != "grow-diag":
        for direction in (forward, reverse):
            _grow(taken, direction & ~taken, pair, words, None, both_free=how == "grow-diag-final-and")
    return taken


def _neighbours(keys: np.ndarray) -> np.ndarray:
    """int64 (links, 8): place of each neighbour in `keys`, or -1.

    A step below position 0 can not meet a link by accident: positions stay below 2**15 of the 2**16.
    """
    found = np.full((len(keys), len(_NEIGHBOURS)), -1)
    for column, (di, dj) in enumerate(_NEIGHBOURS):
        wanted = keys + (di << 16) + dj
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hit = keys[place] == wanted
        found[hit, column] = place[hit]
    return found


def _grow(
    taken: np.ndarray,
    candidates: np.ndarray,
    pair: np.ndarray,
    words: tuple[np.ndarray, ...],
    neighbours: np.ndarray | None,
    *,
    both_free: bool,
) -> None:
    """Take candidates that qualify, one per pair at a time, until none does; changes `taken`."""
    linked = [np.zeros(word.max(initial=-1) + 1, bool) for word in words]
    for has, word in zip(linked, words, strict=True):
        has[word[taken]] = True
    left = np.flatnonzero(candidates)
    inside = np.append(taken, False)
    while len(left):
        free = [~has[word[left]] for has, word in zip(linked, words, strict=True)]
        left = left[free[0] & free[1] if both_free else free[0] | free[1]]
        ready = left if neighbours is None else left[inside[neighbours[left]].any(1)]
        if not len(ready):
            break
        first = ready[np.append(True, pair[ready][1:] != pair[ready][:-1])]
        taken[first] = inside[first] = True
        for has, word in zip(linked, words, strict=True):
            has[word[first]] = True
