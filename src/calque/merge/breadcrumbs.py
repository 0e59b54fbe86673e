"""Model Breadcrumbs: of every tensor's change neither the smallest entries nor the outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

from calque.merge.inputs import Vocabulary, line_up
from calque.merge.linear import one_each
from calque.merge.rewrite import Rewrite
from calque.merge.task_vector import Elect, Numbers, Rule, parts_of, rows
from calque.model.checkpoint import Checkpoint


def breadcrumbs(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    density: Annotated[float, Interval(gt=0, le=1)] = 0.9,
    outliers: Annotated[float, Interval(ge=0, lt=1)] = 0.01,
    elect: Elect = "none",
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Take the largest and the smallest changes out of every tensor, and add up the rest.

    Of the n magnitudes of a tensor the int(outliers * n) largest are dropped, then the smallest, until
    int(density * n) are left; fewer of the largest go where the density needs them. Of equal magnitudes the
    earlier counts as the larger. Then out = base + scale * sum_i w_i * what is left.

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        density: Share of each tensor that stays; 0.85 to 0.99.
        outliers: Share of largest changes that is dropped.
        elect: "none" as published; "sum" or "count" elect signs first.
        weights: One per tuned model; 1 by default.
        scale: Factor of the sum; 0.3 to 0.5 for several models.
        normalize: Divide by the sum of the weights that took part.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Paper: Davari and Belilovsky 2024, ECCV, arXiv:2312.06795.

    Raises:
        ConfigError: Not one weight per model.
        ModelError: The models do not fit together.

    Relations:
        At density 1 it is task arithmetic. With outliers=0 it trims as ties_per_tensor does. Exactly
        int(density * n) entries of each tensor stay.
    """
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    models = len(tuned)
    numbers = Numbers(
        weights=tuple(one_each(weights, models)),
        density=(density,) * models,
        gamma=(outliers,) * models,
        scale=scale,
    )
    rule = Rule(trim="middle", elect=elect, normalize=normalize)
    notes = {"method": "breadcrumbs", "density": density, "outliers": outliers, "weights": numbers.weights}
    return inputs.rewrite(rows(parts_of(inputs, numbers), rule), notes=notes)
