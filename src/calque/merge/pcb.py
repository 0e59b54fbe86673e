"""PCB-Merging: every parameter of every model gets a weight of its own, by importance and by agreement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval

from calque.errors import ConfigError
from calque.merge.inputs import Inputs, Vocabulary, line_up
from calque.merge.quantile import OrderStatistic, keys, magnitude_keys
from calque.merge.rewrite import Pass, Rewrite, Row, Source
from calque.merge.stream import chunks
from calque.merge.survey import CHUNK, Blocks, pieces, survey
from calque.model.checkpoint import Checkpoint

Inter = Literal["tanh", "normalized", "pairwise"]


def pcb(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    keep: Annotated[float, Interval(gt=0, le=1)] = 0.1,
    scale: Annotated[float, Interval(ge=0)] = 1.0,
    scales: Sequence[float] | None = None,
    clamp: Annotated[float, Interval(ge=0, lt=0.5)] = 1e-4,
    inter: Inter = "tanh",
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Merge models of one base, each parameter weighted by its importance and its agreement with the others.

    With n task vectors t_i of D entries, quantiles and extremes taken over the WHOLE vector:

        a_i = |t_i| clamped to its `clamp` and 1 - `clamp` quantiles;   c_i = sign(t_i) a_i
        s_i = minmax(a_i)^2;   importance = exp(n s_i)
        agreement = tanh(t_i * sum_j t_j)                            inter="tanh"
                    tanh(t_i * sum_j u_j)                            inter="normalized"
                    sum_j tanh(u_i * u_j)                            inter="pairwise",  u = sign(t) minmax(a)
        w_i = minmax(max(score_i, its (1 - keep) quantile)),   score = importance * agreement
        out = base + scale * sum_i w_i scale_i c_i / sum_i w_i       base where no model keeps the parameter

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        keep: Share of each model's parameters that get a weight; 0.05 to 0.2.
        scale: Length of the merged task vector; 1 without validation data, 0.8 to 2.2 when searched.
        scales: One more factor per model.
        clamp: Share of entries at either end of the magnitudes that count as outliers; 1e-2 in the authors'
            NLP and vision code.
        inter: How agreement is measured; "normalized" when one model moved much further than the others.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite: two passes for the quantiles, and one that writes.

    Paper: Du et al. 2024, NeurIPS, arXiv:2410.02396.

    Raises:
        ConfigError: As many scales as models are not given.
        ModelError: The models do not fit together.

    Relations:
        The order of the models does not matter. With scale=0 the result is the base. Two exactly
        opposite models give the base. A parameter that one model keeps takes that model's clamped value.
    """
    factors = checked_scales(scales, len(tuned))
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    contest = Contest(inputs, keep, clamp, inter)
    rows = contest.rows(lambda share: sum_of_shares(share, [scale * factor for factor in factors]))
    notes = {
        "method": "pcb", "keep": keep, "scale": scale, "scales": factors, "clamp": clamp, "inter": inter,
        "limits": contest.found,
    }  # fmt: skip
    return inputs.rewrite(rows, passes=contest.passes, notes=notes)


def checked_scales(scales: Sequence[float] | None, models: int) -> list[float]:
    """One factor per model; 1 for all of them by default."""
    found = list(scales) if scales else [1.0] * models
    if len(found) != models:
        raise ConfigError(f"scales: {len(found)} numbers for {models} tuned models; give one per model")
    return found


