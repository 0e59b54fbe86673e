"""Bottleneck adapters: a narrow network after, or beside, the two halves of a layer.

Paper: Houlsby et al. 2019; Pfeiffer et al. 2020 (MAD-X); He et al. 2022, arXiv:2110.04366 (parallel, scaled).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch.nn import functional

from calque.delta.delta import Delta, base_of
from calque.delta.lora import uniform
from calque.delta.places import Place, sided_places
from calque.delta.switch import Switch
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint

Placement = Literal["houlsby", "pfeiffer", "parallel", "attention_parallel"]
Numbers = Mapping[str, torch.Tensor]


def bottleneck(
    base: Checkpoint,
    *,
    width: Annotated[int, Ge(1)] = 64,
    placement: Placement = "pfeiffer",
    scale: float = 1.0,
    norm: Literal["none", "in", "out"] = "none",
    start: Literal["zero", "small"] = "zero",
    invertible: bool = False,
    seed: int = 0,
) -> Delta:
    """Put small networks into every layer: s Wu relu(Wd x + bd) + bu, Wd (r, D), Wu (D, r).

    houlsby: on the output of attention and of the feed-forward block, before the residual sum. pfeiffer: on
    that of the feed-forward block; in models that normalise after the sum, LN is used twice, as in MAD-X:
    LN(a + x), a = adapter(LN(h + x)) + h. parallel: from the input of the feed-forward block to its output.
    attention_parallel: from the input of attention to the joined heads, before the output map. An
    encoder-decoder has them in both; attention to the encoder counts as attention.

    Args:
        base: The model it is for.
        width: Width r of the networks.
        placement: Where they stand.
        scale: Factor s; parallel with s = 4 is the scaled parallel adapter.
        norm: Normalise what goes in, what comes out, or nothing.
        start: Wu zero, so that nothing changes at first, or all weights Normal(0, 0.02).
        invertible: Add an invertible coupling after the embeddings, undone before the output matrix.
        seed: Decides the first weights.

    Returns:
        The delta. It depends on what passes through and can not be folded.

    Raises:
        ConfigError: The model has no such place, or an odd width that can not be halved.

    Paper: Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00052; He et al. 2022,
        arXiv:2110.04366.

    Relations:
        At the start the logits are the base's. With scale=1 scaled parallel is parallel. The coupling undone
        gives back what went in.
    """
    generator = torch.Generator().manual_seed(seed)
    where = _where(base, placement)
    tensors: dict[str, torch.Tensor] = {}
    for module, (_, inputs, outputs) in where.items():
        tensors |= _network(f"{module}.", (inputs, width, outputs), start, generator)
        if norm != "none":
            size = inputs if norm == "in" else outputs
            tensors |= {f"{module}.norm.weight": torch.ones(size), f"{module}.norm.bias": torch.zeros(size)}
    settings: dict[str, Any] = {"width": width, "placement": placement, "scale": scale, "norm": norm}
    settings["source"] = {module: source for module, (source, _, _) in where.items()}
    if invertible:
        settings["coupling"] = _coupling_places(base)
        half = int(base.info(base.input_embedding).shape[1]) // 2
        for side in ("coupling.F.", "coupling.G."):
            tensors |= _network(side, (half, max(1, half // 2), half), start, generator)
    return Delta("bottleneck", tuple(where), "own", "fixed", settings, tensors, base_of(base))


def adapter(x: torch.Tensor, numbers: Numbers, key: str, norm: str, scale: float) -> torch.Tensor:
    """What one network adds, from what goes in: (..., inputs) -> (..., outputs)."""
    if norm == "in":
        x = functional.layer_norm(x, x.shape[-1:], numbers[f"{key}norm.weight"], numbers[f"{key}norm.bias"])
    out = network(x, numbers, key) * scale
    if norm == "out":
        weight, bias = numbers[f"{key}norm.weight"], numbers[f"{key}norm.bias"]
        out = functional.layer_norm(out, out.shape[-1:], weight, bias)
    return out


def network(x: torch.Tensor, numbers: Numbers, key: str) -> torch.Tensor:
    """Two linear maps with a rectifier between."""
    hidden = functional.relu(functional.linear(x, numbers[f"{key}down"], numbers[f"{key}down_bias"]))
    return functional.linear(hidden, numbers[f"{key}up"], numbers[f"{key}up_bias"])


def couple(e: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """y1 = e1 + F(e2), y2 = e2 + G(y1), of the two halves of the last axis."""
    first, second = e.chunk(2, -1)
    first = first + network(second, numbers, "coupling.F.")
    return torch.cat([first, second + network(first, numbers, "coupling.G.")], -1)


def uncouple(y: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """The inverse of `couple`."""
    first, second = y.chunk(2, -1)
    second = second - network(first, numbers, "coupling.G.")
    return torch.cat([first - network(second, numbers, "coupling.F."), second], -1)


def install(
    model: torch.nn.Module, delta: Delta, numbers: Numbers, switch: Switch, name: str
) -> Callable[[], None]:
    """Hook the networks in; returns what takes them out again."""
    norm, scale = str(delta.settings["norm"]), float(delta.settings["scale"])
    seen: dict[str, torch.Tensor] = {}
    handles: list[Any] = []

    def change(module: str, x: torch.Tensor) -> torch.Tensor:
        return switch.scaled(name, adapter(x.float(), numbers, f"{module}.", norm, scale)).to(x.dtype)

    def keep(module: str) -> Any:
        return lambda _, inputs: seen.__setitem__(module, inputs[0])

    for module in delta.place:
        source, target = delta.settings["source"][module], model.get_submodule(module)
        if source:
            handles.append(model.get_submodule(source).register_forward_pre_hook(keep(module)))
        handles.append(_hook(target, delta.settings["placement"], source, module, change, seen))
    if "coupling" in delta.settings:
        entry: Any
        end: Any
        entry, end = (model.get_submodule(place) for place in delta.settings["coupling"])
        handles.append(
            entry.register_forward_hook(lambda _, __, out: _mixed(couple, out, numbers, switch, name))
        )
        handles.append(
            end.register_forward_hook(lambda _, __, out: _mixed(uncouple, out, numbers, switch, name))
        )

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _hook(target: Any, placement: str, source: str, module: str, change: Any, seen: dict[str, Any]) -> Any:
    if placement == "attention_parallel":
        return target.register_forward_pre_hook(
            lambda _, x: (x[0] + change(module, seen.pop(module)), *x[1:])
        )
    if source:
        return target.register_forward_hook(lambda _, __, out: out + change(module, seen.pop(module)))
    if isinstance(target, torch.nn.LayerNorm):  # after the sum s = h + x: adds adapter(LN(s)) to s
        return target.register_forward_pre_hook(lambda norm, s: (s[0] + change(module, _normed(norm, s[0])),))
    return target.register_forward_hook(lambda _, __, out: out + change(module, out))


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _mixed(function: Any, x: torch.Tensor, numbers: Numbers, switch: Switch, name: str) -> torch.Tensor:
    """x, or what the coupling makes of it, where the switch says so; between the two makes no sense."""
    weight = switch.weight(name)
    if not isinstance(weight, torch.Tensor) and weight in (0, 1):
        return function(x, numbers) if weight else x
    return x + switch.scaled(name, function(x, numbers) - x)


def _where(base: Checkpoint, placement: str) -> dict[str, tuple[str, int, int]]:
    """Module -> (module whose input is taken or "", inputs, outputs)."""
    if placement in ("houlsby", "pfeiffer"):
        wanted = ("attention.o", "cross.o", "mlp.down") if placement == "houlsby" else ("mlp.down",)
        places = sided_places(base, wanted)
        norms = {slot.layer: name.removesuffix(".weight") for slot, name in base.slots.items()
                 if slot.role == "mlp.post_norm"}  # fmt: skip
        if placement == "pfeiffer" and norms and not any(slot.role == "mlp.norm" for slot in base.slots):
            return {norms[p.layer]: ("", p.outputs, p.outputs) for p in places}
        return {p.module: ("", p.outputs, p.outputs) for p in places}
    beside_mlp = placement == "parallel"
    first = ("mlp.up", "mlp.gate_up") if beside_mlp else ("attention.q", "attention.qkv", "cross.q")
    target = ("mlp.down",) if beside_mlp else ("attention.o", "cross.o")
    starts = {_block(p): p for p in sided_places(base, first)}
    return {
        p.module: (starts[_block(p)].module, starts[_block(p)].inputs, p.outputs if beside_mlp else p.inputs)
        for p in sided_places(base, target)
    }


def _block(place: Place) -> tuple[int, str]:
    """Layer and block: attention, feed-forward or, of a decoder, attention to the encoder."""
    return place.layer, place.role.rpartition(".")[0]


def _coupling_places(base: Checkpoint) -> list[str]:
    """The module after which embeddings are coupled, and the one after which that is undone."""
    if base.info(base.input_embedding).shape[1] % 2:
        raise ConfigError(f"{base.folder}: embeddings of odd width can not be halved; leave invertible off")
    for role in ("head.norm.weight", "head.norm", "final_norm"):
        name = base.named(role)
        if name is not None:
            return [base.input_embedding.removesuffix(".weight"), name.removesuffix(".weight")]
    raise ConfigError(f"{base.folder}: no norm before its output matrix; leave invertible off")


def _network(
    key: str, sizes: tuple[int, int, int], start: str, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    inputs, width, outputs = sizes
    if start == "small":
        down, up = (torch.randn(s, generator=generator) * 0.02 for s in ((width, inputs), (outputs, width)))
    else:
        down, up = uniform((width, inputs), inputs, generator), torch.zeros(outputs, width)
    return {f"{key}down": down, f"{key}down_bias": torch.zeros(width), f"{key}up": up,
            f"{key}up_bias": torch.zeros(outputs)}  # fmt: skip
