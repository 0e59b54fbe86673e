"""How far a model moved from another one, tensor by tensor, in one reading of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from calque.errors import ConfigError
from calque.merge.inputs import Inputs
from calque.merge.rewrite import Source
from calque.merge.stream import chunks
from calque.model.slots import Slot
from calque.progress import bar


@dataclass(frozen=True)
class Change:
    """What became of one tensor W of `size` numbers, now V.

    Attributes:
        slot: its place in the model.
        size: how many numbers it has.
        absolute: sum of |V - W|.
        squared: sum of (V - W)^2.
        before: sum of W^2.
        after: sum of V^2.
        product: sum of W V.
        moved: how many numbers differ.
        largest: the largest |V - W|.
        rows: mean |V - W| of each row (output unit); of a vector, each |V - W|.
    """

    slot: Slot
    size: int
    absolute: float
    squared: float
    before: float
    after: float
    product: float
    moved: int
    largest: float
    rows: np.ndarray = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean |V - W|."""
        return self.absolute / self.size

    @property
    def norm(self) -> float:
        """Length of V - W."""
        return math.sqrt(self.squared)

    @property
    def relative(self) -> float:
        """Length of V - W over that of W; infinite when W is zero and V is not."""
        return _quotient(self.squared, self.before)

    @property
    def cosine(self) -> float:
        """Cosine of W and V; 1 for two zero tensors, 0 when one of them is zero."""
        lengths = math.sqrt(self.before * self.after)
        return self.product / lengths if lengths else float(self.before == self.after)


def _quotient(squared: float, before: float) -> float:
    return math.sqrt(squared / before) if before else (math.inf if squared else 0.0)


def change(slot: Slot, before: Source, after: Source) -> Change:
    """Compare two tensors of one shape; sums of float32 blocks are added up in double precision."""
    sums = np.zeros(5)
    moved, largest, size, rows = 0, 0.0, 0, []
    for one, other in chunks((before, after)):
        size += one.numel()
        sums[2] += _dot(one, one)
        sums[3] += _dot(other, other)
        sums[4] += _dot(one, other)
        gap = other.sub_(one)
        moved += int(torch.count_nonzero(gap))
        sums[1] += _dot(gap, gap)
        gap.abs_()
        sums[0] += float(gap.sum(dtype=torch.float64))
        largest = max(largest, float(gap.max()))
        rows.append((gap.flatten(1).mean(1) if gap.dim() > 1 else gap.reshape(-1)).numpy())
    absolute, squared, first, second, product = map(float, sums)
    return Change(
        slot, size, absolute, squared, first, second, product, moved, largest, np.concatenate(rows)
    )  # fmt: skip


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    """Sum of products; in pieces, so that single precision loses nothing that matters."""
    a, b = one.reshape(-1), other.reshape(-1)
    return sum(float(x @ y) for x, y in zip(a.split(1 << 16), b.split(1 << 16), strict=True))


def changes(inputs: Inputs, label: str) -> Mapping[str, tuple[Change, ...]]:
    """Every parameter of every tuned model against the base, by the parameter's name."""
    found = {}
    total = sum(source.info.nbytes for name in inputs.names for source in inputs.sources(name)[1:])
    with bar(label, total, "B") as shown:
        for name in inputs.names:
            base, *tuned = inputs.sources(name)
            found[name] = tuple(change(inputs.slot(name), base, source) for source in tuned)
            shown.update(sum(source.info.nbytes for source in tuned), name)
    return found


def by_layer(found: Iterable[Change], layers: int) -> np.ndarray:
    """Relative change of each layer as a whole: (layers,) lengths of the change over lengths before."""
    squared, before = np.zeros(layers), np.zeros(layers)
    for one in found:
        if one.slot.layer is not None:
            squared[one.slot.layer] += one.squared
            before[one.slot.layer] += one.before
    return np.sqrt(np.divide(squared, before, out=np.zeros(layers), where=before > 0))


def best_split(task: Sequence[float], language: Sequence[float]) -> tuple[int, int]:
    """How many bottom and top layers the language expert changed more, each by its own measure.

    Both profiles of N layers are scaled to sum 1. Of all divisions into b bottom layers, a middle and u top
    layers the one is taken in which the zones hold most of the change of the expert they are given to; of
    those that agree in four decimals the one with fewest language layers.

    Args:
        task: (N,) change of each layer of the task expert.
        language: (N,) the same of the language expert.

    Returns:
        (b, u), b + u <= N.

    Raises:
        ConfigError: An expert whose layers are all those of the base.
    """
    gain = np.cumsum(np.concatenate([[0.0], _shares(language) - _shares(task)]))
    layers = len(gain) - 1
    pairs = [(b, u) for b in range(layers + 1) for u in range(layers + 1 - b)]
    worth = {(b, u): gain[b] + gain[layers] - gain[layers - u] for b, u in pairs}
    return min(pairs, key=lambda pair: (-round(float(worth[pair]), 4), sum(pair), pair))


def _shares(profile: Sequence[float]) -> np.ndarray:
    values = np.asarray(profile, dtype=np.float64)
    if not values.sum() > 0:
        raise ConfigError(
            "the layers can not be chosen by change: all layers of an expert are those of the base; "
            "give bottom and top"
        )
    return values / values.sum()
