"""Task arithmetic: sums of differences."""

import numpy as np
import pytest
import torch

from calque.errors import ConfigError
from calque.merge.linear import linear
from calque.merge.task_arithmetic import task_arithmetic

from .kin import close, computed, family, same, vectors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.02, 0.03))


def test_against_the_formula(models):
    base, tuned = models
    found = computed(task_arithmetic(base, tuned, weights=[0.5, -2.0], scale=0.7))
    task_vectors = vectors(base, tuned)
    before = np.concatenate([base.read(n).numpy().ravel() for n in base.tensors])
    after = np.concatenate([found[n].numpy().ravel() for n in base.tensors])
    np.testing.assert_allclose(after, before + 0.7 * (np.array([0.5, -2.0]) @ task_vectors), atol=1e-6)


def test_identities(models, tmp_path):
    base, tuned = models
    assert close(task_arithmetic(base, tuned[:1]).write(tmp_path / "one"), tuned[0])
    assert same(task_arithmetic(base, tuned, weights=[0, 0]).write(tmp_path / "none"), base)
    weights = [0.4, 1.2]
    average = task_arithmetic(base, tuned, weights=weights, normalize=True).write(tmp_path / "average")
    assert close(average, linear(base, tuned, weights=weights).write(tmp_path / "linear"))
    orders = [computed(task_arithmetic(base, order)) for order in (tuned, tuned[::-1])]
    assert all(torch.allclose(orders[0][n], orders[1][n], atol=1e-6) for n in base.tensors)


def test_weights_must_be_one_per_model(models):
    with pytest.raises(ConfigError, match="1 numbers for 2"):
        task_arithmetic(*models, weights=[1.0])
