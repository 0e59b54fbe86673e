"""Multinomial naive Bayes over weighted words: counts, so that training goes on by adding more.

    weight(w, text) = count(w) (ln((1 + N) / (1 + n_w)) + 1), each text of length 1
    class(text) = argmax_c  ln p(c) + sum_w weight(w, text) ln p(w | c),  p(w | c) with one added to every sum

N texts, n_w of them with w; both are those of the first training, as is the vocabulary.

Paper: McCallum and Nigam 1998, for multinomial naive Bayes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from calque.evaluate.baselines.words import Vocabulary, words

_WORDS = 1_000_000


class Bayes:
    """Sums of word weights for each class.

    Attributes:
        vocabulary: The words of the texts it was made from.
    """

    def __init__(self, texts: Sequence[str], classes: int) -> None:
        """Take vocabulary and word weights from texts; it has learnt nothing yet."""
        self.vocabulary = Vocabulary.of(texts, _WORDS)
        with_word = Counter(word for text in texts for word in set(words(text)))
        held = np.array([with_word[word] for word in self.vocabulary.known], float)
        self._weight = np.log((1 + len(texts)) / (1 + held)) + 1
        self._sums = np.zeros((classes, len(held)))
        self._texts = np.zeros(classes)

    def fit(self, texts: Sequence[str], labels_N: np.ndarray, *, seed: int = 0) -> None:
        """Add what these texts say; there is nothing random in it, whatever the seed."""
        labels = np.asarray(labels_N)
        member = csr_matrix(
            (np.ones(len(labels)), (labels, np.arange(len(labels)))), (len(self._texts), len(labels))
        )
        added: Any = member @ self._read(texts)
        self._sums += added.toarray()
        self._texts += np.bincount(labels, minlength=len(self._texts))

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """[N] class of each text; one that was never seen is never chosen."""
        smooth = self._sums + 1
        likely = np.log(smooth) - np.log(smooth.sum(1, keepdims=True))
        with np.errstate(divide="ignore"):
            prior = np.log(self._texts / self._texts.sum())
        return (self._read(texts) @ likely.T + prior).argmax(1)

    def _read(self, texts: Sequence[str]) -> csr_matrix:
        """[N, words] weights, each row of length 1; unknown words are left out."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counted = Counter(number - 2 for number in self.vocabulary.ids(text) if number > 1)
            weights = np.array([n * self._weight[word] for word, n in counted.items()])
            rows += [row] * len(counted)
            columns += list(counted)
            values += list(weights / np.linalg.norm(weights)) if len(counted) else []
        return csr_matrix((values, (rows, columns)), (len(texts), len(self._weight)))
