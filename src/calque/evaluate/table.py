"""Item-level tables of scores: the one form in which every evaluation keeps its results.

A row is one number about one item: what system, on what task, in what language, which item, which metric.
Aggregates are never stored; each is a group-by over rows, with an interval by bootstrap over items. Because
items are kept, two systems can be compared pairwise on the items that both have.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calque import disk, stats
from calque.errors import DataError
from calque.evaluate.groups import Group, Pair, pivot, reduced
from calque.evaluate.measures import measure, wanted
from calque.evaluate.view import Aggregate, View, align
from calque.progress import say

KEY = ("system", "task", "language", "prompt_language", "split", "item", "metric")
_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in KEY]
    + [
        pa.field("value", pa.float64(), nullable=False),
        pa.field("signature", pa.string(), nullable=False),
        pa.field("output", pa.string()),
        pa.field("group", pa.string(), nullable=False),
    ]
)
_DEFAULTS = {"prompt_language": "", "split": "test", "output": None, "group": ""}


def signature(name: str, parts: Mapping[str, object]) -> str:
    """Everything that changes a number, in one line: "lm|length:1024|overlap:256|version:0.1.0".

    Args:
        name: The method that made the number.
        parts: What its result depends on; written in the order given. '|' is written as '/'.
    """
    return "|".join([name, *(f"{key}:{value}".replace("|", "/") for key, value in parts.items())])


@dataclass(frozen=True)
class Table:
    """Rows of (system, task, language, prompt_language, split, item, metric) -> value and what belongs to it.

    That is its signature; `output`, what the system wrote, where the score is about that, null elsewhere; and
    `group`, the passage or document that the item shares with others, "" where it stands alone. Build one
    with `Table.of`; two rows of one key are refused.
    """

    arrow: pa.Table

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Table:
        """Build a table from rows.

        Args:
            rows: Mappings with system, task, language, item, metric, value and signature; prompt_language
                (default ""), split (default "test"), output (default None) and group (default "") may be
                left out.

        Raises:
            DataError: A missing, unknown or ill-typed column, a value that is not finite, a key given twice.
        """
        listed = [_row(row, f"row {index}") for index, row in enumerate(rows)]
        return cls._checked(pa.Table.from_pylist(listed, schema=_SCHEMA), "table")

    @classmethod
    def _checked(cls, arrow: pa.Table, where: str) -> Table:
        if len(bad := np.flatnonzero(~np.isfinite(arrow["value"].to_numpy()))):
            row = arrow.slice(int(bad[0]), 1).to_pylist()[0]
            raise DataError(f"{where}: value {row['value']} of {_name(row)}; every value must be finite")
        counted = arrow.group_by(list(KEY)).aggregate([([], "count_all")])
        if len(twice := np.flatnonzero(counted["count_all"].to_numpy() > 1)):
            row = counted.slice(int(twice[0]), 1).to_pylist()[0]
            more = f" and {len(twice) - 1} other keys" if len(twice) > 1 else ""
            raise DataError(f"{where}: {row['count_all']} rows for {_name(row)}{more}; a key has one row")
        return cls(arrow)

    def __len__(self) -> int:
        return len(self.arrow)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row as a dictionary, in order."""
        for batch in self.arrow.to_batches():
            yield from batch.to_pylist()

    def values(self, column: str) -> list[str]:
        """The distinct values of a column, in order of first appearance."""
        return self.arrow[column].unique().to_pylist()

    def where(
        self,
        *,
        system: str | Sequence[str] | None = None,
        task: str | Sequence[str] | None = None,
        language: str | Sequence[str] | None = None,
        split: str | Sequence[str] | None = None,
        metric: str | Sequence[str] | None = None,
        item: str | Sequence[str] | None = None,
    ) -> Table:
        """The rows whose columns hold the value given, or one of the values given."""
        kept = self.arrow
        asked = {"system": system, "task": task, "language": language, "split": split}
        for name, given in {**asked, "metric": metric, "item": item}.items():
            if given is not None:
                allowed = [given] if isinstance(given, str) else list(given)
                chosen = pc.SetLookupOptions(value_set=pa.array(allowed, pa.string()))
                kept = kept.filter(pc.call_function("is_in", [kept[name]], chosen))
        return Table(kept)

    def join(self, *others: Table) -> Table:
        """One table with the rows of all.

        Raises:
            DataError: A key that occurs in two of them.
        """
        return self._checked(pa.concat_tables([self.arrow, *(o.arrow for o in others)]), "joined table")

    def measure(
        self,
        name: str,
        by: Sequence[str] = ("system", "task", "language"),
        *,
        cluster: Callable[[str], str] | None = None,
    ) -> View:
        """A measure of each group of rows, with an interval by bootstrap over items.

        Rows of one item id are drawn together, so that a group over several languages is clustered by item;
        so are the items of one passage, where rows name their `group`.

        Args:
            name: A measure (`calque.evaluate.measures`), a metric for its mean, or "ABOVE/BELOW" for the sum
                of one metric over that of another, such as "bits/bytes".
            by: Columns to group by.
            cluster: Maps an item id to what is drawn as one (a book); without it, the row's group or item.

        Raises:
            DataError: An item without a metric that the measure needs, or a measure that is not defined for
                a group.
            ConfigError: No such measure or metric.
        """
        entries = []
        for key, group in self._groups(name, by, cluster):
            found = measure(name, group.present())
            columns = found.columns(group.present()) or ()
            sums = group.statistics(found, columns)
            value = reduced(found, columns)(sums.sum(axis=0))
            if not np.isfinite(value):
                where = " / ".join(key) or "the table"
                raise DataError(f"'{name}' is not defined for {where}: what it is divided by sums to zero")
            estimate = stats.bootstrap(sums, reduced(found, columns), clusters=group.clusters)
            entries.append(Aggregate(dict(zip(by, key, strict=True)), name, estimate, group.signatures))
        return View(tuple(by), tuple(entries))

    def compare(
        self,
        baseline: str,
        name: str,
        by: Sequence[str] = ("task", "language"),
        *,
        how: Literal["difference", "quotient"] = "quotient",
    ) -> View:
        """Every system against a named one, paired by item: as a difference or as "so many times".

        Only items that both systems have are compared; how many were left out is said.

        Args:
            baseline: The system to compare with.
            name: What to compare, as in `measure`.
            by: Columns to group by, besides the system.
            how: "difference" (system - baseline) or "quotient" (system / baseline).

        Raises:
            DataError: No rows of the baseline, or as `measure`.
            ConfigError: No such measure or metric.
        """
        if baseline not in self.values("system"):
            known = ", ".join(self.values("system")) or "none"
            raise DataError(f"no system '{baseline}' to compare with; the table has {known}")
        groups = dict(self._groups(name, ("system", *by)))
        test = stats.paired_difference if how == "difference" else stats.paired_quotient
        entries = []
        for key, group in groups.items():
            other = groups.get((baseline, *key[1:]))
            if key[0] == baseline or other is None:
                continue
            pair = Pair.of(group, other, name)
            if pair.left_out:
                say(f"{key[0]} against {baseline}: {len(pair)} items in common, {pair.left_out} left out")
            if len(pair):
                estimate = test(pair.a_NS, pair.b_NS, pair.reduce, clusters=pair.clusters)
                named = f"{name} {'-' if how == 'difference' else '/'} {baseline}"
                by_name = dict(zip(("system", *by), key, strict=True))
                entries.append(Aggregate(by_name, named, estimate, group.signatures))
        return View(("system", *by), tuple(entries))

    def to_text(self) -> str:
        """Every row as aligned plain text, without signatures and outputs."""
        body = [[*(row[name] for name in KEY), f"{row['value']:.6g}"] for row in self.rows()]
        return align([[*KEY, "value"], *body])

    def save(self, path: Path) -> None:
        """Write `.parquet` or `.jsonl`, atomically.

        Raises:
            DataError: Another suffix, or a disk that is full.
        """
        if path.suffix == ".jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
            return disk.write_text(path, text)
        _refuse_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with disk.clear_disk_errors(path):
            try:
                pq.write_table(self.arrow, part, compression="zstd")
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read what `save` wrote.

        Raises:
            DataError: No such file, a damaged file, or rows that are no table; names file and line.
        """
        if not path.is_file():
            raise DataError(f"no table {path}")
        if path.suffix == ".jsonl":
            listed = [_row(row, f"{path}:{line}") for line, row in _json_lines(path)]
            return cls._checked(pa.Table.from_pylist(listed, schema=_SCHEMA), str(path))
        _refuse_suffix(path)
        try:
            arrow = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a readable parquet file ({error})") from None
        if "group" not in arrow.column_names:  # files from before there was such a column
            arrow = arrow.append_column(_SCHEMA.field("group"), pa.repeat("", len(arrow)))
        missing = [name for name in _SCHEMA.names if name not in arrow.column_names]
        if missing:
            raise DataError(f"{path}: no column {', '.join(missing)}; a table has {', '.join(_SCHEMA.names)}")
        try:
            return cls._checked(arrow.select(_SCHEMA.names).cast(_SCHEMA), str(path))
        except (pa.ArrowInvalid, ValueError) as error:
            raise DataError(f"{path}: a column of another type than a table has ({error})") from None

    def _groups(
        self, name: str, by: Sequence[str], cluster: Callable[[str], str] | None = None
    ) -> Iterator[tuple[tuple[str, ...], Group]]:
        """The groups of the rows that a measure is made of."""
        for column in by:
            if column not in KEY:
                raise DataError(f"group by '{column}': a table has the columns {', '.join(KEY)}")
        metrics = self.values("metric")
        if metrics:
            measure(name, metrics)
        return pivot(self.where(metric=wanted(name, metrics)).arrow, by, cluster)


def _row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    if unknown := set(row) - set(_SCHEMA.names):
        raise DataError(f"{where}: unknown column {sorted(unknown)}; a row has {', '.join(_SCHEMA.names)}")
    full = {**_DEFAULTS, **row}
    for name in _SCHEMA.names:
        if name not in full:
            raise DataError(f"{where}: no '{name}'; a row needs {', '.join((*KEY, 'value', 'signature'))}")
        value = full[name]
        if name == "value":
            good = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            full[name] = float(value) if good else math.nan
        else:
            good = isinstance(value, str) or (name == "output" and value is None)
        if not good:
            raise DataError(
                f"{where}: '{name}' is {value!r}; expected {'a number' if name == 'value' else 'text'}"
            )
    return full


def _name(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} '{row[name]}'" for name in KEY if row[name])


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected an object with the columns of a table")
            yield number, row


def _refuse_suffix(path: Path) -> None:
    if path.suffix != ".parquet":
        raise DataError(f"{path}: a table is kept as .parquet or .jsonl")
