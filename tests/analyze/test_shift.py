"""Change of models, tensor by tensor: sums against plain torch, and what is known beforehand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.analyze.shift import profile, shift, to_text
from calque.errors import ConfigError
from calque.merge.change import best_split

from ..merge import kin

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base, (one,) = kin.family(tmp_path_factory.mktemp("models"), sizes=(0.02,), num_hidden_layers=3)
    return base, one


def value(table, metric, item, system="one"):
    (row,) = table.where(system=system, metric=metric, item=item).rows()
    return row["value"]


def test_numbers_are_those_of_plain_torch(models):
    base, one = models
    table = shift(base, {"one": one})
    gap = (one.read(UP) - base.read(UP)).double()
    assert value(table, "mean", "01/mlp.up") == pytest.approx(float(gap.abs().mean()), rel=1e-6)
    relative = float(gap.norm() / base.read(UP).norm())
    assert value(table, "relative", "01/mlp.up") == pytest.approx(relative, rel=1e-6)
    assert value(table, "rms", "01/mlp.up") == pytest.approx(float((gap**2).mean() ** 0.5), rel=1e-6)
    assert value(table, "row_max", "01/mlp.up") == pytest.approx(float(gap.abs().mean(1).max()), rel=1e-6)
    layers, roles, values = profile(table, "one")
    assert layers == ["-", "00", "01", "02"] and values.shape == (4, len(roles))
    assert values[2, roles.index("mlp.up")] == value(table, "relative", "01/mlp.up")


def test_the_terminal_gets_layers_by_roles(models):
    base, one = models
    table = shift(base, {"one": one})
    head, names, *layers = to_text(table).splitlines()
    assert head.startswith("one: ") and "embed.input" in head and "final_norm" in head
    assert [line.split()[0] for line in layers] == ["00", "01", "02"]
    place = names.split().index("mlp.up")
    shown = f"{100 * value(table, 'relative', '01/mlp.up'):.3g}"
    assert layers[1].split()[place] == shown and len(set(map(len, layers))) == 1


def test_a_model_against_itself_does_not_move(models):
    base, _ = models
    table = shift(base, {"same": base})
    for metric in ("mean", "relative", "rms", "row_max", "moved"):
        assert not any(row["value"] for row in table.where(metric=metric).rows())


def test_twice_the_task_vector_has_twice_the_change(models, tmp_path):
    base, one = models
    twice = kin.changed(base, tmp_path / "two", lambda name, t: 2 * one.read(name) - t)
    table = shift(base, {"one": one, "two": twice})
    for metric in ("mean", "relative", "rms"):
        first = [r["value"] for r in table.where(system="one", metric=metric).rows()]
        second = [r["value"] for r in table.where(system="two", metric=metric).rows()]
        assert second == pytest.approx([2 * v for v in first], rel=1e-4)


def test_moved_is_the_share_of_numbers(models, tmp_path):
    base, one = models
    part = kin.changed(base, tmp_path / "part", lambda name, t: one.read(name) if name == UP else t)
    table = shift(base, {"part": part})
    assert value(table, "moved", "01/mlp.up", "part") == pytest.approx(1, abs=0.01)
    assert value(table, "moved", "00/mlp.up", "part") == 0


def test_no_model_is_refused(models):
    with pytest.raises(ConfigError, match="no tuned model"):
        shift(models[0], {})


@given(st.integers(3, 24), st.data())
def test_zones_go_to_the_expert_that_changed_them(layers, data):
    bottom = data.draw(st.integers(0, layers))
    top = data.draw(st.integers(0, layers - bottom))
    outer = [1.0 if i < bottom or i >= layers - top else 0.1 for i in range(layers)]
    b, u = best_split([1.1 - v for v in outer], outer)
    if 0 < bottom + top < layers:
        assert (b, u) == (bottom, top)


def test_equal_profiles_give_no_layer_away():
    assert best_split([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == (0, 0)
    assert best_split([1.0, 2.0, 3.0], [1.000001, 2.0, 3.0]) == (0, 0)


def test_experts_that_did_not_change_give_no_zones():
    with pytest.raises(ConfigError, match="give bottom and top"):
        best_split([0.0, 0.0], [1.0, 0.0])
