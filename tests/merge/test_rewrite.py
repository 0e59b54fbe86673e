"""The executor: exact copies, one rounding, bounded memory, and a folder that appears whole or not at all."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from calque.errors import ConfigError, DataError, ModelError
from calque.merge import execute, rewrite
from calque.merge.rewrite import Rewrite, Row, Source
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes

from .. import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tiny.model(tmp_path_factory.mktemp("models") / "base", dtype=torch.bfloat16)
    (folder / "README.md").write_text("# A model\n")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    for name in ("trainer_state.json", "asset.json", "manifest.json", "log.jsonl", ".hidden.json"):
        (folder / name).write_text("{}")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "config.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    tiny.edit_json(folder / "config.json", auto_map={"AutoConfig": "modeling_evil.C"})
    return Checkpoint.open(folder)


def copies(base):
    return tuple(Row.copy(base, name) for name in base.tensors)


def replaced(base, name, function, *inputs):
    info = base.info(name)
    row = Row(name, info.dtype, info.shape, inputs or (Source(base, name),), function)
    return Rewrite(base, tuple(row if r.name == name else r for r in copies(base)))


def state(folder):
    """Everything in and beside a folder, by content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_copy_is_the_same_model(base, tmp_path):
    out = Rewrite(base, copies(base)).write(tmp_path / "out", text=["12 cats on the hill"])
    assert all(same_bytes(info, out.info(name)) for name, info in base.tensors.items())
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    names = {str(path.relative_to(out.folder)) for path in out.folder.rglob("*") if path.is_file()}
    assert names == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md",
        "tokenizer_config.json", "chat_template.jinja", "1_Pooling/config.json",
    }  # fmt: skip
    assert "auto_map" not in out.config
    ids = AutoTokenizer.from_pretrained(out.folder)("the house", return_tensors="pt").input_ids
    expected = base.model(None).eval()(ids).logits
    got = AutoModelForCausalLM.from_pretrained(out.folder, dtype=torch.bfloat16).eval()(ids).logits
    assert torch.equal(got, expected)


