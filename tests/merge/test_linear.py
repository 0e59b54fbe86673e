"""Weighted averages: exact, whatever the dtype."""

import numpy as np
import pytest
import torch

from calque.errors import ConfigError
from calque.merge.linear import linear

from .kin import close, computed, family, same


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def models(request, tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.02, 0.03, 0.01), dtype=request.param)


def test_it_is_the_correctly_rounded_average(models):
    base, tuned = models
    weights = [0.3, 0.5, 0.2]
    found = computed(linear(base, tuned, weights=weights))
    right = total = 0
    for name in base.tensors:
        exact = sum(w * t.read(name).double() for w, t in zip(weights, tuned, strict=True))
        rounded = (exact / sum(weights)).to(found[name].dtype)
        right += int((found[name] == rounded).sum())
        total += rounded.numel()
    assert right >= 0.999 * total


def test_two_models_and_weights_that_do_not_add_up_to_one(models):
    base, tuned = models
    found = computed(linear(base, tuned[:2], weights=[2.0, 6.0]))
    plain = computed(linear(base, tuned[:2], weights=[0.5, 0.8], normalize=False))
    for name in base.tensors:
        a, b = (t.read(name).double() for t in tuned[:2])
        assert torch.allclose(found[name].double(), 0.25 * a + 0.75 * b, atol=1e-2)
        assert torch.allclose(plain[name].double(), 0.5 * a + 0.8 * b, atol=1e-2)


def test_identities(models, tmp_path):
    base, tuned = models
    one, other, _ = tuned
    assert same(linear(base, [one, one]).write(tmp_path / "itself"), one)
    assert same(linear(base, [one, other], weights=[0.0, 2.0]).write(tmp_path / "single"), other)
    orders = [computed(linear(base, order)) for order in (tuned, tuned[::-1])]
    assert all(torch.allclose(orders[0][n], orders[1][n], atol=1e-2) for n in base.tensors)


def test_the_base_takes_part_with_its_weight(models, tmp_path):
    base, (one, *_) = models
    out = linear(base, [one], base_weight=1.0).write(tmp_path / "out")
    for name in base.tensors:
        middle = (base.read(name).double() + one.read(name).double()) / 2
        np.testing.assert_allclose(out.read(name).double(), middle, atol=1e-2)
    assert not close(out, one, atol=1e-4)


def test_a_base_without_weight_is_not_read(models):
    base, tuned = models
    for row in linear(base, tuned, weights=[1.0, 0.0, 1.0]).rows:
        assert [source.checkpoint for source in row.inputs] == [tuned[0], tuned[2]]


def test_impossible_weights_are_refused(models):
    base, tuned = models
    with pytest.raises(ConfigError, match="2 numbers for 3"):
        linear(base, tuned, weights=[1, 1])
    with pytest.raises(ConfigError, match="add up to 0"):
        linear(base, tuned, weights=[1, -1, 0])
