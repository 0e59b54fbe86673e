"""WECHSEL: a new row is the softmax mean of the old rows nearest in a bilingual static word space.

Paper: Minixhofer et al. 2022, arXiv:2112.06598.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt
from scipy.sparse import coo_matrix, csr_matrix

from calque.errors import DataError
from calque.vocab.map import Fallback, VocabMap, build_map
from calque.vocab.nearest import nearest
from calque.vocab.static import Vectors, WordSpaces
from calque.vocab.tokens import Tokens


def wechsel(
    source: Tokens,
    target: Tokens,
    evidence: WordSpaces,
    *,
    mode: Literal["subword", "words"] = "words",
    neighbours: Annotated[int, Ge(1)] = 10,
    temperature: Annotated[float, Gt(0)] = 0.1,
    align: bool = True,
    zero_neighbours: bool = False,
    fallback: Fallback = "normal",
    seed: Annotated[int, Ge(0)] = 1234,
) -> VocabMap:
    """Mix the rows of the k old tokens whose static vectors are nearest to the new token's.

    new[t] = sum_{j in k nearest} w_j old[j], w = softmax(cos(u_t, R u_j) / temperature), with token
    vectors u in the static space and the rotation R fitted to a dictionary.

    Args:
        source: Old vocabulary.
        target: New vocabulary.
        evidence: Word vectors of both languages and word pairs between them.
        mode: Token vectors: "words" is the frequency-weighted mean of the words that contain the token;
            "subword" asks the word vectors for the token itself, from its n-grams where they have them.
        neighbours: k; of equally near tokens the lower id first.
        temperature: Divides the similarities.
        align: Fit the rotation; False when both spaces are aligned already.
        zero_neighbours: Let old tokens without a static vector be neighbours at similarity 0, as published.
        fallback: What fills rows of tokens without a static vector.
        seed: Of the normal fallback.

    Returns:
        A map whose covered rows sum to 1.

    Raises:
        DataError: No dictionary pair has vectors on both sides.

    Relations:
        With neighbours = V_source and a huge temperature every found row is the mean of all old rows.
        Turning both spaces alike, or scaling one of them, changes nothing.
        Paper: Minixhofer et al. 2022, arXiv:2112.06598.
    """
    left, right, cut_left, cut_right = reduce_larger(evidence.source, evidence.target)
    vectors = subword_vectors if mode == "subword" else word_mean_vectors
    old = vectors(source, evidence.source) @ cut_left
    new = vectors(target, evidence.target) @ cut_right
    if align:
        old = old @ rotation(evidence.source, evidence.target, evidence.pairs, left, right)
    places, similarities = nearest(_unit(new), _unit(old), neighbours, zeros=zero_neighbours)
    found = np.flatnonzero(np.any(new != 0, axis=1) & (places[:, 0] >= 0))
    weights = softmax(similarities[found] / temperature)
    rows = np.repeat(found, places.shape[1])
    cells = (weights.ravel(), (rows, np.maximum(places[found], 0).ravel()))
    table = csr_matrix(coo_matrix(cells, shape=(len(target), len(source))))
    how = np.zeros(len(target), np.int64)
    notes = {"pairs": len(evidence.pairs), "dimension": int(new.shape[1])}
    return build_map(source, target, table, how, ("nearest",), fallback=fallback, seed=seed, notes=notes)


def softmax(scores_NK: np.ndarray) -> np.ndarray:
    """Rows of exp, divided by their sums; -inf becomes 0."""
    powers = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def rotation(
    source: Vectors, target: Vectors, pairs: Iterable[tuple[str, str]], left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Orthogonal R (M, M) that minimises |A R - B| over the dictionary.

    Every pair counts in up to nine forms: as it is, in lower case and with capitals, on both sides.

    Args:
        source: Source word vectors.
        target: Target word vectors.
        pairs: (source word, target word).
        left: (N_source, M) source vectors at the common dimension, by word.
        right: (N_target, M) target vectors at the common dimension, by word.

    Raises:
        DataError: No pair is in both vocabularies.
    """
    rows = correspondences(source, target, pairs)
    if not len(rows):
        raise DataError("wechsel: no pair of the dictionary has word vectors on both sides")
    moment = left[rows[:, 0]].astype(np.float64).T @ right[rows[:, 1]].astype(np.float64)
    first, _, second = np.linalg.svd(moment)
    return first @ second


def correspondences(source: Vectors, target: Vectors, pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    """(n, 2) rows of source and target words that the dictionary pairs; repeated forms count again."""
    found = [
        (source.places[one], target.places[two])
        for first, second in pairs
        for one in (first, first.lower(), first.title())
        for two in (second, second.lower(), second.title())
        if one in source.places and two in target.places
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def reduce_larger(source: Vectors, target: Vectors) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both word tables at the smaller dimension, and the matrices that bring other vectors there.

    The larger space is projected on its first principal directions (not centred, so that zero stays zero).
    """
    size = min(source.dimension, target.dimension)
    cuts = [_principal(side.matrix, size) for side in (source, target)]
    return source.matrix @ cuts[0], target.matrix @ cuts[1], cuts[0], cuts[1]


def _principal(matrix: np.ndarray, size: int) -> np.ndarray:
    if matrix.shape[1] == size:
        return np.eye(size, dtype=matrix.dtype)
    _, directions = np.linalg.eigh(matrix.astype(np.float64).T @ matrix)
    return directions[:, ::-1][:, :size].astype(matrix.dtype)


def word_mean_vectors(tokens: Tokens, vectors: Vectors) -> np.ndarray:
    """(V, M) per token the mean of the words that contain it, weighted by their counts; else zero.

    Each word is cut with and without a leading blank, and counts once for each of the two.
    """
    cuts = [tokens.encode_batch([blank + word for word in vectors.words]) for blank in ("", " ")]
    col = np.concatenate([np.fromiter((t for ids in cut for t in set(ids)), np.int64) for cut in cuts])
    sizes = [np.fromiter((len(set(ids)) for ids in cut), np.int64) for cut in cuts]
    row = np.concatenate([np.repeat(np.arange(len(vectors.words)), size) for size in sizes])
    weights = vectors.counts[row].astype(vectors.matrix.dtype)
    shape = (len(tokens), len(vectors.words))
    table = csr_matrix(coo_matrix((weights, (col, row)), shape=shape))
    totals = np.asarray(table.sum(1)).ravel()
    scale = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.asarray(table @ vectors.matrix) * scale[:, None]


def subword_vectors(tokens: Tokens, vectors: Vectors) -> np.ndarray:
    """(V, M) per token the vector of its text without blanks; zero where there is none.

    Tokens that are no whole characters have no text, rather than all the same one.
    """
    table = np.zeros((len(tokens), vectors.dimension), vectors.matrix.dtype)
    for token, surface in enumerate(tokens.surface):
        try:
            word = surface.decode().strip() if surface else ""
        except UnicodeDecodeError:
            continue
        vector = vectors.look_up(word) if word else None
        if vector is not None:
            table[token] = vector
    return table


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-8)
