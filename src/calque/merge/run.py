"""Merges that a mergekit file describes, run by the streamed methods of this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calque.errors import ConfigError
from calque.merge import mergekit, passthrough
from calque.merge.inputs import Inputs, Vocabulary, line_up
from calque.merge.linear import linear_row, normalized
from calque.merge.mergekit import Entry, File, OutSlice
from calque.merge.model_stock import stock_row
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.slerp import slerp_row
from calque.merge.stream import chunks
from calque.merge.task_vector import Numbers, Part, Rule, rows
from calque.model.checkpoint import Checkpoint
from calque.progress import say


def run(config: Path, *, seed: int = 0) -> Rewrite:
    """Do what a mergekit YAML file describes.

    Known are linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs,
    breadcrumbs_ties, model_stock and passthrough, with models or slices, gradients and filters. The numbers
    are mergekit's within rounding, except where it draws at random; arithmetic is in float32 and rounded once
    to `out_dtype`, else `dtype`, else the base's dtype.

    Args:
        config: The file.
        seed: Of the methods that draw at random.

    Returns:
        The rewrite.

    Raises:
        ConfigError: A key, method, parameter or layer that is not known here.
        ModelError: The models do not fit together.

    Relations:
        A linear file gives what merge/linear gives. A gradient of equal numbers is that number.
    """
    file = mergekit.read(config)
    models = {ref: Checkpoint.open(ref) for ref in file.models}
    notes = {"method": "run", "merge_method": file.method, "config": config.read_text(encoding="utf-8")}
    made = _stacked(file, models) if file.method == "passthrough" else _merged(file, models, seed)
    changes = {**made.config, **_dtype_setting(file, made.base)}
    return dataclasses.replace(made, config=changes, notes={**made.notes, **notes})


@dataclass(frozen=True)
class Target:
    """One tensor of the output and what it is made of.

    Attributes:
        name: its name in the output.
        part: the slice it belongs to.
        sources: per entry of the slice, the tensor there.
        t: how deep its layer lies in the slice, 0 to 1.
    """

    name: str
    part: OutSlice
    sources: tuple[Source, ...]
    t: float


def _merged(file: File, models: dict[str, Checkpoint], seed: int) -> Rewrite:
    refs = list(models)
    if len(refs) < 2:
        raise ConfigError(f"{file.path}: names one model only; {file.method} merges at least two")
    base, *others = models.values()
    inputs = line_up(base, others, vocabulary=_vocabulary(file, refs[0]))
    targets = list(_targets(file, inputs, refs))
    counts: dict[str, int] = {}
    made = tuple(_row(file, target, refs, counts, seed) for target in targets)
    whole = inputs.rewrite([row for row in made if row.name in base.tensors])
    whole = dataclasses.replace(whole, counts=counts)
    if {row.name for row in made} == set(inputs.names):
        return whole
    stack = [_slice_of(part, models) for part in file.slices]
    config = passthrough.stacked_config(base, stack)
    return dataclasses.replace(whole, rows=made, config={**whole.config, **config})


def _targets(file: File, inputs: Inputs, refs: Sequence[str]) -> Iterator[Target]:
    """Every tensor of the output; what lies outside the layers belongs to the first or the last slice."""
    slots = [inputs.slot(name) for name in inputs.names]
    last = max((slot.layer for slot in slots if slot.layer is not None), default=0)
    for name, slot in zip(inputs.names, slots, strict=True):
        if slot.layer is None or not file.sliced:
            part = file.slices[-1 if passthrough.comes_last(slot.role) else 0]
            t = 0.0 if slot.layer is None else slot.layer / last if last else 1.0
            sources = _sources(file, part, inputs, refs, [name] * len(_entries(file, part)))
            yield Target(name, part, sources, t)
    layer, depth = 0, passthrough.layer_count(inputs.base) if file.sliced else 0
    for part in file.slices if file.sliced else ():
        ranges = [_range(file, entry, depth) for entry in _entries(file, part)]
        count = ranges[0][1] - ranges[0][0]
        for offset in range(count):
            t = offset / (count - 1) if count > 1 else 1.0
            for slot in [s for s in slots if s.layer == ranges[0][0] + offset]:
                names = [inputs.base.layout.name(first + offset, slot.role) for first, _ in ranges]
                target = inputs.base.layout.name(layer, slot.role)
                yield Target(target, part, _sources(file, part, inputs, refs, names), t)
            layer += 1


def _entries(file: File, part: OutSlice) -> tuple[Entry, ...]:
    """The slice's models; a base that a file without slices does not list is added at the end."""
    base = part.base or file.base
    if base is None or any(entry.model == base for entry in part.entries):
        return part.entries
    if file.sliced:
        raise ConfigError(f"{file.path}: a slice does not list the base model {base}; add it to its sources")
    return (*part.entries, Entry(base, None, {}))


