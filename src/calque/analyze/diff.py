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
from calque.merge.inputs import PER_TOKEN
from calque.merge.match import RowOrder, match_tokens
from calque.merge.rewrite import Source
from calque.model.check import generation_settings
from calque.model.checkpoint import Checkpoint
from calque.model.slots import Slot
from calque.model.tensors import same_bytes
from calque.progress import bar
from calque.vocab.tokens import Tokens

Vocabularies = tuple[Tokens, Tokens]
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
        or dtypes, tokens, special tokens, settings. Empty for equal checkpoints. Where tokens or their ids
        differ, rows of embeddings are compared token by token, for the tokens of both.

    Raises:
        ModelError: A checkpoint that can not be read, or holds NaN or Inf.

    Relations:
        A checkpoint against itself gives no row. diff(b, a) has the norms, cosines and shares of diff(a, b).
        A model whose tokens have other ids, and its rows with them, has no tensor that differs.
    """
    made_by = signature("diff", {"one": one.folder.name, "other": other.folder.name, "version": __version__})
    head = {
        "system": f"{one.folder.name} -> {other.folder.name}",
        "task": "diff",
        "language": "",
        "signature": made_by,
    }
    both = _vocabularies(one, other)
    found = [*_tensors(one, other, same, _shared(both)), *_settings(one, other), *_tokens(both)]
    return Table.of({**head, **row} for row in found)


def _tensors(
    one: Checkpoint, other: Checkpoint, same: bool, shared: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    """Rows of all tensors; `shared`, if given, are the ids of common tokens, (2, N)."""
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
            if shared is not None and slots[name].role in PER_TOKEN:
                yield from _by_token(name, slots[name], one, other, shared, same)
                continue
            equal = same_bytes(one.info(name), other.info(name))
            if one.info(name).shape != other.info(name).shape or (equal and not same):
                continue
            if one.info(name).is_float and other.info(name).is_float:
                found = change(slots[name], Source(one, name), Source(other, name))
                yield from _numbers(name, found)
            elif not equal:
                yield _said(f"tensor {name}", "other numbers")


def _by_token(
    name: str, slot: Slot, one: Checkpoint, other: Checkpoint, shared: np.ndarray, same: bool
) -> Iterator[dict[str, Any]]:
    """The rows of tokens that both models have, whatever their ids."""
    before, after = (
        Source(checkpoint, name, RowOrder((checkpoint.info(name),), np.zeros(len(ids), np.int64), ids))
        for checkpoint, ids in zip((one, other), shared, strict=True)
    )
    if before.shape != after.shape:  # of another width
        return
    found = change(slot, before, after)
    if found.moved or same:
        yield from _numbers(name, found)
        sizes = " and ".join(f"{checkpoint.info(name).shape[0]:,}" for checkpoint in (one, other))
        told = f"compared by token, for the {len(shared[0]):,} that both have; of {sizes} rows"
        yield _said(f"rows of {name}", told)


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


def _vocabularies(one: Checkpoint, other: Checkpoint) -> Vocabularies | None:
    """Both vocabularies; None when their files are the same."""
    files = [checkpoint.folder / "tokenizer.json" for checkpoint in (one, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return None
    return Tokens.of(one.tokenizer()), Tokens.of(other.tokenizer())


def _shared(both: Vocabularies | None) -> np.ndarray | None:
    """Ids of the tokens of both models in each of them, (2, N); None when all ids agree."""
    if both is None:
        return None
    found = match_tokens(*both)
    own = np.arange(len(found))
    if len(both[0]) == len(both[1]) and (found == own).all():
        return None
    return np.stack([own, found])[:, found >= 0]


def _tokens(both: Vocabularies | None) -> Iterator[dict[str, Any]]:
    if both is None:
        return
    first, second = both
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
    said.sort(key=lambda line: line.startswith(("tensor ", "rows of ")))
    if not said and not body:
        return "no difference"
    return "\n".join([*said, *([align([["tensor", *names], *body])] if body else [])])
