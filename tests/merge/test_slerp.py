"""Spherical interpolation: the arc, its ends, and the counted fallback to the line."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calque.merge.slerp import coefficients, slerp

from .kin import changed, close, computed, family


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base, (tuned,) = family(tmp_path_factory.mktemp("models"), (0.05,))
    return base, tuned


@given(t=st.floats(0, 1), cosine=st.floats(-0.999, 0.999))
def test_coefficients_keep_the_length_and_mirror(t, cosine):
    first, second, straight = coefficients(t, cosine)
    assert not straight
    assert first**2 + second**2 + 2 * first * second * cosine == pytest.approx(1)
    assert coefficients(1 - t, cosine)[:2] == pytest.approx((second, first))


def test_nearly_parallel_tensors_take_the_line():
    assert coefficients(0.3, 0.9996) == (0.7, 0.3, True)
    assert coefficients(0.3, -1.0) == (0.7, 0.3, True)


def test_against_the_formula(models):
    base, tuned = models
    found = computed(slerp(base, tuned, t=0.3))
    for name in base.tensors:
        a, b = (c.read(name).double().numpy().ravel() for c in (base, tuned))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        first, second, _ = coefficients(0.3, cosine)
        np.testing.assert_allclose(found[name].numpy().ravel(), first * a + second * b, atol=2e-6)


def test_ends_and_mirror(models, tmp_path):
    base, tuned = models
    assert close(slerp(base, tuned, t=0.0).write(tmp_path / "zero"), base)
    assert close(slerp(base, tuned, t=1.0).write(tmp_path / "one"), tuned)
    forth, back = computed(slerp(base, tuned, t=0.2)), computed(slerp(tuned, base, t=0.8))
    assert all(torch.allclose(forth[n], back[n], atol=2e-6) for n in base.tensors)


def test_equal_lengths_are_kept(models, tmp_path):
    base, tuned = models
    other = changed(tuned, tmp_path / "other", lambda n, t: t * (base.read(n).norm() / t.norm()))
    found = computed(slerp(base, other, t=0.6))
    for name in base.tensors:
        assert float(found[name].norm()) == pytest.approx(float(base.read(name).norm()), rel=2e-4)


def test_straight_lines_are_counted_and_said(models, tmp_path, capsys):
    base, _ = models
    near = changed(base, tmp_path / "near", lambda n, t: t * 1.01)
    out = slerp(base, near, t=0.5).write(tmp_path / "out")
    notes = json.loads((out.folder / "rewrite.json").read_text())
    (count,) = notes["counts"].values()
    assert count == len(base.tensors)
    said = capsys.readouterr()
    assert "straight line" in said.err + said.out


def test_a_tensor_of_zeros_is_interpolated_as_a_line(models, tmp_path):
    base, tuned = models
    blank = changed(tuned, tmp_path / "blank", lambda n, t: t * 0 if "bias" in n else t)
    found = computed(slerp(base, blank, t=0.5))
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
