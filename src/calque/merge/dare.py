"""DARE: drop most of a task vector at random and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Interval

from calque.merge.inputs import Vocabulary, line_up
from calque.merge.linear import one_each
from calque.merge.rewrite import Rewrite
from calque.merge.task_vector import Elect, Numbers, Rescale, Rule, parts_of, rows
from calque.model.checkpoint import Checkpoint


def dare(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    density: Annotated[float, Interval(gt=0, le=1)] = 0.5,
    elect: Elect = "none",
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    rescale: Rescale = "density",
    seed: Annotated[int, Ge(0)] = 0,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Drop entries of every task vector at random, rescale what stays, and add up or elect signs.

    x_i = w_i (theta_i - base) * m_i / density, each entry of m_i being 1 with probability `density`;
    out = base + scale * sum_i x_i, or with election the sum of those x_i whose sign the sum has.

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        density: Share that stays; 0.1 to 0.5.
        elect: "none" adds everything ("DARE linear"), "sum" takes the sign of the sum first ("DARE-TIES"),
            "count" that of the majority.
        weights: One per tuned model; 1 by default.
        scale: Factor of the sum.
        normalize: Divide by the sum of the weights that took part.
        rescale: "density" divides by the density, as published; "l1" brings the L1 norm of each tensor
            back, as mergekit does; "none" leaves the rest as it is.
        seed: Of the dropping. It fixes the result, whatever the size of the blocks that are read.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Paper: Yu et al. 2024, ICML, arXiv:2311.03099.

    Raises:
        ConfigError: Not one weight per model.
        ModelError: The models do not fit together.

    Relations:
        At density 1 without election it is task arithmetic. On the average over seeds it is as well. With
        rescale="l1" a single model's change keeps the L1 norm of every tensor.
    """
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    numbers = Numbers(
        weights=tuple(one_each(weights, len(tuned))), density=(density,) * len(tuned), scale=scale
    )
    rule = Rule(trim="random", elect=elect, normalize=normalize, rescale=rescale, seed=seed)
    notes = {"method": "dare", "density": density, "elect": elect, "rescale": rescale, "seed": seed}
    return inputs.rewrite(rows(parts_of(inputs, numbers), rule), notes=notes)
