"""Where a model changed: layer by layer and role by role, against what it was tuned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from calque import __version__
from calque.errors import ConfigError
from calque.evaluate.table import Table, signature
from calque.evaluate.view import align
from calque.merge.change import Change, change
from calque.merge.inputs import Vocabulary, line_up
from calque.model.checkpoint import Checkpoint
from calque.model.slots import Slot
from calque.progress import bar, say


def shift(base: Checkpoint, tuned: Mapping[str, Checkpoint], *, vocabulary: Vocabulary = None) -> Table:
    """Measure how far each parameter of tuned models is from the base's.

    With base W and tuned V, n numbers in r rows (output units):

        mean = sum |V - W| / n;   relative = |V - W| / |W|;   rms = |V - W| / sqrt(n)
        row_max = largest mean |V - W| of a row;   moved = share of numbers that differ

    Tensors of one layer and role (such as the experts of a mixture) each have a line.

    Args:
        base: What the others were tuned from.
        tuned: Models by the name they go by in the table.
        vocabulary: What to do when vocabularies differ.

    Returns:
        A table: system = the tuned model's name, task "shift", item "LAYER/ROLE" ("03/attention.q",
        "-/final_norm"), metrics mean, relative, rms, row_max, moved and size.

    Paper: Bandarkar et al. 2025, ICLR, arXiv:2410.01335 (where experts change).

    Raises:
        ConfigError: No tuned model.
        ModelError: The models do not fit together.

    Relations:
        A model against itself has 0 everywhere. Twice the task vector has twice the mean, relative and rms.
    """
    if not tuned:
        raise ConfigError("shift: no tuned model; give at least one as NAME=REFERENCE")
    made_by = signature("shift", {"base": base.folder.name, "version": __version__})
    rows: list[dict[str, Any]] = []
    for system, checkpoint in tuned.items():
        inputs = line_up(base, [checkpoint], vocabulary=vocabulary)
        total = sum(inputs.sources(name)[0].info.nbytes for name in inputs.names)
        with bar(f"shift {system}", total, "B") as shown:
            for name in inputs.names:
                before, after = inputs.sources(name)
                found = change(inputs.slot(name), before, after)
                rows += _rows(system, found, made_by)
                shown.update(before.info.nbytes, name)
    table = Table.of(rows)
    say(to_text(table))
    return table


def _rows(system: str, found: Change, made_by: str) -> Iterator[dict[str, Any]]:
    metrics = {
        "mean": found.mean,
        "rms": found.norm / found.size**0.5,
        "row_max": float(found.rows.max()),
        "moved": found.moved / found.size,
        "size": found.size,
    }
    if np.isfinite(found.relative):  # a base of zeros has no relative change
        metrics["relative"] = found.relative
    for metric, value in metrics.items():
        yield {
            "system": system,
            "task": "shift",
            "language": "",
            "item": item(found.slot),
            "metric": metric,
            "value": value,
            "signature": made_by,
        }


def item(slot: Slot) -> str:
    """A place in the model as an item of a table; layers sort by their number."""
    return f"{'-' if slot.layer is None else f'{slot.layer:02d}'}/{slot.role}"


def to_text(table: Table) -> str:
    """The relative change of each layer and role for a terminal, in per cent, model by model."""
    blocks = []
    for system in table.values("system"):
        layers, roles, values = profile(table, system)
        numbered = [place for place, layer in enumerate(layers) if layer != "-"]
        inside = [place for place in range(len(roles)) if np.isfinite(values[numbered, place]).any()]
        lines = [["layer", *(roles[place] for place in inside)]]
        for place in numbered:
            lines.append([layers[place], *(_per_cent(values[place, role]) for role in inside)])
        outside = [
            f"{role} {_per_cent(value)}"
            for layer, row in zip(layers, values, strict=True)
            for role, value in zip(roles, row, strict=True)
            if layer == "-" and np.isfinite(value)
        ]
        head = f"{system}: change in per cent of the base's length; {', '.join(outside)}"
        blocks.append(f"{head}\n{align(lines)}")
    return "\n".join(blocks)


def _per_cent(value: float) -> str:
    return f"{100 * value:.3g}" if np.isfinite(value) else "-"


def profile(table: Table, system: str, metric: str = "relative") -> tuple[list[str], list[str], np.ndarray]:
    """A shift table as a picture: (layers, roles, values of layers x roles, NaN where there is nothing)."""
    cells = {row["item"]: row["value"] for row in table.where(system=system, metric=metric).rows()}
    layers = sorted({name.partition("/")[0] for name in cells})
    roles = list(dict.fromkeys(name.partition("/")[2] for name in cells))
    values = [[cells.get(f"{layer}/{role}", np.nan) for role in roles] for layer in layers]
    return layers, roles, np.array(values)
