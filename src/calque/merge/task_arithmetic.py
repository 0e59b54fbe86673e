"""Task arithmetic: differences to a common base, added up."""

from __future__ import annotations

from collections.abc import Sequence

from calque.merge.inputs import Vocabulary, line_up
from calque.merge.linear import one_each
from calque.merge.rewrite import Rewrite
from calque.merge.task_vector import Numbers, Rule, parts_of, rows
from calque.model.checkpoint import Checkpoint


def task_arithmetic(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Add what several models learned to the base they were tuned from.

    out = base + scale * sum_i w_i (theta_i - base); a negative weight takes a skill away.

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        weights: One per tuned model; 1 by default.
        scale: Factor of the sum; 0.3 to 0.5 is usual for several models.
        normalize: Divide the sum by the sum of the weights.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Paper: Ilharco et al. 2023, ICLR, arXiv:2212.04089.

    Raises:
        ConfigError: Not one weight per model.
        ModelError: The models do not fit together.

    Relations:
        One tuned model with weight 1 gives that model. With weight 0 it is the base. With normalize it is the
        linear average with the same weights. The order of the models does not matter.
    """
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    numbers = Numbers(weights=tuple(one_each(weights, len(tuned))), scale=scale)
    rule = Rule(normalize=normalize)
    notes = {
        "method": "task_arithmetic",
        "weights": numbers.weights,
        "scale": scale,
        "normalize": normalize,
    }
    return inputs.rewrite(rows(parts_of(inputs, numbers), rule), notes=notes)
