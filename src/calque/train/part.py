"""What of a model trains: parameters chosen by their place, or the deltas that are attached to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.errors import ConfigError, ModelError
from calque.model.checkpoint import Checkpoint
from calque.model.moe import routers
from calque.model.recursive import MODEL_TYPE as LOOPED
from calque.model.slots import layout
from calque.train.stage import Stage


@dataclass(frozen=True, eq=False)
class Trainable:
    """Parameters that train, by name.

    Attributes:
        layers: everything but the embeddings.
        embeddings: input rows and, where they are not the same, output rows.
    """

    layers: dict[str, torch.nn.Parameter]
    embeddings: dict[str, torch.nn.Parameter]

    def named(self) -> dict[str, torch.nn.Parameter]:
        """All of them."""
        return {**self.layers, **self.embeddings}

    def again(self, model: torch.nn.Module) -> Trainable:
        """The same ones, after an engine has put others in their place."""
        now = dict(model.named_parameters())
        return Trainable(
            {name: now[name] for name in self.layers}, {name: now[name] for name in self.embeddings}
        )

    def count(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for p in self.named().values())


@contextmanager
def training(model: PreTrainedModel, stage: Stage) -> Iterator[Trainable]:
    """Mark what trains in a stage.

    Raises:
        ConfigError: more outer layers than the model has.
        ModelError: the model has no layers that can be told apart.
    """
    embeddings = _embeddings(model)
    if stage.deltas is not None:
        wanted = stage.deltas.named() | (embeddings if stage.delta_embeddings else set())
    else:
        wanted = _wanted(model, stage.part, stage.outer, embeddings)
    wanted = wanted | stage.beside
    chosen: dict[bool, dict[str, torch.nn.Parameter]] = {True: {}, False: {}}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
        if name in wanted:
            chosen[name in embeddings][name] = parameter
    yield Trainable(layers=chosen[False], embeddings=chosen[True])


def _embeddings(model: PreTrainedModel) -> set[str]:
    """Names of the input and output rows (one name when tied), and of the output bias."""
    output: Any = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, *(output.parameters() if output is not None else ())]
    return {name for name, p in model.named_parameters() if any(p is table for table in tables)}


def _wanted(model: PreTrainedModel, part: str, outer: int, embeddings: set[str]) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    if part == "all":
        return set(names)
    if part == "embeddings":
        return embeddings
    if part == "layers":
        rows = model.get_input_embeddings().weight
        return {name for name, parameter in model.named_parameters() if parameter is not rows}
    if part == "experts":
        return _experts(model)
    places = layout(model.config.model_type, {n: tuple(p.shape) for n, p in model.named_parameters()})
    layer_of = {name: places.place(name)[0] for name in names}
    depth = max((layer for layer in layer_of.values() if layer is not None), default=-1) + 1
    if not depth:
        raise ModelError(f"part '{part}': no numbered layers among the {len(names)} parameters of the model")
    if 2 * outer > depth:
        raise ConfigError(
            f"outer = {outer} at each end of a model of {depth} layers; give at most {depth // 2}, or "
            "part 'all'"
        )
    chosen = {*range(outer), *range(depth - outer, depth)}
    return embeddings | {name for name, layer in layer_of.items() if layer in chosen}


def _experts(model: PreTrainedModel) -> set[str]:
    """Names of all that stands beside a router: experts, shared ones, and the router itself."""
    found = {id(router) for router in routers(model)}
    blocks = tuple(
        f"{name.rpartition('.')[0]}." for name, module in model.named_modules() if id(module) in found
    )
    return {name for name, _ in model.named_parameters() if name.startswith(blocks)}


def added(
    model: Checkpoint, delta: Delta | None, part: str, rank: int, alpha: float, seed: int
) -> Delta | None:
    """The delta that trains, if one does.

    Raises:
        ConfigError: a delta without its part, or pairs on a looped model.
        ModelError: a delta of another base.
    """
    if part == "lora" and model.config.get("model_type") == LOOPED:
        raise ConfigError(
            f"{model.folder}: a looped model runs one matrix at several depths, and the pairs of all of them "
            "can not be folded into it; train part 'all'"
        )
    if (delta is not None) != (part == "delta"):
        what = "without a delta" if delta is None else f"with a '{delta.form}' delta, which would not train"
        raise ConfigError(f"part '{part}' {what}; part 'delta' and a delta belong together")
    if delta is not None:
        delta.check_base(model)
        return delta
    return lora(model, rank=rank, alpha=alpha, seed=seed) if part == "lora" else None
