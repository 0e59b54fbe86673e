"""What all low-rank deltas share: the change of each matrix, and folding it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from calque.delta.delta import Delta
from calque.delta.switch import Switch
from calque.model.adapter import STORED_TRANSPOSED

# tensors of a delta, module -> (down (r, in), up (out, r))
Pairs = Callable[[Mapping[str, torch.Tensor], str], tuple[torch.Tensor, torch.Tensor]]


def own_pair(tensors: Mapping[str, torch.Tensor], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair of a place that owns it."""
    return tensors[f"{module}.A"], tensors[f"{module}.B"]


def add_pairs(
    model: torch.nn.Module, delta: Delta, numbers: Mapping[str, torch.Tensor], pairs: Pairs, switch: Switch,
    name: str,
) -> Callable[[], None]:  # fmt: skip
    """Add scaling * B A x to the output of every place; returns what takes it off again.

    Args:
        model: the model.
        delta: gives places and scaling.
        numbers: its tensors, parameters where they train.
        pairs: how the pair of a place comes from them.
        switch: how much of it.
        name: its name there.
    """
    scale = float(delta.settings["alpha"]) / int(delta.settings["rank"])

    def hook(module: str) -> Any:
        def added(_: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            down, up = pairs(numbers, module)
            x = inputs[0].to(down.dtype)
            change = torch.nn.functional.linear(torch.nn.functional.linear(x, down), up) * scale
            return out + switch.scaled(name, change).to(out.dtype)

        return added

    handles = [model.get_submodule(m).register_forward_hook(hook(m)) for m in delta.place]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def fold_pairs(model: torch.nn.Module, changes: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """W <- W + up down for every module, in float32, in place."""
    config: Any = model.config
    for module, (down, up) in changes.items():
        weight: Any = model.get_submodule(module).weight
        product = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
        product = product.T if config.model_type in STORED_TRANSPOSED else product
        with torch.no_grad():
            weight.copy_(weight.float() + product)
