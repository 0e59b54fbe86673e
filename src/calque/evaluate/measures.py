"""Corpus-level measures: functions of sums of item-level metrics, so that any of them can be resampled.

An item keeps components that can be added up (matches, counts, edits, bits); a measure turns their sums into
the number that is reported. The mean of a metric and the ratio of two metrics are measures too.

Shape letters: S sums, one for each metric that a measure needs; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calque.errors import ConfigError, did_you_mean

Sums = NDArray[np.float64]
COUNT = "#"  # stands among the needs of a measure for the number of items
CHRF_ORDERS = 6
CHRF_WORDS = 2
BLEU_ORDERS = 4
_BETA = 2.0
# Metrics of which less is better, as a mean or above the line of a ratio.
LOWER = frozenset(
    {
        "bits", "tokens", "seconds", "crumb_bytes", "split_words", "unknown", "repetition",
        "missing", "empty", "truncated", "copied", "copied_exact", "off_target", "repeated", "refused",
        "edits", "edit_distance", "crashed",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """What becomes of the sums over items.

    Attributes:
        name: As it is asked for and shown.
        needs: The metrics it adds up; "tp.*" means all of that prefix (an item without one has 0 of it), "#"
            the number of items.
        reduce: (sums [..., S], names of the S sums) -> the measure [...]; NaN where it is not defined.
        better: Whether more or less is better.
    """

    name: str
    needs: tuple[str, ...]
    reduce: Callable[[Sums, tuple[str, ...]], Sums]
    better: Literal["higher", "lower"] = "higher"

    def columns(self, metrics: Collection[str]) -> tuple[str, ...] | None:
        """The names of its sums where items have these metrics; None where one that it needs is not there."""
        found: list[str] = []
        for need in self.needs:
            if need.endswith("*"):
                found += sorted(metric for metric in metrics if metric.startswith(need[:-1]))
            elif need == COUNT or need in metrics:
                found.append(need)
            else:
                return None
        return tuple(found) if any(name != COUNT for name in found) else None


def measure(name: str, metrics: Collection[str] | None = None) -> Measure:
    """The measure of that name: one of `MEASURES`, else the mean of a metric, else a ratio "ABOVE/BELOW".

    Args:
        name: What is asked for: "chrf", "em", "bits/bytes".
        metrics: The metrics that there are; without them, what is no measure by name is the mean of a metric.

    Raises:
        ConfigError: Nothing of that name can be made of these metrics; with the nearest names.
    """
    known = MEASURES.get(name) or _prefixed(name)
    if known and (metrics is None or known.columns(metrics) is not None):
        return known
    if metrics is None or name in metrics:
        return _mean(name)
    for place in (i for i, letter in enumerate(name) if letter == "/"):
        above, below = name[:place], name[place + 1 :]
        if above in metrics and below in metrics:
            better = "lower" if above in LOWER else "higher"
            return Measure(name, (above, below), lambda sums, _: sums[..., 0] / sums[..., 1], better)
    if known:
        raise ConfigError(f"measure '{name}' needs the metrics {', '.join(known.needs)}; {_there(metrics)}")
    usable = [m.name for m in MEASURES.values() if m.columns(metrics) is not None]
    hint = did_you_mean(name, [*usable, *metrics])
    raise ConfigError(f"no measure or metric '{name}'{hint}; {_there([*usable, *metrics])}")


def wanted(name: str, metrics: Collection[str]) -> list[str]:
    """Every metric that a measure of that name could need, in the order given."""
    found = {name}
    if known := MEASURES.get(name) or _prefixed(name):
        found |= set(known.columns(metrics) or ())
    for place in (i for i, letter in enumerate(name) if letter == "/"):
        found |= {name[:place], name[place + 1 :]}
    return [metric for metric in metrics if metric in found]


def _there(names: Collection[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - 24} more" if len(shown) > 24 else ""
    return f"there are {', '.join(shown[:24])}{more}" if shown else "there are none"


def _prefixed(name: str) -> Measure | None:
    """ "argument.f1" is the f1 of argument.tp, argument.fp and argument.fn; None for other names."""
    prefix, _, last = name.rpartition(".")
    base = MEASURES.get(last)
    if not prefix or base is None or base.needs[0] not in ("tp", "tp.*"):
        return None
    needs = tuple(f"{prefix}.{need}" for need in base.needs)
    cut = len(prefix) + 1
    return replace(
        base, name=name, needs=needs, reduce=lambda s, n: base.reduce(s, tuple(m[cut:] for m in n))
    )


def _mean(metric: str) -> Measure:
    better = "lower" if metric.split("/")[0] in LOWER else "higher"
    return Measure(metric, (metric, COUNT), _quotient, better)


def _quotient(sums: Sums, _: tuple[str, ...]) -> Sums:
    return sums[..., 0] / sums[..., 1]


def _or_zero(above: Sums, below: Sums) -> Sums:
    """A ratio that is 0 where there is nothing below the line."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def _f1(sums: Sums, _: tuple[str, ...]) -> Sums:
    tp, fp, fn = (sums[..., i] for i in range(3))
    return 2 * tp / (2 * tp + fp + fn)


