"""Sparse differences: the weights that move most, found by one training and learnt by a second.

Paper: Ansell et al. 2022, ACL, arXiv:2110.07560 (lottery-ticket sparse fine-tuning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval

from calque.delta.delta import Delta, base_of
from calque.delta.switch import Switch
from calque.errors import ConfigError, ModelError
from calque.model.checkpoint import Checkpoint


def sparse(
    base: Checkpoint,
    tuned: Checkpoint,
    below: Delta | None = None,
    *,
    keep: Annotated[float, Interval(gt=0, le=1)] = 0.05,
) -> Delta:
    """Choose the weights of the layers that a training moved most, and go back to where it began.

    One threshold over all tensors: the k-th largest |tuned - begun|, k = keep * weights; ties are all taken.
    begun = base, or base + below where the training began with another sparse delta folded in.
    Chosen are the weights of numbered layers except their norms. The delta is zero there; trained with
    `train/lm` it becomes the second, sparse training.

    Args:
        base: The model it is for.
        tuned: Where the training ended.
        below: The sparse delta of a language that a task was trained on top of; the two are then stacked.
        keep: Share of the weights that are chosen.

    Returns:
        The delta, which changes nothing yet: places and zeros.

    Raises:
        ModelError: The two are not the same model, or `below` is of another base.
        ConfigError: Nothing moved, or `below` is not sparse.

    Paper: Ansell et al. 2022, ACL, arXiv:2110.07560.

    Relations:
        With keep=1 training it is training those weights. Deltas of a language and a task add up, in any
        order. Folded in, it gives the logits of base and delta.
    """
    names = [name for slot, name in base.slots.items() if slot.layer is not None and "norm" not in slot.role]
    for name in names:
        if name not in tuned.tensors or tuned.info(name).shape != base.info(name).shape:
            raise ModelError(f"{tuned.folder}: '{name}' is missing or of another shape than in {base.folder}")
    if below is not None:
        below.check_base(base)
        if below.form != "sparse":
            raise ConfigError(
                f"below is a '{below.form}' delta; only another sparse one is part of the weights"
            )
    moved = {name: (tuned.read(name).float() - _begun(base, name, below)).abs() for name in names}
    if not any(bool(gap.any()) for gap in moved.values()):
        raise ConfigError(
            f"{tuned.folder}: none of its weights differs from {base.folder}; nothing to choose by"
        )
    wanted = max(1, round(keep * sum(gap.numel() for gap in moved.values())))
    tensors: dict[str, torch.Tensor] = {}
    for name, mask in select(moved, wanted).items():
        index = mask.flatten().nonzero().squeeze(1)
        if len(index):
            tensors |= {f"{name}.index": index, f"{name}.value": torch.zeros(len(index))}
    place = tuple(name for name in names if f"{name}.index" in tensors)
    return Delta("sparse", place, "own", "fixed", {"keep": keep}, tensors, base_of(base))


def _begun(base: Checkpoint, name: str, below: Delta | None) -> torch.Tensor:
    """The weight that the training began from, in float32 but with the numbers that a file can hold."""
    weight = base.read(name)
    if below is None or name not in below.place:
        return weight.float()
    index, value = differences(below)[name]
    whole = weight.float().flatten().index_add(0, index, value).view_as(weight)
    return whole.to(weight.dtype).float()


def select(
    moved: Mapping[str, torch.Tensor], wanted: int, taken: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Masks of the `wanted` largest entries of all tensors together, beside those already `taken`.

    Raises:
        ConfigError: fewer are free.
    """
    free = {name: ~taken[name] if taken and name in taken else torch.ones_like(gap, dtype=torch.bool)
            for name, gap in moved.items()}  # fmt: skip
    flat = torch.cat([gap[free[name]].flatten() for name, gap in moved.items()])
    if wanted > len(flat):
        raise ConfigError(f"{wanted} weights to choose, but only {len(flat)} are free; lower it")
    if not wanted:
        return {name: ~mask for name, mask in free.items()}
    threshold = flat.kthvalue(len(flat) - wanted + 1).values
    return {name: ~free[name] | (free[name] & (gap >= threshold)) for name, gap in moved.items()}


