"""Which entries of a task vector survive: the first of the two axes along which eight merge methods differ.

    all       every entry (task arithmetic)
    largest   the k largest magnitudes (TIES)
    middle    the k largest magnitudes after the very largest are taken out (Breadcrumbs)
    random    each entry with probability `density` (DARE)
    ranked    each entry with a probability that grows with its rank in its row (DELLA)

Of equal magnitudes the earlier counts as the larger, so that k is exact. Random numbers belong to a tensor
and a model: they do not depend on how the tensor is cut into blocks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from calque.merge.quantile import OrderStatistic, magnitude_keys, search

Trim = Literal["all", "largest", "middle", "random", "ranked"]
Deltas = Callable[[], Iterator[torch.Tensor]]  # the blocks of one task vector, from the start each time
Trimmer = Callable[[torch.Tensor], torch.Tensor]  # sets what does not survive to 0, in place if it can


@dataclass(frozen=True)
class Cut:
    """The k largest magnitudes of a stretch of numbers.

    Attributes:
        value: the smallest magnitude that survives.
        ties: how many entries of exactly that magnitude survive, in order; None for all of them.
    """

    value: float
    ties: int | None = None

    def trimmer(self) -> Trimmer:
        """A trimmer for blocks that come in order."""
        left = self.ties
        below = float(np.nextafter(np.float32(self.value), np.float32(0)))

        def trim(delta: torch.Tensor) -> torch.Tensor:
            nonlocal left
            if self.value == 0:
                return delta
            if left == 0:
                return torch.ops.aten.hardshrink.out(delta, self.value, out=delta)
            if left is not None:
                tied = delta.abs() == self.value
                excess = tied & (torch.cumsum(tied.reshape(-1), 0).reshape(tied.shape) > left)
                left = max(0, left - int(tied.sum()))
                delta.masked_fill_(excess, 0)
            return torch.ops.aten.hardshrink.out(delta, below, out=delta)

        return trim


def cut_of(statistic: OrderStatistic) -> Cut:
    """The cut at a found order statistic of magnitudes: entries from its place up to the largest survive."""
    kept = statistic.size - statistic.rank
    ties = kept - (statistic.size - statistic.below - statistic.equal)
    return Cut(statistic.value, None if ties == statistic.equal else ties)


def largest(deltas: Deltas, size: int, kept: int) -> Cut | None:
    """The cut that leaves the `kept` largest magnitudes of a task vector; None when that is none of them."""
    if kept <= 0:
        return None
    if kept >= size:
        return Cut(0.0)
    statistic = OrderStatistic(size - kept, size)
    drawn = [magnitude_keys(block.reshape(-1)[::31].contiguous()) for block in deltas()]
    statistic.sample(np.concatenate(drawn), alike=1)
    search([statistic], lambda: (magnitude_keys(piece) for b in deltas() for piece in b.split(1 << 16)))
    return cut_of(statistic)


def middle_counts(size: int, density: float, gamma: float) -> tuple[int, int]:
    """(how many survive, how many larger ones go): fewer of the largest where the density needs them."""
    kept = int(density * size)
    return kept, min(int(gamma * size), size - kept)


def middle(deltas: Deltas, size: int, density: float, gamma: float) -> Trimmer:
    """A trimmer that takes out the share `gamma` of the largest, then leaves the share `density`."""
    kept, outliers = middle_counts(size, density, gamma)
    low, high = largest(deltas, size, kept + outliers), largest(deltas, size, outliers)
    if low is None or kept == 0:
        return torch.Tensor.zero_
    inner = low.trimmer()
    if high is None:
        return inner
    outer = high.trimmer()

    def trim(delta: torch.Tensor) -> torch.Tensor:
        top = outer(delta.clone())
        return inner(delta).sub_(top)  # where the top survives, both hold the same number

    return trim


def random(density: float, generator: np.random.Generator, divide: bool) -> Trimmer:
    """A trimmer that leaves each entry with probability `density`, divided by it when `divide`."""

    def trim(delta: torch.Tensor) -> torch.Tensor:
        drawn = generator.random(delta.numel(), dtype=np.float32)
        delta.mul_(torch.from_numpy(drawn < density).reshape(delta.shape))
        return delta.div_(density) if divide and density > 0 else delta

    return trim


def ranked(density: float, epsilon: float, generator: np.random.Generator, divide: bool) -> Trimmer:
    """A trimmer that leaves entries with probability density - epsilon (least of a row) to + epsilon (most).

    Blocks must hold whole rows; a vector is one row.
    """

    def trim(delta: torch.Tensor) -> torch.Tensor:
        rows = delta.reshape(-1, delta.shape[-1]) if delta.dim() else delta.reshape(1, 1)
        width = rows.shape[1]
        steps = torch.linspace(-epsilon, epsilon, width) if width > 1 else torch.zeros(1)
        # Sorted backwards, then turned round: the earlier of equal magnitudes gets the higher rank.
        order = torch.argsort(rows.abs(), dim=1, descending=True, stable=True).flip(1)
        keep = torch.empty_like(rows).scatter_(1, order, (density + steps).expand_as(rows))
        drawn = torch.from_numpy(generator.random(delta.numel(), dtype=np.float32)).reshape(rows.shape)
        rows.mul_(drawn < keep)
        return (rows.div_(keep.clamp_(min=1e-6)) if divide else rows).reshape(delta.shape)

    return trim


def generator(seed: int, name: str, model: int) -> np.random.Generator:
    """Random numbers of one tensor of one model."""
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode()), model]))
