"""Weighted averages of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from annotated_types import Ge

from calque.errors import ConfigError
from calque.merge.inputs import Vocabulary, line_up
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.stream import chunks
from calque.merge.survey import CHUNK, Blocks, pieces
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import DTYPES


def linear(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    weights: Sequence[float] | None = None,
    base_weight: Annotated[float, Ge(0)] = 0.0,
    normalize: bool = True,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Average models: sum of w_i theta_i, divided by the sum of the weights.

    Sums are taken in float64.

    Args:
        base: Gives configuration and tokenizer, and takes part with `base_weight`.
        tuned: Models to average.
        weights: One per tuned model; equal ones by default.
        base_weight: The base's own weight; with 0 its weights are not even read.
        normalize: Divide by the sum of the weights.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Paper: Wortsman et al. 2022, ICML, arXiv:2203.05482.

    Raises:
        ConfigError: Not one weight per model, or weights that add up to nothing.
        ModelError: The models do not fit together.

    Relations:
        Averaging a model with itself gives the model. The order of the models does not matter. With one
        weight of 1 and the others 0 it is that model, bit for bit.
    """
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    first = 0 if base_weight else 1
    factors = [base_weight, *one_each(weights, len(tuned))][first:]
    if normalize:
        factors = normalized(factors)
    rows = tuple(
        linear_row(name, inputs.sources(name)[0].info.dtype, inputs.sources(name)[first:], factors)
        for name in inputs.names
    )
    return inputs.rewrite(rows, notes={"method": "linear", "weights": factors})


def one_each(weights: Sequence[float] | None, models: int) -> list[float]:
    """One weight per tuned model; equal ones of 1 by default.

    Raises:
        ConfigError: Another number of weights.
    """
    found = list(weights) if weights else [1.0] * models
    if len(found) != models:
        raise ConfigError(f"weights: {len(found)} numbers for {models} tuned models; give one per model")
    return found


def normalized(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum.

    Raises:
        ConfigError: They add up to nothing.
    """
    total = sum(weights)
    if abs(total) < 1e-8:
        raise ConfigError(f"weights {list(weights)} add up to {total}; they can not be normalised")
    return [weight / total for weight in weights]


def linear_row(name: str, dtype: str, sources: Sequence[Source], factors: Sequence[float]) -> Row:
    """The row of a weighted sum of tensors; those of weight 0 are not read."""
    used = [(source, factor) for source, factor in zip(sources, factors, strict=True) if factor]
    used = used or [(sources[0], 0.0)]
    shape = sources[0].shape
    weights = [factor for _, factor in used]
    rounded = DTYPES[dtype]

    def function(*inputs: Source) -> Iterator[torch.Tensor]:
        for blocks in chunks(inputs, CHUNK, dtype=None):
            made = torch.empty(blocks[0].shape, dtype=rounded)
            for piece in pieces((made, *blocks)):
                _sum(piece, weights)
            yield made

    return Row(name, dtype, shape, tuple(source for source, _ in used), function)


def _sum(piece: Blocks, weights: Sequence[float]) -> None:
    """Add up in float64, and round into the first.

    Weighted sums of 16-bit numbers often lie half-way between two 16-bit numbers; in float32 a sum's own
    error would then decide.
    """
    made, first, *others = piece
    total = first.to(torch.float64, copy=True)
    if len(others) == 1 and abs(sum(weights) - 1) < 1e-12:
        total.lerp_(others[0].double(), weights[1])
    else:
        total.mul_(weights[0])
        for other, weight in zip(others, weights[1:], strict=True):
            total.add_(other.double(), alpha=weight)
    made.copy_(total)
