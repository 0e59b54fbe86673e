"""Stacks of layers: whole layers of several models, one after another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calque.errors import ConfigError, ModelError
from calque.merge.rewrite import Rewrite, Row, Source
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_SLICE = re.compile(r"(\d+):(\d+)-(\d+)")
_LAST = ("embed.output", "final_norm", "classifier", "head")  # roles behind the layers


def passthrough(base: Checkpoint, tuned: Sequence[Checkpoint] = (), *, slices: Sequence[str]) -> Rewrite:
    """Build a model from ranges of layers, each copied bit by bit from one of several models.

    The layers are numbered anew in the order of the slices; config.json gets their number, and its lists with
    one entry per layer are put together likewise. What comes before the layers (embeddings) is that of the
    first slice's model, what comes after (final norm, output matrix) that of the last's.

    Args:
        base: Model 0; gives configuration and tokenizer.
        tuned: Models 1, 2 and so on.
        slices: MODEL:FIRST-END, layers FIRST to END - 1 of the model with that number: "0:0-16", "1:8-24".

    Returns:
        The rewrite; nothing is computed.

    Paper: Kim et al. 2024, NAACL, arXiv:2312.15166, for stacking layers of one model.

    Raises:
        ConfigError: A slice that is written wrongly, or asks for layers or models that are not there.
        ModelError: Models of different architecture or width, or with an encoder and a decoder.

    Relations:
        One slice with all layers of a model gives that model. The number of layers is the sum of the slices'.
    """
    models = (base, *tuned)
    stack = [_parsed(text, models) for text in slices]
    if not stack:
        raise ConfigError("passthrough: no slices; give at least one, such as 0:0-12")
    rows = tuple(Row(p.name, p.source.info.dtype, p.source.info.shape, (p.source,)) for p in places(stack))
    notes = {"method": "passthrough", "slices": list(slices)}
    return Rewrite(base=base, rows=rows, config=stacked_config(base, stack), notes=notes)


def comes_last(role: str) -> bool:
    """Whether a tensor outside the layers stands behind them."""
    return role.startswith(_LAST)


@dataclass(frozen=True)
class Slice:
    """Layers first to end - 1 of one model."""

    model: Checkpoint
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Place:
    """A tensor of the output and where it comes from; `part` is its place among the layers, 0 to 1."""

    name: str
    source: Source
    index: int
    part: float


def _parsed(text: str, models: Sequence[Checkpoint]) -> Slice:
    match = _SLICE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"slice '{text}': write it as MODEL:FIRST-END, such as 0:0-12")
    number, first, end = map(int, match.groups())
    if number >= len(models):
        raise ConfigError(
            f"slice '{text}': there is no model {number}; 0 is the base, {len(models) - 1} last"
        )
    return checked_slice(models[number], first, end, text)


def checked_slice(model: Checkpoint, first: int, end: int, text: str) -> Slice:
    """A slice whose layers exist.

    Raises:
        ConfigError: It is empty or goes beyond the last layer.
    """
    layers = layer_count(model)
    if not 0 <= first < end <= layers:
        raise ConfigError(f"slice '{text}': {model.folder.name} has layers 0 to {layers - 1}")
    return Slice(model, first, end)


def layer_count(model: Checkpoint) -> int:
    """How many layers a model with one stack of them has."""
    if "recursion" in model.config:
        raise ModelError(f"{model.folder}: its layers are tied into a loop; slice the model it was made from")
    if model.two_stacks:
        raise ModelError(f"{model.folder}: has an encoder and a decoder; only one stack can be sliced")
    layers = {layer for name in model.tensors if (layer := model.layout.place(name)[0]) is not None}
    if not layers:
        raise ModelError(f"{model.folder}: no layers found among its tensors")
    return max(layers) + 1


def places(stack: Sequence[Slice]) -> Iterator[Place]:
    """Every tensor of the stacked model, in the order of its layers.

    Raises:
        ModelError: The models are not of one architecture and shape.
    """
    _check_alike(stack)
    first, last = stack[0], stack[-1]
    for name, role in _outside(first.model):
        if not comes_last(role):
            yield Place(name, Source(first.model, name), 0, 0.0)
    layer = 0
    for index, part in enumerate(stack):
        for offset in range(len(part)):
            for name in _of_layer(part.model, part.first + offset):
                _, role = part.model.layout.place(name)
                target = stack[0].model.layout.name(layer, role)
                where = offset / (len(part) - 1) if len(part) > 1 else 1.0
                yield Place(target, Source(part.model, name), index, where)
            layer += 1
    for name, role in _outside(last.model):
        if comes_last(role):
            yield Place(name, Source(last.model, name), len(stack) - 1, 0.0)


def _outside(model: Checkpoint) -> Iterator[tuple[str, str]]:
    """(name, role) of the tensors outside the layers; a stored copy of a tied matrix is left out."""
    for name in model.tensors:
        layer, role = model.layout.place(name)
        if layer is None and not (model.tied and name == model.stored_output):
            yield name, role


def _of_layer(model: Checkpoint, layer: int) -> list[str]:
    return [name for name in model.tensors if model.layout.place(name)[0] == layer]


def _check_alike(stack: Sequence[Slice]) -> None:
    first = stack[0].model
    shapes = {first.layout.place(name): info.shape for name, info in first.tensors.items()}
    by_role = {role: shape for (_, role), shape in shapes.items()}
    for part in stack:
        kind, wanted = part.model.config.get("model_type"), first.config.get("model_type")
        if kind != wanted or part.model.tied != first.tied:
            raise ModelError(
                f"{part.model.folder}: a {kind} model ({'tied' if part.model.tied else 'untied'} output) "
                f"can not be stacked with the {wanted} model {first.folder}"
            )
        for name, info in part.model.tensors.items():
            role = part.model.layout.place(name)[1]
            if by_role.get(role, info.shape) != info.shape:
                raise ModelError(
                    f"tensor '{name}' is {info.shape} in {part.model.folder}, {by_role[role]} in "
                    f"{first.folder}; only models of one shape can be stacked"
                )
    last = stack[-1].model
    if first.tied and last is not first:
        one, other = first.info(first.input_embedding), last.info(last.input_embedding)
        if not same_bytes(one, other):
            raise_tied(first, last)


def raise_tied(first: Checkpoint, last: Checkpoint) -> None:
    """Say that a tied embedding can not come from two models."""
    raise ModelError(
        f"the output matrix is tied to the embedding, which differs between {first.folder} (first slice) and "
        f"{last.folder} (last slice); begin and end with the same model"
    )


def stacked_config(base: Checkpoint, stack: Sequence[Slice]) -> dict[str, Any]:
    """Changes to config.json: the number of layers, and lists with one entry per layer."""
    total, old = sum(map(len, stack)), base.text_config
    key = next((name for name in _COUNTS if name in old), _COUNTS[0])
    changes: dict[str, Any] = {key: total}
    for name, value in old.items():
        if isinstance(value, list) and len(value) == old.get(key) and name not in ("architectures",):
            changes[name] = [_entry(part.model.text_config, name, layer) for part in stack
                             for layer in range(part.first, part.end)]  # fmt: skip
    return {"text_config": changes} if old is not base.config else changes


def _entry(config: Mapping[str, Any], name: str, layer: int) -> Any:
    """One layer's entry of a list in a configuration."""
    values = config.get(name)
    if not isinstance(values, list) or layer >= len(values):
        raise ModelError(f"config.json: '{name}' has no entry for layer {layer}")
    return values[layer]