def test_functions_are_rounded_once(base, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    other = Checkpoint.open(tiny.model(tmp_path / "other", seed=5))

    def mean(one, two):
        for first in range(0, one.info.shape[0], 7):
            rows = slice(first, first + 7)
            yield 0.3 * one.read(rows).double() + 0.7 * two.read(rows).double()

    out = replaced(base, name, mean, Source(base, name), Source(other, name)).write(tmp_path / "out")
    exact = 0.3 * base.read(name).double() + 0.7 * other.read(name).double()
    assert torch.equal(out.read(name), exact.to(torch.bfloat16))
    assert all(same_bytes(info, out.info(n)) for n, info in base.tensors.items() if n != name)


def test_settings_and_notes_are_written(base, tmp_path):
    made = Rewrite(
        base,
        copies(base),
        config={"rope_parameters": {"rope_theta": 5000.0}},
        generation={"temperature": 0.5, "do_sample": True},
        notes={"rows": 3},
    )
    out = made.write(tmp_path / "out")
    assert out.config["rope_parameters"] == {**base.config["rope_parameters"], "rope_theta": 5000.0}
    assert '"temperature": 0.5' in (out.folder / "generation_config.json").read_text()
    assert '"rows": 3' in (out.folder / "rewrite.json").read_text()
    again = Rewrite(out, copies(out)).write(tmp_path / "again")
    assert not (again.folder / "rewrite.json").exists()


def test_big_outputs_are_sharded(base, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "SHARD_BYTES", 30_000)
    out = Rewrite(base, copies(base)).write(tmp_path / "out")
    assert len(list(out.folder.glob("model-*-of-*.safetensors"))) > 1
    assert all(same_bytes(info, out.info(name)) for name, info in base.tensors.items())


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS])
def test_copies_work_where_the_kernel_can_not(base, tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    out = Rewrite(base, copies(base)).write(tmp_path / "out")
    assert all(same_bytes(info, out.info(name)) for name, info in base.tensors.items())


def test_neighbours_are_copied_in_one_go(base, tmp_path, monkeypatch):
    calls, copy_bytes = [], execute.copy_bytes

    def counted(source, target, start):
        calls.append(source.nbytes)
        copy_bytes(source, target, start)

    monkeypatch.setattr(execute, "copy_bytes", counted)
    out = Rewrite(base, copies(base)).write(tmp_path / "out")
    assert calls == [base.nbytes]
    assert all(same_bytes(info, out.info(name)) for name, info in base.tensors.items())
    calls.clear()
    name = list(base.tensors)[5]
    out = replaced(base, name, lambda source: iter([source.read()])).write(tmp_path / "parts")
    assert len(calls) == 2 and sum(calls) == base.nbytes - base.info(name).nbytes
    assert all(same_bytes(info, out.info(name)) for name, info in base.tensors.items())
    calls.clear()
    monkeypatch.setattr(execute, "_STRETCH", base.nbytes // 2)
    Rewrite(base, copies(base)).write(tmp_path / "stretches")
    assert len(calls) > 1 and sum(calls) == base.nbytes


def nan(source):
    yield source.read() * float("nan")


def overflow(source):
    yield source.read().double() + 1e39


def too_few(source):
    yield source.read(slice(0, 10))


def too_many(source):
    yield source.read()
    yield source.read()


def zero_row(source):
    table = source.read()
    table[7] = 0
    yield table


WRONG = {
    nan: "NaN or Inf after rounding to BF16",
    overflow: "NaN or Inf after rounding to BF16",
    too_few: "640 bytes were computed",
    too_many: "more numbers were computed",
    zero_row: "1 rows of zeros, the first is token 7",
}


@pytest.mark.parametrize("function", WRONG, ids=lambda f: f.__name__)
def test_an_unsound_result_is_never_put_in_place(base, tmp_path, function):
    before = state(base.folder)
    with pytest.raises(ModelError, match=WRONG[function]):
        replaced(base, "model.embed_tokens.weight", function).write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert state(base.folder) == before


def test_rows_are_checked_before_anything_is_written(base):
    name = "model.norm.weight"
    with pytest.raises(ModelError, match="two rows write the tensor 'model.norm.weight'"):  # noqa: RUF043
        Rewrite(base, (*copies(base), Row.copy(base, name)))
    with pytest.raises(ModelError, match="can not be a copy"):
        Rewrite(base, (Row(name, "F32", (32,), (Source(base, name),)),))
    with pytest.raises(ModelError, match="copied from 2 tensors"):
        Rewrite(base, (Row(name, "BF16", (32,), (Source(base, name),) * 2),))


def test_products_that_transformers_can_not_use_are_refused(base, tmp_path):
    some = tuple(row for row in copies(base) if "layers.1.mlp.up" not in row.name)
    with pytest.raises(ModelError, match=r"out: 2 tensors that Llama.*layers.1.mlp.up_proj"):
        Rewrite(base, some).write(tmp_path / "out")
    with pytest.raises(ModelError, match="vocab_size is 400"):
        Rewrite(base, copies(base), config={"vocab_size": 400}).write(tmp_path / "out")
    with pytest.raises(ModelError, match="special ids disagree: tokenizer eos is 2"):
        changed = {"eos_token_id": 9}
        Rewrite(base, copies(base), config=changed, generation=changed).write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_tensors_without_a_place_are_refused_unless_the_base_had_them(base, tmp_path):
    extra = Row("model.extra.weight", "BF16", (32,), (Source(base, "model.norm.weight"),))
    with pytest.raises(ModelError, match=r"out: LlamaForCausalLM has no place for 1 tensors, .*model.extra"):
        Rewrite(base, (*copies(base), extra)).write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    held = shutil.copytree(base.folder, tmp_path / "held")
    weights = load_file(held / "model.safetensors")
    save_file({**weights, extra.name: torch.ones(32)}, held / "model.safetensors", {"format": "pt"})
    again = Checkpoint.at(held)
    assert extra.name in Rewrite(again, copies(again)).write(tmp_path / "out").tensors


def test_the_check_says_where_it_needs_memory(tmp_path, capsys):
    for architecture in ("gpt2", "qwen2-moe"):
        base = Checkpoint.at(tiny.model(tmp_path / architecture, architecture))
        Rewrite(base, copies(base)).write(tmp_path / f"out-{architecture}")
        said = "puts 4 tensors together anew" in capsys.readouterr().err
        assert said == (architecture == "qwen2-moe")


def test_a_tokenizer_that_loses_text_is_refused(base, tmp_path):
    lossy = tiny.tokenizer()
    lossy.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
    files = {"tokenizer.json": lossy.backend_tokenizer.to_str()}
    files["tokenizer_config.json"] = (base.folder / "tokenizer_config.json").read_text()
    made = Rewrite(base, copies(base), tokenizer=files)
    made.write(tmp_path / "fine", text=["the house"])
    with pytest.raises(ModelError, match="'The house' comes out as 'the house'"):
        made.write(tmp_path / "out", text=["The house"])
    assert not (tmp_path / "out").exists()


def test_existing_folders_and_inputs_are_refused(base, tmp_path):
    made = Rewrite(base, copies(base))
    before = state(base.folder)
    with pytest.raises(ConfigError, match="input as well as the output"):
        made.write(base.folder)
    with pytest.raises(ConfigError, match="input as well as the output"):
        made.write(base.folder.parent / "." / "x" / ".." / base.folder.name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists already"):
        made.write(tmp_path / "out")
    assert state(base.folder) == before and (tmp_path / "out" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_leaves_nothing(base, tmp_path, monkeypatch, call, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(execute.os, call, refuse)
        with pytest.raises(DataError, match=r"disk full while writing|can not write"):
            Rewrite(base, copies(base)).write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    Rewrite(base, copies(base)).write(tmp_path / "out").check()


def test_too_little_room_is_seen_before_writing(base, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(rewrite.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"0.0 MB are free; nothing was written"):
        Rewrite(base, copies(base)).write(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said(base, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="can not write"):
        Rewrite(base, copies(base)).write(tmp_path / "out")


KILLED = """
    import sys, time
    from pathlib import Path
    from calque.merge.rewrite import Rewrite, Row, Source
    from calque.model.checkpoint import Checkpoint

    base, out = Checkpoint.open(sys.argv[1]), Path(sys.argv[2])

    def slow(source):
        for block in source.blocks(1000):
            (out.parent / "started").touch()
            time.sleep(60)
            yield block

    name = "lm_head.weight"
    info = base.info(name)
    row = Row(name, info.dtype, info.shape, (Source(base, name),), slow)
    Rewrite(base, tuple(row if n == name else Row.copy(base, n) for n in base.tensors)).write(out)
"""


def test_a_killed_run_leaves_no_folder_and_can_be_repeated(base, tmp_path):
    before, out = state(base.folder), tmp_path / "out"
    code = [sys.executable, "-c", textwrap.dedent(KILLED), str(base.folder), str(out)]
    killed = subprocess.Popen(code)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (tmp_path / "started").unlink()
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1 and state(base.folder) == before
    again = Rewrite(base, copies(base)).write(out)
    assert all(same_bytes(info, again.info(name)) for name, info in base.tensors.items())
    assert list(tmp_path.iterdir()) == [out]


def test_leftovers_of_a_living_process_stay(base, tmp_path):
    theirs = tmp_path / f".out.{os.getppid()}.part"
    theirs.mkdir()
    Rewrite(base, copies(base)).write(tmp_path / "out")
    assert theirs.is_dir()
