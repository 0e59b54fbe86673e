"""A config.json whose settings are of the wrong kind is refused with a message, whatever then reads it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from calque.errors import ModelError
from calque.merge.extract_lora import extract_lora
from calque.merge.recurse import recurse
from calque.merge.rewrite import Rewrite, Row
from calque.model.check import generation_settings
from calque.model.checkpoint import Checkpoint

from .. import tiny

LOOP = {"model_type": "llama", "loops": 2, "shared": 1}
KINDS = [
    ({"model_type": 7}, "model_type is 7, which is no str"),
    ({"architectures": "LlamaForCausalLM"}, "architectures is 'Llama.*no list"),
    ({"text_config": 3}, "text_config is 3"),
    ({"recursion": 3}, "recursion is 3"),
    ({"recursion": {}}, "model_type is None"),
    ({"recursion": []}, r"recursion is \[\]"),
    ({"recursion": {**LOOP, "loops": "two"}}, "loops is 'two', which is no int"),
    ({"recursion": {**LOOP, "shared": None}}, "shared is None"),
]


@pytest.fixture
def folder(tmp_path):
    return tiny.model(tmp_path / "m")


@pytest.mark.parametrize(("changes", "says"), KINDS, ids=[str(c) for c, _ in KINDS])
def test_kinds_are_checked_when_it_is_opened(changes, says, folder):
    tiny.edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=rf"config\.json: {says}"):
        Checkpoint.at(folder)


@pytest.mark.parametrize("name", ["NoSuchThing", "LlamaTokenizer", "__version__"])
def test_a_class_that_is_no_model_is_not_called(name, folder):
    tiny.edit_json(folder / "config.json", architectures=[name])
    assert type(Checkpoint.at(folder).model()).__name__ == "LlamaForCausalLM"
    with pytest.raises(ModelError, match="no class of its 'architectures'"):
        recurse(Checkpoint.at(folder)).write(folder.with_name("out"))


def test_a_number_in_words(folder, tmp_path):
    out = recurse(Checkpoint.at(folder), rank=2).write(tmp_path / "out").folder
    for one in (folder, out):
        tiny.edit_json(one / "config.json", num_hidden_layers="two")
        with pytest.raises(ModelError, match="num_hidden_layers"):
            _ = Checkpoint.at(one).loaded_config


@pytest.mark.parametrize(
    "changes", [{"head_dim": 0}, {"num_key_value_heads": 0}, {"num_hidden_layers": -1}, {"hidden_act": "x"}]
)
def test_sizes_that_make_no_model(changes, folder, tmp_path):
    tiny.edit_json(folder / "config.json", **changes)
    base = Checkpoint.at(folder)
    rewrites = [Rewrite(base, tuple(Row.copy(base, name) for name in base.tensors)), recurse(base)]
    for rewrite in rewrites:
        with pytest.raises(ModelError, match=r"can not build|forward pass|no place for"):
            rewrite.write(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_loop_of_tensors_of_another_shape(folder, tmp_path):
    out = recurse(Checkpoint.at(folder), rank=2).write(tmp_path / "out").folder
    weights = load_file(out / "model.safetensors")
    weights["model.norm.weight"] = torch.tensor(1.0)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"'model.norm.weight' has shape \(\), needed is \(32,\)"):
        Checkpoint.at(out).model()


def test_generation_settings_in_a_list(folder):
    (folder / "generation_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds a list, not a table of settings"):
        generation_settings(Checkpoint.at(folder))


def test_a_shard_with_an_endless_name(folder):
    (folder / "model.safetensors").unlink()
    index = f'{{"weight_map": {{"model.norm.weight": "{"x" * 5000}"}}}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="not a file inside the folder"):
        Checkpoint.at(folder)


def test_no_adapter_is_made_of_numbers_that_are_none(folder, tmp_path):
    tuned = tiny.model(tmp_path / "tuned", seed=1)
    weights = load_file(tuned / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"tuned/model.safetensors: tensor 'model.norm.weight': NaN in row 3"
    ):
        extract_lora(Checkpoint.at(folder), Checkpoint.at(tuned))
