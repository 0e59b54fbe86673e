"""FOCUS: a new row is a sparse mean of shared tokens that are used alike in the target language.

Paper: Dobler and de Melo 2023, arXiv:2305.14481.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from calque.data.corpus import Corpus
from calque.progress import bar
from calque.vocab.map import Fallback, VocabMap, build_map, sparse_rows
from calque.vocab.overlap import byte_matches
from calque.vocab.static import Vectors, train_vectors
from calque.vocab.tokens import Tokens

Match = Literal["bytes", "canonical"]
WAYS = ("copy", "same symbol", "fuzzy copy", "similar")
_BLOCK_ROWS = 512
_SUPPORT = 256


def focus(
    source: Tokens,
    target: Tokens,
    evidence: Corpus | Vectors,
    *,
    exact_match_all: bool = True,
    match_symbols: bool = False,
    fuzzy_match_all: bool = False,
    match: Match = "bytes",
    epochs: Annotated[int, Ge(1)] = 5,
    fallback: Fallback = "normal",
    seed: Annotated[int, Ge(0)] = 1234,
) -> VocabMap:
    """Copy shared tokens; mix the others from shared tokens with similar auxiliary vectors.

    new[t] = sum_o w_o old[o] over the shared tokens o, w = sparsemax_o(cos(aux[t], aux[o])).

    Args:
        source: Old vocabulary.
        target: New vocabulary.
        evidence: Text in the target language, on whose tokens auxiliary vectors are trained, or such
            vectors with the target tokenizer's own strings as words.
        exact_match_all: Equal tokens are shared.
        match_symbols: Equal tokens are shared that are numbers, punctuation or special.
        fuzzy_match_all: Tokens are shared that are equal without blank and case.
        match: "bytes" compares byte values; "canonical" compares the decoded text as the authors' code
            does, where all bytes that are no character look alike.
        epochs: Passes over the text when vectors are trained.
        fallback: What fills rows of tokens without an auxiliary vector.
        seed: Of the normal fallback and the training.

    Returns:
        A map whose covered rows sum to 1.

    Relations:
        With equal vocabularies every row is copied.
        Paper: Dobler and de Melo 2023, arXiv:2305.14481.
    """
    vectors = evidence if isinstance(evidence, Vectors) else token_vectors(target, evidence, epochs, seed)
    copied = shared_tokens(
        source,
        target,
        exact=exact_match_all,
        symbols=match_symbols,
        fuzzy=fuzzy_match_all,
        match=match,
    )
    rows = {token: {old: 1.0} for token, (old, _) in copied.items()}
    how = np.zeros(len(target), np.int64)
    for token, (_, way) in copied.items():
        how[token] = way
    known = _with_vectors(target, vectors)
    anchors = [token for token in sorted(copied) if token in known]
    open_tokens = [token for token in known if token not in copied and target.surface[token] is not None]
    rows |= _mix(open_tokens, anchors, known, {token: old for token, (old, _) in copied.items()})
    how[open_tokens] = 3
    weights = sparse_rows(rows, (len(target), len(source)))
    notes = {"anchors": len(anchors)}
    return build_map(source, target, weights, how, WAYS, fallback=fallback, seed=seed, notes=notes)


def token_vectors(target: Tokens, text: Corpus, epochs: int, seed: int) -> Vectors:
    """Auxiliary vectors of the target tokens that occur in a text, by their strings."""
    with bar("auxiliary vectors", unit="text") as shown:
        lines = []
        for line in text.texts():
            lines.append([target.strings[token] for token in target.encode(line)])
            shown.update()
    return train_vectors(lines, epochs=epochs, ngrams=False, seed=seed)


def shared_tokens(
    source: Tokens, target: Tokens, *, exact: bool, symbols: bool, fuzzy: bool, match: Match
) -> dict[int, tuple[int, int]]:
    """Target id -> (source id, index in WAYS) of the tokens that both vocabularies are taken to share."""
    same = _canonical_matches(source, target) if match == "canonical" else byte_matches(source, target)
    loose = _loose_table(source)
    found: dict[int, tuple[int, int]] = {}
    for token in range(len(target)):
        old, form = int(same[token]), _loose(target, token)
        near = loose.get(form, -1) if form is not None else -1
        if symbols and (old >= 0 or near >= 0) and form is not None and _is_symbol(target, token, form):
            found[token] = (old if old >= 0 else near, 1)
        elif exact and old >= 0:
            found[token] = (old, 0)
        elif fuzzy and near >= 0:
            found[token] = (near, 2)
    return found


def sparsemax(scores_NM: np.ndarray) -> np.ndarray:
    """Projection of each row onto the simplex: rows sum to 1 and most entries are exactly 0.

    Paper: Martins and Astudillo 2016, arXiv:1602.02068.
    """
    width = scores_NM.shape[1]
    size = min(_SUPPORT, width)
    while True:
        top = np.partition(scores_NM, width - size, axis=1)[:, width - size :]
        top = -np.sort(-top.astype(np.float64), axis=1)
        level = (np.cumsum(top, 1) - 1) / np.arange(1, size + 1)
        support = (top > level).sum(1)
        if size == width or (support < size).all():
            break
        size = min(width, size * 4)
    threshold = level[np.arange(len(level)), support - 1]
    return np.maximum(scores_NM - threshold[:, None], 0)


def _mix(
    tokens: list[int], anchors: list[int], known: Mapping[int, np.ndarray], old: Mapping[int, int]
) -> dict[int, dict[int, float]]:
    if not anchors:
        return {}
    places = np.array([old[token] for token in anchors])
    keys = _unit(np.stack([known[token] for token in anchors]))
    rows: dict[int, dict[int, float]] = {}
    for start in range(0, len(tokens), _BLOCK_ROWS):
        block = tokens[start : start + _BLOCK_ROWS]
        weights = sparsemax(_unit(np.stack([known[token] for token in block])) @ keys.T)
        for token, row in zip(block, weights, strict=True):
            cells: dict[int, float] = {}
            for place in np.flatnonzero(row):
                cells[int(places[place])] = cells.get(int(places[place]), 0.0) + float(row[place])
            rows[token] = cells
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _with_vectors(target: Tokens, vectors: Vectors) -> dict[int, np.ndarray]:
    found = {}
    for token, name in enumerate(target.strings):
        vector = vectors.look_up(name) if name else None
        if vector is not None and np.any(vector):
            found[token] = vector
    return found


def _canonical(tokens: Tokens, token: int) -> str:
    surface = tokens.surface[token]
    if surface is None:
        return tokens.strings[token]
    return ("▁" if surface.startswith(b" ") else "") + surface.decode(errors="replace").lstrip()


def _canonical_matches(source: Tokens, target: Tokens) -> np.ndarray:
    # Later ids win among equal forms, as the authors put each further one in front of the list.
    table = {_canonical(source, token): token for token in range(len(source))}
    return np.array([table.get(_canonical(target, token), -1) for token in range(len(target))], np.int64)


def _loose(tokens: Tokens, token: int) -> str | None:
    """The text of a token without blank mark and case; None for bytes that are no text."""
    surface = tokens.surface[token]
    if surface is None:
        return tokens.strings[token].lower()
    try:
        return surface.decode().lstrip().lower()
    except UnicodeDecodeError:
        return None


def _loose_table(source: Tokens) -> dict[str, int]:
    """Source id by loose form: one that is written so exactly, else the lowest."""
    table: dict[str, int] = {}
    exact: set[str] = set()
    for token in range(len(source)):
        form = _loose(source, token)
        if form is None:
            continue
        if form == _canonical(source, token) and form not in exact:
            table[form] = token
            exact.add(form)
        table.setdefault(form, token)
    return table


def _is_symbol(tokens: Tokens, token: int, form: str) -> bool:
    if token in tokens.special_ids:
        return True
    return form.isnumeric() or all(char in string.punctuation for char in form) or form.isspace()
