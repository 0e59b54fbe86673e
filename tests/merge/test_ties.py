"""TIES: exact trimming over the whole model, ties included, and the election of signs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.merge import survey as surveying
from calque.merge.task_vector import Numbers, Rule, _combine
from calque.merge.ties import ties, ties_per_tensor
from calque.merge.trim import largest

from .kin import changed, close, computed, family, vector, vectors


def kept(values_D, count):
    """The `count` largest magnitudes; of equal ones the earlier."""
    order = np.lexsort((np.arange(len(values_D)), -np.abs(values_D)))[:count]
    result = np.zeros_like(values_D)
    result[order] = values_D[order]
    return result


def elected(trimmed_ND, weights, normalize=True):
    """The merged task vector of trimmed ones, in float64."""
    weighted = trimmed_ND.astype(float) * np.array(weights, float)[:, None]
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    agreeing = np.sign(weighted) == sign
    total = (weighted * agreeing).sum(0)
    divisor = (agreeing * np.array(weights, float)[:, None]).sum(0)
    return total / np.where(divisor == 0, 1, divisor) if normalize else total


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.02, 0.03, 0.01))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """Models whose changes have few different sizes, as those of 16-bit weights do."""
    root = tmp_path_factory.mktemp("coarse")
    first, _ = family(root / "first", ())
    base = changed(first, root / "base", lambda _, t: (t * 256).round() / 256)
    generator = torch.Generator().manual_seed(0)
    return base, [
        changed(
            base, root / f"t{n}", lambda _, t: t + torch.randint(-4, 5, t.shape, generator=generator) / 256
        )
        for n in range(2)
    ]


@pytest.mark.parametrize("which", ["models", "coarse"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sampled", [False, True])
def test_whole_model_against_sorting(which, density, sampled, request, monkeypatch):
    base, tuned = request.getfixturevalue(which)
    if sampled:
        monkeypatch.setattr(surveying, "_SMALL", 1)
    weights = [1.0, 0.5, 2.0][: len(tuned)]
    found = computed(ties(base, tuned, density=density, weights=weights, scale=0.8))
    task_vectors = vectors(base, tuned)
    size = task_vectors.shape[1]
    trimmed = np.stack([kept(row, int(density * size)) for row in task_vectors])
    before = np.concatenate([base.read(n).numpy().ravel() for n in base.tensors])
    after = np.concatenate([found[n].numpy().ravel() for n in base.tensors])
    np.testing.assert_allclose(after - before, 0.8 * elected(trimmed, weights), atol=1e-6)


@pytest.mark.parametrize("which", ["models", "coarse"])
@pytest.mark.parametrize("normalize", [True, False])
def test_per_tensor_against_sorting(which, normalize, request):
    base, tuned = request.getfixturevalue(which)
    found = computed(ties_per_tensor(base, tuned, density=0.3, normalize=normalize))
    for name in base.tensors:
        before = base.read(name).numpy().ravel()
        deltas = [t.read(name).numpy().ravel() - before for t in tuned]
        trimmed = np.stack([kept(d, max(1, int(0.3 * len(d)))) for d in deltas])
        expected = elected(trimmed, [1.0] * len(tuned), normalize)
        np.testing.assert_allclose(found[name].numpy().ravel() - before, expected, atol=1e-6)


def test_exactly_k_entries_survive(coarse):
    base, tuned = coarse
    for model in tuned:
        found = computed(ties(base, [model], density=0.37))
        changes = sum(int((found[n] != base.read(n)).sum()) for n in base.tensors)
        size = sum(base.read(n).numel() for n in base.tensors)
        assert changes == int(0.37 * size)


def test_identities(models, tmp_path):
    base, tuned = models
    assert close(ties(base, tuned[:1], density=1.0).write(tmp_path / "one"), tuned[0])
    once = ties(base, tuned[:1], density=0.3).write(tmp_path / "once")
    twice = ties(base, [tuned[0]] * 2, density=0.3).write(tmp_path / "twice")
    assert close(once, twice)
    orders = [computed(ties(base, order, density=0.3)) for order in (tuned, tuned[::-1])]
    assert all(torch.allclose(orders[0][n], orders[1][n], atol=1e-6) for n in base.tensors)
    whole = [computed(method(base, tuned, density=1.0)) for method in (ties, ties_per_tensor)]
    assert all(torch.allclose(whole[0][n], whole[1][n], atol=1e-7) for n in base.tensors)


def test_trimming_the_whole_model_is_another_method(models, tmp_path):
    base, (one, *_) = models
    quiet = changed(
        one, tmp_path / "quiet", lambda n, t: base.read(n) + (t - base.read(n)) * (1e-3 if "mlp" in n else 1)
    )
    whole = ties(base, [quiet], density=0.2).write(tmp_path / "whole")
    apart = ties_per_tensor(base, [quiet], density=0.2).write(tmp_path / "apart")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(whole.read(name), base.read(name))
    assert not torch.equal(apart.read(name), base.read(name))
    assert np.count_nonzero(vector(base, whole)) == int(0.2 * len(vector(base, whole)))


@settings(deadline=None, max_examples=50)
@given(
    size=st.integers(1, 400), levels=st.integers(1, 6), share=st.floats(0, 1),
    height=st.integers(1, 50), seed=st.integers(0, 99),
)  # fmt: skip
def test_cuts_are_exact_in_blocks_of_any_height(size, levels, share, height, seed):
    values = torch.from_numpy(np.random.default_rng(seed).integers(-levels, levels + 1, size)).float()
    count = max(1, int(share * size))
    cut = largest(lambda: iter(values.split(height)), size, count)
    trim = cut.trimmer()
    found = torch.cat([trim(block.clone()) for block in values.split(height)])
    np.testing.assert_array_equal(found.numpy(), kept(values.numpy(), count))


@settings(deadline=None, max_examples=50)
@given(
    models=st.integers(1, 4), seed=st.integers(0, 99), normalize=st.booleans(),
    elect=st.sampled_from(["sum", "count"]),
)  # fmt: skip
def test_elections(models, seed, normalize, elect):
    rng = np.random.default_rng(seed)
    deltas = rng.integers(-3, 4, (models, 60)).astype(np.float32)
    weights = rng.choice([0.5, 1.0, 2.0], models)
    base = torch.zeros(60)
    blocks = (base, *(torch.from_numpy(d.copy()) for d in deltas))
    rule = Rule(trim="largest", elect=elect, normalize=normalize)
    _combine(blocks, Numbers(weights=tuple(weights), scale=1.0), [1.0] * models, rule)
    weighted = deltas * weights[:, None]
    votes = weighted.sum(0) if elect == "sum" else np.sign(weighted).sum(0)
    agreeing = np.sign(weighted) == np.where(votes >= 0, 1, -1)
    total, divisor = (weighted * agreeing).sum(0), (weights[:, None] * agreeing).sum(0)
    expected = total / np.where(divisor == 0, 1, divisor) if normalize else total
    np.testing.assert_allclose(base.numpy(), expected, atol=1e-5)
