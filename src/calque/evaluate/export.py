"""Records as a file that other programs read: CSV, Parquet, JSON, LaTeX or Markdown, by its suffix."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from calque import disk
from calque.errors import DataError, did_you_mean

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
)


class Records(Protocol):
    """What has rows: a table, a view, a comparison."""

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """Flat records, all with the same columns."""
        ...


def export(records: Records, path: Path, *, digits: int = 3) -> Path:
    """Write the rows of a table, view or comparison; numbers are rounded in LaTeX and Markdown only.

    Args:
        records: What has rows.
        path: The file; its suffix says the format: .csv .parquet .json .tex .md.
        digits: Of a number, in LaTeX and Markdown.

    Returns:
        `path`.

    Raises:
        DataError: Another suffix, no row, or a full disk.
    """
    if path.suffix != ".parquet" and path.suffix not in _FORMATS:
        hint = did_you_mean(path.suffix, [*_FORMATS, ".parquet"])
        raise DataError(
            f"{path}: no format '{path.suffix}'{hint}; known are {', '.join(_FORMATS)} and .parquet"
        )
    rows = [dict(row) for row in records.rows()]
    if not rows:
        raise DataError(f"{path}: nothing to write, there is no row")
    if path.suffix == ".parquet":
        _parquet(rows, path)
    else:
        disk.write_text(path, _FORMATS[path.suffix](rows, digits))
    return path


def _csv(rows: Sequence[Mapping[str, Any]], _: int) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if _absent(value) else value for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _json(rows: Sequence[Mapping[str, Any]], _: int) -> str:
    plain = [{name: None if _absent(value) else value for name, value in row.items()} for row in rows]
    return json.dumps(plain, ensure_ascii=False, indent=1) + "\n"


def _latex(rows: Sequence[Mapping[str, Any]], digits: int) -> str:
    """A tabular for the booktabs package."""
    form = "".join("r" if _is_number(value) else "l" for value in rows[0].values())
    body = [_line(row.values(), digits, lambda text: text.translate(_LATEX), " & ", r" \\") for row in rows]
    head = _line(rows[0], digits, lambda text: text.translate(_LATEX), " & ", r" \\")
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _markdown(rows: Sequence[Mapping[str, Any]], digits: int) -> str:
    def plain(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

    rule = "|" + "|".join("---:" if _is_number(value) else "---" for value in rows[0].values()) + "|"
    lines = [_line(cells, digits, plain, " | ", "") for cells in (rows[0], *(row.values() for row in rows))]
    return "\n".join([f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:]), ""])


def _line(cells: Iterable[Any], digits: int, plain: Callable[[str], str], between: str, end: str) -> str:
    return between.join(plain(_shown(cell, digits)) for cell in cells) + end


def _shown(value: Any, digits: int) -> str:
    if _absent(value):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk.clear_disk_errors(path):
        try:
            pq.write_table(pa.Table.from_pylist([*map(dict, rows)]), part, compression="zstd")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


_FORMATS: dict[str, Callable[[Sequence[Mapping[str, Any]], int], str]] = {
    ".csv": _csv,
    ".json": _json,
    ".tex": _latex,
    ".md": _markdown,
}
