"""Low-rank pairs at linear maps, run by peft.

Paper: Hu et al. 2022, arXiv:2106.09685.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from calque.delta.delta import Delta, base_of
from calque.delta.places import linear_places
from calque.delta.switch import Switch
from calque.model.adapter import STORED_TRANSPOSED
from calque.model.checkpoint import Checkpoint


def lora(
    base: Checkpoint,
    *,
    rank: Annotated[int, Ge(1)] = 16,
    alpha: Annotated[float, Gt(0)] = 32.0,
    roles: tuple[str, ...] = (),
    seed: int = 0,
) -> Delta:
    """Put a low-rank pair at linear maps of the layers.

    y = W x + (alpha / r) B A x, A (r, in) from the Kaiming-uniform distribution, B (out, r) zero.

    Args:
        base: The model it is for.
        rank: Rank r of each pair.
        alpha: The pair's product is scaled by alpha / rank.
        roles: The maps that get one ("attention.q", "mlp.down" ...); all linear ones by default.
        seed: Decides A.

    Returns:
        The delta, which changes nothing yet.

    Raises:
        ConfigError: A role that the model does not have.

    Paper: Hu et al. 2022, arXiv:2106.09685.

    Relations:
        At the start the logits are the base's. Folded in, it gives the logits of base and delta. Exported,
        peft loads it and gives the same logits.
    """
    places = linear_places(base, roles)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for place in places:
        tensors[f"{place.module}.A"] = uniform((rank, place.inputs), place.inputs, generator)
        tensors[f"{place.module}.B"] = torch.zeros(place.outputs, rank)
    settings = {"rank": rank, "alpha": alpha}
    return Delta("lora", tuple(p.module for p in places), "own", "fixed", settings, tensors, base_of(base))


def uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> torch.Tensor:
    """Kaiming-uniform numbers with a = sqrt(5): within 1 / sqrt(inputs) of 0."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / inputs**0.5


def install(
    model: torch.nn.Module,
    delta: Delta,
    numbers: Mapping[str, torch.nn.Parameter],
    switch: Switch,
    name: str,
    adapter: str,
) -> Callable[[], None]:
    """Let peft put the pairs on, with these parameters as theirs; returns what takes them off again."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=int(delta.settings["rank"]),
        lora_alpha=delta.settings["alpha"],
        target_modules=list(delta.place),
        fan_in_fan_out=delta.base["model_type"] in STORED_TRANSPOSED,
    )
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # several are meant
        inject_adapter_in_model(config, model, adapter_name=adapter)
    for parameter, before in trains.items():
        parameter.requires_grad_(before)
    for module in delta.place:
        layer: Any = model.get_submodule(module)
        layer.lora_A[adapter].weight = numbers[f"{module}.A"]
        layer.lora_B[adapter].weight = numbers[f"{module}.B"]
        layer.lora_B[adapter].register_forward_hook(lambda _, __, out: switch.scaled(name, out))
        layer.set_adapter([*layer.lora_A.keys()])

    def remove() -> None:
        configs: Any = getattr(model, "peft_config", {})
        configs.pop(adapter, None)
        if hasattr(model, "peft_config") and not configs:
            del model.peft_config
        for module in delta.place:
            layer: Any = model.get_submodule(module)
            assert isinstance(layer, LoraLayer)
            layer.delete_adapter(adapter)
            if not layer.lora_A:
                parent, _, child = module.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.base_layer)

    return remove
