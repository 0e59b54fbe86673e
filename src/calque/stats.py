"""Intervals and tests over items: the bootstrap, its paired form, and corrections for many comparisons.

Everything here resamples whole units (documents, or clusters of them), never tokens or bytes: tokens of one
document are not independent, and an interval over tokens would be many times too narrow. A statistic is a
function of sums over units, so that a resample is one row of a matrix product. Intervals are percentile
intervals; with fewer than about ten units they are too narrow, which is why `Estimate.units` travels along.

Shape letters: N units, S summed statistics per unit, R resamples.

Paper: Efron 1979, Annals of Statistics 7(1), for the bootstrap; Koehn 2004, W04-3250, for its paired form.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import ArrayLike, NDArray

from calque.errors import DataError

_BLOCK = 1 << 22  # weights held at once, so that memory does not grow with the number of resamples

Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The point estimate, on all units.
        low: Lower end of the interval; NaN where there is only one unit.
        high: Upper end of the interval; NaN where there is only one unit.
        units: How many independent units (documents, clusters) it rests on.
        p: Two-sided bootstrap p-value against the null value, where one was given.
    """

    value: float
    low: float
    high: float
    units: int
    p: float | None = None

    def text(self, digits: int = 3) -> str:
        """As a person reads it: "2.131 [2.090, 2.170]"; without an interval the value alone."""
        shown = f"{self.value:,.{digits}f}"
        return shown if np.isnan(self.low) else f"{shown} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"


def bootstrap(
    statistics_NS: ArrayLike,
    reduce: Reduce,
    *,
    clusters: Sequence[Hashable] | None = None,
    null: float | None = None,
    level: Annotated[float, Interval(gt=0, lt=1)] = 0.95,
    samples: Annotated[int, Ge(100)] = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of a function of sums.

    Args:
        statistics_NS: [N, S] what each unit adds to each sum.
        reduce: Maps sums [..., S] to the statistic [...]; for a ratio `lambda s: s[..., 0] / s[..., 1]`.
        clusters: N labels; units with the same label are drawn together. Without it each unit is its own.
        null: The value to test against; the estimate then carries a two-sided p-value, at least 1/(R+1).
        level: Coverage of the interval.
        samples: R, the number of resamples.
        seed: Of the resampling. Equal N (or clusters) and seed draw equal units, so two calls are paired.

    Raises:
        DataError: No unit, a value that is not finite, or as many labels as units are not given.
    """
    sums_NS = by_cluster(checked(statistics_NS), clusters)
    units = len(sums_NS)
    value = float(reduce(sums_NS.sum(axis=0)))
    if units == 1:
        return Estimate(value, float("nan"), float("nan"), 1)
    rng = np.random.default_rng(seed)
    block = max(1, min(samples, _BLOCK // units))
    values: list[NDArray[np.float64]] = []
    for start in range(0, samples, block):
        count = min(block, samples - start)
        drawn_RN = rng.integers(0, units, size=(count, units)) + np.arange(count)[:, None] * units
        weights_RN = np.bincount(drawn_RN.ravel(), minlength=count * units).reshape(count, units)
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(reduce(weights_RN @ sums_NS))
    values_R = np.concatenate(values)
    values_R = values_R[np.isfinite(values_R)]
    if not len(values_R):
        return Estimate(value, float("nan"), float("nan"), units)
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), units, _p_value(values_R, null))


def quotient(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """First sum over second: a ratio, or a mean where units count themselves."""
    return sums[..., 0] / sums[..., 1]


def mean(values_N: ArrayLike, *, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> Estimate:
    """Mean over units with its interval.

    Raises:
        DataError: As `bootstrap`.
    """
    values = np.asarray(values_N, dtype=np.float64)
    return bootstrap(np.stack([values, np.ones_like(values)], axis=1), quotient, clusters=clusters, seed=seed)


def ratio(
    numerator_N: ArrayLike,
    denominator_N: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Ratio of two sums over units (bits per byte, tokens per word) with its interval.

    The ratio of sums weighs each unit by its denominator; it is not the mean of the units' ratios.

    Raises:
        DataError: As `bootstrap`, or a denominator that sums to zero.
    """
    pair_N2 = np.stack([np.asarray(numerator_N, float), np.asarray(denominator_N, float)], axis=-1)
    _refuse_zero(pair_N2)
    return bootstrap(pair_N2, quotient, clusters=clusters, seed=seed)


def paired_difference(
    a_NS: ArrayLike,
    b_NS: ArrayLike,
    reduce: Reduce = quotient,
    *,
    clusters: Sequence[Hashable] | None = None,
    samples: Annotated[int, Ge(100)] = 2000,
    seed: int = 0,
) -> Estimate:
    """Difference of a function of sums between two systems measured on the same units: f(a) - f(b).

    Args:
        a_NS: [N, S] what each unit adds to each sum of system a.
        b_NS: [N, S] the same of system b, in the same order of units.
        reduce: Maps sums [..., S] to the statistic [...]; without it, a ratio of two sums.
        clusters: As in `bootstrap`.
        samples: R, the number of resamples.
        seed: Of the resampling.

    Returns:
        The difference with its interval and the p-value of "there is none".

    Raises:
        DataError: As `bootstrap`, unequal numbers of units, or a statistic that is not defined on all units.
    """
    both, half = paired_units(a_NS, b_NS, reduce)

    def difference(s: NDArray[np.float64]) -> NDArray[np.float64]:
        return reduce(s[..., :half]) - reduce(s[..., half:])

    return bootstrap(both, difference, clusters=clusters, null=0.0, samples=samples, seed=seed)


def paired_quotient(
    a_NS: ArrayLike,
    b_NS: ArrayLike,
    reduce: Reduce = quotient,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """How many times b's statistic is a's: 0.8 says that a needs 0.8x of what b needs.

    Arguments, result and errors as `paired_difference`; the p-value is that of "the same".
    """
    both, half = paired_units(a_NS, b_NS, reduce)

    def times(s: NDArray[np.float64]) -> NDArray[np.float64]:
        return reduce(s[..., :half]) / reduce(s[..., half:])

    return bootstrap(both, times, clusters=clusters, null=1.0, seed=seed)


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: each times the number of comparisons, at most 1.

    Raises:
        DataError: A p-value outside 0..1.
    """
    return [min(1.0, p * len(p_values)) for p in _probabilities(p_values)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; never larger than Bonferroni's.

    Paper: Holm 1979, Scandinavian Journal of Statistics 6(2).

    Raises:
        DataError: A p-value outside 0..1.
    """
    checked = _probabilities(p_values)
    adjusted = [0.0] * len(checked)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(checked)), key=checked.__getitem__)):
        running = max(running, min(1.0, checked[index] * (len(checked) - rank)))
        adjusted[index] = running
    return adjusted