def _share(sums: Sums, _: tuple[str, ...]) -> Sums:
    """Precision or recall: right ones among right and wrong ones."""
    return _or_zero(sums[..., 0], sums[..., 0] + sums[..., 1])


def _by_class(sums: Sums, names: tuple[str, ...]) -> tuple[Sums, Sums, Sums]:
    """(tp, fp, fn), each [..., K]; a class that lacks one of them has 0 of it."""
    place = {name: index for index, name in enumerate(names)}
    nothing = np.zeros(sums.shape[:-1])

    def of(kind: str, label: str) -> Sums:
        found = place.get(f"{kind}.{label}")
        return nothing if found is None else sums[..., found]

    labels = dict.fromkeys(name.split(".", 1)[1] for name in names)
    tp, fp, fn = (np.stack([of(kind, label) for label in labels], axis=-1) for kind in ("tp", "fp", "fn"))
    return tp, fp, fn


def _macro_f1(sums: Sums, names: tuple[str, ...]) -> Sums:
    """Mean over the classes that occur, in the gold answers or in the given ones."""
    tp, fp, fn = _by_class(sums, names)
    occurs = (tp + fp + fn) > 0
    return _or_zero(2 * tp, 2 * tp + fp + fn).sum(axis=-1) / occurs.sum(axis=-1)


def _macro_f1_all(sums: Sums, names: tuple[str, ...]) -> Sums:
    """Mean over all classes that are named; one that never occurs has an F1 of 0."""
    tp, fp, fn = _by_class(sums, names)
    return _or_zero(2 * tp, 2 * tp + fp + fn).mean(axis=-1)


def _macro_f1_gold(sums: Sums, names: tuple[str, ...]) -> Sums:
    """Mean over the classes that occur in the gold answers."""
    tp, fp, fn = _by_class(sums, names)
    occurs = (tp + fn) > 0
    return (_or_zero(2 * tp, 2 * tp + fp + fn) * occurs).sum(axis=-1) / occurs.sum(axis=-1)


def _weighted_f1(sums: Sums, names: tuple[str, ...]) -> Sums:
    """Mean over classes, each as often as it occurs in the gold answers."""
    tp, fp, fn = _by_class(sums, names)
    return (_or_zero(2 * tp, 2 * tp + fp + fn) * (tp + fn)).sum(axis=-1) / (tp + fn).sum(axis=-1)


def _spearman(sums: Sums, _: tuple[str, ...]) -> Sums:
    """Pearson's correlation of sums over ranks: n, x, y, xy, xx, yy."""
    n, x, y, xy, xx, yy = (sums[..., i] for i in range(6))
    return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))


def _lost(sums: Sums, _: tuple[str, ...]) -> Sums:
    """What is no longer right, in per cent of what was right before; less than 0 where more is right now."""
    return 100 * (sums[..., 0] - sums[..., 1]) / sums[..., 0]


def _gained(sums: Sums, _: tuple[str, ...]) -> Sums:
    return (sums[..., 1] - sums[..., 0]) / sums[..., 2]


def _f1_of_shares(sums: Sums, _: tuple[str, ...]) -> Sums:
    """F1 of a precision and a recall that have sums of their own."""
    precision, recall = _or_zero(sums[..., 0], sums[..., 1]), _or_zero(sums[..., 2], sums[..., 3])
    return _or_zero(2 * precision * recall, precision + recall)


