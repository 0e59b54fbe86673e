"""Deltas folded into their base, tensor by tensor: pairs, sparse differences, residuals of a loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from calque.delta.attach import changes, foldable
from calque.delta.delta import Delta
from calque.delta.sparse import add, differences
from calque.merge.rewrite import Rewrite, Row, Source
from calque.model.adapter import STORED_TRANSPOSED
from calque.model.checkpoint import Checkpoint

_CHUNK = 16 << 20
Pair = tuple[torch.Tensor, torch.Tensor]


def fold_delta(folder: Path, base: Checkpoint | None, strength: float) -> Rewrite:
    """The rewrite that makes a delta part of its base.

    Raises:
        ConfigError: a form that is no change of weights.
        ModelError: a damaged delta, or one made for another base.
    """
    delta = Delta.load(folder)
    base = base or Checkpoint.open(delta.base["folder"])
    delta.check_base(base)
    if delta.form == "stack" and foldable(delta):
        delta = add(delta.parts)
    if delta.form == "sparse":
        rows = _sparse_rows(base, delta, strength)
    else:
        pairs = {module: (down, up * strength) for module, (down, up) in changes(delta).items()}
        rows = (_depth_rows if delta.form == "depthwise" else _pair_rows)(base, pairs if strength else {})
    notes = {"method": "fold", "adapter": str(folder), "form": delta.form, "places": len(delta.place),
             "strength": strength}  # fmt: skip
    return Rewrite(base=base, rows=tuple(rows), notes=notes)


def added(down: torch.Tensor, up: torch.Tensor) -> Any:
    """A row's function: W + up down, block by block in float32."""

    def function(source: Source) -> Iterator[torch.Tensor]:
        first = 0
        for block in source.blocks(_CHUNK):
            yield torch.addmm(block.float(), up[first : first + len(block)], down)
            first += len(block)

    return function


def _pair_rows(base: Checkpoint, pairs: dict[str, Pair]) -> list[Row]:
    turned = base.architecture in STORED_TRANSPOSED
    rows = []
    for name in base.tensors:
        pair = pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if pair is None:
            rows.append(Row.copy(base, name))
            continue
        down, up = (pair[1].T, pair[0].T) if turned else pair
        info = base.info(name)
        function = added(down.float(), up.float())
        rows.append(Row(name, info.dtype, info.shape, (Source(base, name),), function))
    return rows


def _sparse_rows(base: Checkpoint, delta: Delta, strength: float) -> list[Row]:
    held = differences(delta) if strength else {}

    def function_of(index: torch.Tensor, value: torch.Tensor) -> Any:
        def function(source: Source) -> Iterator[torch.Tensor]:
            first = 0
            for block in source.blocks(_CHUNK):
                inside = (index >= first) & (index < first + block.numel())
                flat = block.float().flatten()
                yield flat.index_add(0, index[inside] - first, value[inside]).view_as(block)
                first += block.numel()

        return function

    rows = []
    for name in base.tensors:
        info = base.info(name)
        if name not in held:
            rows.append(Row.copy(base, name))
            continue
        index, value = held[name]
        function = function_of(index, value.float() * strength)
        rows.append(Row(name, info.dtype, info.shape, (Source(base, name),), function))
    return rows


def _depth_rows(base: Checkpoint, pairs: dict[str, Pair]) -> list[Row]:
    """The residuals of a looped checkpoint, each pair behind what its depth has already."""
    more: dict[str, Row] = {}
    for module, (down, up) in pairs.items():
        layer, role = base.layout.place(f"{module}.weight")
        shared = base.layout.name((layer or 0) % int(base.config["recursion"]["shared"]), role)
        for side, own, axis in (("A", down, 0), ("B", up, 1)):
            name = f"depth.{layer}.{role}.{side}"
            before = (Source(base, name),) if name in base.tensors else ()
            shape = list(own.shape)
            shape[axis] += before[0].shape[axis] if before else 0
            function = _behind(own, axis)
            more[name] = Row(name, base.info(shared).dtype, tuple(shape), before, function)
    kept = [Row.copy(base, name) for name in base.tensors if name not in more]
    return [*kept, *more.values()]


def _behind(own: torch.Tensor, axis: int) -> Any:
    def function(*before: Source) -> Iterator[torch.Tensor]:
        yield torch.cat([*(source.read().float() for source in before), own.float()], axis)

    return function
