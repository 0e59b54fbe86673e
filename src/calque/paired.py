"""Tests of two systems on the same items, and how large a difference such a test can see.

Pairing is what makes small tests possible: two systems mostly fail on the same items, and only the items on
which they differ say which one is better. Which test: for right and wrong, `mcnemar`, which is exact; for
any other measure, and wherever items share a passage, `randomisation`.

Shape letters: N items, S summed statistics per item, R trials.

Paper: McNemar 1947, Psychometrika 12(2); Noreen 1989 and Riezler and Maxwell 2005, W05-0908, for
randomisation; Connor 1987, Biometrics 43(1), for the power of McNemar's test.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import ArrayLike

from calque.errors import DataError
from calque.stats import Reduce, by_cluster, paired_units, quotient

Share = Annotated[float, Interval(gt=0, lt=1)]
_BLOCK = 1 << 22  # signs held at once


@dataclass(frozen=True)
class Discordant:
    """Items on which exactly one of two systems is right, and the exact two-sided p-value.

    Attributes:
        only_a: Items that only the first system has right.
        only_b: Items that only the second has right.
        p: Probability of a split at least as uneven if both were equally good; 1 where there is none.
    """

    only_a: int
    only_b: int
    p: float


def mcnemar(a_N: ArrayLike, b_N: ArrayLike) -> Discordant:
    """Exact McNemar test: are the items that only one system has right split evenly?

    Args:
        a_N: [N] 1 where the first system is right, 0 where it is wrong.
        b_N: [N] the same of the second, in the same order.

    Raises:
        DataError: Unequal lengths, no item, or a value that is neither 0 nor 1.
    """
    a, b = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise DataError(f"shapes {a.shape} and {b.shape}: a paired test needs [items] twice, the same ones")
    for values in (a, b):
        if (wrong := np.flatnonzero((values != 0) & (values != 1))).size:
            raise DataError(f"item {wrong[0]} has {values[wrong[0]]}; McNemar's test needs 0 or 1")
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    return Discordant(only_a, only_b, _even_split(only_a, only_b))


def randomisation(
    a_NS: ArrayLike,
    b_NS: ArrayLike,
    reduce: Reduce = quotient,
    *,
    clusters: Sequence[Hashable] | None = None,
    samples: Annotated[int, Ge(100)] = 5000,
    seed: int = 0,
) -> float:
    """Approximate randomisation: how often do swapped systems differ as much as the real ones do?

    Under the null hypothesis it makes no difference which of two answers came from which system; each trial
    swaps those of every item (of every cluster, all at once) or leaves them. A trial that differs exactly as
    much as the real systems counts, and so do the real ones, so that the p-value never promises too much.

    Args:
        a_NS: [N, S] what each item adds to each sum of the first system.
        b_NS: [N, S] the same of the second, in the same order.
        reduce: Maps sums [..., S] to the statistic [...]; without it, a ratio of two sums.
        clusters: N labels; items with the same label are swapped together.
        samples: R, the number of trials.
        seed: Of the trials.

    Returns:
        The two-sided p-value, at least 1/(R+1).

    Raises:
        DataError: No item, other items in one than in the other, a value that is not finite, or a statistic
            that is not defined on all items.
    """
    both, half = paired_units(a_NS, b_NS, reduce)
    both = by_cluster(both, clusters)
    a, b = both[:, :half], both[:, half:]
    total, change = both.sum(axis=0), a - b
    observed = abs(float(reduce(total[:half]) - reduce(total[half:])))
    # Sums taken in another order differ in their last digits; those are ties.
    close = observed - 1e-9 * max(observed, 1e-12)
    rng = np.random.default_rng(seed)
    reached = 0
    block = max(1, min(samples, _BLOCK // len(both)))
    for start in range(0, samples, block):
        count = min(block, samples - start)
        keeps_RN = rng.integers(0, 2, size=(count, len(both)), dtype=np.int8).astype(np.float64)
        moved = keeps_RN @ change
        found = np.abs(reduce(total[half:] + moved) - reduce(total[:half] - moved))
        reached += int(np.sum(~(found < close)))
    return (reached + 1) / (samples + 1)


@dataclass(frozen=True)
class PairedT:
    """Student's paired t-test: t, degrees of freedom, two-sided p-value."""

    t: float
    df: int
    p: float


