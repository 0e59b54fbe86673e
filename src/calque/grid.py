"""The unified-view study: forms of deltas at places of a model, with equal budgets, in one table.

Paper: He et al. 2022, ICLR, arXiv:2110.04366.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from calque.data.corpus import Corpus
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.places import linear_places
from calque.delta.prefix import prefix
from calque.delta.shards import shards
from calque.disk import checksum
from calque.errors import ConfigError
from calque.evaluate.lm import lm as score
from calque.evaluate.table import Table, signature
from calque.evaluate.view import align
from calque.model.checkpoint import Checkpoint
from calque.progress import say
from calque.train.lm import lm as train

_SIZES = (16, 32)  # between these the count of every form grows in a straight line
_RATES = {"prefix": 10.0}  # trained keys and values want a higher rate
Cell = tuple[str, str]


def grid(
    base: Checkpoint,
    text: Corpus,
    heldout: Corpus,
    *,
    work: Path,
    forms: tuple[str, ...] = (),
    places: tuple[str, ...] = (),
    budgets: tuple[Annotated[float, Gt(0)], ...] = (0.1, 1.0),
    steps: Annotated[int, Ge(1)] = 500,
    batch_tokens: Annotated[int, Ge(2)] = 2048,
    length: Annotated[int, Ge(2)] = 512,
    lr: Annotated[float, Gt(0)] = 1e-3,
    max_bytes: Annotated[int, Ge(1)] | None = None,
    seed: int = 0,
) -> Table:
    """Train every form at every place with every budget on one text, and score all on another.

    Forms: lora, shards, sequential, parallel, scaled (parallel, s = 4), prefix, mam. Places: attention, ffn,
    all. Combinations that do not exist are left out. The size of each (rank, width, length) is the one whose
    count comes nearest to the budget.

    Args:
        base: The model.
        text: What all learn.
        heldout: What all are scored on.
        work: Folder for what is done; a killed grid goes on in it.
        forms: Some of the forms; all by default.
        places: Some of the places; all by default.
        budgets: Numbers that train, in percent of the base's.
        steps: Training steps of each.
        batch_tokens: Tokens of one step, at most.
        length: Tokens of a piece, and of a window of the score, at most.
        lr: Highest learning rate; ten times that for prefix.
        max_bytes: Score at most so many bytes.
        seed: Decides first numbers and order.

    Returns:
        A table with the rows of evaluate/lm for the base and for each cell, and how many numbers train as
        metric "trainable".

    Raises:
        ConfigError: A form or place that is not known, or none left.

    Paper: He et al. 2022, ICLR, arXiv:2110.04366.

    Relations: each cell is delta, train/lm and evaluate/lm with the same settings, one after the other.
    """
    chosen = cells(forms, places)
    settings: dict[str, Any] = {
        "steps": steps, "batch_tokens": batch_tokens, "length": length, "seed": seed
    }  # fmt: skip
    scoring: dict[str, Any] = {"length": length, "max_bytes": max_bytes, "work": work / "scores"}
    said = _digest(repr((settings, lr, max_bytes, checksum(base.folder))), text, heldout)
    numbers = sum(math.prod(info.shape) for info in base.tensors.values())
    tables = [score({"base": base}, {"heldout": heldout}, **scoring)]
    for budget in budgets:
        for form, place in chosen:
            name = f"{form} {place} {budget:g}%"
            file = work / f"{name.replace(' ', '-')}-{said}.parquet"
            if not file.exists():
                delta = of_budget(base, (form, place), round(numbers * budget / 100), seed)
                say(f"{name}: {delta.count():,} numbers")
                scratch = work / f"{name.replace(' ', '-')}-{said}"
                rate = lr * _RATES.get(form, 1.0)
                result = train(base, text, delta=delta, work=scratch, lr=rate, **settings)
                found = score({name: result}, {"heldout": heldout}, **scoring)
                found.join(_trainable(name, heldout, delta, {**settings, "lr": rate})).save(file)
                shutil.rmtree(scratch)
            tables.append(Table.load(file))
    whole = tables[0].join(*tables[1:])
    say(f"bits per byte of {', '.join(heldout.languages)}\n{shown(whole)}")
    return whole


def cells(forms: Sequence[str], places: Sequence[str]) -> list[Cell]:
    """The combinations that exist.

    Raises:
        ConfigError: a form or place that is not known, or none left.
    """
    for axis, (what, given) in enumerate((("form", forms), ("place", places))):
        known = {cell[axis] for cell in _CELLS}
        if odd := next((name for name in given if name not in known), None):
            raise ConfigError(f"no {what} '{odd}'; there are {', '.join(sorted(known))}")
    found = [cell for cell in _CELLS if (not forms or cell[0] in forms) and (not places or cell[1] in places)]
    if not found:
        raise ConfigError(f"no form of {', '.join(forms)} stands at {', '.join(places)}")
    return found


def of_budget(base: Checkpoint, cell: Cell, numbers: int, seed: int) -> Delta:
    """The delta of a cell whose count is nearest to so many numbers, of size 1 at least."""
    make = _CELLS[cell]
    low, high = (make(base, size, seed).count() for size in _SIZES)
    slope = (high - low) / (_SIZES[1] - _SIZES[0])
    return make(base, max(1, round(_SIZES[0] + (numbers - low) / slope)), seed)


def shown(table: Table) -> str:
    """The grid as text: bits per byte and numbers that train, of each system."""
    counts = {row["system"]: row["value"] for row in table.where(metric="trainable").rows()}
    scores = table.where(metric=("bits", "bytes")).measure("bits/bytes", by=("system",))
    lines = [["system", "bits per byte", "trainable"]]
    for entry in scores:
        system = entry.group["system"]
        lines.append([system, entry.estimate.text(3), f"{counts.get(system, 0):,.0f}"])
    return align(lines)


def _trainable(name: str, heldout: Corpus, delta: Delta, settings: Mapping[str, Any]) -> Table:
    row = {"system": name, "task": "delta", "language": heldout.languages[0], "item": "model"}
    made_by = signature("delta", {"form": delta.form, **delta.settings, **settings, "source": "", "role": ""})
    return Table.of([{**row, "metric": "trainable", "value": float(delta.count()), "signature": made_by}])


def _digest(said: str, *texts: Corpus) -> str:
    """What a finished cell is found again by: settings, weights and every line of the texts."""
    digest = hashlib.sha256(said.encode())
    for number, text in enumerate(texts):
        for example in text:
            digest.update(repr((number, example.group, sorted(example.sides.items()))).encode())
    return digest.hexdigest()[:12]


def _pairs(kind: str) -> Callable[[Checkpoint, int, int], Delta]:
    def make(base: Checkpoint, size: int, seed: int) -> Delta:
        roles = dict.fromkeys(place.role for place in linear_places(base))
        own = tuple(role for role in roles if role.startswith(kind))
        return lora(base, rank=size, alpha=2.0 * size, roles=own, seed=seed)

    return make


def _shards(base: Checkpoint, size: int, seed: int) -> Delta:
    layers = 1 + max(place.layer for place in linear_places(base))
    private = min(1, size - 1)
    rank = min(4 * size, private + (size - private) * layers)
    return shards(base, budget=size, rank=rank, private=private, alpha=2.0 * rank, seed=seed)


_CELLS: dict[Cell, Callable[[Checkpoint, int, int], Delta]] = {
    ("lora", "attention"): _pairs("attention."),
    ("lora", "ffn"): _pairs("mlp."),
    ("lora", "all"): _pairs(""),
    ("shards", "all"): _shards,
    ("sequential", "ffn"): lambda base, n, seed: bottleneck(base, width=n, placement="pfeiffer", seed=seed),
    ("sequential", "all"): lambda base, n, seed: bottleneck(base, width=n, placement="houlsby", seed=seed),
    ("parallel", "attention"): lambda base, n, seed: bottleneck(
        base, width=n, placement="attention_parallel", seed=seed
    ),
    ("parallel", "ffn"): lambda base, n, seed: bottleneck(base, width=n, placement="parallel", seed=seed),
    ("scaled", "ffn"): lambda base, n, seed: bottleneck(
        base, width=n, placement="parallel", scale=4.0, seed=seed
    ),
    ("prefix", "attention"): lambda base, n, seed: prefix(base, length=n, seed=seed),
    ("mam", "all"): lambda base, n, seed: mam(base, width=n, length=max(1, n // 16), seed=seed),
}
