"""A run folder as the report reads it: what is there, and what is not."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from calque import disk
from calque.errors import DataError
from calque.evaluate.table import Table


@dataclass(frozen=True)
class Step:
    """A finished step: its folder and its manifest."""

    name: str
    do: str
    folder: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: The run folder.
        about: What the recipe says of itself, and run.json once a run is finished.
        recipe: recipe.yaml as plain data; empty without one.
        recipe_text: The recipe as it is written.
        steps: The finished steps, in the recipe's order.
        missing: Names of steps that the recipe has and the folder has not.
        table: The rows of all evaluation steps.
        notes: What had to be left out while reading, in words.
    """

    folder: Path
    about: Mapping[str, Any]
    recipe: Mapping[str, Any]
    recipe_text: str
    steps: tuple[Step, ...]
    missing: tuple[str, ...]
    table: Table
    notes: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run folder, finished or not.

        Raises:
            DataError: No such folder, nothing of a run in it, or a damaged file.
        """
        if not folder.is_dir():
            raise DataError(f"no run folder {folder}")
        text = _text(folder / "recipe.yaml")
        recipe = _recipe(text, folder / "recipe.yaml")
        planned = recipe.get("steps") or {}
        found = {path.name: path for path in sorted(folder.glob("steps/*")) if not path.name.startswith(".")}
        order = [*planned, *(name for name in found if name not in planned)]
        steps = tuple(_step(name, found[name], planned.get(name) or {}) for name in order if name in found)
        if not text and not steps and (folder / "manifest.json").is_file():
            return cls._of_one(_step(folder.resolve().name, folder, {}))
        if not text and not steps:
            raise DataError(f"{folder} is no run folder: it has neither recipe.yaml nor steps/")
        about = disk.read_json(folder / "run.json") if (folder / "run.json").exists() else {}
        about = {**(recipe.get("about") or {}), **about}
        table, notes = _tables(steps)
        missing = tuple(name for name in planned if name not in found)
        return cls(folder, about, recipe, text, steps, missing, table, tuple(notes))

    @classmethod
    def _of_one(cls, step: Step) -> Run:
        """The output of a single method, as `calque FAMILY METHOD -o` leaves it."""
        kept = ("seconds", "peak_memory_mb", "versions")
        about = {key: step.manifest[key] for key in kept if key in step.manifest}
        table, notes = _tables((step,))
        return cls(step.folder, about, {}, "", (step,), (), table, tuple(notes))

    def by_family(self, do: str) -> list[Step]:
        """Finished steps whose method begins with these words."""
        return [step for step in self.steps if step.do.startswith(do)]

    @cached_property
    def systems(self) -> list[str]:
        """Scored systems, floors left out, in the order in which they appear."""
        kept = [row["system"] for row in self.table.where(metric=("tokens", "lossless")).rows()]
        return list(dict.fromkeys(kept))

    @cached_property
    def base(self) -> str:
        """The system that everything is compared with: the first one that no step of the run has made."""
        made = self.references()
        return next((name for name in self.systems if made.get(name) not in self._names()), "")

    @cached_property
    def product(self) -> str:
        """The system that the run is about: the one made by the recipe's product, else the last one."""
        wanted, made = self.recipe.get("product"), self.references()
        others = [name for name in self.systems if name != self.base]
        return next((name for name in others if wanted and made.get(name) == wanted), (others or [""])[-1])

    def _names(self) -> set[str]:
        return {step.name for step in self.steps} | set(self.missing)

    def references(self) -> dict[str, str]:
        """System name -> the step or reference it stands for, as the evaluation steps say."""
        made: dict[str, str] = {}
        for step in self.by_family("evaluate/"):
            of = step.manifest.get("of") or {}
            for key in ("tokenizers", "systems"):
                given = of.get(key)
                made |= {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
        return made


@dataclass(frozen=True)
class Origin:
    """Where the row of a new token comes from."""

    token: str
    method: str
    sources: tuple[tuple[str, float], ...]


def origins(step: Step) -> Iterator[Origin]:
    """The lines of a map's provenance.tsv.

    Raises:
        DataError: A line that is not what the file should hold; names it.
    """
    path = step.folder / "provenance.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows, None)
        for number, row in enumerate(rows, 2):
            try:
                _, token, method, sources, weights = row
                pairs = zip(sources.split(" "), map(float, weights.split()), strict=False)
                yield Origin(token, method, tuple(pairs))
            except ValueError:
                raise DataError(f"{path}:{number}: expected id, token, method, sources, weights") from None


def log(step: Step) -> list[dict[str, Any]]:
    """The lines of a training step's log.jsonl, with `minutes` since its beginning over all stages.

    Raises:
        DataError: A damaged line; names it.
    """
    lines: list[dict[str, Any]] = []
    path, before, last, stage = step.folder / "log.jsonl", 0.0, 0.0, None
    with path.open(encoding="utf-8") as stream:
        for number, text in enumerate(stream, 1):
            try:
                line = json.loads(text)
                seconds = float(line["seconds"])
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}:{number}: not a line of a training log") from None
            if line.get("stage") != stage:
                before, stage = before + last, line.get("stage")
            last = seconds
            lines.append({**line, "minutes": (before + seconds) / 60})
    return lines


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _recipe(text: str, path: Path) -> Mapping[str, Any]:
    try:
        plain = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("steps") or {}, dict):
        raise DataError(f"{path}: not a recipe")
    return plain


def _step(name: str, folder: Path, planned: Mapping[str, Any]) -> Step:
    path = folder / "manifest.json"
    manifest = disk.read_json(path) if path.is_file() else {}
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: not a manifest")
    return Step(name, str(manifest.get("do") or planned.get("do") or ""), folder, manifest)


def _tables(steps: tuple[Step, ...]) -> tuple[Table, list[str]]:
    joined, notes = Table.of([]), []
    for step in steps:
        if not (step.folder / "table.parquet").is_file():
            continue
        table = Table.load(step.folder / "table.parquet")
        try:
            joined = joined.join(table)
        except DataError:
            notes.append(f"The scores of step “{step.name}” repeat those of an earlier step; left out.")
    return joined, notes
