"""Overlap of a translation with its references: BLEU, chrF, chrF++ and TER as components that add up.

The measures of `calque.evaluate.measures` give sacreBLEU's scores exactly; what is kept differs: one line of
counts for each sentence, instead of one number for a corpus. Tokens, edits and BLEU's counts are taken by
sacreBLEU itself; the n-grams of chrF are counted here, for all sentences at once. References are read once
for any number of systems.

Shape letters: N sentences, S counts of a metric.

Paper: Papineni et al. 2002, P02-1040 (BLEU); Popovic 2015, W15-3049 (chrF), 2017, W17-4770 (chrF++); Snover
et al. 2006 (TER); Post 2018, W18-6319, for signatures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calque.errors import DataError
from calque.evaluate.measures import BLEU_ORDERS, CHRF_ORDERS, CHRF_WORDS, MEASURES
from calque.evaluate.ngrams import Grams

Metric = Literal["bleu", "chrf", "chrf++", "ter"]


class Overlap:
    """The references of a test set, ready to be compared with.

    Args:
        references: For each sentence its references, at least one.
        metric: What to count.
        tokenize: BLEU's tokenizer: "13a", "intl", "char", "zh", "ja-mecab", "none", ...; None is sacreBLEU's
            default.

    Raises:
        DataError: No sentence, or a sentence without reference.
    """

    def __init__(
        self, references: Sequence[Sequence[str]], metric: Metric, *, tokenize: str | None = None
    ) -> None:
        _refuse(references)
        # One list of first references, one of second ones, and so on; None where a sentence has fewer.
        sets = list(zip_longest(*references))
        self.metric: Metric = metric
        self._metric = _of_sacrebleu(metric, tokenize, sets)
        if metric in ("chrf", "chrf++"):
            self._sets = [
                (np.array([text is not None for text in texts]), self._grams(texts)) for texts in sets
            ]
        self.sentences = len(references)
        self.names: tuple[str, ...] = MEASURES[metric].needs

    @property
    def signature(self) -> str:
        """sacreBLEU's: "chrf|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0"."""
        return f"{self.metric}|{self._metric.get_signature()}"

    def counts(self, hypotheses: Sequence[str]) -> NDArray[np.float64]:
        """[N, S] the counts of each sentence, in the order of `names`.

        Raises:
            DataError: More or fewer hypotheses than sentences, or one that is no text.
        """
        if len(hypotheses) != self.sentences:
            raise DataError(f"{len(hypotheses)} hypotheses for {self.sentences} sentences with references")
        for number, text in enumerate(hypotheses):
            if not isinstance(text, str):
                raise DataError(f"hypothesis {number} is {text!r}; expected text, '' where there is none")
        if self.metric in ("chrf", "chrf++"):
            return self._of_characters(hypotheses)
        found = np.array(self._metric._extract_corpus_statistics(hypotheses, None), dtype=np.float64)
        if self.metric == "bleu":  # written length, expected length, right ones, all of them
            return found[:, [*range(2, 2 + 2 * BLEU_ORDERS), 0, 1]]
        return found

    def _grams(self, texts: Sequence[str | None]) -> list[Grams]:
        """The n-grams of one reference of each sentence: of characters, and for chrF++ of words."""
        given = [text or "" for text in texts]
        found = [Grams(["".join(text.split()) for text in given], CHRF_ORDERS)]
        if self.metric == "chrf++":
            found.append(Grams([self._metric._remove_punctuation(text) for text in given], CHRF_WORDS))
        return found

    def _of_characters(self, hypotheses: Sequence[str]) -> NDArray[np.float64]:
        """[N, S] against the reference of each sentence that it scores best with, the first of equals."""
        symbols: list[list[Any]] = [["".join(text.split()) for text in hypotheses]]
        if self.metric == "chrf++":
            symbols.append([self._metric._remove_punctuation(text) for text in hypotheses])
        best: NDArray[np.float64] = np.zeros((self.sentences, len(self.names)))
        highest = np.full(self.sentences, -1.0)
        for there, grams in self._sets:
            parts = [kind.shared(texts) for kind, texts in zip(grams, symbols, strict=True)]
            given, expected, both = (np.concatenate(side, axis=1) for side in zip(*parts, strict=True))
            # Where the reference has no n-gram of an order, sacreBLEU counts none of the hypothesis either.
            counts = np.concatenate([np.where(expected > 0, given, 0), expected, both], axis=1).astype(float)
            score = np.where(there, MEASURES[self.metric].reduce(counts, self.names), -1.0)
            better = score > highest
            best[better], highest[better] = counts[better], score[better]
        return best


def components(
    hypothesis: str, references: Sequence[str], metrics: Sequence[Metric] = ("bleu", "chrf"), **settings: Any
) -> dict[str, float]:
    """The counts of one sentence, as metrics of a table.

    Raises:
        DataError: No reference, or a hypothesis that is no text.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        overlap = Overlap([references], metric, **settings)
        found |= dict(zip(overlap.names, map(float, overlap.counts([hypothesis])[0]), strict=True))
    return found


def sentence_score(metric: Metric, counts: Mapping[str, float]) -> float:
    """The measure of one sentence alone; BLEU by the orders that a short sentence has."""
    names = MEASURES[metric].needs
    if metric == "bleu":
        orders = [n for n in range(1, BLEU_ORDERS + 1) if counts[f"bleu.t{n}"] > 0] or [1]
        names = (*(f"bleu.{kind}{n}" for kind in "ct" for n in orders), "bleu.hyp", "bleu.ref")
    return float(MEASURES[metric].reduce(np.array([counts[name] for name in names]), names))


def _of_sacrebleu(metric: Metric, tokenize: str | None, references: list[tuple[str | None, ...]]) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    given: Any = references
    if metric == "bleu":
        return BLEU(tokenize=tokenize, force=True, references=given)
    if metric == "ter":
        return TER(references=given)
    found = CHRF(word_order=CHRF_WORDS if metric == "chrf++" else 0)
    sizes = {sum(text is not None for text in texts) for texts in zip(*references, strict=True)}
    found.num_refs = sizes.pop() if len(sizes) == 1 else -1  # for its signature; -1 is "var"
    return found


def _refuse(references: Sequence[Sequence[str]]) -> None:
    if not len(references):
        raise DataError("no sentence to score")
    for number, listed in enumerate(references):
        if isinstance(listed, str) or not len(listed) or not all(isinstance(text, str) for text in listed):
            raise DataError(f"sentence {number}: expected a list of one or more references, got {listed!r}")