def _range(file: File, entry: Entry, depth: int) -> tuple[int, int]:
    first, end = entry.layers or (0, depth)
    if not 0 <= first < end <= depth:
        raise ConfigError(f"{file.path}: layer_range [{first}, {end}]: the model has layers 0 to {depth - 1}")
    return first, end


def _sources(
    file: File, part: OutSlice, inputs: Inputs, refs: Sequence[str], names: Sequence[str]
) -> tuple[Source, ...]:
    entries = _entries(file, part)
    return tuple(
        inputs.sources(name)[refs.index(entry.model)] for entry, name in zip(entries, names, strict=True)
    )


def _row(file: File, target: Target, refs: Sequence[str], counts: dict[str, int], seed: int) -> Row:
    entries = _entries(file, target.part)
    base = target.part.base or file.base
    dtype = mergekit.DTYPES[file.dtype] if file.dtype else target.sources[0].info.dtype
    place = next((n for n, entry in enumerate(entries) if entry.model == base), None)
    if file.method == "linear":
        return _linear(file, target, entries, place, dtype)
    if place is None:
        raise ConfigError(f"{file.path}: {file.method} needs a base_model")
    first = target.sources[place]
    others = [n for n in range(len(entries)) if n != place]
    tuned = tuple(target.sources[n] for n in others)
    if file.method == "slerp":
        if len(tuned) != 1:
            raise ConfigError(f"{file.path}: slerp goes between two models, not {len(entries)}")
        return slerp_row(target.name, dtype, (first, *tuned), float(_value(file, target, "t")), counts)
    if file.method == "model_stock":
        if len(tuned) < 2:
            raise ConfigError(f"{file.path}: model_stock needs two models besides the base")
        wise = bool(_value(file, target, "filter_wise", default=False))
        return stock_row(target.name, dtype, (first, *tuned), wise, {})
    numbers = _numbers(file, target, [entries[n] for n in others], tuned)
    part = Part(target.name, dtype, (first, *tuned), numbers)
    return rows([part], _rule(file, target, seed))[0]


def _linear(file: File, target: Target, entries: Sequence[Entry], place: int | None, dtype: str) -> Row:
    used = [n for n, entry in enumerate(entries) if n != place or entry in target.part.entries]
    weights = [float(_value(file, target, "weight", entries[n], target.sources[n].name)) for n in used]
    if _value(file, target, "normalize", default=True):
        weights = normalized(weights)
    return linear_row(target.name, dtype, [target.sources[n] for n in used], weights)


