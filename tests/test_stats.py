import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque import stats
from calque.errors import DataError

GOLDEN = json.loads((Path(__file__).parent / "golden/corrections.json").read_text())
numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["p_values"]))
def test_corrections_are_those_of_statsmodels(case):
    assert stats.bonferroni(case["p_values"]) == pytest.approx(case["bonferroni"], abs=1e-9)
    assert stats.holm(case["p_values"]) == pytest.approx(case["holm"], abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_values_and_bonferroni(p_values):
    adjusted = stats.holm(p_values)
    assert all(p <= h <= b for p, h, b in zip(p_values, adjusted, stats.bonferroni(p_values), strict=True))
    ordered = [h for _, h in sorted(zip(p_values, adjusted, strict=True))]
    assert ordered == sorted(ordered)


@given(numbers, st.integers(0, 5))
def test_an_interval_holds_its_estimate_and_stays_within_the_values(values, seed):
    found = stats.mean(values, seed=seed)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.units == len(values)


def test_the_interval_of_a_mean_agrees_with_the_normal_one():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    found = stats.mean(values)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_about_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = stats.mean(rng.exponential(1.0, size=60), seed=trial)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / 200 <= 0.98


def test_a_ratio_is_that_of_the_sums_not_the_mean_of_ratios():
    found = stats.ratio([10, 100], [10, 50])
    assert found.value == pytest.approx(110 / 60)


@given(numbers)
def test_clusters_of_copies_are_as_wide_as_the_originals(values):
    once = stats.mean(values)
    thrice = stats.mean(np.repeat(values, 3), clusters=[str(i) for i in range(len(values)) for _ in range(3)])
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high))
    assert thrice.units == once.units


def test_ignoring_clusters_would_pretend_to_know_more():
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(size=12), 25)
    labels = [str(i) for i in range(12) for _ in range(25)]
    honest, naive = stats.mean(values, clusters=labels), stats.mean(values)
    assert honest.high - honest.low > 3 * (naive.high - naive.low)


def test_pairing_removes_what_both_systems_share():
    rng = np.random.default_rng(3)
    size = rng.integers(100, 1000, size=30).astype(float)
    hard = rng.uniform(1.0, 3.0, size=30)
    b = np.stack([size * hard, size], axis=1)
    a = np.stack([size * (hard - 0.1 + rng.normal(0, 0.02, size=30)), size], axis=1)
    paired = stats.paired_difference(a, b)
    alone = stats.ratio(a[:, 0], a[:, 1])
    assert paired.value == pytest.approx(-0.1, abs=0.02)
    assert paired.high < 0 and paired.p is not None and paired.p < 0.01
    assert (paired.high - paired.low) < (alone.high - alone.low) / 10


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=2, max_size=9))
def test_a_system_against_itself_shows_no_difference(pairs):
    nothing = stats.paired_difference(pairs, pairs)
    assert (nothing.value, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)
    same = stats.paired_quotient(pairs, pairs)
    assert (same.value, same.low, same.high, same.p) == pytest.approx((1, 1, 1, 1))


def test_false_alarms_of_the_paired_bootstrap_stay_near_five_percent():
    rng = np.random.default_rng(4)
    alarms = 0
    for trial in range(300):
        size = np.full(40, 100.0)
        a, b = (np.stack([size * rng.normal(2, 0.3, size=40), size], axis=1) for _ in range(2))
        p = stats.paired_difference(a, b, seed=trial).p
        alarms += p is not None and p < 0.05
    assert 0.02 <= alarms / 300 <= 0.09


def test_one_unit_has_a_value_and_no_interval():
    found = stats.ratio([3.0], [2.0])
    assert found.value == 1.5 and np.isnan(found.low) and np.isnan(found.high)
    assert found.text(2) == "1.50"


def test_many_units_need_little_memory_and_the_same_seed_gives_the_same_numbers():
    values = np.random.default_rng(5).normal(size=50_000)
    first = stats.bootstrap(values[:, None], lambda s: s[..., 0] / 50_000, samples=200)
    again = stats.bootstrap(values[:, None], lambda s: s[..., 0] / 50_000, samples=200)
    assert first == again


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.mean([]), "at least one unit"),
        (lambda: stats.mean([1.0, float("nan")]), "statistic 0 of unit 1 is nan"),
        (lambda: stats.ratio([1, 2], [0, 0]), "denominator sums to zero"),
        (lambda: stats.mean([1, 2], clusters=["a"]), "1 cluster labels for 2 units"),
        (lambda: stats.paired_difference([[1, 1]], [[1, 1], [2, 1]]), r"\(1, 2\) and \(2, 2\)"),
        (lambda: stats.holm([0.5, 1.5]), "p-value 1 is 1.5"),
    ],
)
def test_what_can_not_be_computed_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
