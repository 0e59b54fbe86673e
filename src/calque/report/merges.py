"""What merges did, layer by layer and role by role, as maps whose cells are tinted by their numbers."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calque import disk
from calque.report.run import Run, Step

_EXPERT = re.compile(r"\bexpert\.\d+\.")
_PAIRS_SHOWN = 3
_STRONGEST = 46  # per cent; the numbers stay readable on it
Entry = Mapping[str, Any]
# Notes that are told elsewhere, or are too long to be read as a line.
_APART = frozenset(
    {"method", "inputs", "sample", "tensors", "counts", "search", "limits", "config", "shares"}
)
_TOLD_ELSEWHERE = frozenset({"transplant", "calibrate"})  # vocabulary has a section of its own


@dataclass(frozen=True)
class Cell:
    """One layer and role: its number or letter as text, and how strong its tint is, 0 to 100."""

    text: str
    strength: int
    tint: str = "product"


@dataclass(frozen=True)
class Map:
    """Layers by roles; a cell is None where the model has no such tensor."""

    title: str
    says: str
    roles: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class Merge:
    """One merge step.

    Attributes:
        step: its name.
        do: its method.
        models: letter -> model, the base as "-".
        counts: what happened how often: fallbacks and the like.
        maps: the heat maps.
        sample: on what share of the numbers they are measured.
        settings: what it was done with, and what it found: name, value.
    """

    step: str
    do: str
    models: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, int], ...]
    maps: tuple[Map, ...]
    sample: str
    settings: tuple[tuple[str, str], ...]


def merges(run: Run) -> list[Merge]:
    """Every change of weights in the run, and its diagnosis where it left one."""
    return [made for step in run.by_family("merge/") if (made := _merge(step)) is not None]


def _merge(step: Step) -> Merge | None:
    file = step.folder / "rewrite.json"
    notes = disk.read_json(file) if file.is_file() else {}
    if notes.get("method", "transplant") in _TOLD_ELSEWHERE:
        return None
    inputs = notes.get("inputs") or {"base": "", "tuned": []}
    tensors = (notes.get("tensors") or {}) if notes.get("inputs") else {}
    folders = [str(inputs["base"]), *map(str, inputs["tuned"])]
    letters = dict(zip(folders, ["-", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"], strict=False))
    groups: dict[tuple[int | None, str], list[Entry]] = defaultdict(list)
    for entry in tensors.values():
        groups[entry["layer"], _EXPERT.sub("expert.", entry["role"])].append(entry)
    names = [letter for letter in letters.values() if letter != "-"]
    return Merge(
        step=step.name,
        do=step.do,
        models=tuple((letter, Path(folder).name) for folder, letter in letters.items() if folder),
        counts=tuple((notes.get("counts") or {}).items()),
        maps=tuple(_maps(groups, names, letters)),
        sample=str(notes.get("sample", "")),
        settings=tuple(
            (name.replace("_", " "), _told(value))
            for name, value in notes.items()
            if name not in _APART and value is not None and not isinstance(value, Mapping)
        ),
    )


def _told(value: Any) -> str:
    """A setting in words: lists with commas, lists of lists with semicolons, long numbers in groups."""
    if isinstance(value, list):
        return ("; " if any(isinstance(one, list) for one in value) else ", ").join(map(_told, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else Path(value).name


def _maps(
    groups: Mapping[tuple[int | None, str], list[Entry]], names: Sequence[str], letters: Mapping[str, str]
) -> list[Map]:
    found = [
        _map(
            groups,
            f"How far {name} had moved",
            "length of the task vector over the root of its numbers, times 1,000",
            lambda entries, place=place: _length(entries, place),
        )
        for place, name in enumerate(names)
    ]
    pairs = [f"{one} and {two}" for i, one in enumerate(names) for two in names[i + 1 :]]
    for place, pair in enumerate(pairs[:_PAIRS_SHOWN]):
        title = f"Whether {pair} moved the same way"
        says = "cosine between their task vectors: 1 the same way, 0 unrelated, below 0 against each other"
        found.append(_map(groups, title, says, lambda entries, place=place: _cosine(entries, place), top=1.0))
    if len(names) > 1:
        found.append(_map(groups, "Sign conflicts", "share of the numbers on whose sign the models disagree",
                          lambda entries: _mean(entries, "conflict"), top=1.0))  # fmt: skip
    found.append(_map(groups, "How far the merge moved", "as above, from the base to the result",
                      lambda entries: _length(entries, None)))  # fmt: skip
    found.append(_map(groups, "Numbers changed", "share that differs from the base",
                      lambda entries: _mean(entries, "changed"), top=1.0))  # fmt: skip
    copied = _copied(groups, letters)
    return [made for made in (copied, *found) if made is not None]


def _map(
    groups: Mapping[tuple[int | None, str], list[Entry]],
    title: str,
    says: str,
    value: Callable[[list[Entry]], float | None],
    top: float | None = None,
) -> Map | None:
    """A map of one number; tinted from 0 to `top`, or to the largest number."""
    values = {key: value(entries) for key, entries in groups.items()}
    known = [abs(v) for v in values.values() if v is not None]
    if not known:
        return None
    most = top or max(known) or 1.0
    cells = {
        key: Cell(_number(v), round(_STRONGEST * min(1.0, abs(v) / most)), "product" if v >= 0 else "worse")
        for key, v in values.items()
        if v is not None
    }
    return _grid(title, says, cells)


def _copied(groups: Mapping[tuple[int | None, str], list[Entry]], letters: Mapping[str, str]) -> Map | None:
    cells = dict.fromkeys(groups, Cell("", 0))
    for key, entries in groups.items():
        sources = {letters.get(str(entry.get("copied")), "") for entry in entries}
        if sources != {""}:
            letter = "/".join(sorted(filter(None, sources)))
            cells[key] = Cell(
                letter, 0 if letter == "-" else _STRONGEST, "other" if letter > "A" else "product"
            )
    says = "- is the base; empty cells are computed"
    some = any(cell.text for cell in cells.values())
    return _grid("Taken over bit by bit from", says, cells) if some else None


def _grid(title: str, says: str, cells: Mapping[tuple[int | None, str], Cell]) -> Map:
    """Layers in order, what lies outside them below; roles in the order of the model."""
    inside = list(dict.fromkeys(role for layer, role in cells if layer is not None))
    layers = sorted({layer for layer, _ in cells if layer is not None})
    rows = [(str(layer), tuple(cells.get((layer, role)) for role in inside)) for layer in layers]
    outside = [(role, (cell,)) for (layer, role), cell in cells.items() if layer is None]
    return Map(title, says, tuple(inside), (*rows, *outside))


def _length(entries: list[Entry], place: int | None) -> float | None:
    """Root mean square of a task vector, in thousandths."""
    lengths = [
        (entry["merged"] if place is None else entry["norm"][place], entry["numbers"])
        for entry in entries
        if "numbers" in entry
    ]
    numbers = sum(count for _, count in lengths)
    return 1000 * math.sqrt(sum(length**2 for length, _ in lengths) / numbers) if numbers else None


def _cosine(entries: list[Entry], place: int) -> float | None:
    found = [entry["cosine"][place] for entry in entries if "numbers" in entry]
    known = [cosine for cosine in found if cosine is not None]
    return sum(known) / len(known) if known else None


def _mean(entries: list[Entry], key: str) -> float | None:
    measured = [entry for entry in entries if "numbers" in entry]
    numbers = sum(entry["numbers"] for entry in measured)
    return sum(entry[key] * entry["numbers"] for entry in measured) / numbers if numbers else None


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 100 or not size else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
