"""Published files of open information extraction: Re-OIE2016, CaRB and BenchIE."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calque.data.read import lines
from calque.errors import DataError
from calque.evaluate.benchmark import Row
from calque.evaluate.files import locate, records
from calque.language import Language


def rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """Sentences with their tuples, or with facts in all their wordings. Language names the file in a folder.

    Raises:
        DataError: No such file, a line that is none of its format, no sentence at all.
    """
    of = Language.parse(language)
    file = locate(
        path, *(f"*{name}*{kind}" for name in (of.code, of.short) for kind in (".txt", ".tsv", ".json*"))
    )
    if file.suffix == ".txt":
        yield from _facts(file)
    elif file.suffix == ".tsv":
        yield from _tabs(file)
    elif file.suffix == ".json":
        yield from _nested(file)
    else:
        yield from records(file)


def _facts(file: Path) -> Iterator[Row]:
    """BenchIE: "sent_id:1 TAB sentence", "1--> Cluster 1:", wordings "subject --> relation --> object"."""
    row: dict[str, Any] | None = None
    for number, line in lines(file):
        where, line = f"{file}:{number}", line.strip()
        if line.startswith("sent_id:"):
            if row:
                yield row
            name, _, text = line.removeprefix("sent_id:").partition("\t")
            row = {"id": name.strip(), "sentence": text.strip(), "facts": [], "where": where}
        elif row is None and line:
            raise DataError(f"{where}: '{line:.40}' before any line 'sent_id:'")
        elif row and line.endswith(":") and "--> Cluster" in line:
            row["facts"].append([])
        elif row and line:
            parts = [part.strip() for part in line.split(" --> ")]
            if len(parts) != 3 or not row["facts"]:
                raise DataError(
                    f"{where}: {len(parts)} parts; expected subject --> relation --> object in a cluster"
                )
            row["facts"][-1].append({"relation": parts[1], "arguments": [parts[0], parts[2]]})
    if row is None:
        raise DataError(f"{file}: no sentence in it")
    yield row


def _tabs(file: Path) -> Iterator[Row]:
    """CaRB: one tuple a line; the lines of one sentence are one item."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in lines(file):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) < 3 and line.strip():
            raise DataError(f"{file}:{number}: {len(cells)} columns; expected sentence, relation, arguments")
        if line.strip():
            row = found.setdefault(
                cells[0], {"sentence": cells[0], "tuples": [], "where": f"{file}:{number}"}
            )
            row["tuples"].append({"relation": cells[1], "arguments": cells[2:]})
    if not found:
        raise DataError(f"{file}: no sentence in it")
    yield from found.values()


def _nested(file: Path) -> Iterator[Row]:
    try:
        top = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON ({error.msg})") from None
    if not isinstance(top, dict):
        raise DataError(f"{file}: {type(top).__name__}; expected an object of sentences with their tuples")
    for number, (sentence, tuples) in enumerate(top.items(), 1):
        yield {"id": str(number), "sentence": sentence, "tuples": tuples, "where": f"{file}: [{number}]"}
