"""Folding adapters: the logits that the adapter gives beside its base, block by block."""

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from calque.errors import ConfigError, ModelError
from calque.merge.fold import fold
from calque.model.tensors import same_bytes

from .. import tiny
from . import kin

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
IDS = torch.tensor([[5, 9, 33, 100, 7]])
LORA = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALQUE_CACHE", str(tmp_path / "cache"))


def adapt(base, folder, kind=peft.LoraConfig, **settings):
    """Save a random adapter; returns its folder and the logits it gives beside its base."""
    wrapped = peft.get_peft_model(base.model(), kind(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        logits = wrapped(input_ids=IDS).logits
    wrapped.save_pretrained(folder)
    tiny.edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base.folder))
    return folder, logits


def logits(checkpoint):
    with torch.no_grad():
        return checkpoint.model().eval()(input_ids=IDS).logits


@pytest.mark.parametrize(
    "settings",
    [
        LORA,
        {**LORA, "use_rslora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {**LORA, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ],
    ids=["plain", "patterns", "saved"],
)
def test_streamed_folding_gives_the_adapters_logits(settings, tmp_path):
    base, _ = kin.family(tmp_path, sizes=())
    adapter, expected = adapt(base, tmp_path / "adapter", **settings)
    rewrite = fold(adapter)
    assert rewrite.base.folder == base.folder and rewrite.notes["pairs"] == 4
    out = rewrite.write(tmp_path / "out")
    assert torch.allclose(logits(out), expected, atol=1e-5)
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert same_bytes(out.info(untouched), base.info(untouched))


def test_matrices_stored_the_other_way_round(tmp_path):
    base, _ = kin.family(tmp_path, sizes=(), architecture="gpt2")
    settings = {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    adapter, expected = adapt(base, tmp_path / "adapter", **settings)
    assert torch.allclose(logits(fold(adapter).write(tmp_path / "out")), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (peft.LoraConfig, {**LORA, "use_dora": True}),
        (peft.LoraConfig, {"target_modules": ["embed_tokens", "q_proj"]}),
        (peft.IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    ],
    ids=["dora", "embedding", "ia3"],
)
def test_other_kinds_are_folded_too(kind, settings, tmp_path):
    base, _ = kin.family(tmp_path, sizes=())
    adapter, expected = adapt(base, tmp_path / "adapter", kind, **settings)
    assert torch.allclose(logits(fold(adapter).write(tmp_path / "out")), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="strength 1 only"):
        fold(adapter, strength=0.5)


def test_strength(tmp_path):
    base, _ = kin.family(tmp_path, sizes=())
    adapter, _ = adapt(base, tmp_path / "adapter", **LORA)
    assert kin.same(fold(adapter, strength=0).write(tmp_path / "none"), base)
    half, full = (fold(adapter, strength=s).write(tmp_path / str(s)) for s in (0.5, 1.0))
    for name in base.tensors:
        middle = (base.read(name) + full.read(name)) / 2
        assert torch.allclose(half.read(name), middle, atol=1e-6)


def test_a_tied_base_keeps_its_tie_when_both_sides_were_saved_alike(tmp_path):
    base, _ = kin.family(tmp_path, sizes=(), architecture="llama-tied")
    adapter, _ = adapt(base, tmp_path / "adapter", **LORA, modules_to_save=["embed_tokens", "lm_head"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.model.embed_tokens.weight"].clone()
    save_file(tensors, adapter / "adapter_model.safetensors")
    out = fold(adapter).write(tmp_path / "out")
    assert out.tied
    saved = tensors["base_model.model.model.embed_tokens.weight"]
    assert torch.allclose(out.read(out.input_embedding), saved, atol=1e-6)


def test_into_another_base(tmp_path):
    base, (other,) = kin.family(tmp_path, sizes=(0.01,))
    adapter, _ = adapt(base, tmp_path / "adapter", **LORA)
    one, two = fold(adapter).write(tmp_path / "one"), fold(adapter, other).write(tmp_path / "two")
    for name in base.tensors:
        added = one.read(name) - base.read(name)
        assert torch.allclose(two.read(name) - other.read(name), added, atol=1e-5)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    base, _ = kin.family(tmp_path, sizes=())
    wider, _ = kin.family(tmp_path / "wider", sizes=(), intermediate_size=64)
    adapter, _ = adapt(base, tmp_path / "adapter", **LORA)
    with pytest.raises(ModelError, match="made for another base"):
        fold(adapter, wider)
