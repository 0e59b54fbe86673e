"""How many n-grams each sentence shares with its reference, for all sentences and orders at once.

An n-gram is a number: the place of its first n - 1 symbols in the sorted list of those of the same sentence's
reference, and its last symbol. So only positions whose beginning was found are looked at in the next order,
and counts are exact for alphabets of any size.

Shape letters: N sentences, n orders, P positions in all sentences together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class Grams:
    """The n-grams of N references.

    Args:
        texts: N references, each a list of symbols: characters or words.
        orders: The longest n-grams.
    """

    def __init__(self, texts: Sequence[Sequence[str]], orders: int) -> None:
        self.words: dict[str, int] = {}
        for text in texts:
            if not isinstance(text, str):
                for word in text:
                    self.words.setdefault(word, len(self.words))
        raw, self.lengths = self._numbers(texts)
        self.alphabet = np.unique(raw)
        codes = np.searchsorted(self.alphabet, raw)
        sentence, left = _places(self.lengths)
        self.keys: list[Numbers] = []
        self.counts: list[Numbers] = []
        self.sentences: list[Numbers] = []
        here, found = np.arange(len(codes)), sentence
        for order in range(1, orders + 1):
            inside = left[here] >= order
            here = here[inside]
            keys = found[inside] * len(self.alphabet) + codes[here + order - 1]
            known, first, found, counts = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            self.keys.append(known)
            self.counts.append(counts)
            self.sentences.append(sentence[here][first])

    def shared(self, texts: Sequence[Sequence[str]]) -> tuple[Numbers, Numbers, Numbers]:
        """For N texts: [N, n] n-grams of each, of its reference, and shared by both, clipped."""
        raw, lengths = self._numbers(texts)
        codes = np.minimum(np.searchsorted(self.alphabet, raw), max(len(self.alphabet) - 1, 0))
        if len(self.alphabet):
            codes[self.alphabet[codes] != raw] = -1
        sentence, left = _places(lengths)
        here, found = np.arange(len(codes)), sentence
        both = np.zeros((len(lengths), len(self.keys)), dtype=np.int64)
        for index, (keys, counts) in enumerate(zip(self.keys, self.counts, strict=True)):
            if not len(keys):
                break
            inside = left[here] > index
            here, found = here[inside], found[inside]
            last = codes[here + index]
            here, found, last = here[last >= 0], found[last >= 0], last[last >= 0]
            asked = found * len(self.alphabet) + last
            place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
            right = keys[place] == asked
            here, found = here[right], place[right]
            clipped = np.minimum(np.bincount(found, minlength=len(keys)), counts)
            both[:, index] = np.bincount(self.sentences[index], clipped, minlength=len(lengths))
        return _totals(lengths, len(self.keys)), _totals(self.lengths, len(self.keys)), both

    def _numbers(self, texts: Sequence[Sequence[str]]) -> tuple[Numbers, Numbers]:
        """[P] a number for each symbol, -1 for a word that no reference has; [N] the length of each text."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        if all(isinstance(text, str) for text in texts):
            joined = "".join(str(text) for text in texts).encode("utf-32-le", "surrogatepass")
            return np.frombuffer(joined, dtype=np.uint32).astype(np.int64), lengths
        found = [self.words.get(word, -1) for text in texts for word in text]
        return np.array(found, dtype=np.int64), lengths


def _places(lengths: Numbers) -> tuple[Numbers, Numbers]:
    """[P] the sentence of each position; [P] how many symbols are left in it, this one included."""
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    return sentence, ends[sentence] - np.arange(len(sentence))


def _totals(lengths: Numbers, orders: int) -> Numbers:
    """[N, n] how many n-grams there are in texts of these lengths."""
    return np.maximum(lengths[:, None] - np.arange(orders), 0)
