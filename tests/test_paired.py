"""Paired tests: exact values, false alarms under the null, and power against the unpaired test."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque import paired, stats
from calque.errors import DataError

GOLDEN = json.loads((Path(__file__).parent / "golden/33-bavarian-low-resource-nmt.json").read_text())
FOLDS = [case for case in GOLDEN["cases"] if case["kind"] == "paired_t"]
answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def counted(values):
    values = np.asarray(values, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=-1)


def exams(rng, trials, items, better=0.0, hard=0.25):
    """[trials, items] right or wrong, twice: two systems that mostly fail on the same items."""
    known = rng.uniform(size=(trials, items)) < 0.5
    a, b = (
        np.where(rng.uniform(size=known.shape) < hard, rng.uniform(size=known.shape) < 0.5, known)
        for _ in "ab"
    )
    lifted = rng.uniform(size=known.shape) < better
    return (a | lifted).astype(float), b.astype(float)


@pytest.mark.parametrize("case", FOLDS, ids=lambda case: str(case["t"]))
def test_the_t_test_on_folds_is_that_of_scipy(case):
    found = paired.paired_t(case["a"], case["b"])
    assert (found.t, found.df) == (pytest.approx(case["t"], abs=1e-9), case["df"])
    assert found.p == pytest.approx(case["p"], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(answers)
def test_mcnemar_is_the_exact_binomial_test(pairs):
    from scipy.stats import binomtest

    a, b = np.array(pairs, dtype=float).T
    found = paired.mcnemar(a, b)
    discordant = found.only_a + found.only_b
    expected = binomtest(found.only_a, discordant).pvalue if discordant else 1.0
    assert found.p == pytest.approx(expected, abs=1e-12)
    other = paired.mcnemar(b, a)
    assert (other.only_a, other.only_b, other.p) == (found.only_b, found.only_a, found.p)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=7))
def test_randomisation_agrees_with_all_swaps(pairs):
    a, b = np.array(pairs, dtype=float).T
    change = a - b
    signs = np.array(np.meshgrid(*[[1, -1]] * len(a))).reshape(len(a), -1)
    exact = np.mean(np.abs(change @ signs) >= abs(change.sum()) - 1e-9)
    found = paired.randomisation(counted(a), counted(b), samples=4000)
    assert found == pytest.approx(exact, abs=0.04)
    assert found == paired.randomisation(counted(a), counted(b), samples=4000)


def test_swapping_whole_passages_is_more_careful():
    rng = np.random.default_rng(0)
    passage = np.repeat(rng.normal(0.15, 0.3, size=20), 10)
    labels = [str(i // 10) for i in range(200)]
    a, b = counted(passage), counted(np.zeros(200))
    alone, together = paired.randomisation(a, b), paired.randomisation(a, b, clusters=labels)
    assert alone < 0.001 < together


def alarms(test, trials, draw):
    return np.mean([test(*draw()) < 0.05 for _ in range(trials)])


def test_false_alarms_of_every_test_stay_near_five_percent():
    """Two systems that are equally good: 5 % +- 1.5 % of tests may say otherwise."""
    rng = np.random.default_rng(1)
    a, b = exams(rng, 2000, 1000)
    split = paired.mcnemar
    assert 0.035 <= np.mean([split(x, y).p < 0.05 for x, y in zip(a, b, strict=True)]) <= 0.065

    def scores():
        hard = rng.normal(size=60)
        return (counted(hard + rng.normal(size=60)) for _ in "ab")

    def swapped(x, y):
        return paired.randomisation(x, y, samples=200)

    def resampled(x, y):
        return stats.paired_difference(x, y, samples=200).p

    assert 0.035 <= alarms(swapped, 1200, scores) <= 0.065
    assert 0.035 <= alarms(resampled, 1200, scores) <= 0.065
    labels = np.repeat(np.arange(60), 4).tolist()

    def passages():
        shared = rng.normal(size=(2, 60)).repeat(4, axis=1)
        return (counted(line + rng.normal(size=240)) for line in shared)

    def by_passage(x, y):
        return paired.randomisation(x, y, clusters=labels, samples=200)

    def drawn_by_passage(x, y):
        return stats.paired_difference(x, y, clusters=labels, samples=200).p

    assert 0.035 <= alarms(by_passage, 1200, passages) <= 0.065
    assert 0.035 <= alarms(drawn_by_passage, 1200, passages) <= 0.065
    assert alarms(swapped, 300, passages) > 0.15  # what it costs not to know the passages


def test_pairing_finds_what_the_unpaired_test_misses():
    """250 items, as in many multilingual tests: at least 1.5 times the power of the unpaired z-test."""
    rng = np.random.default_rng(2)
    a, b = exams(rng, 1500, 250, better=0.13)
    means = a.mean(axis=1), b.mean(axis=1)
    z = (means[0] - means[1]) / np.sqrt(sum(m * (1 - m) / 250 for m in means))
    unpaired = np.mean(np.abs(z) > 1.96)
    exact = np.mean([paired.mcnemar(x, y).p < 0.05 for x, y in zip(a, b, strict=True)])
    few = zip(a[:400], b[:400], strict=True)
    swapped = np.mean([paired.randomisation(counted(x), counted(y), samples=400) < 0.05 for x, y in few])
    assert 0.2 < unpaired < 0.6
    assert exact >= 1.5 * unpaired and swapped >= 1.5 * unpaired
    shares = np.mean(a > b), np.mean(b > a)
    assert paired.power_of_mcnemar(250, *map(float, shares)) == pytest.approx(exact, abs=0.04)


def test_power_of_a_mean_is_what_simulation_gives():
    rng = np.random.default_rng(3)
    change = rng.normal(0.2, 1.0, size=(4000, 200))
    seen = np.mean(np.abs(change.mean(axis=1)) / (change.std(axis=1) / math.sqrt(200)) > 1.96)
    assert paired.power_of_mean(200, 0.2, 1.0) == pytest.approx(seen, abs=0.02)
    assert paired.power_of_mean(200, 0.0, 1.0) == pytest.approx(0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 2000), st.floats(0.01, 10), st.floats(0.5, 0.99))
def test_what_is_detectable_has_the_power_asked_for(items, spread, power):
    effect = paired.detectable_mean(items, spread, power=power)
    assert paired.power_of_mean(items, effect, spread) == pytest.approx(power, abs=1e-4)


def test_more_items_and_fewer_disagreements_show_smaller_differences():
    found = [paired.detectable_share(n, 0.3) for n in (100, 250, 1000)]
    assert found == sorted(found, reverse=True) and 0.05 < found[1] < 0.15
    assert paired.detectable_share(250, 0.1) < paired.detectable_share(250, 0.3)
    assert math.isnan(paired.detectable_share(20, 0.05))
    effect = found[1]
    assert paired.power_of_mcnemar(250, 0.15 + effect / 2, 0.15 - effect / 2) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired.mcnemar([1, 0], [1]), r"shapes \(2,\) and \(1,\)"),
        (lambda: paired.mcnemar([], []), "a paired test needs"),
        (lambda: paired.mcnemar([1, 0.5], [1, 1]), "item 1 has 0.5; McNemar's test needs 0 or 1"),
        (lambda: paired.mcnemar([1, 0], [1, math.nan]), "item 1 has nan"),
        (lambda: paired.randomisation([[1, 1]], [[1, 1], [0, 1]]), r"shapes \(1, 2\) and \(2, 2\)"),
        (lambda: paired.randomisation([[1, 0]], [[1, 1]]), "sums to zero"),
        (lambda: paired.randomisation([[math.nan, 1]], [[1, 1]]), "statistic 0 of unit 0 is nan"),
        (lambda: paired.randomisation([[1, 1]], [[1, 1]], clusters=["a", "b"]), "2 cluster labels"),
        (lambda: paired.paired_t([1], [2]), "two or more pairs"),
        (lambda: paired.paired_t([1, 2], [2, 3]), "no spread"),
        (lambda: paired.paired_t([1, math.inf], [2, 3]), "pair 1 is not finite"),
        (lambda: paired.power_of_mcnemar(10, 0.8, 0.4), "shares 0.8 and 0.4"),
        (lambda: paired.power_of_mcnemar(0, 0.2, 0.1), "0 items"),
        (lambda: paired.power_of_mean(10, 1, 0), "spread is 0"),
        (lambda: paired.detectable_mean(10, 1, alpha=1.5), "alpha is 1.5"),
        (lambda: paired.detectable_share(10, 1.2), "discordant is 1.2"),
        (lambda: paired.detectable_share(10, 0.2, power=1), "power is 1"),
    ],
)
def test_what_can_not_be_tested_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
