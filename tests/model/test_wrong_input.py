"""Every damaged or unfit model is refused with one clear message, and nothing of it is run or changed."""

import json
import shutil
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from calque.errors import CalqueError, ConfigError, DataError, ModelError
from calque.model.checkpoint import Checkpoint

from .. import tiny

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, sound):
    folder = tmp_path_factory.mktemp("shards") / "m"
    Checkpoint.at(sound).model().save_pretrained(folder, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "m")


@pytest.fixture
def shards(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "m")


def header(folder):
    raw = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put_header(folder, entries, data):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_entry(folder, name="model.norm.weight", **changes):
    entries, data = header(folder)
    entries[name] |= changes
    put_header(folder, entries, data)


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def change_index(folder, change):
    file = folder / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    change(content["weight_map"])
    file.write_text(json.dumps(content))


def without_config(f):
    (f / "config.json").unlink()


def broken_config(f):
    (f / "config.json").write_text('{"model_type": "llama",\n oops')


def list_config(f):
    (f / "config.json").write_text("[1, 2]")


def without_weights(f):
    (f / WEIGHTS).unlink()


def only_pickles(f):
    (f / WEIGHTS).rename(f / "pytorch_model.bin")


def only_old_pickles(f):
    (f / WEIGHTS).rename(f / "consolidated.00.pth")


def only_gguf(f):
    (f / WEIGHTS).rename(f / "model-q4.gguf")


def odd_name(f):
    (f / WEIGHTS).rename(f / "weights.safetensors")


def empty_file(f):
    (f / WEIGHTS).write_bytes(b"")


def cut_in_header(f):
    (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:100])


def cut_in_data(f):
    (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1000])


def longer(f):
    (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"\0" * 8)


def huge_header(f):
    (f / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + (f / WEIGHTS).read_bytes()[8:])


def not_json(f):
    put_header(f, b"{" + b"x" * 100, header(f)[1])


def not_utf8(f):
    put_header(f, b'{"\xff\xfe": 1}', header(f)[1])


def not_a_table(f):
    put_header(f, b"[1, 2, 3]", b"")


def no_tensor(f):
    put_header(f, {}, b"")


def twice_in_header(f):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    put_header(f, f'{{"a":{entry},"a":{entry}}}'.encode(), b"\0" * 4)


def unknown_dtype(f):
    change_entry(f, dtype="F13")


def wrong_shape(f):
    change_entry(f, shape=[33])


def zero_size(f):
    change_entry(f, shape=[0])


def negative_shape(f):
    change_entry(f, shape=[-32])


def text_shape(f):
    change_entry(f, shape="32")


def overlapping(f):
    entries, data = header(f)
    entries["again"] = entries["model.norm.weight"]
    put_header(f, entries, data)


def gap(f):
    entries, data = header(f)
    del entries["model.norm.weight"]
    put_header(f, entries, data)


def no_offsets(f):
    entries, data = header(f)
    del entries["model.norm.weight"]["data_offsets"]
    put_header(f, entries, data)


OPENING = {
    without_config: "no config.json",
    broken_config: r"config.json:2: not valid JSON",
    list_config: "not a table of settings",
    without_weights: "no weights",
    only_pickles: r"pickled \(pytorch_model.bin\).*python -c",
    only_old_pickles: r"pickled \(consolidated.00.pth\)",
    only_gguf: r"give that .gguf file",
    odd_name: "weights.safetensors is there, but neither",
    empty_file: "not a whole safetensors file",
    cut_in_header: "not a whole safetensors file",
    cut_in_data: "cut short",
    longer: "8 bytes after .* belong to nothing",
    huge_header: "not a whole safetensors file",
    not_json: "damaged header",
    not_utf8: "damaged header",
    not_a_table: "not a table of tensors",
    no_tensor: "hold no tensor",
    twice_in_header: "'a' stands in it twice",
    unknown_dtype: "'model.norm.weight': unknown dtype 'F13'",
    wrong_shape: "takes 132 bytes, its range has 128",
    zero_size: "holds no numbers",
    negative_shape: "impossible shape",
    text_shape: "impossible shape",
    overlapping: "lies over the bytes of",
    gap: "128 bytes .* belong to nothing",
    no_offsets: "no dtype, shape and data_offsets",
}


