"""Overlap of a translation with its references: BLEU, chrF, chrF++ and TER as components that add up.

Counting is sacreBLEU's own, so that the measures of `calque.evaluate.measures` give its scores exactly; only
what is kept differs: one line of counts for each sentence, instead of one number for a corpus. References
are read once for any number of systems.

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
from calque.evaluate.measures import BLEU_ORDERS, CHRF_WORDS, MEASURES

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
        # sacreBLEU wants one list of first references, one of second ones, and so on.
        self._metric = _of_sacrebleu(metric, tokenize, list(zip_longest(*references)))
        self.metric: Metric = metric
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
        found = np.array(self._metric._extract_corpus_statistics(hypotheses, None), dtype=np.float64)
        if self.metric == "bleu":  # written length, expected length, right ones, all of them
            return found[:, [*range(2, 2 + 2 * BLEU_ORDERS), 0, 1]]
        if self.metric == "ter":
            return found
        orders = found.shape[1] // 3  # (hypothesis, reference, both) for each order
        return found.reshape(len(found), orders, 3).transpose(0, 2, 1).reshape(len(found), 3 * orders)


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
    return CHRF(word_order=CHRF_WORDS if metric == "chrf++" else 0, references=given)


def _refuse(references: Sequence[Sequence[str]]) -> None:
    if not len(references):
        raise DataError("no sentence to score")
    for number, listed in enumerate(references):
        if isinstance(listed, str) or not len(listed) or not all(isinstance(text, str) for text in listed):
            raise DataError(f"sentence {number}: expected a list of one or more references, got {listed!r}")
