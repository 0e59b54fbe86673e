"""Prefixes: keys and values before those of the text, in every attention layer.

Paper: Li and Liang 2021; He et al. 2022, arXiv:2110.04366.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from calque.delta.delta import Delta, base_of
from calque.delta.places import sided_places
from calque.delta.switch import Switch
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint

NAME, _HELD = "calque_prefix", "_calque_prefixes"
Numbers = Mapping[str, torch.Tensor]


def prefix(
    base: Checkpoint,
    *,
    length: Annotated[int, Ge(1)] = 30,
    middle: Annotated[int, Ge(0)] = 0,
    seed: int = 0,
) -> Delta:
    """Put trained keys and values before those of the text in every layer.

    softmax over [Pk; K], values [Pv; V], Pk and Pv (l, key heads * head size). They have no position and take
    none from the text; every token sees all of them. An encoder-decoder has them in both, and in attention
    to the encoder.

    Args:
        base: The model it is for.
        length: Length l.
        middle: Width of a network that makes all prefixes from one embedding while training; 0 = none.
        seed: Decides the first numbers, Normal(0, 0.02).

    Returns:
        The delta. It changes the model from the start, a little, and can not be folded.

    Raises:
        ConfigError: The model has no separate key maps.

    Paper: Li and Liang 2021, arXiv:2101.00190; He et al. 2022, arXiv:2110.04366.

    Relations:
        Attention over prefix and text is (1 - g) of that over the text and g of that over the prefix, g the
        share of the prefix in the sum of exponentials. Without the network the numbers it makes do the same.
    """
    places = sided_places(base, ("attention.k", "cross.k"))
    generator = torch.Generator().manual_seed(seed)
    size, layers = places[0].outputs, len(places)

    def small(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.02

    if middle:
        width = int(base.info(base.input_embedding).shape[1])
        rows = layers * 2 * size
        tensors = {"embedding": small(length, width), "in": small(middle, width), "out": small(rows, middle),
                   "in_bias": torch.zeros(middle), "out_bias": torch.zeros(rows)}  # fmt: skip
    else:
        tensors = {f"{p.module}.{side}": small(length, size) for p in places for side in ("key", "value")}
    settings = {"length": length, "middle": middle}
    return Delta("prefix", tuple(p.module for p in places), "own", "fixed", settings, tensors, base_of(base))


def key_value(numbers: Numbers, place: tuple[str, ...], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pk and Pv of a layer, (l, size) each."""
    if "embedding" not in numbers:
        return numbers[f"{module}.key"], numbers[f"{module}.value"]
    hidden = torch.tanh(functional.linear(numbers["embedding"], numbers["in"], numbers["in_bias"]))
    rows, index = len(numbers["out"]) // len(place), place.index(module)
    own = slice(index * rows, (index + 1) * rows)
    key, value = functional.linear(hidden, numbers["out"][own], numbers["out_bias"][own]).chunk(2, -1)
    return key, value


def settled(delta: Delta) -> Delta:
    """The same prefix without the network that made it."""
    tensors: dict[str, torch.Tensor] = {}
    for module in delta.place:
        for side, made in zip(("key", "value"), key_value(delta.tensors, delta.place, module), strict=True):
            tensors[f"{module}.{side}"] = made.contiguous()
    settings = {**delta.settings, "middle": 0}
    return Delta("prefix", delta.place, delta.sharing, delta.gate, settings, tensors, delta.base)


def install(
    model: torch.nn.Module, delta: Delta, numbers: Numbers, switch: Switch, name: str
) -> Callable[[], None]:
    """Give the attention layers their prefixes; returns what takes them away again."""
    config: Any = model.config
    if getattr(config, "attn_logit_softcapping", None) or not _takes_attention(model):
        raise ConfigError(f"{type(model).__name__}: its attention takes no prefix; use a bottleneck or lora")
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = config._attn_implementation
    chosen: Any = model
    chosen.set_attn_implementation(NAME)
    layers = [model.get_submodule(module.rpartition(".")[0]) for module in delta.place]
    for layer, module in zip(layers, delta.place, strict=True):
        own = (lambda m=module: key_value(numbers, delta.place, m), switch, name)
        setattr(layer, _HELD, [*getattr(layer, _HELD, []), own])

    def remove() -> None:
        for layer in layers:
            held: Any = getattr(layer, _HELD)
            held[:] = [entry for entry in held if entry[2] != name]
        chosen.set_attn_implementation(before)

    return remove


def _takes_attention(model: Any) -> bool:
    """Whether its layers ask an attention function that one may replace, and add nothing to the scores."""
    if getattr(model, "_supports_attention_backend", False):
        return True
    # Encoder-decoders do not claim it; those that flash attention serves have no bias of scores, unlike T5.
    return bool(getattr(model, "_supports_flash_attn", False) and model._can_set_attn_implementation())


def has_prefix(module: torch.nn.Module) -> bool:
    """Whether an attention layer has prefixes."""
    return bool(getattr(module, _HELD, []))


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None, **rest: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as transformers asks for it, (B, heads, T, d) -> (B, T, heads, d), prefixes in front."""
    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    size, whole = query.shape[2], key.shape[2]
    if attention_mask is None and causal and size > 1:
        attention_mask = torch.ones(size, whole, dtype=torch.bool, device=query.device).tril(whole - size)
    key, value, mask = prepend(module, query, key, value, attention_mask)
    out = functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2).contiguous(), None


def prepend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    mask: torch.Tensor | None, piece: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Keys, values and mask with the prefixes of an attention layer in front.

    The mask is boolean or added to the scores, and broadcasts to (B, heads, T, keys). A prefix of weight w
    has log w added to its scores: the gate of the prefix's share. `piece` says which one of how many examples
    this is, when they lie back to back in one row and attend one after another.
    """
    held: Any = getattr(module, _HELD, [])
    for made, switch, name in held:
        own_key, own_value = made()
        heads, size, batch = key.shape[1], key.shape[3], len(key)
        own = [t.to(key.dtype).view(1, -1, heads, size).transpose(1, 2).expand(batch, -1, -1, -1)
               for t in (own_key, own_value)]  # fmt: skip
        weight = torch.as_tensor(switch.weight(name)).to(query)
        if weight.dim():
            number, count = piece or (slice(None), batch)
            if len(weight) != count:
                raise ConfigError(f"deltas chosen for {len(weight)} examples, but the batch has {count}")
            weight = weight[number]
        weight = weight.view(-1, 1, 1, 1)
        front = weight.log().expand(batch, 1, query.shape[2], len(own_key))
        if mask is None:
            mask = query.new_zeros(batch, 1, query.shape[2], key.shape[2])
        elif mask.dtype == torch.bool:
            mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
        mask = torch.cat([front, mask.to(query.dtype).expand(batch, 1, *mask.shape[-2:])], -1)
        key, value = torch.cat([own[0], key], 2), torch.cat([own[1], value], 2)
    return key, value, mask
