"""Systems side by side on the items that all of them have: differences with intervals, tests, and power.

Right or wrong on items that stand alone is tested by McNemar's exact test; any other measure, and items that
share a passage, by approximate randomisation of whole passages. Intervals are those of the paired bootstrap
over the same units. Every p-value is adjusted for the number of languages and systems that its task and
measure were compared in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Interval
from numpy.typing import NDArray

from calque import paired, stats
from calque.errors import ConfigError, DataError, did_you_mean
from calque.evaluate.benchmark import benchmark, titles
from calque.evaluate.comparison import Comparison, Line, Macro
from calque.evaluate.groups import Group, Pair, pivot
from calque.evaluate.measures import COUNT, MEASURES, measure, wanted
from calque.evaluate.table import KEY, Table

Test = Literal["auto", "mcnemar", "randomisation", "bootstrap"]
_OWN = frozenset({"tokenizer", "start"})  # parts of a signature that are a system's own
_Z = 1.959964  # half of a 95 % interval in standard errors


def compare(
    tables: Mapping[str, Table],
    *,
    baseline: str = "",
    metric: list[str] | None = None,
    by: list[str] | None = None,
    test: Test = "auto",
    alpha: Annotated[float, Interval(gt=0, lt=1)] = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare systems with a baseline, item by item.

    Args:
        tables: Item-level tables by name; the only system of a table is called by it, several keep their own.
        baseline: The system to compare with; without it, the first.
        metric: Measures or metrics; without it, the headline measure of each task.
        by: Columns to group by; without it, task and language.
        test: Which test; "auto" is McNemar's where items are right or wrong and stand alone, else
            randomisation.
        alpha: Level of the tests, after adjustment by Holm's method over languages and systems.
        seed: Of resampling.

    Returns:
        The comparison: `lines`, means over languages, notes on what was left out; `to_text()` shows it.

    Raises:
        DataError: Fewer than two systems, or nothing that two of them have in common.
        ConfigError: An unknown baseline, measure or column.

    Paper: Koehn 2004, W04-3250; Dror et al. 2018, P18-1128; Card et al. 2020, 2020.emnlp-main.745 (power).
    """
    table = together(tables)
    systems = table.values("system")
    if len(systems) < 2:
        raise DataError(
            f"nothing to compare: {f'only system {systems[0]!r}' if systems else 'the table is empty'}"
        )
    baseline = baseline or systems[0]
    if baseline not in systems:
        hint = did_you_mean(baseline, systems)
        raise ConfigError(f"no system '{baseline}' to compare with{hint}; there are {', '.join(systems)}")
    columns = list(dict.fromkeys(["task", *(by if by is not None else ["language"])]))
    for name in columns:
        if name not in KEY or name in ("system", "metric"):
            known = [column for column in KEY if column not in ("system", "metric")]
            raise ConfigError(f"by '{name}'{did_you_mean(name, known)}; expected some of {', '.join(known)}")
    job = _Job(table, baseline, columns, test, alpha, seed)
    asked = [*_asked(table, metric)]
    if not asked:
        raise ConfigError(
            f"no task has a measure of its own; name a metric: {', '.join(table.values('metric'))}"
        )
    found = [job.compared(task, name) for task, name in asked]
    lines = [line for part in found for line in part.lines]
    if not lines:
        raise DataError(
            f"'{baseline}' has no item in common with {', '.join(s for s in systems if s != baseline)}: "
            f"tasks {', '.join(table.values('task'))}; languages {', '.join(table.values('language'))}"
        )
    return Comparison(
        baseline,
        alpha,
        tuple(lines),
        tuple(macro for part in found for macro in part.macros),
        tuple(dict.fromkeys(note for part in found for note in part.notes)),
        tuple(sorted({made_by for part in found for made_by in part.signatures})),
    )