def paired_t(a_N: ArrayLike, b_N: ArrayLike) -> PairedT:
    """Paired t-test of a - b, for scores of folds or seeds.

    Folds share their training text, so that the test is too sure of itself; prefer a test on items.

    Raises:
        DataError: Unequal lengths, fewer than two pairs, a value that is not finite, or no spread at all.
    """
    from scipy.special import stdtr

    a, b = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise DataError(f"shapes {a.shape} and {b.shape}: a paired t-test needs two or more pairs")
    change = a - b
    if not np.isfinite(change).all():
        raise DataError(f"pair {np.flatnonzero(~np.isfinite(change))[0]} is not finite")
    spread = change.std(ddof=1)
    if spread == 0:
        raise DataError("all differences are the same; there is no spread to test against")
    t = float(change.mean() / (spread / math.sqrt(len(change))))
    return PairedT(t, len(a) - 1, float(2 * stdtr(len(a) - 1, -abs(t))))


def power_of_mcnemar(
    items: Annotated[int, Ge(1)], only_a: Share, only_b: Share, *, alpha: Share = 0.05
) -> float:
    """Chance that the exact test finds a difference, if these shares of all items have one system right.

    Raises:
        DataError: Shares that are no shares, or no items.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > 1 or only_a + only_b <= 0:
        raise DataError(f"shares {only_a} and {only_b}: expected two of 0 to 1, together above 0, at most 1")
    _refuse_share("alpha", alpha)
    _refuse_few(items)
    from scipy.stats import binom

    discordant = np.arange(items + 1)
    weights = binom.pmf(discordant, items, only_a + only_b)
    # The most uneven splits that the test rejects: at most `most` on the rarer side.
    most = binom.ppf(alpha / 2, discordant, 0.5)
    most = np.where(2 * binom.cdf(most, discordant, 0.5) <= alpha, most, most - 1)
    share = only_a / (only_a + only_b)
    found = binom.cdf(most, discordant, share) + binom.sf(discordant - most - 1, discordant, share)
    return float(np.sum(weights * np.where(most >= 0, found, 0.0)))


def power_of_mean(
    items: Annotated[int, Ge(2)], effect: float, spread: Annotated[float, Ge(0)], *, alpha: Share = 0.05
) -> float:
    """Chance that a paired test finds a mean difference.

    Args:
        items: How many items (or clusters) there are.
        effect: The true mean difference.
        spread: Standard deviation of the differences of single items (or clusters).
        alpha: Level of the test.

    Raises:
        DataError: No items, a spread that is not above zero, or a level outside 0..1.
    """
    _refuse_share("alpha", alpha)
    _refuse_few(items)
    if not spread > 0:
        raise DataError(f"spread is {spread}; expected a standard deviation above 0")
    shift, edge = abs(effect) * math.sqrt(items) / spread, _z(1 - alpha / 2)
    return _normal(shift - edge) + _normal(-shift - edge)


def detectable_mean(
    items: Annotated[int, Ge(2)],
    spread: Annotated[float, Ge(0)],
    *,
    alpha: Share = 0.05,
    power: Share = 0.8,
) -> float:
    """The smallest mean difference that a paired test finds with this chance.

    Arguments and errors as `power_of_mean`; its inverse.
    """
    _refuse_share("alpha", alpha)
    _refuse_share("power", power)
    _refuse_few(items)
    if not spread >= 0:
        raise DataError(f"spread is {spread}; expected a standard deviation, 0 or above")
    return (_z(1 - alpha / 2) + _z(power)) * spread / math.sqrt(items)


def detectable_share(
    items: Annotated[int, Ge(1)], discordant: Share, *, alpha: Share = 0.05, power: Share = 0.8
) -> float:
    """The smallest difference of two shares right that McNemar's test finds with this chance.

    Args:
        items: How many items there are.
        discordant: Share of items on which exactly one system is right.
        alpha: Level of the test.
        power: The chance.

    Returns:
        The difference, at most `discordant`; NaN where even that would not be found.

    Raises:
        DataError: No items, or a share, level or chance outside 0..1.
    """
    _refuse_share("alpha", alpha)
    _refuse_share("power", power)
    _refuse_share("discordant", discordant)
    _refuse_few(items)
    low, high = 0.0, discordant * (1 - 1e-9)

    def reached(effect: float) -> float:
        rarer = (discordant - effect) / 2
        return power_of_mcnemar(items, rarer + effect, rarer, alpha=alpha)

    if reached(high) < power:
        return math.nan
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return high


def _even_split(one: int, other: int) -> float:
    """Two-sided exact binomial p-value of a split of `one + other` items, half and half expected."""
    from scipy.special import bdtr

    rarer, both = min(one, other), one + other
    return 1.0 if one == other else float(min(1.0, 2 * bdtr(rarer, both, 0.5)))


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _z(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


def _refuse_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise DataError(f"{name} is {value}; expected 0 < {name} < 1")


def _refuse_few(items: int) -> None:
    if items < 1:
        raise DataError(f"{items} items; expected one or more")
