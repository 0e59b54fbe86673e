"""The report of a comparison: one HTML file with heat maps, intervals and every number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calque.evaluate.comparison import Comparison, Line, macro_text
from calque.evaluate.export import export
from calque.report import charts
from calque.report.page import write_page

_STRONGEST = 46  # per cent; the numbers stay readable on it
_FAINT = 14  # a difference that is not clear should not look like one
_ROLE = {"better": "product", "worse": "other", "unclear": "base"}


@dataclass(frozen=True)
class Cell:
    """One difference: its number, how strong its tint is in per cent, in which colour, and what it says."""

    text: str
    strength: int
    tint: str
    verdict: str
    told: str


@dataclass(frozen=True)
class Heat:
    """One system against the baseline: languages (or other groups) by tasks."""

    system: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def write_comparison(found: Comparison, file: Path) -> Path:
    """Write a comparison: `.html` as one self-contained file without script, else as `export` does.

    Returns:
        `file`.

    Raises:
        DataError: A suffix that is none of these, or a full disk.
    """
    if file.suffix != ".html":
        return export(found, file)
    told = "Differences with 95 % intervals; the numbers are in the table below."
    values = {
        "found": found,
        "title": f"{', '.join(found.systems())} against {found.baseline}",
        "means": [macro_text(macro, found.baseline) for macro in found.macros],
        "heats": [_heat(found, system) for system in found.systems()],
        "chart": charts.both(charts.differences, [*_panels(found)], "differences", told, charts.FULL),
        "rows": [*found.rows()],
        "groups": [*found.lines[0].group],
    }
    return write_page(file, "comparison.html", values)


def _heat(found: Comparison, system: str) -> Heat:
    """Tints grow with the gain, as a share of the largest of the same column, of any system."""
    lines = [line for line in found.lines if line.system == system]
    columns = tuple(dict.fromkeys(_column(line) for line in lines))
    largest = {c: max(abs(line.gain) for line in found.lines if _column(line) == c) or 1.0 for c in columns}
    cells: dict[str, dict[str, Cell]] = {}
    for line in lines:
        column, verdict = _column(line), line.verdict(found.alpha)
        cells.setdefault(_row(line), {})[column] = Cell(
            text=f"{line.difference.value:+.3f}",
            strength=round(
                (_FAINT if verdict == "unclear" else _STRONGEST) * abs(line.gain) / largest[column]
            ),
            tint="product" if line.gain > 0 else "worse",
            verdict=verdict,
            told=f"{verdict}: {line.value:.3f} against {line.base:.3f}, difference {line.difference.text()}",
        )
    rows = tuple((name, tuple(line.get(column) for column in columns)) for name, line in cells.items())
    return Heat(system, columns, rows)


def _panels(found: Comparison) -> Iterator[charts.Panel]:
    """A panel for each task and measure, a mark for each system and language."""
    several = len(found.systems()) > 1
    for column in dict.fromkeys(_column(line) for line in found.lines):
        marks = [
            charts.Mark(
                f"{line.system}, {_row(line)}" if several else _row(line),
                line.difference,
                _ROLE[line.verdict(found.alpha)],
            )
            for line in found.lines
            if _column(line) == column
        ]
        arrow = "lower is better" if _better(found, column) == "lower" else "higher is better"
        yield charts.Panel(f"{column} ({arrow})", tuple(marks))


def _better(found: Comparison, column: str) -> str:
    return next(line.better for line in found.lines if _column(line) == column)


def _column(line: Line) -> str:
    return f"{line.group['task']}, {line.measure}"


def _row(line: Line) -> str:
    return " / ".join(value for name, value in line.group.items() if name != "task" and value) or "all"