@pytest.mark.parametrize("damage", OPENING, ids=lambda d: d.__name__)
def test_opening_refuses(folder, damage):
    damage(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises((ModelError, DataError), match=OPENING[damage]) as caught:
        Checkpoint.open(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 700
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outside(where):
    where["lm_head.weight"] = "../../etc/model-00001-of-00009.safetensors"


def absolute(where):
    where["lm_head.weight"] = "/etc/passwd"


def missing_shard(where):
    where["lm_head.weight"] = "model-00077-of-00099.safetensors"


def unknown_name(where):
    where["no.such.tensor"] = next(iter(where.values()))


def wrong_shard(where):
    names = sorted(set(where.values()))
    where["lm_head.weight"] = next(name for name in names if name != where["lm_head.weight"])


def a_number(where):
    where["lm_head.weight"] = 3


INDEXES = {
    outside: "not a file inside the folder",
    absolute: "not a file inside the folder",
    missing_shard: "shard 'model-00077-of-00099.safetensors' is missing",
    unknown_name: "'no.such.tensor' is not in",
    wrong_shard: "'lm_head.weight' is not in",
    a_number: "no table 'weight_map'",
}


@pytest.mark.parametrize("damage", INDEXES, ids=lambda d: d.__name__)
def test_indexes_are_checked(shards, damage):
    change_index(shards, damage)
    with pytest.raises(ModelError, match=INDEXES[damage]):
        Checkpoint.open(shards)


def test_a_name_in_two_shards_is_refused(shards):
    names = sorted(shards.glob("*.safetensors"))
    first, second = load_file(names[0]), load_file(names[1])
    name = next(iter(first))
    save_file({**second, name: first[name]}, names[1], {"format": "pt"})
    with pytest.raises(ModelError, match=f"'{name}' stands in two shards"):
        Checkpoint.open(shards)


def nan(f):
    change_weights(f, lambda w: w["model.layers.1.mlp.up_proj.weight"][5].fill_(float("nan")))


def inf(f):
    change_weights(f, lambda w: w["model.embed_tokens.weight"][7].fill_(float("-inf")))


def flipped_exponent(f):
    """A flipped payload bit is caught when it makes a number that is none."""
    checkpoint = Checkpoint.at(f)
    info = checkpoint.info("model.norm.weight")
    raw = bytearray((f / WEIGHTS).read_bytes())
    raw[info.start + 3], raw[info.start + 2] = 0x7F, 0xC0
    (f / WEIGHTS).write_bytes(bytes(raw))


def bigger_tokenizer(f):
    tiny.tokenizer([*tiny.ENGLISH, *tiny.CHICHEWA], size=400).save_pretrained(f)


def wrong_vocab_size(f):
    tiny.edit_json(f / "config.json", vocab_size=321)


def special_id_outside(f):
    tiny.edit_json(f / "generation_config.json", eos_token_id=[2, 999])


def no_tokenizer(f):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (f / name).unlink()


def broken_tokenizer(f):
    (f / "tokenizer.json").write_text('{"version": 1')


def tied_but_different(f):
    tiny.edit_json(f / "config.json", tie_word_embeddings=True)


def untied_but_missing(f):
    change_weights(f, lambda w: w.pop("lm_head.weight"))


CHECKS = {
    nan: r"up_proj.weight': NaN in row 5",
    inf: r"embed_tokens.weight': Inf in row 7",
    flipped_exponent: r"norm.weight': NaN in row 0",
    bigger_tokenizer: r"tokens, 'model.embed_tokens.weight' only 320 rows",
    wrong_vocab_size: "vocab_size is 321",
    special_id_outside: "eos_token_id is 999",
    no_tokenizer: "no usable tokenizer",
    broken_tokenizer: "no usable tokenizer",
    tied_but_different: "two different matrices",
    untied_but_missing: "output matrix is missing",
}


@pytest.mark.parametrize("damage", CHECKS, ids=lambda d: d.__name__)
def test_checking_refuses(folder, damage):
    damage(folder)
    with pytest.raises(ModelError, match=CHECKS[damage]):
        Checkpoint.open(folder).check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_that_are_none_are_found_in_every_dtype(tmp_path, dtype):
    folder = tiny.model(tmp_path / "m", dtype=dtype)
    Checkpoint.at(folder).check()
    change_weights(folder, lambda w: w["lm_head.weight"][300, 31].fill_(float("inf")))
    with pytest.raises(ModelError, match=r"'lm_head.weight': Inf in row 300"):
        Checkpoint.at(folder).check()


def test_large_finite_numbers_are_no_error(folder):
    change_weights(folder, lambda w: w["lm_head.weight"].fill_(3e38))
    Checkpoint.at(folder).check()


def test_a_missing_layer_is_refused_when_the_model_is_built(folder):
    change_weights(folder, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight"):
        Checkpoint.at(folder).model()


def test_a_file_of_another_kind_is_refused(folder):
    with pytest.raises(ModelError, match="give the folder"):
        Checkpoint.open(folder / WEIGHTS)
    with pytest.raises(ModelError):
        (folder / "x.gguf").write_bytes(b"no gguf")
        Checkpoint.open(folder / "x.gguf")


def test_an_asset_that_is_a_text_is_no_model():
    with pytest.raises(ConfigError, match="is a text"):
        Checkpoint.open("bible-nya")


def test_an_unknown_tensor_is_named(folder):
    with pytest.raises(ModelError, match=r"has no tensor 'x.y'"):
        Checkpoint.open(folder).read("x.y")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_header_bits_never_give_a_traceback(sound, tmp_path_factory, data):
    """A flip in the header is refused, or changes only what a header may freely say (a name)."""
    raw = bytearray((sound / WEIGHTS).read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    place = data.draw(st.integers(0, 8 + length - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("flip")
    (folder / WEIGHTS).write_bytes(bytes(raw))
    (folder / "config.json").write_bytes((sound / "config.json").read_bytes())
    try:
        opened = Checkpoint.open(folder)
        for name in opened.tensors:
            opened.read(name)
    except CalqueError as error:
        assert str(folder) in str(error)


@given(st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_truncated_files_never_open(sound, tmp_path_factory, size):
    folder = tmp_path_factory.mktemp("cut")
    whole = (sound / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: size * len(whole) // 5001])
    (folder / "config.json").write_bytes((sound / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"fetch"):
        Checkpoint.open(folder)
