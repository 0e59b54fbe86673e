"""Trans-tokenization: a new row is the mean of the old tokens that translate it.

Paper: Remy et al. 2024, arXiv:2408.04303.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval
from scipy.sparse import csr_matrix, diags

from calque.data.lexicon import Lexicon
from calque.progress import say
from calque.vocab.map import VocabMap, build_map, sparse_rows, stand_in
from calque.vocab.overlap import byte_matches
from calque.vocab.subword import piece_rows
from calque.vocab.tokens import Tokens
from calque.vocab.translation import Unit, plus_one, row_stochastic, smooth, word_counts

WAYS = ("copy", "aligned", "relatives", "pieces", "unknown")


def transtoken(
    source: Tokens,
    target: Tokens,
    evidence: Lexicon,
    *,
    keep: bool = True,
    min_count: Annotated[float, Ge(0)] = 1.0,
    prior: Annotated[float, Ge(0)] = 0.0,
    spread: Annotated[float, Ge(0)] = 0.1,
    relatives: bool = True,
    unmapped: Literal["subword", "unk"] = "subword",
    pieces: Literal["mean", "ends"] = "mean",
    blend: Annotated[float, Interval(ge=0, le=1)] = 0.0,
    truncate: bool = False,
) -> VocabMap:
    """Mix old rows by how often words made of them are translated by words made of the new token.

    new[t] = sum_s C[t, s] / sum_s' C[t, s'] * old[s], with token counts C from word translations. With
    `blend` the row is that much the row `subword` would give: translations say what a token means, its
    pieces how it goes with its neighbours.

    Args:
        source: Old vocabulary.
        target: New vocabulary.
        evidence: Word translations (source word, target word, expected count).
        keep: Tokens with equal bytes keep their old row whatever the translations say; False lets them
            count as one translation only, as published.
        min_count: Translations that occur less often are dropped.
        prior: Translations that the old pieces of a token weigh as much as: the spelling decides for rare
            tokens, the translations for frequent ones. 0: translations alone, as published.
        spread: Share of a translation's count that its other forms receive: without the leading blank,
            in lower case, with a capital. 0: only the form found, with a leading blank.
        relatives: Tokens without counts get those of longer and shorter tokens that share their bytes.
        unmapped: What tokens still without counts get: the mean of their old pieces, or the row of unk.
            Single bytes that the old vocabulary can not write get the mean of all rows.
        pieces: Which old pieces count where pieces are used: all of them, or the first and the last.
        blend: Share of the old pieces in rows that have translations; 0 as published.
        truncate: Integer counts of at least 1 per cell, as the authors' code has them.

    Returns:
        A map whose covered rows sum to 1.

    Relations:
        With keep and equal vocabularies every row is copied.
        With blend=1 rows with translations are those of `subword`.
        Paper: Remy et al. 2024, arXiv:2408.04303, section 3 and the authors' code.
    """
    shape = (len(target), len(source))
    counts = word_counts(_units(source, target, evidence, min_count, spread), shape, truncate=truncate)
    aligned = np.diff(counts.indptr) > 0
    counts = csr_matrix(counts + plus_one(source, target))
    if prior:
        spelled = piece_rows(source, target, np.flatnonzero(aligned))
        counts = csr_matrix(counts + prior * sparse_rows(spelled, shape))
    how = np.where(aligned, 1, 0)
    if keep:
        counts, copied = _keep_rows(counts, byte_matches(source, target), shape)
        how[copied] = 0
    if relatives:
        counts, made = smooth(counts, source, target, truncate=truncate)
        how[made] = 2
    weights = row_stochastic(counts)
    missing = np.flatnonzero((np.diff(weights.indptr) == 0) & [s is not None for s in target.surface])
    if unmapped == "subword":
        rows, way = piece_rows(source, target, missing, pieces), 3
    else:
        rows, way = _unknown_rows(source, missing), 4
    how[list(rows)] = way
    if rows:
        say(f"{len(rows):,} of {shape[0]:,} tokens without translations: {WAYS[way]}")
    weights = csr_matrix(weights + sparse_rows(rows, shape))
    if blend:
        mixed = piece_rows(source, target, np.flatnonzero((how == 1) | (how == 2)), pieces)
        weights = _blend(weights, sparse_rows(mixed, shape), blend)
    return build_map(source, target, weights, how, WAYS, fallback="mean", notes={"pairs": len(evidence)})


def _blend(weights: csr_matrix, other: csr_matrix, share: float) -> csr_matrix:
    """Where `other` has a row: (1 - share) of the weights and `share` of it."""
    share_V = np.where(np.diff(other.indptr) > 0, share, 0.0)
    return csr_matrix(diags(1 - share_V) @ weights + diags(share_V) @ other)


def _units(
    source: Tokens, target: Tokens, evidence: Lexicon, min_count: float, spread: float
) -> Iterator[Unit]:
    """Old and new pieces of every translation, in each of its forms."""
    old, new = _Pieces(source), _Pieces(target)
    for first, second, count in zip(evidence.source, evidence.target, evidence.count, strict=True):
        if count < min_count:
            continue
        for one, two, share in _forms(str(first), str(second), spread):
            yield old(one), new(two), float(count) * share


def _forms(first: str, second: str, spread: float) -> Iterator[tuple[str, str, float]]:
    yield " " + first, " " + second, 1.0
    if not spread:
        return
    yield first, second, spread
    cased = {(first.lower(), second.lower()), (_capital(first), _capital(second))} - {(first, second)}
    for one, two in sorted(cased):
        yield " " + one, " " + two, spread
        yield one, two, spread * spread


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


class _Pieces:
    """Remembers how a tokenizer cuts a string; words come back again and again."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.known = tokens, dict[str, tuple[int, ...]]()

    def __call__(self, string: str) -> tuple[int, ...]:
        if string not in self.known:
            self.known[string] = tuple(self.tokens.encode_surface(string.encode()))
        return self.known[string]


def _unknown_rows(source: Tokens, tokens: np.ndarray) -> dict[int, dict[int, float]]:
    unknown = stand_in(source)
    return {int(token): {unknown: 1.0} for token in tokens} if unknown >= 0 else {}


def _keep_rows(
    counts: csr_matrix, matches: np.ndarray, shape: tuple[int, int]
) -> tuple[csr_matrix, np.ndarray]:
    copied = np.flatnonzero(matches >= 0)
    other = np.ones(shape[0])
    other[copied] = 0
    rest = csr_matrix(counts.multiply(other[:, None]))
    rest.eliminate_zeros()
    same = sparse_rows({int(token): {int(matches[token]): 1.0} for token in copied}, shape)
    return csr_matrix(rest + same), copied
