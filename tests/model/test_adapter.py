"""PEFT adapters become plain checkpoints: W + scale * B A in float32, rounded once."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from calque.errors import ConfigError, ModelError
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes

from .. import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALQUE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def adapt(base, folder, *, kind=peft.LoraConfig, **settings):
    """Save a random adapter for a base folder."""
    config = kind(**{"target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings})
    wrapped = peft.get_peft_model(Checkpoint.at(base).model(), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    wrapped.save_pretrained(folder)
    tiny.edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return folder


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def base(request, tmp_path):
    return tiny.model(tmp_path / "base", dtype=request.param)


def test_folding_is_exact(base, tmp_path):
    adapter = adapt(base, tmp_path / "adapter", r=4, lora_alpha=12, use_rslora=True)
    before, after = Checkpoint.open(base), Checkpoint.open(adapter)
    factors = load_file(adapter / "adapter_model.safetensors")
    changed = 0
    for name, info in before.tensors.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{path}.lora_A.weight" not in factors:
            assert same_bytes(info, after.info(name)), name
            continue
        down, up = factors[f"{path}.lora_A.weight"].float(), factors[f"{path}.lora_B.weight"].float()
        expected = before.read(name).float() + 12 / 4**0.5 * (up @ down)
        difference = (after.read(name).float() - expected.to(info.torch_dtype).float()).abs()
        # Another order of a sum may round to the neighbour; never further.
        assert difference.max() <= expected.abs().max() * torch.finfo(info.torch_dtype).eps
        assert (difference > 0).float().mean() < (0.5 if info.dtype == "F32" else 0.01)
        changed += 1
    assert changed == 2 * len(TARGETS)
    after.check()
    assert after.tokenizer().get_vocab() == before.tokenizer().get_vocab()


def test_logits_equal_those_of_peft(tmp_path):
    base = tiny.model(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", use_dora=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wrapped = peft.PeftModel.from_pretrained(Checkpoint.at(base).model(), adapter).eval()
        expected = wrapped(ids).logits
        got = Checkpoint.open(adapter).model().eval()(ids).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_folded_once_and_again_when_the_adapter_changes(tmp_path, cache):
    base = tiny.model(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter")
    first = Checkpoint.open(adapter).folder
    assert first.is_relative_to(cache) and Checkpoint.open(adapter).folder == first
    factors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in factors.items()}, adapter / "adapter_model.safetensors")
    assert Checkpoint.open(adapter).folder != first


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_brings_its_tokenizer_and_new_rows(tmp_path):
    base = tiny.model(tmp_path / "base", "llama-tied", vocab_size=len(tiny.tokenizer()))
    model, tokenizer = Checkpoint.at(base).model(), tiny.tokenizer()
    tokenizer.add_tokens(["mawu", "nyumba"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = peft.LoraConfig(target_modules=TARGETS, modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    adapter = tmp_path / "adapter"
    peft.get_peft_model(model, config).save_pretrained(adapter)
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    tokenizer.save_pretrained(adapter)
    folded = Checkpoint.open(adapter)
    assert folded.info(folded.input_embedding).shape[0] == len(tokenizer)
    assert folded.tokenizer().encode("mawu", add_special_tokens=False) == [len(tokenizer) - 2]
    assert folded.tied


def test_a_tie_that_training_broke_stays_broken(tmp_path):
    base = tiny.model(tmp_path / "base", "llama-tied")
    config = peft.LoraConfig(target_modules=TARGETS, modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(Checkpoint.at(base).model(), config).eval()
    with torch.no_grad():
        wrapped.get_input_embeddings().weight.add_(0.5)
    wrapped.save_pretrained(tmp_path / "adapter")
    tiny.edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(base))
    folded, ids = Checkpoint.open(tmp_path / "adapter"), torch.tensor([[5, 6, 7]])
    assert not folded.tied
    with torch.no_grad():
        torch.testing.assert_close(folded.model().eval()(ids).logits, wrapped(ids).logits)


def test_an_adapter_for_another_base_is_refused(tmp_path, cache):
    base = tiny.model(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter")
    for other, settings, message in (
        ("wide", {"hidden_size": 64}, "has shape .*made for another base|made for another base.*has shape"),
        ("flat", {"num_hidden_layers": 1}, r"'model.layers.1.* has not"),
    ):
        tiny.model(tmp_path / other, **settings)
        tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / other))
        with pytest.raises(ModelError, match=message):
            Checkpoint.open(adapter)
    tiny.model(tmp_path / "gpt2", "gpt2")
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gpt2"))
    with pytest.raises(ModelError, match="made for another base"):
        Checkpoint.open(adapter)
    assert not [path for path in cache.rglob("*") if path.is_dir() and path.name.startswith((".", "folded"))]


def pickled(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def empty(adapter):
    (adapter / "adapter_model.safetensors").unlink()


def cut(adapter):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def without_base(adapter):
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)


def unknown_base(adapter):
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter.parent / "bse"))


def data_start(adapter):
    tiny.edit_json(adapter / "adapter_config.json", init_lora_weights="corda")


def settings(**changes):
    def change(adapter):
        tiny.edit_json(adapter / "adapter_config.json", **changes)

    change.__name__ = str(changes)
    return change


def lonely(adapter):
    change_factors(adapter, lambda factors, down: factors.pop(down))


def of_two_ranks(adapter):
    change_factors(adapter, lambda factors, down: factors.update({down: factors[down][:3].clone()}))


def flat(adapter):
    change_factors(adapter, lambda factors, down: factors.update({down: factors[down][0].clone()}))


def change_factors(adapter, change):
    factors = load_file(adapter / "adapter_model.safetensors")
    change(factors, next(name for name in factors if name.endswith("lora_A.weight")))
    save_file(factors, adapter / "adapter_model.safetensors")


def own_base(adapter):
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))


def list_of_settings(adapter):
    (adapter / "adapter_config.json").write_text("[]")


def not_foldable(adapter):
    content = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    (adapter / "adapter_config.json").write_text(json.dumps({**content, "base_model_name_or_path": base}))
    save_file({"prompt_embeddings": torch.zeros(4, 32)}, adapter / "adapter_model.safetensors")


def nan(adapter):
    factors = load_file(adapter / "adapter_model.safetensors")
    next(iter(factors.values()))[0, 0] = float("nan")
    save_file(factors, adapter / "adapter_model.safetensors")


WRONG = {
    pickled: (ModelError, "pickled adapter weights"),
    empty: (ModelError, "no weights"),
    cut: (ModelError, "cut short"),
    without_base: (ModelError, "no base_model_name_or_path"),
    unknown_base: (ConfigError, "did you mean .*base"),
    data_start: (ModelError, "start from 'corda'"),
    lonely: (ModelError, "lora_B.weight' is there without '.*lora_A.weight'"),
    of_two_ranks: (ModelError, "are no pair"),
    flat: (ModelError, "are no pair"),
    own_base: (ModelError, "names its own folder"),
    list_of_settings: (ModelError, "not a table of settings"),
    settings(r="x"): (ModelError, "'r' is 'x'; expected a number"),
    settings(lora_alpha="x"): (ModelError, "'lora_alpha' is 'x'"),
    settings(alpha_pattern=[1]): (ModelError, r"a pattern is \[1\]"),
    settings(alpha_pattern={"q_proj": "x"}): (ModelError, "'q_proj' is 'x'"),
    settings(alpha_pattern={"(": 3}): (ModelError, "can not fold it into this base"),
    settings(peft_type="NOPE"): (ModelError, "can not fold it into this base"),
    settings(target_modules=7): (ModelError, "can not fold it into this base"),
    settings(modules_to_save=4): (ModelError, "can not fold it into this base"),
    not_foldable: (ModelError, "can not be folded"),
    nan: (ModelError, "NaN|broken"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    base = tiny.model(folder / "base")
    return base, adapt(base, folder / "adapter")


@pytest.mark.parametrize("damage", WRONG, ids=lambda d: d.__name__)
def test_wrong_adapters_are_refused(pair, tmp_path, damage, cache):
    shutil.copytree(pair[0], tmp_path / "base")
    adapter = shutil.copytree(pair[1], tmp_path / "adapter")
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
    damage(adapter)
    kind, message = WRONG[damage]
    with pytest.raises(kind, match=message):
        Checkpoint.open(adapter)
    assert not [path for path in cache.rglob("*") if path.is_dir() and path.name.startswith((".", "folded"))]
