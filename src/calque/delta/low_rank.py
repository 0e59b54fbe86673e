"""What all low-rank deltas share: the change of each matrix, folding it in, and PEFT's format of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from calque.delta.delta import Delta
from calque.delta.switch import Switch
from calque.disk import new_folder, write_json
from calque.errors import ConfigError
from calque.model.adapter import CONFIG, PREFIX, STORED_TRANSPOSED, WEIGHTS

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


def save_peft(folder: Path, delta: Delta, changes: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Write pairs whose scaling is in `up` as an ordinary LoRA folder of peft."""
    if not changes:
        raise ConfigError(f"a '{delta.form}' delta is no change of matrices; peft's LoRA can not hold it")
    rank = max(len(down) for down, _ in changes.values())
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": delta.base["folder"],
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(changes),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": delta.base["model_type"] in STORED_TRANSPOSED,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    tensors = {}
    for module, (down, up) in changes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = down.detach().cpu().contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = up.detach().cpu().contiguous()
    with new_folder(folder) as made:
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt"})
        write_json(made / CONFIG, config)
