"""PCB-Merging: the authors' numbers, the worked example, identities, and the same from files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.errors import ConfigError
from calque.merge import survey as surveying
from calque.merge.pcb import Limits, magnitude_places, pcb, score_places, scores, shares, sum_of_shares
from calque.merge.quantile import OrderStatistic, keys, magnitude_keys, search

from .golden import array_of, cases, check
from .kin import changed, family, same, vector, vectors

VARIANTS = {
    "standalone": (1e-4, "tanh"),
    "nlp": (1e-2, "tanh"),
    "vision": (1e-2, "normalized"),
    "vision_es": (1e-2, "pairwise"),
}


def merged(vectors_ND, keep, *, clamp=1e-4, inter="tanh", scales=None, dtype=torch.float64):
    """The merged task vector of vectors in memory, and the share of each model."""
    deltas = [torch.from_numpy(np.array(row)).to(dtype) for row in np.asarray(vectors_ND, dtype=float)]
    size = len(deltas[0])

    def found(places, streams):
        both = [[OrderStatistic(place, size) for place in places] for _ in streams]
        for ones, stream in zip(both, streams, strict=True):
            search(ones, lambda stream=stream: [stream])
        return [[one.value for one in ones] for ones in both]

    ends = found(magnitude_places(size, clamp), [magnitude_keys(d) for d in deltas])
    limits = [Limits(*pair) for pair in ends]
    tops = found(score_places(size, keep), [keys(s) for s in scores(deltas, limits, inter)])
    limits = [Limits(low, high, *pair) for (low, high), pair in zip(ends, tops, strict=True)]
    parts = shares(deltas, limits, inter)
    return sum_of_shares([p.clone() for p in parts], scales or [1.0] * len(parts)).numpy(), parts


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", cases("14-pcb-merging"))
def test_the_authors_numbers(case, variant):
    clamp, inter = VARIANTS[variant]
    inputs = case["inputs"]
    if case["name"] == "opposite_models":
        row = array_of(inputs["task_vectors_row0"])[0]
        result, _ = merged([row, -row], case["params"]["pcb_ratio"], clamp=clamp, inter=inter)
        if inter == "tanh":
            assert not result.any()
        return
    task_vectors = array_of(inputs["task_vectors"])
    expected = case["outputs"][variant]
    keep = case["params"]["pcb_ratio"]
    result, _ = merged(task_vectors, keep, clamp=clamp, inter=inter)
    check(result, expected["merged_tv"])
    assert np.count_nonzero(result) == expected["merged_nonzero"]
    if "merged_tv_lams" in expected:
        result, _ = merged(task_vectors, keep, clamp=clamp, inter=inter, scales=case["params"]["lams"])
        check(result, expected["merged_tv_lams"])


T1 = [0.10, -0.20, 0.30, 0.00, 0.40, -0.05, 0.15, 0.25, -0.35, 0.02]
T2 = [0.12, 0.22, -0.10, 0.31, 0.38, -0.06, -0.17, 0.05, -0.30, 0.04]


def test_the_worked_example():
    result, _ = merged([T1, T2], 0.3)
    expected = np.zeros(10)
    expected[4], expected[8] = 0.33, -0.332867
    np.testing.assert_allclose(result, expected, atol=1e-6)
    result, _ = merged([T1, T2], 1.0)
    expected = [0.112485, 0.22, 0.3, 0.3069, 0.33, -0.056907, -0.136454, 0.219549, -0.327992, 0.034829]
    np.testing.assert_allclose(result, expected, atol=1e-6)


drawn = st.builds(
    lambda seed, models, size: np.random.default_rng(seed).standard_normal((models, size)) * 1e-2,
    st.integers(0, 99), st.integers(1, 4), st.integers(20, 300),
)  # fmt: skip
some_inter = st.sampled_from(["tanh", "normalized", "pairwise"])


@settings(deadline=None, max_examples=25)
@given(vectors_ND=drawn, keep=st.floats(0.05, 1), inter=some_inter, seed=st.integers(0, 9))
def test_order_of_models_and_coordinates_does_not_matter(vectors_ND, keep, inter, seed):
    rng = np.random.default_rng(seed)
    models, places = rng.permutation(len(vectors_ND)), rng.permutation(vectors_ND.shape[1])
    result, _ = merged(vectors_ND, keep, inter=inter)
    turned, _ = merged(vectors_ND[models][:, places], keep, inter=inter)
    np.testing.assert_allclose(turned, result[places], atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(vectors_ND=drawn, keep=st.floats(0.05, 1), inter=some_inter)
def test_kept_values_are_mixtures_of_the_models_and_their_number_is_exact(vectors_ND, keep, inter):
    size = vectors_ND.shape[1]
    result, parts = merged(vectors_ND, keep, inter=inter, clamp=0.0)
    kept = np.stack([part.numpy() != 0 for part in parts])
    if inter == "tanh":
        assert (kept.sum(1) == size - int(size * (1 - keep)) - 1).all()
    low = np.where(kept, vectors_ND, np.inf).min(0)
    high = np.where(kept, vectors_ND, -np.inf).max(0)
    some = kept.any(0)
    assert (result[~some] == 0).all()
    assert (result[some] >= low[some] - 1e-12).all() and (result[some] <= high[some] + 1e-12).all()
    alone = kept.sum(0) == 1
    np.testing.assert_allclose(result[alone], (vectors_ND * kept).sum(0)[alone])


def test_one_model_keeps_its_largest_changes():
    row = np.random.default_rng(0).standard_normal(200) * 1e-2
    result, _ = merged([row], 0.2, clamp=0.0)
    threshold = np.sort(np.abs(row))[int(200 * 0.8)]
    np.testing.assert_allclose(result, np.where(np.abs(row) > threshold, row, 0))


def test_scaled_changes_scale_the_result():
    both = np.random.default_rng(1).standard_normal((2, 500)) * 1e-4
    small, _ = merged(both, 0.1)
    large, _ = merged(both * 3, 0.1)
    np.testing.assert_allclose(large, 3 * small, rtol=1e-6, atol=1e-12)


def test_equal_scores_and_unchanged_models_give_no_weight():
    result, _ = merged(np.zeros((2, 50)), 0.5)
    assert not result.any() and np.isfinite(result).all()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), sizes=(0.01, 0.03))


@pytest.mark.parametrize(("clamp", "inter"), list(VARIANTS.values()))
def test_files_give_what_vectors_in_memory_give(models, tmp_path, clamp, inter, monkeypatch):
    monkeypatch.setattr(surveying, "_SMALL", 1)  # go through samples, as a large model does
    base, tuned = models
    out = pcb(base, tuned, keep=0.2, clamp=clamp, inter=inter, scale=1.5, scales=[1.0, 0.8])
    expected, _ = merged(
        vectors(base, tuned), 0.2, clamp=clamp, inter=inter, scales=[1.5, 1.2], dtype=torch.float32
    )
    written = out.write(tmp_path / "out")
    np.testing.assert_allclose(vector(base, written), expected, atol=2e-7)
    notes = json.loads((tmp_path / "out/rewrite.json").read_text())
    assert len(notes["limits"]) == 2 and notes["limits"][0]["floor"] < notes["limits"][0]["top"]


def test_a_share_of_nothing_is_the_base(models, tmp_path):
    base, tuned = models
    assert same(pcb(base, tuned, keep=1e-17).write(tmp_path / "out"), base)


def test_scale_zero_is_the_base(models, tmp_path):
    base, tuned = models
    assert same(pcb(base, tuned, scale=0.0).write(tmp_path / "out"), base)


def test_opposite_models_give_the_base(models, tmp_path):
    grid = 1024  # numbers on a grid have exactly opposite steps, also in float32
    base = changed(models[0], tmp_path / "base", lambda _, tensor: (tensor * grid).round() / grid)
    step = {name: torch.randint(-9, 10, base.info(name).shape) / grid for name in base.tensors}
    one = changed(base, tmp_path / "one", lambda name, tensor: tensor + step[name])
    other = changed(base, tmp_path / "other", lambda name, tensor: tensor - step[name])
    assert same(pcb(base, [one, other]).write(tmp_path / "out"), base)


def test_scales_must_be_one_per_model(models):
    with pytest.raises(ConfigError, match="3 numbers for 2"):
        pcb(*models, scales=[1, 2, 3])
