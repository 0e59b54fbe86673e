"""What differs between two checkpoints: tensors, tokenizer, configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from calque import __version__
from calque.evaluate.table import Table, signature
from calque.evaluate.view import align
from calque.merge.change import Change, change
from calque.merge.rewrite import Source
from calque.model.check import generation_settings
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes
from calque.progress import bar
from calque.vocab.tokens import Tokens

_NOT_SAID = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype"})


def diff(one: Checkpoint, other: Checkpoint, *, same: bool = False) -> Table:
    """Compare two checkpoints, tensor by tensor, and their tokenizers and configurations.

    Args:
        one: The first.
        other: The second.
        same: Also list tensors that agree in every bit.

    Returns:
        A table of task "diff": for each tensor of both with one shape the metrics norm (of the difference),
        relative (to the first's), cosine, moved (share of numbers that differ) and largest. Whatever else
        differs has the metric "differs" and says how in `output`: tensors of one model alone or of two shapes
        or dtypes, tokens, special tokens, settings. Empty for equal checkpoints.

    Raises:
        ModelError: A checkpoint that can not be read, or holds NaN or Inf.

    Relations:
        A checkpoint against itself gives no row. diff(b, a) has the norms, cosines and shares of diff(a, b).
    """
    made_by = signature("diff", {"one": one.folder.name, "other": other.folder.name, "version": __version__})
    head = {
        "system": f"{one.folder.name} -> {other.folder.name}",
        "task": "diff",
        "language": "",
        "signature": made_by,
    }
    found = [*_tensors(one, other, same), *_settings(one, other), *_tokens(one, other)]
    return Table.of({**head, **row} for row in found)


def _tensors(one: Checkpoint, other: Checkpoint, same: bool) -> Iterator[dict[str, Any]]:
    slots = {name: slot for slot, name in one.slots.items()}
    with bar("diff", one.nbytes, "B") as shown:
        for name in dict.fromkeys((*one.tensors, *other.tensors)):
            if name not in other.tensors or name not in one.tensors:
                here = one if name in one.tensors else other
                yield _said(f"tensor {name}", f"only in {here.folder.name}: {_kind(here, name)}")
                continue
            shown.update(one.info(name).nbytes, name)
            if _kind(one, name) != _kind(other, name):
                yield _said(f"tensor {name}", f"{_kind(one, name)} -> {_kind(other, name)}")
            equal = same_bytes(one.info(name), other.info(name))
            if one.info(name).shape != other.info(name).shape or (equal and not same):
                continue
            if one.info(name).is_float and other.info(name).is_float:
                found = change(slots[name], Source(one, name), Source(other, name))
                yield from _numbers(name, found)
            elif not equal:
                yield _said(f"tensor {name}", "other numbers")


def _kind(checkpoint: Checkpoint, name: str) -> str:
    info = checkpoint.info(name)
    return f"{info.dtype} {list(info.shape)}"


def _numbers(name: str, found: Change) -> Iterator[dict[str, Any]]:
    metrics = {
        "norm": found.norm,
        "relative": found.relative,
        "cosine": found.cosine,
        "moved": found.moved / found.size,
        "largest": found.largest,
    }
    for metric, value in metrics.items():
        if np.isfinite(value):
            yield {"item": f"tensor {name}", "metric": metric, "value": value}


def _said(item: str, how: str) -> dict[str, Any]:
    return {"item": item, "metric": "differs", "value": 1.0, "output": how}


def _settings(one: Checkpoint, other: Checkpoint) -> Iterator[dict[str, Any]]:
    files = {
        "config": (one.config, other.config),
        "generation": (generation_settings(one), generation_settings(other)),
    }
    for file, (first, second) in files.items():
        before, after = _flat(first), _flat(second)
        for key in sorted(before.keys() | after.keys()):
            if key.split(".")[-1] not in _NOT_SAID and before.get(key) != after.get(key):
                yield _said(f"{file} {key}", f"{_text(before, key)} -> {_text(after, key)}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _text(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "(not given)"


def _tokens(one: Checkpoint, other: Checkpoint) -> Iterator[dict[str, Any]]:
    files = [checkpoint.folder / "tokenizer.json" for checkpoint in (one, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    first, second = Tokens.of(one.tokenizer()), Tokens.of(other.tokenizer())
    before, after = ({s: i for i, s in enumerate(t.strings) if s} for t in (first, second))
    counts = {
        "tokens only in the first": before.keys() - after.keys(),
        "tokens only in the second": after.keys() - before.keys(),
        "tokens with another id": {s for s in before.keys() & after.keys() if before[s] != after[s]},
    }
    for item, strings in counts.items():
        if strings:
            shown = ", ".join(repr(s) for s in sorted(strings)[:5])
            yield _said(f"tokenizer {item}", f"{len(strings):,}: {shown}{' ...' if len(strings) > 5 else ''}")
    for role in sorted(first.special.keys() | second.special.keys()):
        if first.special.get(role) != second.special.get(role):
            yield _said(f"tokenizer {role}", f"{first.special.get(role)} -> {second.special.get(role)}")
    if not any(counts.values()) and first.backend.to_str() != second.backend.to_str():
        yield _said("tokenizer", "the same tokens, but text is cut by other rules")


def to_text(table: Table) -> str:
    """A diff for a terminal: settings first, then the tensors, the most changed first."""
    rows = list(table.rows())
    said = [f"{row['item']}: {row['output']}" for row in rows if row["metric"] == "differs"]
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["metric"] != "differs":
            cells.setdefault(row["item"].removeprefix("tensor "), {})[row["metric"]] = row["value"]
    names = ("relative", "norm", "cosine", "moved", "largest")
    ranked = sorted(cells.items(), key=lambda item: -item[1].get("relative", float("inf")))
    body = [[name, *(f"{values[n]:.6g}" if n in values else "-" for n in names)] for name, values in ranked]
    said.sort(key=lambda line: line.startswith("tensor "))
    if not said and not body:
        return "no difference"
    return "\n".join([*said, *([align([["tensor", *names], *body])] if body else [])])
