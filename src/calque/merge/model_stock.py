"""Model Stock: how far from the base to go follows from the angle between the tuned models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from calque.errors import ConfigError
from calque.merge.inputs import Vocabulary, line_up
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.task_vector import replay
from calque.model.checkpoint import Checkpoint

_SINGULAR = 1e-6


def model_stock(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    filter_wise: bool = False,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Average tuned models and go part of the way back to their base, by the angle between them.

    For each tensor, with d_i the N differences to the base b and cos the mean cosine of all pairs of them:

        t = N cos / (1 + (N - 1) cos);   out = b + t * mean_i(d_i)

    Args:
        base: The model that all others were tuned from.
        tuned: At least two models, tuned on the same thing from different seeds or settings.
        filter_wise: One cosine per row of a matrix instead of one per tensor.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Paper: Jang et al. 2024, ECCV, arXiv:2403.19522.

    Raises:
        ConfigError: Fewer than two tuned models.
        ModelError: The models do not fit together.

    Relations:
        Equal models give that model. Models that moved at right angles give the base. All differences scaled
        by c scale the result's by c. The order of the models does not matter.
    """
    if len(tuned) < 2:
        raise ConfigError(f"model_stock: {len(tuned)} tuned model; the angle needs at least two")
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    ratios: dict[str, float] = {}
    rows = tuple(
        stock_row(name, inputs.sources(name)[0].info.dtype, inputs.sources(name), filter_wise, ratios)
        for name in inputs.names
    )
    return inputs.rewrite(
        rows, notes={"method": "model_stock", "filter_wise": filter_wise, "mean_ratio": ratios}
    )


def stock_row(
    name: str, dtype: str, sources: Sequence[Source], filter_wise: bool, ratios: dict[str, float]
) -> Row:
    """The row of one tensor; its mean t goes into `ratios`."""
    shape = sources[0].shape
    by_row = filter_wise and len(shape) > 1

    def function(*inputs: Source) -> Iterator[torch.Tensor]:
        stream = replay(inputs, math.prod(shape))
        grams = [_gram(deltas, by_row) for _, *deltas in stream()]
        ratio = interpolation(torch.cat(grams, 0) if by_row else torch.stack(grams).sum(0))
        ratios[name] = float(ratio.mean())
        done = 0
        for base, *deltas in stream():
            share = ratio[done : done + len(base)].reshape(-1, *[1] * (base.dim() - 1)) if by_row else ratio
            done += len(base) if by_row else 0
            total = deltas[0]
            for delta in deltas[1:]:
                total += delta
            yield base.addcmul_(total, (share / len(deltas)).to(base.dtype))

    return Row(name, dtype, shape, tuple(sources), function)


def _gram(deltas: Sequence[torch.Tensor], by_row: bool) -> torch.Tensor:
    """Inner products of the differences, float64: (rows, N, N), or (N, N) over the whole block."""
    if by_row:
        rows = torch.stack([delta.reshape(len(delta), -1) for delta in deltas], 1)
        return (rows @ rows.mT).double()
    flat = torch.stack([delta.reshape(-1) for delta in deltas])
    return (flat @ flat.T).double()


def interpolation(gram: torch.Tensor) -> torch.Tensor:
    """t of the published formula from inner products (..., N, N); 0 where it has no finite value."""
    models = gram.shape[-1]
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    product = lengths[..., :, None] * lengths[..., None, :]
    cosines = (gram / torch.where(product > 0, product, 1)).clamp_(-1, 1)
    upper = torch.triu_indices(models, models, 1)
    cosine = cosines[..., upper[0], upper[1]].mean(-1)
    below = 1 + (models - 1) * cosine
    singular = below.abs() < _SINGULAR
    return torch.where(singular, 0, models * cosine / torch.where(singular, 1, below))