def sum_of_shares(shares: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Sum of factor times share; in place of the first share."""
    total = shares[0].mul_(factors[0])
    for share, factor in zip(shares[1:], factors[1:], strict=True):
        total.add_(share, alpha=factor)
    return total


@dataclass(frozen=True)
class Limits:
    """What the scores of one model need to know about its whole task vector.

    Attributes:
        low: magnitudes below count as this.
        high: magnitudes above count as this.
        floor: scores up to this have no weight.
        top: the largest score; it has weight 1.
    """

    low: float
    high: float
    floor: float = math.nan
    top: float = math.nan


def magnitude_places(size: int, clamp: float) -> tuple[int, int]:
    """Places of the two clamping quantiles among `size` sorted magnitudes, cut off as the authors do."""
    return int(size * clamp), max(int(size * clamp), int(size * (1 - clamp) - 1))


def score_places(size: int, keep: float) -> tuple[int, int]:
    """Places of the score that has no weight any more, and of the largest."""
    return min(int(size * (1 - keep)), size - 1), size - 1


def scores(deltas: Sequence[torch.Tensor], limits: Sequence[Limits], inter: Inter) -> list[torch.Tensor]:
    """Importance times agreement for every entry of every task vector.

    exp(n s) is taken as exp(n (s - 1)): a factor per model that minmax removes again, and nothing overflows.
    """
    models = len(deltas)
    normed = [_minmax(d.abs(), one.low, one.high) for d, one in zip(deltas, limits, strict=True)]
    found = _agreement(deltas, normed, inter)
    for score, norm in zip(found, normed, strict=True):
        score.mul_(norm.square_().sub_(1).mul_(models).exp_())
    return found


def _agreement(
    deltas: Sequence[torch.Tensor], normed: Sequence[torch.Tensor], inter: Inter
) -> list[torch.Tensor]:
    if inter == "tanh":
        total = torch.clone(deltas[0])
        for delta in deltas[1:]:
            total += delta
        return [(delta * total).tanh_() for delta in deltas]
    signed = [norm * delta.sign() for norm, delta in zip(normed, deltas, strict=True)]
    if inter == "normalized":
        total = torch.stack(signed).sum(0)
        return [(delta * total).tanh_() for delta in deltas]
    found = []
    for one in signed:
        agreement = torch.zeros_like(one)
        for other in signed:
            agreement += (one * other).tanh_()
        found.append(agreement)
    return found


def _minmax(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Values clamped to [low, high] and moved to [0, 1], in place; all 0 where the two are one."""
    values.clamp_(low, high).sub_(low)
    return values.div_(high - low) if high > low else values


def shares(deltas: Sequence[torch.Tensor], limits: Sequence[Limits], inter: Inter) -> list[torch.Tensor]:
    """w_i c_i / sum_j w_j for every model i: its part of the merged task vector."""
    weights = [
        _minmax(score, one.floor, one.top)
        for score, one in zip(scores(deltas, limits, inter), limits, strict=True)
    ]
    total = torch.zeros_like(weights[0])
    for weight in weights:
        total += weight
    total.clamp_(min=1e-12)
    return [
        weight.mul_(clamped(delta, one)).div_(total)
        for weight, delta, one in zip(weights, deltas, limits, strict=True)
    ]


def clamped(delta: torch.Tensor, limit: Limits) -> torch.Tensor:
    """The task vector with its outliers pulled in, both the large and the small."""
    return delta.abs().clamp_(limit.low, limit.high).mul_(delta.sign())


class Contest:
    """The statistics of a merge, found in two passes, and the rows that are made with them."""

    def __init__(self, inputs: Inputs, keep: float, clamp: float, inter: Inter) -> None:
        self.inputs = inputs
        self.inter: Inter = inter
        self._sources = tuple(inputs.sources(name) for name in inputs.names)
        size = sum(math.prod(sources[0].shape) for sources in self._sources)
        models = range(len(inputs.tuned))
        self._magnitudes = [_statistics(magnitude_places(size, clamp), size) for _ in models]
        self._scores = [_statistics(score_places(size, keep), size) for _ in models]
        self.limits: list[Limits] = []
        self.found: list[dict[str, float]] = []  # the same, for the notes

    @property
    def passes(self) -> tuple[Pass, ...]:
        """First the magnitudes, then the scores, which need them."""
        return (
            survey("outliers of each model", self._sources, self._magnitudes, _magnitudes, self._clamp),
            survey("scores of each model", self._sources, self._scores, self._score_keys, self._weigh),
        )

    def rows(self, merge: Callable[[list[torch.Tensor]], torch.Tensor]) -> tuple[Row, ...]:
        """Rows with `merge` of the models' shares added to the base."""
        return self._rows(lambda base, parts: base.add_(merge(parts)))

    def share_rows(self, model: int) -> tuple[Row, ...]:
        """Rows of one model's share of the merged task vector, in float32."""
        made = self._rows(lambda base, parts: base.copy_(parts[model]))
        return tuple(dataclasses.replace(row, dtype="F32") for row in made)

    def _rows(self, put: Callable[[torch.Tensor, list[torch.Tensor]], object]) -> tuple[Row, ...]:
        """Rows that hold what `put` leaves in the base's place, given the base and the models' shares."""

        def function(*sources: Source) -> Iterator[torch.Tensor]:
            for base, *tuned in chunks(sources, CHUNK):
                for piece, *others in pieces((base, *tuned)):
                    put(piece, shares([other.sub_(piece) for other in others], self.limits, self.inter))
                yield base

        rows = []
        for name, sources in zip(self.inputs.names, self._sources, strict=True):
            rows.append(Row(name, sources[0].info.dtype, sources[0].shape, sources, function))
        return tuple(rows)

    def _clamp(self) -> None:
        self.limits[:] = [Limits(low.value, high.value) for low, high in self._magnitudes]

    def _score_keys(self, blocks: Blocks) -> list[np.ndarray]:
        base, *tuned = blocks
        return [keys(s) for s in scores([block.sub_(base) for block in tuned], self.limits, self.inter)]

    def _weigh(self) -> None:
        self.limits[:] = [
            Limits(limit.low, limit.high, floor.value, top.value)
            for limit, (floor, top) in zip(self.limits, self._scores, strict=True)
        ]
        self.found[:] = [dataclasses.asdict(limit) for limit in self.limits]


def _statistics(places: Sequence[int], size: int) -> list[OrderStatistic]:
    return [OrderStatistic(place, size) for place in places]


def _magnitudes(blocks: Blocks) -> list[np.ndarray]:
    base, *tuned = blocks
    return [magnitude_keys(block.sub_(base)) for block in tuned]
