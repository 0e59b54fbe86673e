"""Noise that a model learns to undo: masked tokens, and spans cut out behind sentinels.

Each piece is noised by its own random numbers, which follow from the seed, its source and how many pieces
came before it: anew in every epoch, and the same whatever it is batched with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calque.data.pack import IGNORED, Batch
from calque.errors import ConfigError

BYTES = 259
"""Vocabulary of a byte model: padding, end, unknown, and then the 256 bytes."""
FREE_BYTES = 11
"""Byte values 0xF5 to 0xFF never stand in UTF-8; their ids, from the highest down, mark spans."""


def byte_sentinels() -> tuple[int, ...]:
    """Sentinels of a byte model without tokens of their own: 258, 257, ... as its pretraining has them.

    Paper: Abonizio et al. 2022 (MonoByte); Xue et al. 2022 (ByT5).
    """
    return tuple(range(BYTES - 1, BYTES - 1 - FREE_BYTES, -1))


def span_count(tokens: int, density: float, mean_span: float) -> tuple[int, int]:
    """(tokens to cut out, spans to cut them in) of a piece: both at least 1, one token at least stays."""
    noise = min(max(round(tokens * density), 1), tokens - 1)
    spans = max(round(noise / mean_span), 1)
    return noise, min(spans, noise, tokens - noise)


def raw_length(inputs: int, density: float, mean_span: float) -> tuple[int, int]:
    """(tokens of a piece, tokens of its target) for the longest piece whose corrupted form fits `inputs`.

    Both the corrupted piece and the target end with an end token, which is counted.

    Raises:
        ConfigError: no piece of two tokens fits.
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = span_count(tokens, density, mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = 2
    if lengths(tokens)[0] > inputs:
        raise ConfigError(f"length {inputs} holds no corrupted piece of two tokens; give at least 4")
    while lengths(tokens + 1)[0] <= inputs:
        tokens += 1
    return tokens, lengths(tokens)[1]


def cut_spans(
    ids: np.ndarray,
    sentinels: Sequence[int],
    random: np.random.Generator,
    *,
    density: float = 0.15,
    mean_span: float = 20.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut spans out of a piece; returns (the piece with a sentinel for each, sentinel and span in turn).

    Spans and what lies between them are random divisions of the noise and of the rest into as many parts,
    each of at least one token; the piece begins with a part that stays.

    Args:
        ids: tokens of the piece, at least two.
        sentinels: ids that stand for the first, second, ... span.
        random: where the divisions come from.
        density: share of the tokens that are cut out.
        mean_span: tokens of a span on average.

    Raises:
        ConfigError: more spans than sentinels.

    Paper: Raffel et al. 2020, arXiv:1910.10683.
    """
    noise, spans = span_count(len(ids), density, mean_span)
    if spans > len(sentinels):
        raise ConfigError(
            f"a piece of {len(ids)} tokens is cut in {spans} spans, but there are {len(sentinels)} "
            "sentinels; give shorter pieces, longer spans or a lower density"
        )
    inside = _division(noise, spans, random)
    between = _division(len(ids) - noise, spans, random)
    left: list[np.ndarray] = []
    out: list[np.ndarray] = []
    place = 0
    for keep, cut, sentinel in zip(between, inside, sentinels, strict=False):
        left += [ids[place : place + keep], np.asarray([sentinel])]
        out += [np.asarray([sentinel]), ids[place + keep : place + keep + cut]]
        place += keep + cut
    return np.concatenate(left), np.concatenate(out)


def restore_spans(corrupted: np.ndarray, target: np.ndarray, sentinels: Sequence[int]) -> np.ndarray:
    """The inverse of `cut_spans`: every span back at its sentinel."""
    marks = set(sentinels)
    starts = [n for n, token in enumerate(target) if token in marks]
    spans = {
        int(target[a]): target[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(target)], strict=True)
    }
    parts = [spans.get(int(token), np.asarray([token])) for token in corrupted]
    return np.concatenate(parts)


def span_noise(
    batch: Batch, sentinels: Sequence[int], end: int, *, seed: int, density: float, mean_span: float
) -> Batch:
    """Pieces that consist of the corrupted piece, as its prompt, and the target; each ends with `end`."""
    made = [
        cut_spans(ids, sentinels, _random(batch, n, seed), density=density, mean_span=mean_span)
        for n, ids in enumerate(batch.split())
    ]
    ids = [np.concatenate([left, [end], out, [end]]) for left, out in made]
    return replace(
        batch,
        ids=np.concatenate(ids).astype(np.int64),
        lengths=tuple(map(len, ids)),
        prompts=tuple(len(left) + 1 for left, _ in made),
    )


def mask_noise(
    batch: Batch, *, mask: int, vocabulary: int, special: Sequence[int], seed: int, share: float
) -> Batch:
    """Pieces with a share of their tokens chosen; of those 80 % become `mask`, 10 % a random token.

    The answer of a piece is the chosen token where one was chosen, IGNORED elsewhere; special tokens are
    never chosen, and of all others at least one.

    Paper: Devlin et al. 2019, arXiv:1810.04805.
    """
    made, answers = [], []
    for n, ids in enumerate(batch.split()):
        random = _random(batch, n, seed)
        free = np.flatnonzero(~np.isin(ids, special))
        count = min(len(free), max(1, round(share * len(free))))
        chosen = random.permutation(free)[:count]
        fate = random.random(count)
        strange = random.integers(0, vocabulary, count)
        answer = np.full(len(ids), IGNORED, dtype=np.int64)
        answer[chosen] = ids[chosen]
        noised = ids.copy()
        noised[chosen] = np.where(fate < 0.8, mask, np.where(fate < 0.9, strange, ids[chosen]))
        made.append(noised)
        answers.append(answer)
    return replace(batch, ids=np.concatenate(made).astype(np.int64), answers=tuple(answers))


def _division(amount: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """A random division of `amount` into `parts` positive numbers, all equally probable."""
    borders = np.sort(random.permutation(amount - 1)[: parts - 1]) + 1
    return np.diff([0, *borders, amount])


def _random(batch: Batch, piece: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, batch.sources[piece], batch.draws[piece]])
