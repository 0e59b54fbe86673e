"""TIES: trim small changes, elect a sign per parameter, and average what agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

from calque.merge.inputs import Vocabulary, line_up
from calque.merge.linear import one_each
from calque.merge.rewrite import Rewrite
from calque.merge.task_vector import Numbers, Rule, global_cuts, parts_of, rows
from calque.model.checkpoint import Checkpoint


def ties(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    density: Annotated[float, Interval(gt=0, le=1)] = 0.2,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalize: bool = True,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Merge models: trim each over the WHOLE model, elect signs, and average the changes that agree.

    With task vectors d_i of D entries, all tensors in one:

        trim: of d_i the int(density * D) entries of largest magnitude stay; of equal ones the earlier
        elect: s = sign(sum_i w_i d_i), 0 counting as plus
        merge: out = base + scale * sum of the w_i d_i of sign s / sum of their w_i

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        density: Share of each task vector that stays.
        weights: One per tuned model; equal ones by default.
        scale: Factor of the merged task vector; 1 without validation data.
        normalize: Average the changes that agree; without it they are added up.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite: a pass that finds the thresholds, and one that writes.

    Paper: Yadav et al. 2023, NeurIPS, arXiv:2306.01708.

    Raises:
        ConfigError: Not one weight per model.
        ModelError: The models do not fit together.

    Relations:
        One model at density 1 gives that model. The order of the models does not matter, ties aside. Exactly
        int(density * D) entries of each model survive. A model merged with itself gives the trimmed model.
    """
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    numbers = _numbers(density, one_each(weights, len(tuned)), scale)
    parts = parts_of(inputs, numbers)
    found, cuts = global_cuts(parts, numbers.density)
    notes = {"method": "ties", "density": density, "weights": numbers.weights, "scale": scale}
    return inputs.rewrite(rows(parts, _rule(normalize), cuts), passes=(found,) if found else (), notes=notes)


def ties_per_tensor(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    density: Annotated[float, Interval(gt=0, le=1)] = 0.2,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalize: bool = True,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Merge models as ties does, but trim every tensor by itself.

    Not the published method, which trims over the whole model: there a tensor that changed little can lose
    everything, here each keeps int(density * its entries), at least one. It is what mergekit calls "ties".

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        density: Share of each tensor's changes that stays.
        weights: One per tuned model; equal ones by default.
        scale: Factor of the merged task vector.
        normalize: Average the changes that agree; without it they are added up.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Raises:
        ConfigError: Not one weight per model.
        ModelError: The models do not fit together.

    Relations:
        At density 1 it equals ties. One model at density 1 gives that model.
    """
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    numbers = _numbers(density, one_each(weights, len(tuned)), scale)
    notes = {"method": "ties_per_tensor", "density": density, "weights": numbers.weights, "scale": scale}
    return inputs.rewrite(rows(parts_of(inputs, numbers), _rule(normalize)), notes=notes)


def _numbers(density: float, weights: Sequence[float], scale: float) -> Numbers:
    return Numbers(weights=tuple(weights), density=(density,) * len(weights), scale=scale)


def _rule(normalize: bool) -> Rule:
    return Rule(trim="largest", elect="sum", normalize=normalize)
