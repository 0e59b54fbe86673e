"""The rows of a table as matrices: one line per item, one column per metric, for each group of rows.

An item here is what a table has one set of metrics for: a system, task, language, prompt language, split and
item id. Lines of two groups can be paired, because a line remembers which item it is, apart from its system.

Shape letters: N items, M metrics, S sums of a measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from calque.errors import DataError
from calque.evaluate.measures import COUNT, Measure, measure

_UNIT = ("task", "language", "prompt_language", "split", "item")


@dataclass(frozen=True)
class Group:
    """The rows of one group.

    Attributes:
        units: [N] which item each line is, whatever its system; equal numbers in groups of one table are
            the same item.
        names: [N] the same in words, for messages.
        clusters: [N] what is drawn together: the same passage, or the same item in several languages.
        metrics: Names of the M columns.
        values_NM: NaN where an item lacks a metric.
        signatures: Of the rows, sorted.
    """

    units: NDArray[np.int64]
    names: tuple[str, ...]
    clusters: tuple[str, ...]
    metrics: tuple[str, ...]
    values_NM: NDArray[np.float64]  # noqa: N815
    signatures: tuple[str, ...]

    def present(self) -> tuple[str, ...]:
        """The metrics that at least one of its items has."""
        return tuple(self.metrics[i] for i in np.flatnonzero((~np.isnan(self.values_NM)).any(axis=0)))

    def take(self, lines: NDArray[np.int64]) -> Group:
        """The same group with some of its lines, in the order given."""
        return Group(
            self.units[lines],
            tuple(self.names[i] for i in lines),
            tuple(self.clusters[i] for i in lines),
            self.metrics,
            self.values_NM[lines],
            self.signatures,
        )

    def statistics(self, measure: Measure, columns: Sequence[str]) -> NDArray[np.float64]:
        """[N, S] what each item adds to each sum of a measure.

        Raises:
            DataError: An item without a metric that is needed by its own name.
        """
        place = {metric: index for index, metric in enumerate(self.metrics)}
        lines = np.zeros((len(self.units), len(columns)))
        for index, column in enumerate(columns):
            if column == COUNT:
                lines[:, index] = 1.0
            elif column in measure.needs:
                values = self.values_NM[:, place[column]]
                if (absent := np.flatnonzero(np.isnan(values))).size:
                    raise DataError(
                        f"no '{column}' for {self.names[absent[0]]}"
                        f"{f' and {absent.size - 1} more' if absent.size > 1 else ''}; "
                        f"'{measure.name}' needs it for every item"
                    )
                lines[:, index] = values
            elif column in place:
                lines[:, index] = np.nan_to_num(self.values_NM[:, place[column]])
        return lines


@dataclass(frozen=True)
class Pair:
    """A measure's sums for two systems, on the items that both have.

    Attributes:
        measure: What is compared.
        columns: Names of the S sums.
        a_NS: [N, S] of the first system.
        b_NS: [N, S] of the second, the same items in the same order.
        clusters: [N] what is drawn together.
        left_out: Items that only one of the two has.
    """

    measure: Measure
    columns: tuple[str, ...]
    a_NS: NDArray[np.float64]  # noqa: N815
    b_NS: NDArray[np.float64]  # noqa: N815
    clusters: tuple[str, ...]
    left_out: int

    def __len__(self) -> int:
        return len(self.clusters)

    @classmethod
    def of(cls, a: Group, b: Group, name: str) -> Pair:
        """Two groups of one table, brought to common items.

        Raises:
            DataError: An item that occurs twice in a group, or without a metric that the measure needs.
            ConfigError: No such measure or metric.
        """
        for group in (a, b):
            if len(np.unique(group.units)) < len(group.units):
                raise DataError(f"{group.names[0]}: a group of several systems can not be compared by item")
        _, of_a, of_b = np.intersect1d(a.units, b.units, assume_unique=True, return_indices=True)
        order = np.argsort(of_a)
        one, other = a.take(of_a[order]), b.take(of_b[order])
        present = tuple(dict.fromkeys((*a.present(), *b.present())))
        found = measure(name, present)
        columns = found.columns(present) or ()
        return cls(
            found,
            columns,
            one.statistics(found, columns),
            other.statistics(found, columns),
            one.clusters,
            len(a.units) + len(b.units) - 2 * len(order),
        )

    @property
    def reduce(self) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """Sums [..., S] -> the measure [...]."""
        return reduced(self.measure, self.columns)


def reduced(
    measure: Measure, columns: tuple[str, ...]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Sums [..., S] -> the measure [...], NaN where it is not defined."""

    def reduce(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return measure.reduce(sums, columns)

    return reduce


def pivot(
    table: pa.Table, by: Sequence[str], cluster: Callable[[str], str] | None = None
) -> Iterator[tuple[tuple[str, ...], Group]]:
    """The groups of a table, in the order in which they first appear.

    Args:
        table: Rows of item-level scores.
        by: Columns to group by.
        cluster: Maps an item id to what is drawn as one; without it, the item's own group, else the item.
    """
    if not len(table):
        return
    codes, words = {}, {}
    for name in {*_UNIT, *by, "system", "group", "metric", "signature"}:
        column = table[name].combine_chunks().dictionary_encode()
        codes[name] = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        words[name] = column.dictionary.to_pylist()
    unit = _joint([codes[name] for name in _UNIT])
    first, line = _numbered(_joint([unit, codes["system"]]))
    values_NM = np.full((len(first), len(words["metric"])), np.nan)
    values_NM[line, codes["metric"]] = table["value"].to_numpy()

    def told(name: str) -> list[str]:
        return [words[name][code] for code in codes[name][first]]

    items, groups = told("item"), told("group")
    drawn = (
        [cluster(item) for item in items] if cluster else [g or i for g, i in zip(groups, items, strict=True)]
    )
    parts = [split.partition(":")[0] for split in told("split")]  # "test:es" asks the items of "test"
    whole = Group(
        unit[first],
        tuple(" / ".join(filter(None, key)) for key in zip(*map(told, ("system", *_UNIT)), strict=True)),
        tuple("\0".join(key) for key in zip(told("task"), parts, drawn, strict=True)),
        tuple(words["metric"]),
        values_NM,
        (),
    )
    starts, group = _numbered(_joint([codes[name] for name in by]) if by else np.zeros(len(table), np.int64))
    for number, start in enumerate(starts):
        made_by = sorted(words["signature"][code] for code in np.unique(codes["signature"][group == number]))
        found = replace(whole.take(np.flatnonzero(group[first] == number)), signatures=tuple(made_by))
        yield tuple(words[name][codes[name][start]] for name in by), found


def _joint(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One number for the values of several columns together."""
    joint = np.zeros(len(columns[0]), dtype=np.int64)
    for codes in columns:
        _, joint = np.unique(joint * (int(codes.max()) + 1) + codes, return_inverse=True)
    return joint


def _numbered(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the row where each value first appears, in that order; the place of each row's value in it)."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]
