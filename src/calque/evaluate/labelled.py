"""Files of labelled texts, as corpora of news or topics publish them.

Columns or keys: `label` (or `target`, `category`, `en_label`), `text`, or `title` and `content`, which are
joined; `id` and `group` (or `document`) where there are. Labels are compared by name, never by number: two
corpora may number the same classes differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calque.errors import DataError
from calque.evaluate.files import Row, locate, records

_LABELS = ("label", "target", "category", "en_label")
_TEXTS = ("text", "title", "content")
_ENDINGS = (".jsonl", ".tsv", ".csv", ".parquet", ".json")


@dataclass(frozen=True)
class Labelled:
    """A text with the name of its class."""

    id: str
    text: str
    label: str
    group: str = ""


def labelled(path: Path) -> list[Labelled]:
    """Every text of a file.

    Raises:
        DataError: A record without label or text, an id given twice; with file and line.
    """
    found: dict[str, Labelled] = {}
    for number, row in enumerate(records(path), 1):
        entry = of_row(row, str(number))
        if entry.id in found:
            raise DataError(f"{row['where']}: id '{entry.id}' is given twice")
        found[entry.id] = entry
    return list(found.values())


def of_row(row: Row | Any, name: str) -> Labelled:
    """The text of a record; `name` is its id where it states none.

    Raises:
        DataError: No label, no text; says where.
    """
    where = row.get("where", "record")
    label = next((row[key] for key in _LABELS if row.get(key) not in (None, "")), None)
    if label is None or isinstance(label, list | dict):
        raise DataError(f"{where}: no label under {', '.join(_LABELS)}; the record has {', '.join(row)}")
    parts = [str(row[key]).strip() for key in _TEXTS if row.get(key)]
    if not any(parts):
        raise DataError(f"{where}: no text under {', '.join(_TEXTS)}; the record has {', '.join(row)}")
    group = next((str(row[key]) for key in ("group", "document") if row.get(key)), "")
    return Labelled(str(row.get("id", name)), "\n".join(filter(None, parts)), str(label).strip(), group)


def train_and_test(path: Path, held_out: float) -> tuple[list[Labelled], list[Labelled]]:
    """The two parts of a folder (train.* and test.*), or of a file, of which a share is held out by group.

    A digest of its name decides where a group goes, so that translations under one name go the same way.

    Raises:
        DataError: As `labelled`; a file of one group.
    """
    if path.is_dir():
        parts = [locate(path, *(f"*{part}*{end}" for end in _ENDINGS)) for part in ("train", "test")]
        return labelled(parts[0]), labelled(parts[1])
    whole = labelled(path)
    groups = list(dict.fromkeys(entry.group or entry.id for entry in whole))
    if len(groups) < 2:
        raise DataError(f"{path}: all texts are of the group '{groups[0]}'; none can be held out")
    groups.sort(key=lambda group: hashlib.sha256(group.encode()).digest())
    size: dict[str, int] = {}
    for entry in whole:
        size[entry.group or entry.id] = size.get(entry.group or entry.id, 0) + 1
    chosen, room = set[str](), held_out * len(whole)
    for group in groups:
        if size[group] <= room:
            chosen.add(group)
            room -= size[group]
    chosen = chosen or {min(groups, key=lambda group: size[group])}
    test = [entry for entry in whole if (entry.group or entry.id) in chosen]
    return [entry for entry in whole if (entry.group or entry.id) not in chosen], test


def label_names(*parts: Iterable[Labelled]) -> tuple[str, ...]:
    """All labels, by name."""
    return tuple(sorted({entry.label for part in parts for entry in part}))


def without(train: Sequence[Labelled], *held: Sequence[Labelled]) -> list[Labelled]:
    """The training texts that stand in no test part, case and blanks aside."""
    seen = {_plain(entry.text) for part in held for entry in part}
    return [entry for entry in train if _plain(entry.text) not in seen]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def class_counts(gold: str, given: str) -> dict[str, float]:
    """Components of accuracy and of F1 by class; a given label that is none ("") is only missed."""
    right = gold == given
    found = {"correct": float(right)}
    if right:
        return {**found, f"tp.{gold}": 1.0}
    wrong = {f"fp.{given}": 1.0} if given else {}
    return {**found, f"fn.{gold}": 1.0, **wrong}
