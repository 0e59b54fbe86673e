"""Byte-pair encoding over word counts: replay merges that exist, and learn further ones on top of them."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from tokenizers import Tokenizer

from calque.progress import bar

Pair = tuple[str, str]


def count_words(backend: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs, in the spelling of the tokenizer's own pre-tokenizer."""
    normalizer, splitter = backend.normalizer, backend.pre_tokenizer
    counts: Counter[str] = Counter()
    with bar("count words", unit="text") as shown:
        for text in texts:
            plain = normalizer.normalize_str(text) if normalizer else text
            pieces = splitter.pre_tokenize_str(plain) if splitter else [(plain, (0, len(plain)))]
            counts.update(piece for piece, _ in pieces)
            shown.update()
    return counts


def replay(word: str, ranks: Mapping[Pair, int]) -> tuple[list[str], list[int]]:
    """Cut one word by existing merges.

    Args:
        word: A pre-token; its characters are the initial symbols.
        ranks: Place of each merge in the list; the lowest applies first.

    Returns:
        The symbols, and the ranks of the merges that made them in order of use.
    """
    symbols, used = list(word), []
    while len(symbols) > 1:
        found = [ranks.get(pair, -1) for pair in pairwise(symbols)]
        known = [rank for rank in found if rank >= 0]
        if not known:
            break
        best = min(known)
        place = found.index(best)
        symbols = merge_pair(symbols, (symbols[place], symbols[place + 1]))
        used.append(best)
    return symbols, used


def merge_pair(symbols: Sequence[str], pair: Pair) -> list[str]:
    """Join every occurrence of a pair, from left to right."""
    merged, place, last = [], 0, len(symbols) - 1
    first, second = pair
    while place <= last:
        if place < last and symbols[place] == first and symbols[place + 1] == second:
            merged.append(first + second)
            place += 2
        else:
            merged.append(symbols[place])
            place += 1
    return merged


def learn(
    words: Mapping[tuple[str, ...], int], known: Iterable[str], *, limit: int | None, min_count: int
) -> list[Pair]:
    """Learn merges on words that are cut already.

    The most frequent pair of neighbouring symbols is joined, again and again; of equally frequent pairs
    the one whose symbols are older. Only the neighbours of a joined pair are recounted.

    Args:
        words: Count of each word, given as its symbols.
        known: Tokens that exist already; a merge that makes one of them is free.
        limit: New tokens to make at most; None: as many as `min_count` allows.
        min_count: Stop when the best pair occurs less often.

    Returns:
        The merges in order.
    """
    text = _Chain(words)
    heap = [(-count, pair) for pair, count in text.counts.items()]
    heapq.heapify(heap)
    tokens, merges, fresh = set(known), [], 0
    with bar("learn merges", limit, "token") as shown:
        while heap and (limit is None or fresh < limit):
            negative, pair = heapq.heappop(heap)
            count = text.counts.get(pair, 0)
            if count != -negative:
                # Counts that grew were pushed again; one that shrank is pushed back at its true place.
                if 0 < count < -negative:
                    heapq.heappush(heap, (-count, pair))
                continue
            if count < min_count:
                break
            first, second = text.names[pair[0]], text.names[pair[1]]
            merges.append((first, second))
            if first + second not in tokens:
                tokens.add(first + second)
                fresh += 1
                shown.update()
            for found in text.join(pair):
                heapq.heappush(heap, (-text.counts[found], found))
    return merges


class _Chain:
    """All words behind each other as a doubly linked list of symbols, with the count of every pair.

    `left` and `right` are the places of a symbol's neighbours, -1 at the border of its word.
    """

    def __init__(self, words: Mapping[tuple[str, ...], int]) -> None:
        self.names: list[str] = sorted({symbol for word in words for symbol in word})
        self.ids = {name: number for number, name in enumerate(self.names)}
        self.symbols: list[int] = []
        self.left: list[int] = []
        self.right: list[int] = []
        self.weights: list[int] = []
        self.counts: dict[tuple[int, int], int] = defaultdict(int)
        self.places: dict[tuple[int, int], list[int]] = defaultdict(list)
        for word, weight in words.items():
            start, last = len(self.symbols), len(self.symbols) + len(word) - 1
            numbers = [self.ids[symbol] for symbol in word]
            self.symbols += numbers
            self.left += [-1, *range(start, last)]
            self.right += [*range(start + 1, last + 1), -1]
            self.weights += [weight] * len(word)
            for place, pair in enumerate(pairwise(numbers), start):
                self.counts[pair] += weight
                self.places[pair].append(place)

    def join(self, pair: tuple[int, int]) -> set[tuple[int, int]]:
        """Make one new symbol of every occurrence of a pair; returns the pairs whose count grew."""
        symbols, left, right, counts = self.symbols, self.left, self.right, self.counts
        first, second = pair
        new = self._number(self.names[first] + self.names[second])
        grown: set[tuple[int, int]] = set()
        for place in sorted(self.places.pop(pair)):
            after = right[place]
            if after < 0 or symbols[place] != first or symbols[after] != second:
                continue
            weight, before, beyond = self.weights[place], left[place], right[after]
            symbols[place], symbols[after], right[place] = new, -1, beyond
            if before >= 0:
                counts[symbols[before], first] -= weight
                grown.add(self._meet(before, symbols[before], new, weight))
            if beyond >= 0:
                left[beyond] = place
                counts[second, symbols[beyond]] -= weight
                grown.add(self._meet(place, new, symbols[beyond], weight))
        counts.pop(pair, None)
        return {found for found in grown if counts[found] > 0}

    def _number(self, name: str) -> int:
        """A symbol is its string: one that two merges can make has one number."""
        if name not in self.ids:
            self.ids[name] = len(self.names)
            self.names.append(name)
        return self.ids[name]

    def _meet(self, place: int, first: int, second: int, weight: int) -> tuple[int, int]:
        self.counts[first, second] += weight
        self.places[first, second].append(place)
        return first, second
