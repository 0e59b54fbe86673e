"""Model Breadcrumbs: the middle of the magnitudes, counted exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.merge import trim
from calque.merge.breadcrumbs import breadcrumbs
from calque.merge.task_arithmetic import task_arithmetic
from calque.merge.ties import ties_per_tensor

from .kin import close, computed, family


def middle(values_D, density, outliers):
    """What stays of a tensor, by sorting: earlier entries count as larger."""
    size = len(values_D)
    count = int(density * size)
    top = min(int(outliers * size), size - count)
    order = np.lexsort((np.arange(size), -np.abs(values_D)))[top : top + count]
    result = np.zeros_like(values_D)
    result[order] = values_D[order]
    return result


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.02, 0.03))


@pytest.mark.parametrize(("density", "outliers"), [(0.5, 0.01), (0.9, 0.3), (0.2, 0.0), (0.7, 0.3)])
def test_against_sorting(models, density, outliers):
    base, tuned = models
    found = computed(
        breadcrumbs(base, tuned, density=density, outliers=outliers, weights=[0.5, 2.0], scale=0.4)
    )
    for name in base.tensors:
        before = base.read(name).numpy().ravel()
        rest = [middle(t.read(name).numpy().ravel() - before, density, outliers) for t in tuned]
        expected = before + 0.4 * (0.5 * rest[0] + 2.0 * rest[1])
        np.testing.assert_allclose(found[name].numpy().ravel(), expected, atol=1e-6, err_msg=name)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 300), levels=st.integers(1, 5), density=st.floats(0.01, 0.99),
    outliers=st.floats(0, 0.99), height=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_equal_magnitudes_in_blocks_of_any_height(size, levels, density, outliers, height, seed):
    values = torch.from_numpy(np.random.default_rng(seed).integers(-levels, levels + 1, size)).float()
    take = trim.middle(lambda: iter(values.split(height)), size, density, outliers)
    found = torch.cat([take(block.clone()) for block in values.split(height)])
    np.testing.assert_array_equal(found.numpy(), middle(values.numpy(), density, outliers))


def test_identities(models, tmp_path):
    base, tuned = models
    whole = breadcrumbs(base, tuned, density=1.0).write(tmp_path / "whole")
    assert close(whole, task_arithmetic(base, tuned).write(tmp_path / "sum"))
    one = breadcrumbs(base, tuned[:1], density=0.4, outliers=0.0).write(tmp_path / "one")
    assert close(one, ties_per_tensor(base, tuned[:1], density=0.4).write(tmp_path / "ties"))


def test_signs_can_be_elected(models):
    base, tuned = models
    plain = computed(breadcrumbs(base, tuned, density=0.5))
    voted = computed(breadcrumbs(base, tuned, density=0.5, elect="sum"))
    assert any(not torch.equal(plain[n], voted[n]) for n in base.tensors)