def read(references: Sequence[str]) -> dict[str, Table]:
    """Tables by name, from files and folders given as PATH or NAME=PATH.

    Raises:
        DataError: As `tables_of`.
        ConfigError: Two tables of one name.
    """
    found: dict[str, Table] = {}
    for reference in references:
        name, equals, rest = reference.partition("=")
        if equals and not Path(reference).exists():
            called, path = name, Path(rest)
        else:
            path = Path(reference)
            called = path.resolve().parent.name if path.stem == "table" else path.resolve().stem
        if called in found:
            raise ConfigError(f"two tables are called '{called}'; give them names: NAME={path}")
        found[called] = tables_of(path)
    return found


def tables_of(path: Path) -> Table:
    """The table in a file, or all those in a folder of a run or of one of its steps.

    Raises:
        DataError: No such file or folder, or a folder without a table.
    """
    if not path.is_dir():
        return Table.load(path)
    files = [path / "table.parquet", *sorted(path.glob("steps/*/table.parquet"))]
    found = [Table.load(file) for file in files if file.is_file()]
    if not found:
        raise DataError(f"{path} holds no table: expected table.parquet or steps/*/table.parquet in it")
    return found[0].join(*found[1:])


def together(tables: Mapping[str, Table]) -> Table:
    """One table of all; a system is called by its table's name, or by both names where two have the same."""
    several = {name: table for name, table in tables.items() if len(table.values("system")) > 1}
    listed = [system for table in several.values() for system in table.values("system")]
    parts = []
    for name, table in tables.items():
        systems = table.values("system")
        names = {systems[0]: name} if len(systems) == 1 and len(tables) > 1 else {s: s for s in systems}
        if name in several:
            names = {s: f"{name}/{s}" if listed.count(s) > 1 else s for s in systems}
        place = table.arrow.column_names.index("system")
        column = pa.array([names[system] for system in table.arrow["system"].to_pylist()], pa.string())
        parts.append(Table(table.arrow.set_column(place, table.arrow.schema.field("system"), column)))
    if not parts:
        raise DataError("nothing to compare: no table")
    return parts[0].join(*parts[1:])


@dataclass(frozen=True)
class _Part:
    """What one task and measure gave."""

    lines: list[Line]
    macros: list[Macro]
    notes: list[str]
    signatures: set[str]


