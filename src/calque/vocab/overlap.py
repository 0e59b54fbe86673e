"""Tokens that both vocabularies have keep their rows."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge

from calque.vocab.map import Fallback, VocabMap, build_map, sparse_rows
from calque.vocab.tokens import Tokens


def overlap(
    source: Tokens,
    target: Tokens,
    evidence: None = None,
    *,
    fallback: Fallback = "normal",
    seed: Annotated[int, Ge(0)] = 1234,
) -> VocabMap:
    """Copy the row of every token whose bytes both vocabularies know; the rest is fallback.

    new[t] = old[s] where surface(t) = surface(s).

    Args:
        source: Old vocabulary.
        target: New vocabulary.
        evidence: None; the method needs nothing.
        fallback: What fills the rows of the other tokens.
        seed: Of the normal fallback.

    Returns:
        A map whose covered rows are identity rows.

    Relations:
        With equal vocabularies every row is copied.
    """
    matches = byte_matches(source, target)
    rows = {token: {match: 1.0} for token, match in enumerate(matches.tolist()) if match >= 0}
    weights = sparse_rows(rows, (len(target), len(source)))
    how = np.zeros(len(target), np.int64)
    return build_map(source, target, weights, how, ("copy",), fallback=fallback, seed=seed)


def byte_matches(source: Tokens, target: Tokens) -> np.ndarray:
    """Per target token the source id with the same bytes, or -1; int64 (V_target,).

    Of several source tokens with these bytes the one that is also spelled alike wins, then the lowest id.
    """
    places = {string: token for token, string in enumerate(source.strings) if string}
    table = source.by_surface
    found = np.full(len(target), -1, np.int64)
    for token, surface in enumerate(target.surface):
        if surface is None:
            continue
        match = places.get(target.strings[token], -1)
        if match < 0 or source.surface[match] != surface:
            match = table.get(surface, -1)
        found[token] = match
    return found
