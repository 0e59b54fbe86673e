"""Vocabulary transplant: values, sizes, ids, templates, and everything else left as it was."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix, identity, random_array
from transformers import AutoTokenizer

from calque.errors import ModelError
from calque.merge.transplant import transplant
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes
from calque.vocab.map import build_map
from calque.vocab.tokens import Tokens

from .. import tiny

TEXT = [*tiny.CHICHEWA, "Ng'ombe 4, café ሰላም 你好"]


def new_tokens(like=""):
    return Tokens.of(tiny.tokenizer(tiny.CHICHEWA, size=301, like=like))


def some_map(old, new, *, density=0.02, seed=0, fallback="mean"):
    weights = random_array((len(new), len(old)), density=density, rng=np.random.default_rng(seed))
    how = np.zeros(len(new), np.uint8)
    return build_map(old, new, csr_matrix(weights), how, ("drawn",), fallback=fallback, seed=seed)


def identity_map(tokens):
    eye = identity(len(tokens), format="csr")
    return build_map(tokens, tokens, eye, np.zeros(len(tokens), np.uint8), ("same",), fallback="mean")


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def base(request, tmp_path_factory):
    folder = tiny.model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return Checkpoint.open(folder)


def test_every_architecture_gets_its_new_vocabulary(base, tmp_path):
    old, new = Tokens.of(base.tokenizer()), new_tokens(base.config["model_type"])
    vocab_map = some_map(old, new)
    out = transplant(base, vocab_map, new).write(tmp_path / "out", text=TEXT)
    table = base.read(base.input_embedding).numpy()
    expected = torch.from_numpy(vocab_map.apply(table))
    assert torch.equal(out.read(out.input_embedding), expected)
    assert out.tied == base.tied and out.text_config["vocab_size"] == len(new)
    changed = {out.input_embedding, out.output_embedding, out.output_bias}
    if not base.tied:
        head = base.read(base.output_embedding).numpy()
        assert torch.equal(out.read(out.output_embedding), torch.from_numpy(vocab_map.apply(head)))
    if base.output_bias:
        assert out.info(out.output_bias).shape[-1] == len(new)
    assert set(out.tensors) == set(base.tensors)
    for name in out.tensors.keys() - changed:
        assert same_bytes(base.info(name), out.info(name)), name


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tiny.model(tmp_path_factory.mktemp("models") / "llama", dtype=torch.bfloat16)
    (folder / "chat_template.jinja").write_text("<s>{{ messages[0].content }}<|end|></s>")
    tiny.edit_json(
        folder / "tokenizer_config.json",
        model_max_length=48,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        add_bos_token=True,
    )
    tiny.edit_json(folder / "generation_config.json", eos_token_id=[2, 5], temperature=0.6, do_sample=True)
    return Checkpoint.open(folder)


def test_the_same_vocabulary_is_the_same_model(llama, tmp_path):
    tokens = Tokens.of(llama.tokenizer())
    out = transplant(llama, identity_map(tokens), tokens).write(tmp_path / "out", text=TEXT)
    for name, info in llama.tensors.items():
        expected, got = info.read(), out.read(name)
        assert torch.equal(got, expected[: len(got)]), name
    ids = torch.tensor([tokens.encode("the house")])
    before, after = llama.model().eval()(ids).logits, out.model().eval()(ids).logits
    torch.testing.assert_close(after, before[..., : len(tokens)])


def test_padding_rows_reach_nothing(llama, tmp_path):
    old, new = Tokens.of(llama.tokenizer()), new_tokens()
    assert llama.info(llama.input_embedding).shape[0] > len(old)
    spoiled = tmp_path / "spoiled"
    Checkpoint.at(llama.folder).model(None).save_pretrained(spoiled)
    weights = load_file(spoiled / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][len(old) :] = 1e30
    save_file(weights, spoiled / "model.safetensors", {"format": "pt"})
    tiny.tokenizer().save_pretrained(spoiled)
    vocab_map = some_map(old, new, fallback="normal")
    clean = transplant(llama, vocab_map, new).write(tmp_path / "clean")
    other = transplant(Checkpoint.open(spoiled), vocab_map, new).write(tmp_path / "other")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert same_bytes(clean.info(name), other.info(name))


@given(st.integers(0, 10**6), st.sampled_from(["mean", "normal"]), st.floats(0.002, 0.2))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sums_in_float32_are_rounded_once(llama, seed, fallback, density):
    old, new = Tokens.of(llama.tokenizer()), new_tokens()
    vocab_map = some_map(old, new, seed=seed, fallback=fallback, density=density)
    made = transplant(llama, vocab_map, new)
    row = next(row for row in made.rows if row.name == llama.input_embedding)
    assert row.function is not None and (row.dtype, row.shape) == ("BF16", (len(new), 32))
    got = torch.cat([block.to(torch.bfloat16) for block in row.function(*row.inputs)])
    table = llama.read(llama.input_embedding).float().numpy()
    assert torch.equal(got, torch.from_numpy(vocab_map.apply(table)).to(torch.bfloat16))
    exact = vocab_map.input @ table[: len(old)].astype(np.float64)
    covered = vocab_map.covered
    np.testing.assert_allclose(got.float().numpy()[covered], exact[covered], rtol=2**-7, atol=1e-4)


def test_ids_templates_and_settings_are_carried_over(llama, tmp_path):
    old = Tokens.of(llama.tokenizer())
    swapped = tiny.tokenizer(tiny.CHICHEWA, size=301).backend_tokenizer.to_str()
    spec = json.loads(swapped)
    ids = {"<pad>": 2, "<s>": 0, "</s>": 1}
    for token in spec["added_tokens"]:
        token["id"] = ids[token["content"]]
    spec["added_tokens"].sort(key=lambda token: token["id"])
    spec["model"]["vocab"] |= ids
    backend = __import__("tokenizers").Tokenizer.from_str(json.dumps(spec))
    new = Tokens.wrap(backend, roles={"pad": "<pad>", "bos": "<s>", "eos": "</s>"})
    out = transplant(llama, some_map(old, new), new).write(tmp_path / "out", text=TEXT)
    assert [out.config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [0, 1, 2]
    generation = json.loads((out.folder / "generation_config.json").read_text())
    kept = old.strings[5]
    expected = [1, new.backend.token_to_id(kept)]
    assert generation["eos_token_id"] == expected and generation["temperature"] == 0.6
    tokenizer = AutoTokenizer.from_pretrained(out.folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.model_max_length == 48 and tokenizer.padding_side == "left"
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert tokenizer.chat_template == llama.tokenizer().chat_template
    settings = json.loads((out.folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    notes = json.loads((out.folder / "rewrite.json").read_text())
    assert notes["method"] == "transplant" and notes["ids"]["bos_token_id"] == "1 '<s>' -> 0"
    assert sum(notes["rows"].values()) == len(new)


def test_ids_without_a_token_are_dropped_and_said(llama, capsys):
    spec = json.loads(tiny.tokenizer(tiny.CHICHEWA, size=301).backend_tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "<pad>"]
    spec["model"]["vocab"] = {("<x>" if k == "<pad>" else k): v for k, v in spec["model"]["vocab"].items()}
    backend = __import__("tokenizers").Tokenizer.from_str(json.dumps(spec))
    new = Tokens.wrap(backend, roles={"bos": "<s>", "eos": "</s>"})
    made = transplant(llama, some_map(Tokens.of(llama.tokenizer()), new), new)
    assert made.config["pad_token_id"] is None and made.config["bos_token_id"] == 1
    assert "pad_token_id: the new vocabulary has no '<pad>'" in capsys.readouterr().err


def test_defaults_that_the_file_leaves_out_follow_too(tmp_path):
    folder = tiny.model(tmp_path / "gpt2", "gpt2")
    tiny.edit_json(folder / "config.json", bos_token_id=None, eos_token_id=None)
    tiny.edit_json(folder / "generation_config.json", bos_token_id=None, eos_token_id=None)
    base, new = Checkpoint.open(folder), new_tokens()
    assert base.loaded_config.bos_token_id == 50256
    made = transplant(base, some_map(Tokens.of(base.tokenizer()), new), new)
    assert (made.config["bos_token_id"], made.config["eos_token_id"]) == (1, 2)


def test_second_copies_of_a_tied_matrix_go(tmp_path):
    folder = tiny.model(tmp_path / "m", "m2m")
    weights = load_file(folder / "model.safetensors")
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights["model.shared.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    base, new = Checkpoint.open(folder), new_tokens()
    out = transplant(base, some_map(Tokens.of(base.tokenizer()), new), new).write(tmp_path / "out")
    assert out.tied and not [name for name in out.tensors if "embed_tokens" in name or "lm_head" in name]
    weights["model.decoder.embed_tokens.weight"][3] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="two vocabularies"):
        transplant(Checkpoint.open(folder), some_map(Tokens.of(base.tokenizer()), new), new)


def test_parts_that_do_not_belong_together_are_refused(llama):
    old, new = Tokens.of(llama.tokenizer()), new_tokens()
    vocab_map = some_map(old, new)
    with pytest.raises(ModelError, match=f"from {len(old)} to {len(new)} tokens.*new one {len(old)}"):
        transplant(llama, vocab_map, old)
    with pytest.raises(ModelError, match="the model's tokenizer has"):
        transplant(llama, some_map(new, new), new)


def test_a_tokenizer_that_transformers_would_replace_is_refused(tmp_path):
    base = Checkpoint.open(tiny.model(tmp_path / "qwen", "qwen2"))
    foreign = tiny.tokenizer(tiny.CHICHEWA, size=301)
    foreign.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    new = Tokens.of(foreign)
    made = transplant(base, some_map(Tokens.of(base.tokenizer()), new), new)
    with pytest.raises(ModelError, match=r"'qwen2' transformers opens every tokenizer as Qwen2Tokenizer"):
        made.write(tmp_path / "out")


def test_a_template_whose_tokens_are_gone_is_said(tmp_path, capsys):
    folder = tiny.model(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|end|>")
    base, new = Checkpoint.open(folder), new_tokens()
    transplant(base, some_map(Tokens.of(base.tokenizer()), new), new)
    assert "writes <|end|>, which the new vocabulary takes apart" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.asset("smollm2-135m")
def test_a_real_model_keeps_its_logits_under_its_own_vocabulary(tmp_path):
    base = Checkpoint.open("smollm2-135m")
    tokens = Tokens.of(base.tokenizer())
    out = transplant(base, identity_map(tokens), tokens).write(tmp_path / "out", text=TEXT)
    for name, info in base.tensors.items():
        assert same_bytes(info, out.info(name)), name
    prompt = "<|im_start|>user\nThe house stands on<|im_end|>\n"
    ids = torch.tensor([tokens.encode(prompt)])
    assert out.tokenizer().encode(prompt, add_special_tokens=False) == ids[0].tolist()
    assert out.tokenizer().chat_template == base.tokenizer().chat_template
    assert torch.equal(out.model().eval()(ids).logits, base.model().eval()(ids).logits)
