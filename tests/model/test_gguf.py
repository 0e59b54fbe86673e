"""A small quantised GGUF file, written on the spot, becomes a plain folder with the same logits."""

import struct
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calque.errors import ModelError
from calque.model.gguf import convert_gguf

WIDTH, LAYERS, HEADS, INNER = 64, 2, 4, 96
TEXT = "a  2 and 1,234 Ndipo anati"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_gguf(path, pre="smollm"):
    """Llama with a byte-level vocabulary, large matrices in 8 bits."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = ["<|endoftext|>", "<s>", "</s>", *letters, "ĠĠ", "an", "Ġan"]
    random = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_name("toy")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "a n", "Ġ an"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), WIDTH)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_q": (WIDTH, WIDTH), f"{block}.attn_output": (WIDTH, WIDTH)}
        shapes |= {f"{block}.attn_k": (WIDTH // 2, WIDTH), f"{block}.attn_v": (WIDTH // 2, WIDTH)}
        shapes |= {f"{block}.ffn_gate": (INNER, WIDTH), f"{block}.ffn_up": (INNER, WIDTH)}
        shapes |= {f"{block}.ffn_down": (WIDTH, INNER)}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{norm}.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        values = random.normal(0, 0.2, shape).astype(numpy.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    file = write_gguf(folder / "toy.gguf")
    convert_gguf(file, folder / "plain")
    return file, folder / "plain"


def test_logits_are_those_of_the_file(converted):
    file, folder = converted
    plain = AutoModelForCausalLM.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, loaded(ids).logits)


def test_the_folder_is_an_ordinary_model(converted):
    _, folder = converted
    names = {file.name for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= names
    assert not any("gguf" in file.read_text() for file in folder.glob("*.json"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.float() is model, "a model marked as quantised refuses this"
    assert model.config.name_or_path == str(folder)


def test_tokenizer_splits_digits_and_keeps_roles_and_template(converted):
    _, folder = converted
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("a  2 an 12") == ["a", "ĠĠ", "2", "Ġan", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == 128
    assert tokenizer.chat_template == TEMPLATE


def test_other_pre_tokenizers_are_left_as_they_are(tmp_path):
    convert_gguf(write_gguf(tmp_path / "toy.gguf", pre="default"), tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").tokenize("a  2") == ["a", "Ġ", "Ġ", "2"]


@pytest.mark.parametrize("length", [10, 30, 200, 2000])
def test_cut_file(converted, tmp_path, length):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(converted[0].read_bytes()[:length])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        convert_gguf(cut, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_file_cut_in_the_weights(converted, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(converted[0].read_bytes()[:-5000])
    with pytest.raises(ModelError, match="can not read this GGUF file"):
        convert_gguf(cut, tmp_path / "plain")


def test_a_tensor_that_is_not_there_is_never_made_up(converted, tmp_path):
    file = tmp_path / "lacks.gguf"
    file.write_bytes(converted[0].read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(
        ModelError, match=r"1 tensors .* are missing, first 'model.layers.1.mlp.up_proj.weight'"
    ):
        convert_gguf(file, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_what_is_no_gguf(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "plain")
    (tmp_path / "a.gguf").write_bytes(struct.pack("<Q", 7) * 4)
    with pytest.raises(ModelError, match="not a GGUF file"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "plain")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match="not a GGUF file"):
        convert_gguf(tmp_path / "b.gguf", tmp_path / "plain")