def _bleu(sums: Sums, names: tuple[str, ...]) -> Sums:
    """As sacreBLEU: geometric mean of clipped precisions, orders without a match smoothed by halving."""
    orders = (len(names) - 2) // 2
    right, total = sums[..., :orders], sums[..., orders : 2 * orders]
    written, expected = sums[..., -2], sums[..., -1]
    halved = 0.5 ** np.cumsum(right == 0, axis=-1)
    precision = _or_zero(100 * np.where(right > 0, right, halved), total)
    with np.errstate(divide="ignore"):
        score = np.exp(np.log(precision).mean(axis=-1))
    short = np.exp(np.minimum(0.0, 1 - expected / np.maximum(written, 1e-300)))
    return np.where(right.any(axis=-1) & (written > 0), short * score, 0.0)


def _chrf(sums: Sums, names: tuple[str, ...]) -> Sums:
    """As sacreBLEU: F of the mean precision and the mean recall over the orders that occur on both sides."""
    orders = len(names) // 3
    given, expected, match = (sums[..., i * orders : (i + 1) * orders] for i in range(3))
    occurs = (given > 0) & (expected > 0)
    count = occurs.sum(axis=-1)
    precision = _or_zero(np.where(occurs, _or_zero(match, given), 0).sum(axis=-1), count)
    recall = _or_zero(np.where(occurs, _or_zero(match, expected), 0).sum(axis=-1), count)
    return 100 * _or_zero((1 + _BETA**2) * precision * recall, _BETA**2 * precision + recall)


def _ter(sums: Sums, _: tuple[str, ...]) -> Sums:
    """Edits in per cent of the mean length of the references; 100 where only those are empty."""
    edits, length = sums[..., 0], sums[..., 1]
    return 100 * np.where(length > 0, _or_zero(edits, length), (edits > 0).astype(float))


def _numbered(prefix: str, kinds: Sequence[str], orders: int) -> tuple[str, ...]:
    return tuple(f"{prefix}.{kind}{order}" for kind in kinds for order in range(1, orders + 1))


BLEU_PARTS = (*_numbered("bleu", "ct", BLEU_ORDERS), "bleu.hyp", "bleu.ref")
CHRF_PARTS = _numbered("chrf", "hrm", CHRF_ORDERS)
CHRF_PLUS_PARTS = _numbered("chrf++", "hrm", CHRF_ORDERS + CHRF_WORDS)
SPEARMAN_PARTS = tuple(f"spearman.{part}" for part in ("n", "x", "y", "xy", "xx", "yy"))
_CARB = ("carb.made", "carb.recalled", "carb.gold")
TER_PARTS = ("ter.edits", "ter.ref")

MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        Measure("bits_per_byte", ("bits", "bytes"), _quotient, "lower"),
        Measure("accuracy", ("correct", COUNT), _quotient),
        Measure("f1", ("tp", "fp", "fn"), _f1),
        Measure("precision", ("tp", "fp"), _share),
        Measure("recall", ("tp", "fn"), _share),
        Measure("macro_f1", ("tp.*", "fp.*", "fn.*"), _macro_f1),
        Measure("macro_f1_all", ("tp.*", "fp.*", "fn.*"), _macro_f1_all),
        Measure("macro_f1_gold", ("tp.*", "fp.*", "fn.*"), _macro_f1_gold),
        Measure("weighted_f1", ("tp.*", "fp.*", "fn.*"), _weighted_f1),
        Measure("carb.f1", ("carb.precise", *_CARB), _f1_of_shares),
        Measure("carb/published.f1", ("carb/published.precise", *_CARB), _f1_of_shares),
        Measure("forgetting", ("correct.before", "correct"), _lost, "lower"),
        Measure("gain", ("correct.before", "correct", COUNT), _gained),
        Measure("spearman", SPEARMAN_PARTS, _spearman),
        Measure("map_published", ("ap/published", "found"), _quotient),
        Measure("bleu", BLEU_PARTS, _bleu),
        Measure("chrf", CHRF_PARTS, _chrf),
        Measure("chrf++", CHRF_PLUS_PARTS, _chrf),
        Measure("ter", TER_PARTS, _ter, "lower"),
    )
}
