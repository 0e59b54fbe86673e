"""What a table of many languages says together: level, parity, and where knowledge is stuck in a language.

    average   A   = mean over languages L of s(L), with 2 sd / sqrt(#L): spread over languages, no test
    gap       G   = max over L of s(L) - min over L of s(L); small where all are good, and where all are bad
    mother tongue effect  MTE(L) = s(local questions of L asked in L) - s(the same asked in English)
    locality effect        LE(L) = s(local questions of L, in L) - s(English questions translated into L)
    consistency            C(L) = right in both / right in at least one, over the same questions

Two tables with the same languages are enough for all of these; which rows stand for what is a `where(...)`.

Paper: Hupkes and Bogoychev 2025, arXiv:2504.10356.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calque.errors import DataError
from calque.evaluate.groups import Pair, pivot
from calque.evaluate.measures import wanted
from calque.evaluate.table import Table
from calque.evaluate.view import Aggregate, View


@dataclass(frozen=True)
class Level:
    """One number for each language, and what they say together.

    Attributes:
        by_language: Language code -> value; NaN where it is not defined.
        average: Mean over the languages where it is defined.
        two_errors: 2 standard errors of that mean over languages; NaN for fewer than two.
        gap: Largest minus smallest.
        best: The language with the largest value, the first of equals.
        worst: The language with the smallest value, the first of equals.
    """

    by_language: Mapping[str, float]
    average: float
    two_errors: float
    gap: float
    best: str
    worst: str

    @classmethod
    def of(cls, by_language: Mapping[str, float]) -> Level:
        """Languages with their values.

        Raises:
            DataError: No language with a value.
        """
        known = {language: value for language, value in by_language.items() if not math.isnan(value)}
        if not known:
            raise DataError(f"no language has a value: {', '.join(by_language) or 'there is none'}")
        values = np.array([*known.values()])
        errors = 2 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        return cls(
            dict(by_language), float(values.mean()), float(errors), known[best] - known[worst], best, worst
        )


def level(table: Table, name: str) -> Level:
    """A measure of one system in every language: average, spread over languages, gap.

    Raises:
        DataError: Rows of several systems, or none.
        ConfigError: No such measure or metric.
    """
    return Level.of(_by_language(table, name))


def effect(one: Table, other: Table, name: str) -> Level:
    """Difference of a measure between two sets of questions, language by language.

    Mother tongue effect: `one` holds the local questions asked in their language, `other` the same questions
    asked in English. Locality effect: `other` holds English questions translated into the language. Human
    against machine translation: one of each. The language of a row is that of its questions' origin, in both.

    Raises:
        DataError: No language that both have, or as `level`.
        ConfigError: No such measure or metric.
    """
    a, b = _by_language(one, name), _by_language(other, name)
    if not (common := [language for language in a if language in b]):
        raise DataError(f"no language in common: {', '.join(a)} and {', '.join(b)}")
    return Level.of({language: a[language] - b[language] for language in common})


def consistency(one: Table, other: Table, metric: str) -> Level:
    """Right in both over right in at least one, for the same questions asked in two languages.

    A language in which no question is right on either side has no value and is left out of the mean.

    Raises:
        DataError: Questions that only one side has, or a metric that is not 0 or 1.
        ConfigError: No such metric.
    """
    found = {}
    for language, pair in _pairs(one, other, metric).items():
        a, b = pair.a_NS[:, 0], pair.b_NS[:, 0]
        if not np.isin([a, b], (0, 1)).all():
            raise DataError(f"'{metric}' in {language} is not 0 or 1 for every item; consistency needs that")
        either = float(np.maximum(a, b).sum())
        found[language] = float(np.minimum(a, b).sum()) / either if either else math.nan
    return Level.of(found)


def rank_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Spearman's correlation of two orders, of languages or of systems, over what both have.

    Raises:
        DataError: Fewer than three in common, or all values of one side equal.
    """
    from scipy.stats import spearmanr

    common = [name for name in one if name in other]
    if len(common) < 3:
        raise DataError(f"{len(common)} in common; a rank correlation needs three or more")
    sides = [[values[name] for name in common] for values in (one, other)]
    if any(len(set(side)) == 1 for side in sides):
        raise DataError("all values of one side are equal; there is no order to correlate")
    found: Any = spearmanr(sides[0], sides[1])
    return float(found.statistic)


def matrix(table: Table, name: str) -> View:
    """Languages by tasks for every system, each cell with its interval: `pivot("language", "task")`.

    Raises:
        DataError: As `Table.measure`.
        ConfigError: No such measure or metric.
    """
    return table.measure(name, by=("system", "language", "task"))


def transfer(table: Table, name: str, trained_on: Mapping[str, str] | Callable[[str], str]) -> View:
    """Training language by test language: `pivot("trained_on", "language")` is the transfer matrix.

    Args:
        table: Rows of systems that differ in the language they were trained on.
        name: A measure or metric.
        trained_on: System -> the language that it was trained on.

    Raises:
        DataError: A system without a training language, two systems with the same, or as `Table.measure`.
        ConfigError: No such measure or metric.
    """
    systems = table.values("system")
    if not callable(trained_on) and (unknown := [s for s in systems if s not in trained_on]):
        raise DataError(f"no training language for system '{unknown[0]}'; given are {', '.join(trained_on)}")
    of = {s: trained_on(s) if callable(trained_on) else trained_on[s] for s in systems}
    if len(set(of.values())) < len(of):
        raise DataError(f"two systems were trained on one language: {of}; select one with where(system=...)")
    view = table.measure(name, by=("system", "language"))
    return View(
        ("trained_on", "language"),
        tuple(
            Aggregate(
                {"trained_on": of[entry.group["system"]], "language": entry.group["language"]},
                entry.measure,
                entry.estimate,
                entry.signatures,
            )
            for entry in view
        ),
    )


def forgetting(table: Table, name: str, before: str, after: str) -> View:
    """What a system lost of what an earlier one could do, on the same items: after - before, with intervals.

    Raises:
        DataError: No rows of one of the systems.
        ConfigError: No such measure or metric.
    """
    for system in (before, after):
        if system not in table.values("system"):
            raise DataError(
                f"no system '{system}'; the table has {', '.join(table.values('system')) or 'none'}"
            )
    return table.where(system=[before, after]).compare(before, name, how="difference")


def _by_language(table: Table, name: str) -> dict[str, float]:
    systems = table.values("system")
    if len(systems) != 1:
        raise DataError(f"expected the rows of one system, found {', '.join(systems) or 'none'}")
    view = table.measure(name, by=("language",))
    return {entry.group["language"]: entry.estimate.value for entry in view}


def _pairs(one: Table, other: Table, name: str) -> dict[str, Pair]:
    """The same items of two tables by language, whatever their task, split and prompt language are called."""
    joined = Table.of(
        {**row, "system": side, "task": "", "split": "", "prompt_language": ""}
        for side, table in (("one", one), ("other", other))
        for row in table.where(metric=wanted(name, table.values("metric"))).rows()
    )
    groups = dict(pivot(joined.arrow, ("system", "language")))
    found = {}
    for (side, language), group in groups.items():
        if side == "one" and (there := groups.get(("other", language))) is not None:
            pair = Pair.of(group, there, name)
            if pair.left_out:
                raise DataError(f"{language}: {pair.left_out} questions are on one side only")
            found[language] = pair
    if not found:
        raise DataError(f"no language in common: {one.values('language')} and {other.values('language')}")
    return found