def _p_value(values_R: NDArray[np.float64], null: float | None) -> float | None:
    """Two-sided: twice the smaller share of resamples on either side of the null value, with one added."""
    if null is None:
        return None
    smaller = min(np.sum(values_R <= null), np.sum(values_R >= null))
    return float(min(1.0, 2 * (smaller + 1) / (len(values_R) + 1)))


def checked(statistics_NS: ArrayLike) -> NDArray[np.float64]:
    """[N, S] sums of at least one unit, all of them finite; DataError otherwise."""
    array = np.asarray(statistics_NS, dtype=np.float64)
    if array.ndim != 2 or not len(array):
        raise DataError(f"statistics of shape {array.shape}: expected [units, sums] with at least one unit")
    if not np.isfinite(array).all():
        unit, column = np.argwhere(~np.isfinite(array))[0]
        raise DataError(f"statistic {column} of unit {unit} is {array[unit, column]}; all must be finite")
    return array


def by_cluster(sums_NS: NDArray[np.float64], clusters: Sequence[Hashable] | None) -> NDArray[np.float64]:
    """Add up the units of each cluster, in order of first appearance."""
    if clusters is None:
        return sums_NS
    if len(clusters) != len(sums_NS):
        raise DataError(f"{len(clusters)} cluster labels for {len(sums_NS)} units")
    place = {label: index for index, label in enumerate(dict.fromkeys(clusters))}
    added = np.zeros((len(place), sums_NS.shape[1]))
    np.add.at(added, [place[label] for label in clusters], sums_NS)
    return added


def paired_units(a_NS: ArrayLike, b_NS: ArrayLike, reduce: Reduce) -> tuple[NDArray[np.float64], int]:
    """The sums of two systems side by side, [N, 2S], and S.

    Raises:
        DataError: Other units or sums in one than in the other, or a statistic that is not defined.
    """
    a, b = np.asarray(a_NS, dtype=np.float64), np.asarray(b_NS, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise DataError(f"shapes {a.shape} and {b.shape}: a paired test needs [units, sums] twice")
    both = checked(np.concatenate([a, b], axis=1))
    for part in (a, b):
        with np.errstate(divide="ignore", invalid="ignore"):
            value = reduce(part.sum(axis=0))
        if not np.isfinite(value):
            raise DataError(f"the statistic over all units is {value}: what it is divided by sums to zero")
    return both, a.shape[1]


def _refuse_zero(pair_N2: NDArray[np.float64]) -> None:
    if len(pair_N2) and pair_N2[:, 1].sum() == 0:
        raise DataError("the denominator sums to zero over all units; there is no ratio")


def _probabilities(p_values: Sequence[float]) -> list[float]:
    for index, p in enumerate(p_values):
        if not 0 <= p <= 1:
            raise DataError(f"p-value {index} is {p}; expected 0 <= p <= 1")
    return list(p_values)
