"""The noun: attach, detach, save, load, stack, switch, refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from calque.delta.attach import attach, changes, fold_in
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.delta.shards import shards
from calque.errors import ConfigError, ModelError
from calque.model.checkpoint import Checkpoint

from .. import tiny
from .runs import IDS, beside, logits, moved, plain

MAKERS = {"lora": lambda base: lora(base, rank=4), "shards": lambda base: shards(base, rank=3, pieces=2)}


@pytest.fixture(params=MAKERS, ids=str)
def delta(request, base):
    return MAKERS[request.param](base)


def test_nothing_changes_at_the_start_and_nothing_is_left_behind(any_base):
    for made in (lora(any_base, rank=2), shards(any_base, rank=3, pieces=2)):
        model = any_base.model()
        names = [name for name, _ in model.named_parameters()]
        before = logits(model)
        attached = attach(model, {"a": made})
        assert len(attached.named()) == len(made.trainable)
        assert torch.equal(logits(model), before)
        back = attached.detach()["a"]
        assert [name for name, _ in model.named_parameters()] == names
        assert all(torch.equal(back.tensors[k], t) for k, t in made.tensors.items())
        assert torch.equal(logits(model), before)


def test_folded_gives_the_logits_of_base_and_delta(any_base):
    for made in (lora(any_base, rank=2), shards(any_base, rank=3, pieces=2)):
        made = moved(made)
        expected = beside(any_base, a=made)
        assert (expected - plain(any_base)).abs().max() > 1e-2
        model = any_base.model()
        fold_in(model, made)
        torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same(delta, base, tmp_path):
    made = moved(delta)
    made.save(tmp_path / "d")
    back = Delta.load(tmp_path / "d")
    assert (back.form, back.place, back.sharing, back.gate) == (
        made.form,
        made.place,
        made.sharing,
        made.gate,
    )
    assert back.count() == made.count() and {p.name for p in (tmp_path / "d").iterdir()} == {
        "delta.json", "delta.safetensors"
    }  # fmt: skip
    assert torch.equal(beside(base, a=back), beside(base, a=made))
    back.check_base(base)


def test_deltas_stack_and_switch(delta, base):
    one, two = moved(delta, 1), moved(delta, 2)
    model = base.model()
    attached = attach(model, {"nya": one, "swh": two})
    alone = {"nya": beside(base, nya=one), "swh": beside(base, swh=two), "": plain(base)}
    both = logits(model)
    assert not torch.allclose(both, alone["nya"])
    for name, expected in alone.items():
        attached.use(name)
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    attached.use({"nya": 1.0, "swh": 0.0})
    torch.testing.assert_close(logits(model), alone["nya"], atol=1e-5, rtol=1e-5)
    attached.use(["swh", "nya"])
    mixed = logits(model)
    torch.testing.assert_close(mixed[0], alone["swh"][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], alone["nya"][1], atol=1e-5, rtol=1e-5)
    attached.switch.stack()
    torch.testing.assert_close(logits(model), both)


def test_a_mixture_is_the_weighted_sum_of_the_changes(delta, base):
    one, two = moved(delta, 1), moved(delta, 2)
    model, folded = base.model(), base.model()
    attach(model, {"a": one, "b": two}).use({"a": 0.3, "b": 0.7})
    for weight, made in ((0.3, one), (0.7, two)):
        for module, (down, up) in changes(made).items():
            folded.get_submodule(module).weight.data += weight * up @ down
    torch.testing.assert_close(logits(model), logits(folded), atol=2e-5, rtol=1e-4)


def test_only_the_delta_gets_gradients_and_the_base_keeps_its_bits(delta, base):
    model = base.model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.requires_grad_(False)
    attached = attach(model, {"a": moved(delta)})
    model(input_ids=IDS, labels=IDS).loss.backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == attached.named()
    attached.detach()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_what_is_wrong_is_said(base, delta, tmp_path):
    other = Checkpoint.at(tiny.model(tmp_path / "other", num_hidden_layers=3, seed=5))
    with pytest.raises(ModelError, match=r"made for .*llama .*does not belong to .*other.*give the base"):
        delta.check_base(other)
    shallow = Checkpoint.at(tiny.model(tmp_path / "shallow", num_hidden_layers=1))
    with pytest.raises(ModelError, match=r"made for another model .*no 'model.layers.1"):
        attach(shallow.model(), {"a": delta})
    attached = attach(base.model(), {"nya": delta, "swh": delta})
    with pytest.raises(ConfigError, match=r"nya=0.5, swh=0.4 sum to 0.9; they must sum to 1"):
        attached.use({"nya": 0.5, "swh": 0.4})
    with pytest.raises(ConfigError, match=r"no delta 'zul' is attached; attached are nya, swh"):
        attached.use("zul")
    attached.use(["nya", "nya", "swh"])
    with pytest.raises(ConfigError, match=r"chosen for 3 examples, but the batch has 2"):
        logits(attached.model)
    with pytest.raises(ConfigError, match=r"delta name 'a b'"):
        attach(base.model(), {"a b": delta})
    with pytest.raises(ModelError, match=r"no delta; needed are delta.json"):
        Delta.load(tmp_path / "other")
    delta.save(tmp_path / "d")
    assert json.loads((tmp_path / "d/delta.json").read_text())["numbers"] == delta.count()
    held = load_file(tmp_path / "d/delta.safetensors")
    gone = next(iter(held))
    save_file(
        {name: tensor for name, tensor in held.items() if name != gone}, tmp_path / "d/delta.safetensors"
    )
    with pytest.raises(ModelError, match=f"damaged delta: '{gone}' of shape .* is not among its numbers"):
        Delta.load(tmp_path / "d")
    (tmp_path / "d/delta.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="damaged delta"):
        Delta.load(tmp_path / "d")
