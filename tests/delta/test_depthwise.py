"""Depth-wise pairs: the reference products, and the loops in which they are something known."""

import numpy as np
import pytest
import torch

from calque.delta import low_rank
from calque.delta.attach import attach, changes, fold_in
from calque.delta.delta import Delta
from calque.delta.depthwise import depthwise
from calque.delta.export import export
from calque.delta.switch import Switch
from calque.errors import ConfigError, ModelError
from calque.merge.recurse import mean, recurse
from calque.model.checkpoint import Checkpoint
from calque.model.low_rank import truncated_svd

from .. import tiny
from ..merge.golden import array_of, content
from .runs import IDS, beside, logits, moved, plain

CASES = {case["name"]: case for case in content("05-relaxed-recursive-transformers")["cases"]}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def original(request, tmp_path_factory):
    settings = {"n_layer": 4} if request.param == "gpt2" else {"num_hidden_layers": 4}
    return Checkpoint.at(tiny.model(tmp_path_factory.mktemp("original") / "m", request.param, **settings))


@pytest.fixture(scope="module")
def looped(original, tmp_path_factory):
    return recurse(original, loops=2, rank=0).write(tmp_path_factory.mktemp("looped") / "m")


@pytest.mark.parametrize("name", ["six_layers_two_loops", "six_layers_three_loops"])
def test_reference_outputs(name):
    case = CASES[name]
    p, expected = case["params"], case["outputs"]["average"]
    shared, gaps = (torch.from_numpy(array_of(case["inputs"][key])) for key in ("shared_part", "differences"))
    weights = [shared[n % p["K"]] + gaps[n] for n in range(p["layers"])]
    block = [mean([weights[n].clone() for n in range(k, p["layers"], p["K"])]) for k in range(p["K"])]
    x = torch.from_numpy(array_of(case["inputs"]["x"]))
    for rank in p["ranks"][1:]:
        maps = [torch.nn.Linear(*w.T.shape, bias=False) for w in weights]
        model = torch.nn.ModuleDict({str(n): linear for n, linear in enumerate(maps)})
        made, depths = {}, {str(n): block[n % p["K"]] for n in range(p["layers"])}
        for n, w in enumerate(weights):
            maps[n].weight = torch.nn.Parameter(block[n % p["K"]])
            made[f"{n}.B"], made[f"{n}.A"] = truncated_svd(w - block[n % p["K"]], rank)
        delta = Delta("depthwise", tuple(depths), "depth", "fixed", {"rank": rank, "alpha": rank}, made, {})
        low_rank.add_pairs(model, delta, made, low_rank.own_pair, Switch(["a"]), "a")
        wanted = expected[f"rank{rank}"]
        unit = torch.eye(weights[0].shape[1], dtype=x.dtype)
        whole = torch.stack([linear(unit).T for linear in maps])
        np.testing.assert_allclose(whole.detach().numpy(), wanted["effective_weight"], atol=1e-8, rtol=1e-7)
        y = maps[-1](x).detach().numpy()
        if "forward_last_layer_average" in wanted:
            np.testing.assert_allclose(y, wanted["forward_last_layer_average"], atol=1e-8, rtol=1e-7)


def test_published_counts(looped):
    """Rank capped at min(in, out), a pair at each of L depths."""
    outputs, models = (CASES["parameter_counts"][key] for key in ("outputs", "inputs"))
    for sizes, expected in zip(models["models"], outputs, strict=True):
        h, kv, ff, rank = (sizes[key] for key in ("h", "kv", "ff", "rk"))
        maps = [(h, h), (h, kv), (h, kv), (h, h), (h, ff), (h, ff), (ff, h)]
        assert sizes["L"] * sum(min(rank, i, o) * (i + o) for i, o in maps) == expected["lora"]
    made = depthwise(looped, rank=3)
    shapes = {m: [t.shape for k, t in made.tensors.items() if k.startswith(f"{m}.")] for m in made.place}
    assert made.count() == sum(3 * (down[1] + up[0]) for down, up in shapes.values())
    assert len({module.split(".")[2] for module in made.place}) == 4


def test_nothing_changes_at_the_start_and_nothing_is_left_behind(looped):
    model = looped.model()
    names = [name for name, _ in model.named_parameters()]
    attached = attach(model, {"a": depthwise(looped, rank=2)})
    assert torch.equal(logits(model), plain(looped))
    attached.detach()
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(logits(model), plain(looped))


def test_started_from_the_original_it_is_the_residual_of_recurse(original, looped, tmp_path):
    for rank in (4, 999):
        relaxed = recurse(original, loops=2, rank=rank).write(tmp_path / str(rank))
        made = depthwise(looped, original, rank=rank)
        torch.testing.assert_close(beside(looped, a=made), plain(relaxed), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(beside(looped, a=made), plain(original), atol=1e-4, rtol=1e-4)


def test_what_a_loop_has_already_is_not_added_again(original, tmp_path):
    relaxed = recurse(original, loops=2, rank=4).write(tmp_path / "relaxed")
    made = depthwise(relaxed, original, rank=999)
    torch.testing.assert_close(beside(relaxed, a=made), plain(original), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 4])
def test_folded_it_is_a_residual_of_the_checkpoint(original, rank, tmp_path):
    looped = recurse(original, loops=2, rank=rank).write(tmp_path / "looped")
    made = moved(depthwise(looped, rank=2))
    model = looped.model()
    fold_in(model, made)
    expected = beside(looped, a=made)
    assert (expected - plain(looped)).abs().max() > 1e-2
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "out")
    back = Checkpoint.at(tmp_path / "out")
    torch.testing.assert_close(plain(back), expected, atol=2e-5, rtol=1e-4)
    assert back.tensors["depth.3.attention.o.A"].shape[0] == rank + 2


def test_each_depth_gets_gradients_of_its_own_and_the_shared_maps_none(looped):
    model = looped.model().requires_grad_(False)
    numbers = attach(model, {"a": moved(depthwise(looped, rank=2))}).parameters["a"]
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in numbers.values())
    first, third = (changes(depthwise(looped, rank=2)) for _ in range(2))
    assert first.keys() == third.keys() == {key.rpartition(".")[0] for key in numbers}


def test_saved_and_loaded_it_is_the_same(looped, tmp_path):
    made = moved(depthwise(looped, rank=2))
    made.save(tmp_path / "d")
    assert torch.equal(beside(looped, a=Delta.load(tmp_path / "d")), beside(looped, a=made))


def test_what_is_wrong_is_said(original, looped, base, tmp_path):
    with pytest.raises(ConfigError, match="is no looped model, which merge/recurse makes"):
        depthwise(original)
    with pytest.raises(ConfigError, match=r"no slot 'mlp.x'; it has attention"):
        depthwise(looped, roles=("mlp.x",))
    with pytest.raises(ModelError, match=r"is missing or of another shape than .*loop was made from"):
        depthwise(looped, Checkpoint.at(tiny.model(tmp_path / "m", num_hidden_layers=2)))
    with pytest.raises(ConfigError, match="which peft does not know"):
        export(depthwise(looped)).save(tmp_path / "peft")
