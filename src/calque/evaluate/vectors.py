"""Tests of representations: is a translation, a word or a sentence, the nearest vector of its language?

Three kinds, on pairs of texts, for each layer asked for:

- bli: bilingual lexicon induction. A word's translations are looked for among all words of the other side,
  or of a vocabulary. Words that have several translations may find any of them.
- retrieval: each sentence looks for its translation among all sentences of the other side, both ways.
- similarity: Spearman's rank correlation of cosines with the judgements of people.

Paper: Green et al. 2022, arXiv:2208.01018, for the tests of words; Liu et al. 2024, arXiv:2401.06620, for
the retrieval of sentences by mean-pooled middle layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from calque import __version__
from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.errors import ConfigError, DataError, ModelError
from calque.evaluate.lm import Dtype, choose_dtype
from calque.evaluate.neighbours import gold_ranks, margin, scores, unit
from calque.evaluate.pooled import Pooled, Pooling
from calque.evaluate.source import spread
from calque.evaluate.table import Table, signature
from calque.model.checkpoint import Checkpoint
from calque.progress import say

Kind = Literal["bli", "similarity", "retrieval"]


def vectors(
    systems: Mapping[str, Checkpoint],
    pairs: Corpus,
    vocabulary: Corpus | None = None,
    *,
    kind: Kind,
    layers: Sequence[int] = (-1,),
    pooling: Pooling = "mean",
    by: Literal["cosine", "csls"] = "cosine",
    neighbours: Annotated[int, Ge(1)] = 10,
    items: Annotated[int, Ge(1)] | None = None,
    length: Annotated[int, Ge(4)] = 256,
    batch_tokens: Annotated[int, Ge(4)] = 2048,
    dtype: Dtype = "auto",
) -> Table:
    """Test the vectors that a model gives to words or sentences.

    The vector of a text is the mean of a layer's hidden states over its tokens, special ones left out. Task
    "KIND/layer L"; `language` is the language that is searched, `prompt_language` that of the query. Metrics
    of each query of bli and retrieval: p@1, p@5, p@10 (a right one among the first so many), rr (1 / rank of
    the first right one), ap (mean over the right ones of their share among those up to them), margin (score
    of the right one less that of the best wrong one), missing (1: no vector; all else is 0).
    Of similarity: cosine, judgement, and the sums of which Spearman's correlation is made.

    Args:
        systems: Checkpoints by name.
        pairs: Parallel text: a dictionary (bli), sentences (retrieval), or pairs of words with a number as
            target (similarity; of one language, the other word is the question).
        vocabulary: Words to search instead of those of the dictionary (bli); translations that it lacks, in
            lower case too, are left out and counted.
        kind: What is tested.
        layers: Layers tested, each by itself: 0 is the output of the embeddings, -1 the last layer.
        pooling: The mean of the tokens, the first (special) one, or the last one.
        by: Score of a candidate: cosine, or cosine corrected for hubs.
        neighbours: Nearest vectors that CSLS corrects by.
        items: At most so many pairs, evenly spread.
        length: Tokens of a text, at most.
        batch_tokens: Tokens in a batch; changes speed and memory, not results.
        dtype: As for `evaluate/lm`.

    Returns:
        The table; its mean of "p@1" is the accuracy, of "rr" the MRR, of "ap" the MAP.

    Raises:
        ConfigError: No system, no such layer.
        DataError: No pairs, a single candidate, a pair without a number, numbers that are all the same.
        ModelError: A model that has no vector for any text, or one similarity for all pairs.

    Relations: ranks do not change when all vectors are scaled; retrieval of a text from itself has p@1 = 1.
    Swapping the sides swaps the two directions of retrieval.
    """
    if not systems:
        raise ConfigError("no system to test; give at least one checkpoint with a name")
    if not layers:
        raise ConfigError("no layer to test; -1 is the last one")
    if vocabulary is not None and kind != "bli":
        raise ConfigError(f"kind '{kind}' has no vocabulary to search; only bli has")
    listed = list(spread(list(pairs), items))
    tests = _judged(listed) if kind == "similarity" else _searches(listed, pairs, vocabulary, kind)
    texts = list(dict.fromkeys(text for test in tests for text in test.texts))
    stated = {
        "by": by if by == "cosine" or kind == "similarity" else f"csls{neighbours}",
        "pooling": pooling,
        "length": length,
        "text": hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8],
        "version": __version__,
    }
    given = {"layers": list(layers), "pooling": pooling, "length": length, "batch_tokens": batch_tokens}
    rows: list[dict[str, Any]] = []
    for name, checkpoint in systems.items():
        by_layer = _embed(name, checkpoint, tests, choose_dtype(dtype), given)
        for layer, found in by_layer.items():
            head = {"system": name, "task": f"{kind}/layer {layer}"}
            for test in tests:
                said = test.score(name, found, neighbours if by == "csls" else 0)
                made_by = signature("vectors", {"kind": kind, "layer": layer, **stated})
                rows.extend({**head, **row, "signature": made_by} for row in said)
    return Table.of(rows)


@dataclass(frozen=True)
class Search:
    """Queries of one language, candidates of another, and which candidates are right for which query."""

    source: str
    target: str
    names: Sequence[str]
    queries: Sequence[str]
    candidates: Sequence[str]
    gold: Sequence[Sequence[int]]

    @property
    def texts(self) -> list[str]:
        """Everything that needs a vector."""
        return [*self.queries, *self.candidates]

    def score(
        self, system: str, found: Mapping[tuple[str, str], np.ndarray], neighbours: int
    ) -> Iterator[dict[str, Any]]:
        """The rows of every query; candidates without a vector are never found."""
        queries = unit(np.stack([found[self.source, text] for text in self.queries]))
        candidates = unit(np.stack([found[self.target, text] for text in self.candidates]))
        dark = np.logical_not(candidates.any(1))
        unseen = np.logical_not(queries.any(1))
        if dark.all() or unseen.all():
            raise ModelError(f"system '{system}': no vector for any text in {self.source} or {self.target}")
        if lost := int(unseen.sum() + dark.sum()):
            say(f"{system}: {lost} texts without a vector (no token of them is known); they find nothing")
        head = {"language": self.target, "prompt_language": self.source}
        for start, block in scores(queries, candidates, neighbours=neighbours):
            block[:, dark] = -np.inf
            for row, line in enumerate(block, start):
                gold = [place for place in self.gold[row] if not dark[place]]
                values = _missing() if unseen[row] or not gold else _ranked(line, gold, len(self.gold[row]))
                for metric, value in values.items():
                    yield {**head, "item": self.names[row], "metric": metric, "value": value}


@dataclass(frozen=True)
class Judged:
    """Pairs of words with the judgement of people."""

    sides: tuple[str, str]
    names: Sequence[str]
    left: Sequence[str]
    right: Sequence[str]
    judgements: np.ndarray

    @property
    def texts(self) -> list[str]:
        """Everything that needs a vector."""
        return [*self.left, *self.right]

    def score(
        self, system: str, found: Mapping[tuple[str, str], np.ndarray], neighbours: int
    ) -> Iterator[dict[str, Any]]:
        """The rows of every pair; a pair with a word that has no vector has cosine 0 and is counted."""
        left = unit(np.stack([found[self.sides[0], text] for text in self.left]).astype(np.float64))
        right = unit(np.stack([found[self.sides[1], text] for text in self.right]).astype(np.float64))
        cosines = (left * right).sum(1)
        missing = np.logical_not(left.any(1) & right.any(1))
        if missing.any():
            say(f"{system}: {missing.sum()} pairs with a word that has no vector; their similarity is 0")
        if np.ptp(cosines) < 1e-9:
            raise ModelError(
                f"system '{system}': every pair has the similarity {cosines[0]:.4f}; there is no correlation"
            )
        head = {"language": self.sides[1], "prompt_language": self.sides[0]}
        sums = spearman_sums(cosines, self.judgements)
        for row, name in enumerate(self.names):
            values = {"cosine": cosines[row], "judgement": self.judgements[row], "missing": missing[row]}
            for metric, value in {**values, **{key: part[row] for key, part in sums.items()}}.items():
                yield {**head, "item": name, "metric": metric, "value": float(value)}


def spearman_sums(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """What each pair adds to the sums of which a rank correlation is made; ties have their mean rank.

    With ranks x, y from -1 to 1: n = 1, x, y, xy, xx, yy; the correlation is that of Pearson of the sums,
    (n xy - x y) / sqrt((n xx - x x) (n yy - y y)). Ranks are those among all pairs, in a resample too.
    """
    from scipy.stats import rankdata

    x, y = (2 * (rankdata(v) - 1) / max(1, len(v) - 1) - 1 for v in (first, second))
    parts = {"n": np.ones(len(x)), "x": x, "y": y, "xy": x * y, "xx": x * x, "yy": y * y}
    return {f"spearman.{key}": value for key, value in parts.items()}


def _embed(
    system: str,
    checkpoint: Checkpoint,
    tests: Sequence[Search | Judged],
    dtype: Any,
    given: Mapping[str, Any],
) -> dict[int, dict[tuple[str, str], np.ndarray]]:
    """Layer -> (language, text) -> vector; every text of a language is read once."""
    model = Pooled.open(system, checkpoint, dtype)
    wanted: dict[str, dict[str, None]] = {}
    for test in tests:
        sides = (
            ((test.source, test.queries), (test.target, test.candidates))
            if isinstance(test, Search)
            else ((test.sides[0], test.left), (test.sides[1], test.right))
        )
        for language, texts in sides:
            wanted.setdefault(language, {}).update(dict.fromkeys(texts))
    found: dict[int, dict[tuple[str, str], np.ndarray]] = {}
    for language, texts in wanted.items():
        if model.attached:
            model.attached.speak(language)
        for layer, matrix in model.embed(list(texts), **given).items():
            pairs = ((language, text) for text in texts)
            found.setdefault(layer, {}).update(zip(pairs, matrix, strict=True))
    return found


def _searches(
    listed: Sequence[Example], pairs: Corpus, vocabulary: Corpus | None, kind: Kind
) -> list[Search]:
    if len(pairs.languages) != 2:
        raise DataError(f"pairs in {', '.join(pairs.languages) or 'no language'}; a search needs two sides")
    first, second = pairs.languages
    words = None if vocabulary is None else list(dict.fromkeys(vocabulary.texts(_only(vocabulary, second))))
    if kind == "bli":
        return [_search(listed, first, second, words, by_text=True)]
    return [_search(listed, a, b, None, by_text=False) for a, b in ((first, second), (second, first))]


def _only(vocabulary: Corpus, language: str) -> str:
    if language not in vocabulary.languages:
        raise DataError(f"a vocabulary of {', '.join(vocabulary.languages)}; the search is in {language}")
    return language


def _search(
    listed: Sequence[Example], source: str, target: str, words: Sequence[str] | None, *, by_text: bool
) -> Search:
    """Equal queries are one query with several right answers; equal candidates one candidate."""
    both = [example for example in listed if source in example.sides and target in example.sides]
    if not both:
        raise DataError(f"no pair of {source} and {target}; there is nothing to look for")
    candidates = list(words or dict.fromkeys(example.sides[target] for example in both))
    place = {text: number for number, text in enumerate(candidates)}
    names: dict[str, str] = {}
    gold: dict[str, list[int]] = {}
    lost = 0
    for example in both:
        query, right = example.sides[source], example.sides[target]
        found = place.get(right, place.get(right.lower()))
        if found is None:
            lost += 1
            continue
        names.setdefault(query, query if by_text else example.id)
        if found not in gold.setdefault(query, []):
            gold[query].append(found)
    if lost:
        say(f"{source}: {lost} of {len(both)} translations are not in the vocabulary; they are left out")
    if not gold:
        raise DataError(f"none of {len(both)} translations into {target} is in the vocabulary")
    if len(candidates) < 2:
        raise DataError(f"one candidate in {target}: nothing to choose from; give two pairs or more")
    return Search(source, target, [names[q] for q in gold], list(gold), candidates, list(gold.values()))


def _judged(listed: Sequence[Example]) -> list[Judged]:
    """The pairs of each pair of languages together."""
    groups: dict[tuple[str, str], list[tuple[str, str, str, float]]] = {}
    for example in listed:
        sides = list(example.sides.items())
        if len(sides) == 1 and example.question:
            sides.insert(0, (sides[0][0], example.question))
        if len(sides) != 2:
            raise DataError(f"pair {example.id}: one word; the other one is a second side, or the question")
        try:
            value = float(str(example.target))
        except ValueError:
            raise DataError(f"pair {example.id}: judgement {example.target!r}; expected a number") from None
        (a, left), (b, right) = sides
        groups.setdefault((a, b), []).append((example.id, left, right, value))
    if not groups:
        raise DataError("no pair of words with a judgement")
    tests = []
    for sides, found in groups.items():
        names, left, right, values = zip(*found, strict=True)
        if len(found) < 3 or len(set(values)) == 1:
            raise DataError(
                f"{len(found)} pairs of {' and '.join(sides)}, judged {min(values)} to {max(values)}: "
                "a correlation needs three pairs and two judgements"
            )
        tests.append(Judged(sides, names, left, right, np.array(values)))
    return tests


def _ranked(line_C: np.ndarray, gold: Sequence[int], right: int) -> dict[str, float]:
    """Metrics of one query; `right` counts also right ones that have no vector."""
    ranks = gold_ranks(line_C, gold)
    hits = {f"p@{k}": float(ranks[0] <= k) for k in (1, 5, 10)}
    precision = float((np.arange(1, len(ranks) + 1) / ranks).sum() / right)
    return {
        **hits,
        "rr": 1 / float(ranks[0]),
        "ap": precision,
        "margin": margin(line_C, gold),
        "missing": 0.0,
    }


def _missing() -> dict[str, float]:
    return {**dict.fromkeys(("p@1", "p@5", "p@10", "rr", "ap", "margin"), 0.0), "missing": 1.0}
