"""Stacks of layers: copied, renumbered, and still a model."""

import json

import pytest
import torch

from calque.errors import CalqueError
from calque.merge.passthrough import passthrough
from calque.model.checkpoint import Checkpoint

from .. import tiny
from .kin import family, relative, same


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.02,), num_hidden_layers=4)


def layer(checkpoint, number):
    return {
        slot.role: checkpoint.read(name) for slot, name in checkpoint.slots.items() if slot.layer == number
    }


def test_layers_are_renumbered(models, tmp_path):
    base, (other,) = models
    out = passthrough(base, [other], slices=["0:0-3", "1:1-3"]).write(tmp_path / "out")
    assert out.config["num_hidden_layers"] == 5
    for number, (model, origin) in enumerate([(base, 0), (base, 1), (base, 2), (other, 1), (other, 2)]):
        mine, theirs = layer(out, number), layer(model, origin)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[r], theirs[r]) for r in mine)
    assert torch.equal(out.read("model.embed_tokens.weight"), base.read("model.embed_tokens.weight"))
    assert torch.equal(out.read("lm_head.weight"), other.read("lm_head.weight"))
    assert torch.equal(out.read("model.norm.weight"), other.read("model.norm.weight"))
    assert all(row.function is None for row in passthrough(base, [other], slices=["0:0-4"]).rows)


@pytest.mark.parametrize(
    "architecture", ["llama", "llama-tied", "gpt2", "gpt-neox", "qwen2", "gemma3", "mixtral"]
)
def test_all_layers_are_the_model(architecture, tmp_path):
    base = Checkpoint.open(tiny.model(tmp_path / "base", architecture))
    out = passthrough(base, slices=["0:0-2"]).write(tmp_path / "out")
    assert same(out, base)


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2", "smollm3", "gpt2"])
def test_lists_with_an_entry_per_layer_follow(architecture, tmp_path):
    base = Checkpoint.open(tiny.model(tmp_path / "base", architecture))
    out = passthrough(base, slices=["0:0-2", "0:1-2"]).write(tmp_path / "out")
    before, after = base.text_config, out.text_config
    for key, value in before.items():
        if isinstance(value, list) and len(value) == 2 and key != "architectures":
            assert after[key] == [value[0], value[1], value[1]], key
    assert out.loaded_config.num_hidden_layers == 3


def test_notes(models, tmp_path):
    base, _ = models
    out = passthrough(base, slices=["0:0-1"]).write(tmp_path / "out")
    assert json.loads((out.folder / "rewrite.json").read_text())["slices"] == ["0:0-1"]


@pytest.mark.parametrize(
    ("slices", "part"),
    [([], "no slices"), (["0-3"], "MODEL:FIRST-END"), (["0:3-3"], "layers 0 to 3"),
     (["0:0-5"], "layers 0 to 3"), (["2:0-1"], "no model 2"),
     (["a:0-1"], "MODEL:FIRST-END"), (["0:2-1"], "layers 0 to 3")],
)  # fmt: skip
def test_impossible_slices_are_refused(models, slices, part):
    with pytest.raises(CalqueError, match=part):
        passthrough(*models, slices=slices)


def test_models_that_do_not_fit_are_refused(models, tmp_path):
    base, _ = models
    wide = Checkpoint.open(tiny.model(tmp_path / "wide", hidden_size=48))
    with pytest.raises(CalqueError, match="one shape"):
        passthrough(base, [wide], slices=["0:0-1", "1:0-1"])
    qwen = Checkpoint.open(tiny.model(tmp_path / "qwen", "qwen2"))
    with pytest.raises(CalqueError, match="qwen2 model"):
        passthrough(base, [qwen], slices=["0:0-1", "1:0-1"])
    for name in ("t5", "mbart"):
        both = Checkpoint.open(tiny.model(tmp_path / name, name))
        with pytest.raises(CalqueError, match="encoder and a decoder"):
            passthrough(both, slices=["0:0-1"])
    tied = Checkpoint.open(tiny.model(tmp_path / "tied", "llama-tied"))
    other = relative(tied, tmp_path / "other", 0.01, 0)
    with pytest.raises(CalqueError, match="tied to the embedding"):
        passthrough(tied, [other], slices=["0:0-1", "1:0-1"])
