"""Extracted adapters: peft loads them, full rank reproduces the tuned model, less rank leaves more."""

import json

import peft
import pytest
import torch

from calque.errors import ModelError
from calque.merge.extract_lora import extract_lora
from calque.merge.fold import fold

from . import kin

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
IDS = torch.tensor([[5, 9, 33, 100, 7]])


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(
    "architecture", ["llama", "llama-tied", "qwen2", "gpt2", "gemma2", "starcoder2", "phi"]
)
def test_full_rank_reproduces_the_tuned_model(architecture, tmp_path):
    base, (tuned,) = kin.family(tmp_path, sizes=(0.02,), architecture=architecture)
    adapter = extract_lora(base, tuned, rank=400)
    adapter.save(tmp_path / "adapter")
    assert adapter.notes["share_left_out"] == pytest.approx(0, abs=1e-6)
    loaded = peft.PeftModel.from_pretrained(base.model(), str(tmp_path / "adapter"))
    assert torch.allclose(logits(loaded), logits(tuned.model()), atol=1e-4)
    folded = fold(tmp_path / "adapter").write(tmp_path / "out")
    assert folded.tied == tuned.tied and kin.close(tuned, folded, atol=1e-5)


def only_layers(base, tuned, folder):
    def change(name, tensor):
        return tuned.read(name) if ".layers." in name and tensor.dim() == 2 else tensor

    return kin.changed(base, folder, change)


def test_less_rank_leaves_more(tmp_path):
    base, (tuned,) = kin.family(tmp_path, sizes=(0.02,))
    tuned = only_layers(base, tuned, tmp_path / "layers")
    left = []
    for rank in (1, 4, 16, 32):
        adapter = extract_lora(base, tuned, rank=rank)
        adapter.save(tmp_path / str(rank))
        folded = fold(tmp_path / str(rank)).write(tmp_path / f"out-{rank}")
        gap = kin.vector(base, tuned) - kin.vector(base, folded)
        share = float((gap**2).sum() / (kin.vector(base, tuned) ** 2).sum())
        assert share == pytest.approx(adapter.notes["share_left_out"], abs=1e-5)
        left.append(share)
    assert left == sorted(left, reverse=True) and left[-1] < 1e-6


def test_energy_sets_the_rank_of_each_matrix(tmp_path):
    base, (tuned,) = kin.family(tmp_path, sizes=(0.02,))
    tuned = only_layers(base, tuned, tmp_path / "layers")
    adapter = extract_lora(base, tuned, rank=400, energy=0.9)
    assert adapter.notes["share_left_out"] <= 0.1
    ranks = set(adapter.notes["ranks"].values())
    assert len(ranks) > 1 and adapter.config["r"] == max(ranks)
    adapter.save(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base.model(), str(tmp_path / "adapter")).merge_and_unload()
    folded = fold(tmp_path / "adapter").write(tmp_path / "out")
    assert torch.allclose(logits(loaded), logits(folded.model()), atol=1e-5)


def test_the_rest_can_be_dropped(tmp_path):
    base, (tuned,) = kin.family(tmp_path, sizes=(0.02,))
    adapter = extract_lora(base, tuned, rank=400, rest="drop")
    assert adapter.config["modules_to_save"] is None
    assert all(".lora_" in name or name.endswith("base_layer.bias") for name in adapter.tensors)
    assert adapter.notes["share_left_out"] > 0.1


def test_nothing_to_extract(tmp_path):
    base, (same,) = kin.family(tmp_path, sizes=(0,))
    with pytest.raises(ModelError, match="no linear map"):
        extract_lora(base, same)


@pytest.mark.parametrize("architecture", ["olmoe", "deepseek"])
def test_experts_are_refused(architecture, tmp_path):
    base, (tuned,) = kin.family(tmp_path, sizes=(0.02,), architecture=architecture)
    with pytest.raises(ModelError, match="experts of a mixture"):
        extract_lora(base, tuned)


def test_the_folder_names_its_base(tmp_path):
    base, (tuned,) = kin.family(tmp_path, sizes=(0.02,))
    extract_lora(base, tuned, rank=2).save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.folder.resolve()) and config["r"] == 2
