"""DARE and DELLA: what the draw is, and that nothing but the seed decides it."""

import numpy as np
import pytest
import torch

from calque.errors import ConfigError
from calque.merge import stream, trim
from calque.merge.dare import dare
from calque.merge.della import della
from calque.merge.task_arithmetic import task_arithmetic

from .kin import close, computed, family, vector, vectors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.02, 0.03), vocab_size=900, intermediate_size=300)


def change(base, found):
    return np.concatenate([(found[n] - base.read(n)).numpy().ravel() for n in base.tensors])


@pytest.mark.parametrize("elect", ["none", "sum", "count"])
@pytest.mark.parametrize("method", [dare, della])
def test_blocks_of_any_size_give_the_same(models, method, elect, monkeypatch):
    base, tuned = models
    found = computed(method(base, tuned, elect=elect, seed=3))
    read = stream._read
    monkeypatch.setattr(stream, "_read", lambda sources, nbytes, dtype: read(sources, 5000, dtype))
    blocks = sum(1 for _ in stream.chunks([base_source(base)]))
    assert blocks > 5
    again = computed(method(base, tuned, elect=elect, seed=3))
    assert all(torch.equal(found[n], again[n]) for n in base.tensors)
    other = computed(method(base, tuned, elect=elect, seed=4))
    assert any(not torch.equal(found[n], other[n]) for n in base.tensors)


def base_source(base):
    from calque.merge.rewrite import Source

    return Source(base, base.input_embedding)


def test_dare_keeps_a_share_and_rescales_it(models):
    base, (one, _) = models
    delta, found = vectors(base, [one])[0], change(base, computed(dare(base, [one], density=0.25)))
    stays = found != 0
    assert stays.mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(found[stays], 4 * delta[stays], atol=2e-6)
    plain = change(base, computed(dare(base, [one], density=0.25, rescale="none")))
    np.testing.assert_allclose(plain, np.where(stays, delta, 0), atol=2e-6)


def test_l1_norms_come_back(models):
    base, (one, _) = models
    for method in (dare, della):
        found = computed(method(base, [one], rescale="l1", elect="none", normalize=False))
        for name in base.tensors:
            before = float((one.read(name) - base.read(name)).abs().sum())
            assert float((found[name] - base.read(name)).abs().sum()) == pytest.approx(before, rel=1e-3)


def test_what_is_dropped_from_one_model_does_not_depend_on_the_others(models):
    base, (one, other) = models
    alone = change(base, computed(dare(base, [one], density=0.3)))
    both = change(base, computed(dare(base, [one, other], density=0.3, weights=[1.0, 0.0])))
    np.testing.assert_allclose(both, alone, atol=1e-6)


def test_density_one_is_task_arithmetic(models, tmp_path):
    base, tuned = models
    whole = dare(base, tuned, density=1.0, weights=[0.3, 0.6]).write(tmp_path / "whole")
    assert close(whole, task_arithmetic(base, tuned, weights=[0.3, 0.6]).write(tmp_path / "sum"))


def test_on_the_average_nothing_changes(models):
    base, (one, _) = models
    delta = vectors(base, [one])[0]
    for method, error in ((dare, 0.5), (della, 0.5)):
        mean = np.mean(
            [
                change(base, computed(method(base, [one], seed=s, elect="none", normalize=False)))
                for s in range(6)
            ],
            0,
        )
        assert np.linalg.norm(mean - delta) < error * np.linalg.norm(delta)
        assert mean @ delta / (delta @ delta) == pytest.approx(1, abs=0.03)


def test_della_keeps_large_entries_more_often():
    values = torch.arange(1.0, 101.0).expand(4000, 100).clone()
    found = trim.ranked(0.5, 0.3, trim.generator(0, "x", 0), False)(values)
    share = (found != 0).float().mean(0).numpy()
    np.testing.assert_allclose(share, np.linspace(0.2, 0.8, 100), atol=0.05)
    scaled = trim.ranked(0.5, 0.3, trim.generator(0, "x", 0), True)(torch.ones(4000, 100))
    assert float(scaled.mean()) == pytest.approx(1, abs=0.02)


def test_della_ranks_rows_and_takes_vectors_as_one():
    drawn = trim.ranked(0.5, 0.4999, trim.generator(0, "x", 0), False)
    vector_of_two = torch.tensor([5.0, 0.1])
    counts = torch.stack([drawn(vector_of_two.clone()) for _ in range(300)]).ne(0).float().mean(0)
    assert counts[0] > 0.98 and counts[1] < 0.02
    assert torch.isfinite(drawn(torch.tensor(3.0).reshape(())))


def test_equal_chances_without_epsilon():
    values = torch.arange(1.0, 101.0).expand(4000, 100).clone()
    found = trim.ranked(0.4, 0.0, trim.generator(1, "x", 0), False)(values)
    np.testing.assert_allclose((found != 0).float().mean(0).numpy(), 0.4, atol=0.05)


def test_chances_outside_zero_and_one_are_refused(models):
    with pytest.raises(ConfigError, match="probabilities"):
        della(*models, density=0.1, epsilon=0.15)


def test_merged_vectors_are_finite(models, tmp_path):
    base, tuned = models
    out = della(base, tuned).write(tmp_path / "out")
    assert np.isfinite(vector(base, out)).all()
