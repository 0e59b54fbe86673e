"""DELLA: drop entries at random, small ones more often than large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Interval

from calque.errors import ConfigError
from calque.merge.inputs import Vocabulary, line_up
from calque.merge.linear import one_each
from calque.merge.rewrite import Rewrite
from calque.merge.task_vector import Elect, Numbers, Rescale, Rule, parts_of, rows
from calque.model.checkpoint import Checkpoint


def della(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    density: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
    epsilon: Annotated[float, Interval(ge=0, lt=0.5)] = 0.15,
    elect: Elect = "sum",
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalize: bool = True,
    rescale: Rescale = "density",
    seed: Annotated[int, Ge(0)] = 0,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Drop entries of every task vector by rank in their row, rescale, elect signs, and average.

    In a row of n entries the one of rank r (0 the smallest magnitude) stays with probability

        p = density - epsilon + 2 epsilon r / (n - 1)

    and is divided by it; then signs are elected as in ties. A vector counts as one row.

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        density: Mean share that stays.
        epsilon: Half the range of the probabilities.
        elect: "sum" takes the sign of the sum, "count" that of the majority, "none" adds everything.
        weights: One per tuned model; 1 by default.
        scale: Factor of the merged task vector.
        normalize: Divide by the sum of the weights that took part.
        rescale: "density" divides by each entry's own probability, as published; "l1" brings the L1 norm of
            each tensor back, as mergekit does.
        seed: Of the dropping. It fixes the result, whatever the size of the blocks that are read.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Paper: Deep et al. 2024, arXiv:2406.11617.

    Raises:
        ConfigError: Probabilities that leave (0, 1), or not one weight per model.
        ModelError: The models do not fit together.

    Relations:
        With epsilon=0 entries stay with equal probability, as in dare. On the average over seeds a single
        model comes back. Larger entries stay more often.
    """
    check_probabilities(density, epsilon)
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    models = len(tuned)
    numbers = Numbers(
        weights=tuple(one_each(weights, models)),
        density=(density,) * models,
        epsilon=(epsilon,) * models,
        scale=scale,
    )
    rule = Rule(trim="ranked", elect=elect, normalize=normalize, rescale=rescale, seed=seed)
    notes = {"method": "della", "density": density, "epsilon": epsilon, "rescale": rescale, "seed": seed}
    return inputs.rewrite(rows(parts_of(inputs, numbers), rule), notes=notes)


def check_probabilities(density: float, epsilon: float) -> None:
    """Refuse probabilities outside (0, 1).

    Raises:
        ConfigError: density - epsilon or density + epsilon is no probability.
    """
    if not 0 < density - epsilon <= density + epsilon < 1:
        raise ConfigError(
            f"della: density {density} with epsilon {epsilon} gives probabilities from "
            f"{density - epsilon:g} to {density + epsilon:g}; they must lie between 0 and 1"
        )