def differences(delta: Delta) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Parameter -> (places in its flattened numbers, what is added there)."""
    return {name: (delta.tensors[f"{name}.index"], delta.tensors[f"{name}.value"]) for name in delta.place}


def add(deltas: Sequence[Delta]) -> Delta:
    """One delta that is the sum of sparse ones; where they overlap the numbers are summed.

    Raises:
        ConfigError: other forms than sparse, or other bases.
    """
    first = deltas[0]
    if any(delta.form != "sparse" or delta.base["hash"] != first.base["hash"] for delta in deltas):
        raise ConfigError("only sparse deltas of the same base add up")
    tensors: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(name for delta in deltas for name in delta.place):
        held = [differences(delta)[name] for delta in deltas if name in delta.place]
        index, where = torch.cat([i for i, _ in held]).unique(return_inverse=True)
        value = torch.zeros(len(index), dtype=held[0][1].dtype)
        tensors[f"{name}.index"] = index
        tensors[f"{name}.value"] = value.index_add(0, where, torch.cat([v for _, v in held]))
    place = tuple(name.removesuffix(".index") for name in tensors if name.endswith(".index"))
    return Delta("sparse", place, "own", "fixed", first.settings, tensors, first.base)


def fold_sparse(model: torch.nn.Module, delta: Delta) -> None:
    """Add the differences to the weights, in float32, in place."""
    named = dict(model.named_parameters())
    for name, (index, value) in differences(delta).items():
        weight = named[name]
        with torch.no_grad():
            whole = weight.float().flatten().index_add(0, index.to(weight.device), value.to(weight.device))
            weight.copy_(whole.view_as(weight))


class _Sum(torch.nn.Module):
    """A weight and the numbers added to some of its entries."""

    def __init__(self, numbers: Mapping[str, torch.Tensor], key: str, switch: Switch, name: str) -> None:
        super().__init__()
        self.numbers, self.key, self.switch, self.name = numbers, key, switch, name

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum, of the weight's shape."""
        share = self.switch.weight(self.name)
        if isinstance(share, torch.Tensor):
            raise ConfigError("sparse deltas change the weights and can not be chosen for each example")
        index, value = self.numbers[f"{self.key}.index"], self.numbers[f"{self.key}.value"]
        return weight.flatten().index_add(0, index, (value * share).to(weight.dtype)).view_as(weight)


def install(
    model: torch.nn.Module, delta: Delta, numbers: Mapping[str, torch.Tensor], switch: Switch, name: str
) -> Callable[[], None]:
    """Make the weights sums of themselves and the differences; returns what undoes it.

    A weight may be the sum of several: what was put on first is added first.
    """
    from torch.nn.utils import parametrize

    put_on: list[tuple[Any, str, torch.nn.Parameter, _Sum]] = []
    for key in delta.place:
        path, _, last = key.rpartition(".")
        module: Any = model.get_submodule(path)
        if math.prod(getattr(module, last).shape) <= int(numbers[f"{key}.index"].max()):
            raise ModelError(f"delta '{name}': '{key}' is smaller than the model it was made for")
        several = parametrize.is_parametrized(module, last)
        weight = module.parametrizations[last].original if several else getattr(module, last)
        made = _Sum(numbers, key, switch, name)
        parametrize.register_parametrization(module, last, made, unsafe=True)
        put_on.append((module, last, weight, made))

    def remove() -> None:
        for module, last, weight, made in put_on:
            sums = module.parametrizations[last]
            if len(sums) > 1:
                del sums[[*sums].index(made)]
            else:
                parametrize.remove_parametrizations(module, last, leave_parametrized=False)
                setattr(module, last, weight)

    return remove
