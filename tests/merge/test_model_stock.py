"""Model Stock: the ratio follows from the angle."""

import json

import numpy as np
import pytest
import torch

from calque.errors import ConfigError
from calque.merge.model_stock import interpolation, model_stock

from .kin import changed, close, computed, family, same


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.02, 0.03, 0.01))


def ratio(deltas):
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(deltas) for b in deltas[i + 1 :]
    ]
    cosine, count = np.mean(cosines), len(deltas)
    return count * cosine / (1 + (count - 1) * cosine)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_against_the_formula(models, filter_wise):
    base, tuned = models
    found = computed(model_stock(base, tuned, filter_wise=filter_wise))
    for name in base.tensors:
        before = base.read(name).double().numpy()
        deltas = [t.read(name).double().numpy() - before for t in tuned]
        mean = np.mean(deltas, 0)
        if filter_wise and before.ndim > 1:
            share = np.array([ratio([d[row] for d in deltas]) for row in range(len(before))])[:, None]
        else:
            share = ratio([d.ravel() for d in deltas])
        np.testing.assert_allclose(found[name].numpy(), before + share * mean, atol=5e-5, err_msg=name)


def test_identities(models, tmp_path):
    base, (one, two, _) = models
    assert close(model_stock(base, [one, one]).write(tmp_path / "equal"), one, atol=1e-5)
    orders = [computed(model_stock(base, order)) for order in ([one, two], [two, one])]
    assert all(torch.allclose(orders[0][n], orders[1][n], atol=1e-6) for n in base.tensors)
    halves = [torch.zeros(4, 4), torch.zeros(4, 4)]
    halves[0][0, 0], halves[1][1, 1] = 1, 1
    flat = torch.stack([h.reshape(-1) for h in halves]).double()
    assert float(interpolation(flat @ flat.T)) == 0


def test_models_at_right_angles_give_the_base(models, tmp_path):
    base, _ = models

    def half(first):
        def moved(name, tensor):
            flat = tensor.clone().reshape(-1)
            flat[int(not first) :: 2] += 0.01
            return flat.reshape(tensor.shape)

        return moved

    tuned = [changed(base, tmp_path / str(first), half(first)) for first in (True, False)]
    assert same(model_stock(base, tuned).write(tmp_path / "out"), base)


def test_the_change_scales(models, tmp_path):
    base, tuned = models
    small = [
        changed(base, tmp_path / str(n), lambda name, t, m=m: t + (m.read(name) - t) / 8)
        for n, m in enumerate(tuned)
    ]
    one, eighth = computed(model_stock(base, tuned)), computed(model_stock(base, small))
    for name in base.tensors:
        before = base.read(name)
        assert torch.allclose((one[name] - before) / 8, eighth[name] - before, atol=2e-5)


def test_no_finite_ratio_gives_the_base():
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    assert float(interpolation(opposite)) == 0
    assert float(interpolation(torch.zeros(2, 2).double())) == 0


def test_notes_and_refusal(models, tmp_path):
    base, tuned = models
    out = model_stock(base, tuned).write(tmp_path / "out")
    ratios = json.loads((out.folder / "rewrite.json").read_text())["mean_ratio"]
    assert set(ratios) == set(base.tensors)
    with pytest.raises(ConfigError, match="at least two"):
        model_stock(base, tuned[:1])
