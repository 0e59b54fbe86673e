"""Wrong input to a merge: refused with one message, nothing changed, no final folder, no traceback."""

import errno
import hashlib
import json
import os
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from calque import cli
from calque.errors import CalqueError, ConfigError, DataError, ModelError
from calque.merge import execute, rewrite
from calque.merge.inputs import line_up
from calque.merge.rewrite import Row
from calque.merge.stream import elementwise, whole
from calque.model.checkpoint import Checkpoint

from .. import tiny
from ..model.test_wrong_input import INDEXES, OPENING, change_index, change_weights

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [tiny.model(folder / f"m{seed}", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("shards") / "m"
    Checkpoint.at(models[1]).model().save_pretrained(folder, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def base(models, tmp_path):
    return shutil.copytree(models[0], tmp_path / "in" / "base")


@pytest.fixture
def tuned(models, tmp_path):
    return shutil.copytree(models[1], tmp_path / "in" / "tuned")


@pytest.fixture
def out(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "out"


def mean(name, base_block, tuned_blocks):
    return sum(tuned_blocks, base_block) / (1 + len(tuned_blocks))


def merge(base, tuned, out, **how):
    inputs = line_up(Checkpoint.open(base), [Checkpoint.open(tuned)], **how)
    return inputs.rewrite(elementwise(inputs, mean)).write(out)


def state(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(base, tuned, out, match, kind=CalqueError, **how):
    """The merge must fail with this message, and leave everything as it was."""
    before = state(base.parent)
    with pytest.raises(kind, match=match) as caught:
        merge(base, tuned, out, **how)
    assert len(str(caught.value)) < 900
    assert state(base.parent) == before
    assert list(out.parent.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("which", ["base", "tuned"])
@pytest.mark.parametrize("damage", OPENING, ids=lambda d: d.__name__)
def test_a_damaged_folder_is_refused(base, tuned, out, damage, which):
    damage(base if which == "base" else tuned)
    said = refused(base, tuned, out, OPENING[damage])
    assert str(base if which == "base" else tuned) in said


@pytest.mark.parametrize("damage", INDEXES, ids=lambda d: d.__name__)
def test_a_damaged_index_is_refused(base, sharded, out, damage):
    shards = shutil.copytree(sharded, base.parent / "shards")
    change_index(shards, damage)
    refused(base, shards, out, INDEXES[damage], ModelError)


def test_a_shard_cut_short_is_refused(base, sharded, out):
    shards = shutil.copytree(sharded, base.parent / "shards")
    file = sorted(shards.glob("*.safetensors"))[2]
    file.write_bytes(file.read_bytes()[:-5])
    assert file.name in refused(base, shards, out, "cut short", ModelError)


def test_a_name_in_two_shards_is_refused(base, sharded, out):
    shards = shutil.copytree(sharded, base.parent / "shards")
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    doubled = next(iter(load_file(first).items()))
    save_file(load_file(second) | dict([doubled]), second, {"format": "pt"})
    refused(base, shards, out, f"'{doubled[0]}' stands in two shards", ModelError)


def test_other_shards_are_no_error(base, tuned, sharded, out):
    shards = shutil.copytree(sharded, base.parent / "shards")
    one, two = merge(base, shards, out), merge(base, tuned, out.with_name("again"))
    assert all(torch.equal(one.read(name), two.read(name)) for name in two.tensors)


def missing(folder):
    change_weights(folder, lambda w: w.pop(UP))


def extra(folder):
    change_weights(folder, lambda w: w.update({"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}))


def transposed(folder):
    change_weights(folder, lambda w: w.update({UP: w[UP].T.contiguous()}))


def wider(folder):
    change_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(40)}))


def integers(folder):
    change_weights(folder, lambda w: w.update({UP: w[UP].to(torch.int8)}))


def quantised(folder):
    tiny.edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})


def other_heads(folder):
    tiny.edit_json(folder / "config.json", num_attention_heads=2, head_dim=16)


def other_type(folder):
    tiny.edit_json(folder / "config.json", model_type="mistral")


def other_activation(folder):
    tiny.edit_json(folder / "config.json", hidden_act="relu")


def shuffled_rows(folder):
    """The same number of rows, other tokens."""
    tiny.tokenizer(tiny.CHICHEWA).save_pretrained(folder)


def more_tokens(folder):
    made = tiny.tokenizer()
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.save_pretrained(folder)


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": 1')


MISMATCHES = {
    missing: rf"tuned: 1 tensors of the base .*base are missing, first '{re.escape(UP)}' \(48, 32\)",
    extra: r"model.safetensors: 1 tensors that the base .* has not, first 'model.layers.2.mlp.up_proj",
    transposed: r"up_proj.weight' has shape \(48, 32\) in .*base.*safetensors and \(32, 48\) in .*tuned",
    wider: r"'model.norm.weight' has shape \(32,\) in .* and \(40,\) in ",
    integers: r"tuned.*up_proj.weight' is I8; merged can be floating-point only",
    quantised: r"quantised \(quantization_config\)",
    other_heads: r"num_attention_heads is 2, in the base .* it is 4",
    other_type: r"architecture is 'mistral', that of the base .* is 'llama'",
    other_activation: r"hidden_act is 'relu', in the base .* it is 'silu'",
    shuffled_rows: r"263 tokens are shared, 27 are only in the base, 27 only here.*--vocabulary base",
    more_tokens: r"290 tokens are shared, 0 are only in the base, 2 only here",
    no_tokenizer: "no usable tokenizer",
    broken_tokenizer: "no usable tokenizer",
}


@pytest.mark.parametrize("change", MISMATCHES, ids=lambda c: c.__name__)
def test_a_model_that_does_not_fit_is_refused(base, tuned, out, change):
    change(tuned)
    refused(base, tuned, out, MISMATCHES[change], ModelError)


@pytest.mark.parametrize(
    ("architecture", "sizes", "match"),
    [
        ("qwen2", {}, "architecture is 'qwen2'"),
        ("gpt2", {}, "architecture is 'gpt2'"),
        ("t5", {}, "architecture is 't5'"),
        ("bert", {}, "architecture is 'bert'"),
        ("llama", {"num_hidden_layers": 3}, "num_hidden_layers is 3, in the base .* it is 2"),
        ("llama", {"hidden_size": 64, "head_dim": 16}, "hidden_size is 64|head_dim is 16"),
        ("llama", {"intermediate_size": 96}, "intermediate_size is 96"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads is 4"),
        ("llama", {"attention_bias": False}, "tensors of the base .* are missing, first .*bias"),
    ],
)
def test_another_architecture_is_refused(base, out, architecture, sizes, match):
    other = tiny.model(base.parent / "other", architecture, **sizes)
    refused(base, other, out, match, ModelError)


@pytest.mark.parametrize("which", ["base", "tuned"])
@pytest.mark.parametrize(
    ("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (-float("inf"), "Inf")]
)
@pytest.mark.parametrize(
    ("name", "row"), [(UP, 5), ("model.embed_tokens.weight", 300), ("model.norm.weight", 7)]
)
def test_numbers_that_are_none_are_refused(base, tuned, out, which, value, kind, name, row):
    folder = base if which == "base" else tuned
    change_weights(folder, lambda w: w[name][row].fill_(value))
    refused(base, tuned, out, rf"{which}/model.safetensors: tensor '{re.escape(name)}': {kind} in row {row}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_that_are_none_are_found_in_every_dtype(base, out, dtype):
    other = tiny.model(base.parent / "other", dtype=dtype)
    change_weights(other, lambda w: w[UP][9, 3].fill_(float("nan")))
    refused(base, other, out, f"other/model.safetensors: tensor '{re.escape(UP)}': NaN in row 9", ModelError)


def test_a_nan_in_a_copied_tensor_is_refused(base, tuned, out):
    change_weights(tuned, lambda w: w[UP][5].fill_(float("nan")))
    inputs = line_up(Checkpoint.open(base), [Checkpoint.open(tuned)])
    rows = [Row.copy(inputs.tuned[0], name) for name in inputs.names]
    with pytest.raises(ModelError, match="NaN in row 5"):
        inputs.rewrite(rows).write(out)
    assert list(out.parent.iterdir()) == []


def test_other_dtypes_are_no_error(base, tuned, out):
    other = tiny.model(base.parent / "bf16", seed=1, dtype=torch.bfloat16)
    made = merge(base, other, out)
    one, two = Checkpoint.at(base), Checkpoint.at(other)
    assert made.info(UP).dtype == "F32"
    assert torch.equal(made.read(UP), (one.read(UP) + two.read(UP).float()) / 2)


def test_untied_into_tied_is_refused(tmp_path, out):
    base = tiny.model(tmp_path / "in" / "base", "llama-tied")
    other = tiny.model(tmp_path / "in" / "untied", tie_word_embeddings=False)
    refused(base, other, out, r"output matrix of its own, 'lm_head.weight'.* as the base", ModelError)


def test_tied_into_untied_uses_the_embedding_twice(tmp_path, out):
    base = tiny.model(
        tmp_path / "in" / "base", tie_word_embeddings=False, attention_bias=False, mlp_bias=False
    )
    other = tiny.model(tmp_path / "in" / "tied", "llama-tied")
    made = merge(base, other, out)
    one, two = Checkpoint.at(base), Checkpoint.at(other)
    expected = (one.read("lm_head.weight") + two.read("model.embed_tokens.weight")) / 2
    assert torch.equal(made.read("lm_head.weight"), expected)


def adapter(folder, base, width, name="model.layers.0.self_attn.q_proj"):
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    settings |= {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    factors = {"lora_A": torch.ones(2, width), "lora_B": torch.ones(32, 2)}
    save_file(
        {f"base_model.model.{name}.{side}.weight": weight for side, weight in factors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize(
    ("width", "name"), [(48, "model.layers.0.self_attn.q_proj"), (32, "model.layers.9.self_attn.q_proj")]
)
def test_an_adapter_for_another_base_is_refused(base, out, monkeypatch, width, name):
    monkeypatch.setenv("CALQUE_CACHE", str(out.parent.parent / "cache"))
    made = adapter(base.parent / "adapter", base, width, name)
    refused(base, made, out, "made for another base", ModelError)


def test_an_adapter_whose_base_is_gone_is_refused(base, out, monkeypatch):
    monkeypatch.setenv("CALQUE_CACHE", str(out.parent.parent / "cache"))
    made = adapter(base.parent / "adapter", base.parent / "gone", 32)
    refused(base, made, out, "gone")


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_an_input_is_never_the_output(base, tuned, which):
    folder = base if which == "base" else tuned
    before = state(base.parent)
    with pytest.raises(ConfigError, match="input as well as the output"):
        merge(base, tuned, folder)
    with pytest.raises(ConfigError, match="input as well as the output"):
        merge(base, tuned, folder.parent / "x" / ".." / folder.name)
    with pytest.raises(ConfigError, match="would lie inside the input"):
        merge(base, tuned, folder / "deep" / "out")
    link = base.parent / "link"
    link.symlink_to(folder)
    with pytest.raises(ConfigError, match="input as well as the output"):
        merge(base, tuned, link)
    link.unlink()
    assert state(base.parent) == before


def test_an_existing_output_is_refused(base, tuned, out):
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists already"):
        merge(base, tuned, out)
    file = out.with_name("file")
    file.write_text("keep")
    with pytest.raises(ConfigError, match="exists already"):
        merge(base, tuned, file)
    assert (out / "mine.txt").read_text() == file.read_text() == "keep"


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_leaves_nothing(base, tuned, out, monkeypatch, call, number):
    def refuse(*args, **settings):
        raise OSError(number, os.strerror(number))

    fake = type("os", (), {**vars(os), call: staticmethod(refuse)})
    monkeypatch.setattr(execute, "os", fake)
    refused(base, tuned, out, "disk full while writing|can not write", DataError)


def test_too_little_room_is_seen_before_writing(base, tuned, out, monkeypatch):
    monkeypatch.setattr(rewrite.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    refused(base, tuned, out, "0.0 MB are free; nothing was written", DataError)


def test_a_merge_of_one_model_is_refused(base):
    with pytest.raises(ModelError, match="at least one checkpoint besides the base"):
        line_up(Checkpoint.open(base), [])


@pytest.fixture(scope="module")
def small(models):
    """A base and the bytes of a tuned model's weights, for damage by chance."""
    return models[0], models[1], (models[1] / WEIGHTS).read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), header=st.booleans())
@settings(max_examples=40, deadline=None)
def test_flipped_bits_give_a_message_or_a_merge(small, tmp_path_factory, place, bit, header):
    base, tuned, raw = small
    folder = tmp_path_factory.mktemp("flip")
    damaged = bytearray(raw)
    length = 8 + int.from_bytes(raw[:8], "little") if header else len(raw)
    damaged[int(place * length)] ^= 1 << bit
    shutil.copytree(tuned, folder / "tuned")
    (folder / "tuned" / WEIGHTS).write_bytes(bytes(damaged))
    try:
        inputs = line_up(Checkpoint.open(base), [Checkpoint.open(folder / "tuned")])
        for row in whole(inputs, mean):  # as elementwise, without a thread for each tensor
            assert all(torch.isfinite(block).all() for block in row.function(*row.inputs))
    except CalqueError as error:
        assert str(folder) in str(error)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return stopped.value.code, capsys.readouterr().err


CLI = {
    **{damage: OPENING[damage] for damage in list(OPENING)[::4]},
    **{change: MISMATCHES[change] for change in (missing, transposed, quantised, other_type, shuffled_rows)},
}


@pytest.mark.parametrize("damage", CLI, ids=lambda d: d.__name__)
def test_the_command_line_ends_with_code_2_and_a_message(base, tuned, out, capsys, damage):
    damage(tuned)
    before = state(base.parent)
    code, said = run(capsys, "merge", "linear", base, "--tuned", tuned, "-o", out)
    assert code == 2 and "Traceback" not in said and re.search(CLI[damage], said)
    assert state(base.parent) == before and not out.exists()


def test_the_command_line_names_tensor_and_file(base, tuned, out, capsys):
    change_weights(tuned, lambda w: w[UP][5].fill_(float("nan")))
    code, said = run(capsys, "merge", "linear", base, "--tuned", tuned, "-o", out)
    assert code == 2 and f"{tuned}/model.safetensors: tensor '{UP}': NaN in row 5" in said
    assert not out.exists()
