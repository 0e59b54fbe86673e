"""The engine of the task-vector methods: trim each difference to the base, elect signs, add up.

With base b and models m_i, all of one shape:

    d_i = trim(m_i - b);   x_i = w_i d_i
    out = b + scale * sum_i x_i [sign(x_i) = s] / n,   s = sign(sum_i x_i), 0 counting as plus
    n = sum of the w_i that took part, or 1

Without election every x_i takes part. Task arithmetic, TIES, DARE, DELLA and Breadcrumbs are settings of the
two axes; `merge.trim` holds the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from calque.merge import trim as trims
from calque.merge.inputs import Inputs
from calque.merge.quantile import OrderStatistic, magnitude_keys
from calque.merge.rewrite import Pass, Row, Source
from calque.merge.stream import chunks
from calque.merge.survey import CHUNK, Blocks, pieces, survey

Elect = Literal["none", "sum", "count"]
Rescale = Literal["none", "density", "l1"]
_HELD = 1 << 24  # entries of a tensor, of all models together, that are held instead of read again


@dataclass(frozen=True)
class Rule:
    """What is the same for all tensors of a merge.

    Attributes:
        trim: which entries survive.
        elect: how the sign of an entry is decided; "none" lets all take part.
        normalize: divide by the sum of the weights that took part.
        rescale: make up for what was trimmed: divide by the density, or bring the tensor's L1 norm back.
        seed: of the random trims.
    """

    trim: trims.Trim = "all"
    elect: Elect = "none"
    normalize: bool = False
    rescale: Rescale = "none"
    seed: int = 0


@dataclass(frozen=True)
class Numbers:
    """What may differ from tensor to tensor: one number per model, and a factor for their sum."""

    weights: tuple[float, ...]
    density: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()
    epsilon: tuple[float, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class Part:
    """One tensor of the output: the tensors it is computed from, the base's first, and its numbers."""

    name: str
    dtype: str
    sources: tuple[Source, ...]
    numbers: Numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base's tensor, and so of the output."""
        return self.sources[0].shape

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def parts_of(inputs: Inputs, numbers: Numbers) -> tuple[Part, ...]:
    """All tensors of a merge with the same numbers."""
    return tuple(
        Part(name, (sources := inputs.sources(name))[0].info.dtype, sources, numbers) for name in inputs.names
    )


Cuts = Mapping[str, Sequence[trims.Cut | None]]  # tensor name -> the cut of each model, where it is known


def rows(parts: Sequence[Part], rule: Rule, cuts: Cuts | None = None) -> tuple[Row, ...]:
    """The rows of a merge; with `cuts` the largest entries are those, not those of each tensor."""
    return tuple(_row(part, rule, cuts) for part in parts)


def _row(part: Part, rule: Rule, cuts: Cuts | None) -> Row:
    def function(*sources: Source) -> Iterator[torch.Tensor]:
        stream = replay(sources, part.size)
        factors = _factors(part, rule, _trimmers(part, rule, cuts, stream), stream)
        trimmers = _trimmers(part, rule, cuts, stream)
        by_row = rule.trim == "ranked"
        for blocks in stream():
            if by_row:
                _trim(trimmers, blocks)
            for piece in pieces(blocks):
                if not by_row:
                    _trim(trimmers, piece)
                _combine(piece, part.numbers, factors, rule)
            yield blocks[0]

    return Row(part.name, part.dtype, part.shape, part.sources, function)


def _trim(trimmers: Sequence[trims.Trimmer], blocks: Blocks) -> None:
    for trim, delta in zip(trimmers, blocks[1:], strict=True):
        trim(delta)


def replay(sources: Sequence[Source], size: int) -> Callable[[], Iterator[Blocks]]:
    """The tensor as blocks (base, differences...), from the start at every call."""

    def read() -> Iterator[Blocks]:
        for base, *tuned in chunks(sources, CHUNK):
            yield base, *(block.sub_(base) for block in tuned)

    return held(read, size * len(sources))


def held(read: Callable[[], Iterator[Blocks]], size: int) -> Callable[[], Iterator[Blocks]]:
    """A stream that can be had again; up to `_HELD` numbers it is kept in memory from the first time on."""
    if size > _HELD:
        return read
    kept: list[Blocks] = []

    def again() -> Iterator[Blocks]:
        if not kept:
            kept.extend(read())
        return iter(kept)

    return again


def _trimmers(
    part: Part, rule: Rule, cuts: Cuts | None, stream: Callable[[], Iterator[Blocks]]
) -> list[trims.Trimmer]:
    return [
        _trimmer(part, rule, cuts, lambda m=model: (blocks[m + 1] for blocks in stream()), model)
        for model in range(len(part.sources) - 1)
    ]


