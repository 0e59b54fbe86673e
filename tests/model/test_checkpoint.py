"""Reading a checkpoint: by byte range, exactly, in little memory, running nothing of its folder."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from calque.errors import ConfigError, ModelError
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import DTYPES, lay_out, read_header, same_bytes

from .. import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("models") / "llama", dtype=torch.bfloat16)


def test_reads_what_safetensors_reads(folder):
    checkpoint, expected = Checkpoint.open(folder), load_file(folder / "model.safetensors")
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.read(name).dtype == tensor.dtype
    assert checkpoint.nbytes == sum(t.numel() * t.itemsize for t in expected.values())


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_rows_and_blocks_are_parts_of_the_whole(folder, data):
    checkpoint = Checkpoint.at(folder)
    name = data.draw(st.sampled_from(sorted(checkpoint.tensors)))
    whole = checkpoint.read(name)
    first, last = data.draw(st.integers(-5, 330)), data.draw(st.integers(-5, 330))
    assert torch.equal(checkpoint.read(name, slice(first, last)), whole[first:last])
    size = data.draw(st.integers(1, 5000))
    blocks = list(checkpoint.blocks(name, size))
    assert torch.equal(torch.cat([block for _, block in blocks]), whole)
    assert [start for start, _ in blocks] == [
        sum(len(block) for _, block in blocks[:i]) for i in range(len(blocks))
    ]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 4), max_size=3)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=50, deadline=None)
def test_a_laid_out_file_reads_back(tmp_path_factory, tensors):
    file = tmp_path_factory.mktemp("files") / "x.safetensors"
    header, infos = lay_out([(name, dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()], file)
    size = sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in tensors.values())
    file.write_bytes(header + bytes(i % 251 for i in range(size)))
    assert read_header(file) == infos
    assert set(load_file(file)) == set(tensors)
    for info in infos.values():
        assert info.start % info.torch_dtype.itemsize == 0
        assert info.read().shape == info.shape
        assert same_bytes(info, info)


def test_shards_are_one_checkpoint(folder, tmp_path):
    whole = Checkpoint.at(folder)
    whole.model(None).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shards = Checkpoint.at(tmp_path / "shards")
    assert len({info.file for info in shards.tensors.values()}) > 2
    for name, info in whole.tensors.items():
        assert same_bytes(info, shards.info(name))


def test_a_scalar_is_read(tmp_path):
    save_file({"x": torch.tensor(2.5), "y": torch.arange(3)}, tmp_path / "m.safetensors")
    info = read_header(tmp_path / "m.safetensors")["x"]
    assert info.read().item() == 2.5 and [b.item() for _, b in info.blocks()] == [2.5]


def test_check_passes_a_sound_model(folder):
    Checkpoint.open(folder).check()


def test_models_load_in_the_dtype_asked_for(folder):
    checkpoint = Checkpoint.at(folder)
    assert next(checkpoint.model().parameters()).dtype == torch.float32
    assert next(checkpoint.model(None).parameters()).dtype == torch.bfloat16
    assert checkpoint.tokenizer().bos_token_id == 1


def test_code_in_the_folder_is_never_run(tmp_path):
    folder = tiny.model(tmp_path / "m")
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
    (folder / "evil.py").write_text(code)
    tiny.edit_json(
        folder / "config.json",
        auto_map={"AutoConfig": "evil.LlamaConfig", "AutoModelForCausalLM": "evil.LlamaForCausalLM"},
    )
    tiny.edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    checkpoint = Checkpoint.open(folder)
    checkpoint.check()
    checkpoint.model()
    assert not ran.exists()


def test_an_architecture_that_needs_its_own_code_is_refused_when_built(tmp_path):
    folder = tiny.model(tmp_path / "m")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    tiny.edit_json(
        folder / "config.json",
        model_type="evil",
        architectures=["EvilModel"],
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    )
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.input_embedding == "model.embed_tokens.weight"
    with pytest.raises(ModelError, match=r"transformers"):
        checkpoint.model()


def test_tying_follows_the_configuration_and_the_file(tmp_path):
    tied = Checkpoint.at(tiny.model(tmp_path / "tied", "llama-tied"))
    assert tied.tied and tied.output_embedding is None
    loose = Checkpoint.at(tiny.model(tmp_path / "loose"))
    assert not loose.tied and loose.output_embedding == "lm_head.weight"
    copied = tiny.model(tmp_path / "copied", "llama-tied")
    weights = load_file(copied / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    both = Checkpoint.at(copied)
    assert both.tied and both.stored_output == "lm_head.weight"
    both.check()


def test_old_configs_without_a_tying_key_follow_their_class(tmp_path):
    folder = tiny.model(tmp_path / "m", "gpt2")
    tiny.edit_json(folder / "config.json", tie_word_embeddings=None)
    assert "tie_word_embeddings" not in json.loads((folder / "config.json").read_text())
    assert Checkpoint.at(folder).tied


def test_unknown_refs_get_near_names(tmp_path):
    (tmp_path / "smollm-chichewa").mkdir()
    with pytest.raises(ConfigError, match="smollm-chichewa"):
        Checkpoint.open(tmp_path / "smollm-chichwa")
    with pytest.raises(ConfigError, match="smollm2-135m"):
        Checkpoint.open("smolm2-135m")


def test_an_unreachable_hub_is_said(monkeypatch):
    import huggingface_hub

    def fail(*args, **settings):
        assert settings["allow_patterns"] and not any("bin" in p for p in settings["allow_patterns"])
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="hub could not be reached"):
        Checkpoint.open("someone/some-model")


def test_a_hub_model_is_its_downloaded_folder(monkeypatch, folder):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **s: str(folder))
    assert Checkpoint.open("someone/some-model").folder == folder