@dataclass(frozen=True)
class _Job:
    """What stays the same for all tasks and measures."""

    table: Table
    baseline: str
    by: Sequence[str]
    test: Test
    alpha: float
    seed: int

    def compared(self, task: str, name: str) -> _Part:
        """All systems and groups of one task by one measure."""
        rows = self.table.where(task=task)
        needed = rows.where(metric=wanted(name, rows.values("metric")))
        groups = dict(pivot(needed.arrow, ("system", *self.by)))
        notes = [*_lacking(rows, needed, self.by, name), *_missing(rows, self.by)]
        notes += _only_one(groups, self.baseline, self.table.values("system"))
        pairs: dict[tuple[str, ...], Pair] = {}
        for key, group in groups.items():
            other = groups.get((self.baseline, *key[1:]))
            if key[0] == self.baseline or other is None:
                continue
            pair, where = Pair.of(group, other, name), " / ".join(key[1:])
            if pair.left_out:
                said = f"{len(pair)} items in common, {pair.left_out} that only one has are left out"
                notes.append(f"{key[0]} against {self.baseline}, {where}: {said}")
            if differing := _made_differently(group, other):
                notes.append(f"{key[0]} and {self.baseline} were not scored alike, {where}: {differing}")
            if len(pair):
                pairs[key] = pair
        lines = _adjusted([self._line(key, pair) for key, pair in pairs.items()])
        macros = self._macros(groups, pairs, lines) if list(self.by) == ["task", "language"] else []
        return _Part(lines, macros, notes, {s for key in pairs for s in groups[key].signatures})

    def _line(self, key: tuple[str, ...], pair: Pair) -> Line:
        difference, test = self._tested(pair.a_NS, pair.b_NS, pair.reduce, pair)
        spread = (difference.high - difference.low) / (2 * _Z)
        return Line(
            system=key[0],
            group=dict(zip(self.by, key[1:], strict=True)),
            measure=pair.measure.name,
            better=pair.measure.better,
            value=float(pair.reduce(pair.a_NS.sum(axis=0))),
            base=float(pair.reduce(pair.b_NS.sum(axis=0))),
            difference=difference,
            test=test,
            p_bonferroni=1.0,
            p_holm=1.0,
            detectable=paired.detectable_mean(1, spread) if spread >= 0 else float("nan"),
            items=len(pair),
            left_out=pair.left_out,
        )

    def _tested(
        self, a_NS: NDArray[np.float64], b_NS: NDArray[np.float64], reduce: stats.Reduce, pair: Pair
    ) -> tuple[stats.Estimate, str]:
        """The difference with the p-value of the test that fits, and which that is."""
        found = stats.paired_difference(a_NS, b_NS, reduce, clusters=pair.clusters, seed=self.seed)
        answers = np.stack([a_NS[:, 0], b_NS[:, 0]])
        binary = pair.columns[1:] == (COUNT,) and bool(np.isin(answers, (0.0, 1.0)).all())
        alone = len(set(pair.clusters)) == len(pair)
        test = self.test
        if test == "auto":
            test = "mcnemar" if binary and alone else "randomisation"
        if test == "mcnemar":
            if not (binary and alone):
                why = "items share a passage" if binary else "these are no items that are right or wrong"
                raise ConfigError(
                    f"test 'mcnemar' does not fit '{pair.measure.name}': {why}; use randomisation"
                )
            return replace(found, p=paired.mcnemar(*answers).p), test
        if test == "randomisation":
            p = paired.randomisation(a_NS, b_NS, reduce, clusters=pair.clusters, seed=self.seed)
            return replace(found, p=p), test
        return replace(found, p=1.0 if found.p is None else found.p), test

    def _macros(
        self,
        groups: Mapping[tuple[str, ...], Group],
        pairs: Mapping[tuple[str, ...], Pair],
        lines: Sequence[Line],
    ) -> list[Macro]:
        """For each system the mean over the languages that all systems have; none where it has but one."""
        systems = list(dict.fromkeys(key[0] for key in groups))
        languages = dict.fromkeys(key[2] for key in groups)
        common = [
            language
            for language in languages
            if all(any(key[0] == s and key[2] == language for key in groups) for s in systems)
        ]
        found = []
        for system in dict.fromkeys(line.system for line in lines):
            own = [line for line in lines if line.system == system]
            used = [pair for key, pair in pairs.items() if key[0] == system and key[2] in common]
            if len(own) < 2:
                continue
            here = [line for line in own if line.group["language"] in common]
            verdicts = [line.verdict(self.alpha) for line in own]
            found.append(
                Macro(
                    system=system,
                    task=own[0].group["task"],
                    measure=own[0].measure,
                    better=own[0].better,
                    languages=tuple(line.group["language"] for line in here),
                    value=float(np.mean([line.value for line in here])) if here else float("nan"),
                    base=float(np.mean([line.base for line in here])) if here else float("nan"),
                    difference=self._mean_difference(used) if len(used) > 1 else None,
                    ahead=sum(line.gain > 0 for line in own),
                    of=len(own),
                    clearly_ahead=verdicts.count("better"),
                    clearly_behind=verdicts.count("worse"),
                )
            )
        tested = [macro.difference for macro in found if macro.difference]
        holm = iter(stats.holm([e.p if e.p is not None else 1.0 for e in tested]))
        return [
            replace(macro, difference=macro.difference and replace(macro.difference, p=next(holm)))
            for macro in found
        ]

    def _mean_difference(self, pairs: Sequence[Pair]) -> stats.Estimate:
        """Mean over languages of a measure, system - baseline; an item in several languages is drawn once."""
        ends = np.cumsum([len(pair.columns) for pair in pairs])
        lines = np.cumsum([len(pair) for pair in pairs])
        a_NS, b_NS = np.zeros((lines[-1], ends[-1])), np.zeros((lines[-1], ends[-1]))
        for pair, end, last in zip(pairs, ends, lines, strict=True):
            block = slice(last - len(pair), last), slice(end - len(pair.columns), end)
            a_NS[block], b_NS[block] = pair.a_NS, pair.b_NS

        def reduce(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            parts = [
                pair.reduce(sums[..., end - len(pair.columns) : end])
                for pair, end in zip(pairs, ends, strict=True)
            ]
            return np.mean(parts, axis=0)

        clusters = [label for pair in pairs for label in pair.clusters]
        found = stats.paired_difference(a_NS, b_NS, reduce, clusters=clusters, seed=self.seed)
        return replace(found, p=paired.randomisation(a_NS, b_NS, reduce, clusters=clusters, seed=self.seed))


def _adjusted(lines: list[Line]) -> list[Line]:
    raw = [line.difference.p if line.difference.p is not None else 1.0 for line in lines]
    adjusted = zip(lines, stats.bonferroni(raw), stats.holm(raw), strict=True)
    return [replace(line, p_bonferroni=one, p_holm=other) for line, one, other in adjusted]


def _asked(table: Table, metric: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Each task with each measure that it is to be compared by."""
    metrics = {task: table.where(task=task).values("metric") for task in table.values("task")}
    for name in metric or ():
        if not any(_possible(name, there) for there in metrics.values()):
            measure(name, table.values("metric"))
            raise ConfigError(f"no task has all that '{name}' is made of")
    for task, there in metrics.items():
        family = task.split("/")[0]
        listed = benchmark(family).measures if family in titles() else ()
        usable = [name for name in metric or (*listed, *MEASURES, "em") if _possible(name, there)]
        yield from ((task, name) for name in (usable if metric else usable[:1]))


def _possible(name: str, metrics: Sequence[str]) -> bool:
    try:
        measure(name, metrics)
    except ConfigError:
        return False
    return True


def _only_one(
    groups: Mapping[tuple[str, ...], Group], baseline: str, systems: Sequence[str]
) -> Iterator[str]:
    """What only the baseline or only another system ran."""
    there = {system: {key[1:] for key in groups if key[0] == system} for system in systems}
    for system in systems:
        if system == baseline or not there[system]:
            continue
        for one, other in ((system, baseline), (baseline, system)):
            if lonely := sorted(there[one] - there[other]):
                shown = ", ".join(" / ".join(key) for key in lonely[:4])
                more = f" and {len(lonely) - 4} more" if len(lonely) > 4 else ""
                yield f"only {one} and not {other} has {shown}{more}: left out"


def _lacking(rows: Table, needed: Table, by: Sequence[str], name: str) -> Iterator[str]:
    """Items that have scores, but not the ones that are compared."""

    def counted(table: Table) -> dict[tuple[str, ...], int]:
        columns = ["system", *by]
        found = table.arrow.group_by(columns).aggregate([("item", "count_distinct")]).to_pylist()
        return {tuple(row[c] for c in columns): row["item_count_distinct"] for row in found}

    there = counted(needed)
    for key, count in counted(rows).items():
        if key in there and there[key] < count:
            lacking = f"{count - there[key]} of {count} items have no '{name}'"
            yield f"{' / '.join(key)}: {lacking} and are left out"


def _missing(rows: Table, by: Sequence[str]) -> Iterator[str]:
    """Answers that were never given; they count as wrong."""
    for key, group in pivot(rows.where(metric="missing").arrow, ("system", *by)):
        if absent := int(group.values_NM.sum()):
            yield f"{' / '.join(key)}: {absent} of {len(group.units)} answers are missing and count as wrong"


def _made_differently(one: Group, other: Group) -> str:
    """In what the signatures of two groups differ; empty where in nothing, or where they have several."""
    if one.signatures == other.signatures or len(one.signatures) != 1 or len(other.signatures) != 1:
        return ""
    sides: list[dict[str, str]] = []
    for group in (one, other):
        parts = [part.partition(":") for part in group.signatures[0].split("|")]
        sides.append({name: value for name, _, value in parts})
    methods = [next(iter(side)) for side in sides]
    if methods[0] != methods[1]:
        return f"by {methods[0]} and by {methods[1]}"
    names = [
        name
        for name in {**sides[0], **sides[1]}
        if name not in _OWN and sides[0].get(name) != sides[1].get(name)
    ]
    return ", ".join(f"{name} {sides[0].get(name, '-')} and {sides[1].get(name, '-')}" for name in names)