def _trimmer(part: Part, rule: Rule, cuts: Cuts | None, deltas: trims.Deltas, model: int) -> trims.Trimmer:
    if rule.trim == "all":
        return _keep
    density = part.numbers.density[model]
    if density >= 1:
        return _keep
    if density <= 0:
        return torch.Tensor.zero_
    divide = rule.rescale == "density"
    if rule.trim == "random":
        return trims.random(density, trims.generator(rule.seed, part.name, model), divide)
    if rule.trim == "ranked":
        epsilon = part.numbers.epsilon[model]
        return trims.ranked(density, epsilon, trims.generator(rule.seed, part.name, model), divide)
    if rule.trim == "middle":
        return trims.middle(deltas, part.size, density, part.numbers.gamma[model])
    if cuts is not None:
        cut = cuts[part.name][model]
    else:
        cut = trims.largest(deltas, part.size, max(1, int(density * part.size)))
    return cut.trimmer() if cut else torch.Tensor.zero_


def _keep(delta: torch.Tensor) -> torch.Tensor:
    return delta


def _factors(
    part: Part, rule: Rule, trimmers: Sequence[trims.Trimmer], stream: Callable[[], Iterator[Blocks]]
) -> list[float]:
    """What each trimmed task vector is multiplied with to get its L1 norm back; 1 without that rule."""
    if rule.rescale != "l1" or rule.trim == "all":
        return [1.0] * len(trimmers)
    before, after = np.zeros(len(trimmers)), np.zeros(len(trimmers))
    for _, *deltas in stream():
        for model, (trim, delta) in enumerate(zip(trimmers, deltas, strict=True)):
            before[model] += float(delta.abs().sum(dtype=torch.float64))
            after[model] += float(trim(delta.clone()).abs().sum(dtype=torch.float64))
    small = np.minimum(before, after) < 1e-7
    return np.where(small, 1.0, before / np.where(small, 1.0, after)).tolist()


def _combine(piece: Blocks, numbers: Numbers, factors: Sequence[float], rule: Rule) -> None:
    """Add the trimmed differences to the base, in place."""
    base, *deltas = piece
    if rule.elect == "none":
        total = sum(numbers.weights) if rule.normalize else 1.0
        share = numbers.scale / (total if abs(total) >= 1e-8 else 1.0)
        for delta, weight, factor in zip(deltas, numbers.weights, factors, strict=True):
            base.add_(delta, alpha=weight * factor * share)
        return
    for delta, weight, factor in zip(deltas, numbers.weights, factors, strict=True):
        if weight * factor != 1:
            delta.mul_(weight * factor)
    sign = _elected(deltas, rule.elect)
    mixed, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(deltas, numbers.weights, strict=True):
        agreeing = delta.mul_(sign).clamp_(min=0)  # what points the other way becomes 0
        mixed += agreeing
        if rule.normalize:
            divisor.add_(agreeing.sign_(), alpha=weight)
    mixed *= sign
    if rule.normalize:
        # Where nothing takes part 0 is divided, by anything but 0; weights of both signs may cancel as well.
        positive = min(numbers.weights) > 0
        mixed /= divisor.clamp_(min=1e-30) if positive else divisor.masked_fill_(divisor == 0, 1)
    base.add_(mixed, alpha=numbers.scale)


def _elected(deltas: Sequence[torch.Tensor], elect: Elect) -> torch.Tensor:
    """+1 or -1 for every entry: the sign of the sum, or of the greater number; 0 counts as plus."""
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total += delta if elect == "sum" else delta.sign()
    return torch.copysign(torch.ones(()), total)


def global_cuts(parts: Sequence[Part], density: Sequence[float]) -> tuple[Pass | None, Cuts]:
    """The cut of every model over all its tensors together.

    Returns:
        The pass that finds them (None when nothing is trimmed), and the mapping that it fills.
    """
    size = sum(part.size for part in parts)
    kept = [max(1, int(share * size)) for share in density]
    models = [model for model, count in enumerate(kept) if count < size]
    cuts: dict[str, list[trims.Cut | None]] = {part.name: [trims.Cut(0.0)] * len(kept) for part in parts}
    if not models:
        return None, cuts
    statistics = [OrderStatistic(size - kept[model], size) for model in models]

    def values(blocks: Blocks) -> list[np.ndarray]:
        return [magnitude_keys(blocks[model + 1] - blocks[0]) for model in models]

    def done() -> None:
        for model, statistic in zip(models, statistics, strict=True):
            for part, cut in zip(parts, _shared_out(parts, statistic, model), strict=True):
                cuts[part.name][model] = cut

    label = "thresholds over the whole model"
    return survey(label, tuple(part.sources for part in parts), [[s] for s in statistics], values, done), cuts


def _shared_out(parts: Sequence[Part], statistic: OrderStatistic, model: int) -> Iterator[trims.Cut]:
    """The global cut as one cut per tensor: ties survive in the first tensors until none are left over."""
    whole = trims.cut_of(statistic)
    if whole.ties is None or whole.value == 0:
        yield from [whole] * len(parts)
        return
    left = whole.ties
    for index, part in enumerate(parts):
        if left == 0:
            yield trims.Cut(whole.value, 0)
            continue
        if statistic.key == statistic.guess:
            ties = statistic.hits.get(index, 0)
        else:
            base, tuned = part.sources[0], part.sources[model + 1]
            ties = sum(int(((t - b).abs() == whole.value).sum()) for b, t in chunks((base, tuned), CHUNK))
        yield trims.Cut(whole.value, None if ties <= left else left)
        left -= min(ties, left)
