"""A new row is the mean of the old pieces that write the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from calque.vocab.map import Fallback, VocabMap, build_map, sparse_rows
from calque.vocab.overlap import byte_matches
from calque.vocab.tokens import Tokens


def subword(
    source: Tokens,
    target: Tokens,
    evidence: None = None,
    *,
    pieces: Literal["mean", "ends"] = "mean",
    fallback: Fallback = "normal",
    seed: Annotated[int, Ge(0)] = 1234,
) -> VocabMap:
    """Copy tokens that both sides know; give the others the mean of their old pieces.

    new[t] = mean of old[p] over the pieces p into which the old tokenizer cuts surface(t), or over the first
    and the last of them: the first is what a decoder has to predict, the last is what it has read.

    Args:
        source: Old vocabulary.
        target: New vocabulary.
        evidence: None; the method needs nothing.
        pieces: Which old pieces count: all of them, or both ends.
        fallback: What fills rows whose bytes the old vocabulary can not write.
        seed: Of the normal fallback.

    Returns:
        A map whose covered rows sum to 1.

    Relations:
        With equal vocabularies equals `overlap`.
    """
    matches = byte_matches(source, target)
    rows = {token: {match: 1.0} for token, match in enumerate(matches.tolist()) if match >= 0}
    how = np.where(matches >= 0, 0, 1)
    rows |= piece_rows(source, target, np.flatnonzero(matches < 0), pieces)
    weights = sparse_rows(rows, (len(target), len(source)))
    return build_map(source, target, weights, how, ("copy", "pieces"), fallback=fallback, seed=seed)


def piece_rows(
    source: Tokens, target: Tokens, tokens: Iterable[int], which: Literal["mean", "ends"] = "mean"
) -> dict[int, dict[int, float]]:
    """Weights over the old pieces of some target tokens; those without any piece are left out."""
    rows: dict[int, dict[int, float]] = {}
    for token in tokens:
        surface = target.surface[token]
        pieces = source.encode_surface(surface) if surface else []
        if which == "ends":
            pieces = [*pieces[:1], *pieces[-1:]]
        if pieces:
            counts = Counter(pieces)
            rows[int(token)] = {piece: count / len(pieces) for piece, count in counts.items()}
    return rows