def _numbers(file: File, target: Target, entries: Sequence[Entry], tuned: Sequence[Source]) -> Numbers:
    def each(name: str, default: float | None = None) -> tuple[float, ...]:
        return tuple(
            float(_value(file, target, name, entry, source.name, default=default))
            for entry, source in zip(entries, tuned, strict=True)
        )

    density = each("density", 1.0)
    if wrong := [share for share in density if not 0 <= share <= 1]:
        raise ConfigError(f"{file.path}: density {wrong[0]} is no share from 0 to 1")
    epsilon = each("epsilon", 0.15) if file.kind.trim == "ranked" else ()
    for share, spread in zip(density, epsilon, strict=False):
        if share < 1 and not 0 < share - spread <= share + spread < 1:
            raise ConfigError(
                f"{file.path}: density {share} with epsilon {spread} leaves the range of a probability"
            )
    return Numbers(
        weights=each("weight"),
        density=density,
        gamma=each("gamma", 0.01) if file.kind.trim == "middle" else (),
        epsilon=epsilon,
        scale=float(_value(file, target, "lambda", default=1.0)),
    )


def _rule(file: File, target: Target, seed: int) -> Rule:
    kind = file.kind
    rescales = bool(_value(file, target, "rescale", default=kind.rescale))
    return Rule(
        trim=kind.trim or "all",
        elect="sum" if kind.elects else "none",
        normalize=bool(_value(file, target, "normalize", default=kind.normalize)),
        rescale="l1" if rescales else "none",
        seed=seed,
    )


def _value(
    file: File,
    target: Target,
    name: str,
    entry: Entry | None = None,
    tensor: str = "",
    *,
    default: Any = None,
) -> Any:
    levels = [entry.parameters] if entry else []
    return file.value(
        name, tensor or target.name, target.t, [*levels, target.part.parameters, file.parameters], default
    )


def _vocabulary(file: File, base: str) -> Vocabulary:
    if file.tokenizer in (None, "base", "union"):
        return file.tokenizer  # pyright: ignore
    if mergekit.reference(file.path, file.tokenizer) == base:
        return "base"
    raise ConfigError(
        f"{file.path}: tokenizer source '{file.tokenizer}': here it is 'base' or 'union'; make the model "
        "whose tokenizer you want the base"
    )


def _slice_of(part: OutSlice, models: dict[str, Checkpoint]) -> passthrough.Slice:
    entry = part.entries[0]
    model = models[entry.model]
    first, end = entry.layers or (0, passthrough.layer_count(model))
    return passthrough.checked_slice(model, first, end, f"{entry.model}:{first}-{end}")


def _stacked(file: File, models: dict[str, Checkpoint]) -> Rewrite:
    """passthrough: layers copied, or multiplied with `scale`."""
    if any(len(part.entries) != 1 for part in file.slices):
        raise ConfigError(f"{file.path}: passthrough copies; each slice has exactly one source")
    base = models[file.base or file.models[0]]
    stack = [_slice_of(part, models) for part in file.slices]
    made = []
    for place in passthrough.places(stack):
        part = file.slices[place.index]
        target = Target(place.name, part, (place.source,), place.part)
        scale = _value(file, target, "scale", part.entries[0], place.source.name, default=1.0)
        made.append(_scaled(place, float(scale), file.dtype))
    if file.tokenizer not in (None, "base"):
        say(f"{file.path}: passthrough keeps the tokenizer of {base.folder}")
    return Rewrite(base=base, rows=tuple(made), config=passthrough.stacked_config(base, stack))


def _scaled(place: passthrough.Place, scale: float, dtype: str | None) -> Row:
    info = place.source.info
    wanted = mergekit.DTYPES[dtype] if dtype and info.is_float else info.dtype
    if scale == 1 and wanted == info.dtype:
        return Row(place.name, info.dtype, info.shape, (place.source,))

    def function(source: Source) -> Iterator[torch.Tensor]:
        return (block.mul_(scale) for (block,) in chunks((source,)))

    return Row(place.name, wanted, info.shape, (place.source,), function)


def _dtype_setting(file: File, base: Checkpoint) -> dict[str, Any]:
    """The dtype that config.json names, under the key it has there."""
    if file.dtype is None:
        return {}
    key = "torch_dtype" if "torch_dtype" in base.config and "dtype" not in base.config else "dtype"
    return {key: file.dtype}
