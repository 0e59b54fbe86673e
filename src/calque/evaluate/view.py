"""Aggregates of a table, ready to be read: one number with its interval per group, as a grid or as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calque.errors import DataError
from calque.stats import Estimate


@dataclass(frozen=True)
class Aggregate:
    """One number made from many rows.

    Attributes:
        group: The columns it was grouped by, with their values.
        measure: What it measures, such as "bits/bytes".
        estimate: The number with its interval.
        signatures: The signatures of the rows behind it, sorted.
    """

    group: Mapping[str, str]
    measure: str
    estimate: Estimate
    signatures: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """Aggregates of one measure, in the order in which their groups first appear in the table."""

    by: tuple[str, ...]
    aggregates: tuple[Aggregate, ...]

    def __iter__(self) -> Iterator[Aggregate]:
        return iter(self.aggregates)

    def __len__(self) -> int:
        return len(self.aggregates)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The aggregates as flat records, for export."""
        for entry in self.aggregates:
            e = entry.estimate
            yield {
                **entry.group, "measure": entry.measure, "value": e.value, "low": e.low, "high": e.high,
                "units": e.units, "p": e.p, "signatures": " ".join(entry.signatures),
            }  # fmt: skip

    def pivot(self, rows: str = "system", columns: str = "task") -> dict[str, dict[str, Aggregate]]:
        """Nested by two of the grouping columns.

        Raises:
            DataError: A column that is no grouping column, or two aggregates for one cell.
        """
        self._grouped_by(rows, columns)
        grid: dict[str, dict[str, Aggregate]] = {}
        for entry in self.aggregates:
            line = grid.setdefault(entry.group[rows], {})
            if entry.group[columns] in line:
                cell = f"{rows} '{entry.group[rows]}', {columns} '{entry.group[columns]}'"
                raise DataError(f"two aggregates for {cell}: select with where(...) before the group-by")
            line[entry.group[columns]] = entry
        return grid

    def _grouped_by(self, *names: str) -> None:
        for name in names:
            if name not in self.by:
                raise DataError(f"pivot by '{name}': this view is grouped by {', '.join(self.by)}")

    def to_text(self, rows: str = "system", columns: str = "task", digits: int = 3) -> str:
        """The pivot as aligned plain text, for a terminal; other grouping columns stand with the columns."""
        self._grouped_by(rows, columns)
        several = [name for name in self.by if len({entry.group[name] for entry in self.aggregates}) > 1]
        others = [name for name in several if name not in (rows, columns)]
        grid: dict[str, dict[str, str]] = {}
        heads: dict[str, None] = {}
        for entry in self.aggregates:
            head = " ".join(entry.group[name] for name in (columns, *others))
            heads[head] = None
            grid.setdefault(entry.group[rows], {})[head] = entry.estimate.text(digits)
        body = [[name, *(line.get(head, "-") for head in heads)] for name, line in grid.items()]
        return align([[rows, *heads], *body])


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns under each other: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
