"""A rewrite killed at any moment: the same command goes on, another one starts afresh, bytes are equal."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from calque.errors import ConfigError, DataError, ModelError
from calque.merge import execute
from calque.merge.inputs import line_up
from calque.merge.stream import elementwise
from calque.model.checkpoint import Checkpoint

from .. import tiny

RUN = """
    import os, signal, sys, time
    from pathlib import Path
    from calque.merge import journal, rewrite
    from calque.merge.inputs import line_up
    from calque.merge.stream import elementwise
    from calque.model.checkpoint import Checkpoint

    base, tuned, out, work, moment, key = sys.argv[1:7]
    journal._SECONDS = 0.05
    log = Path(work).parent / "computed"
    counts, noted = {}, {}

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def wait_for_lines(number):
        file = Path(work) / "journal.jsonl"
        while len(file.read_text().splitlines()) < 1 + number:
            time.sleep(0.01)

    def mean(name, base_block, tuned_blocks):
        with log.open("a") as stream:
            stream.write(name + "\\n")
        counts["blocks"] = counts.get("blocks", 0) + 1
        noted[name] = float(base_block.sum())
        if moment == "first":
            die()
        if moment == "middle" and name == "model.layers.0.mlp.up_proj.weight":
            wait_for_lines(3)
            die()
        return (base_block + tuned_blocks[0]) / 2

    def check(*given):
        if moment == "check":
            die()

    inputs = line_up(Checkpoint.open(base), [Checkpoint.open(tuned)])
    made = inputs.rewrite(elementwise(inputs, mean), counts=counts, notes={"sums": noted})
    rewrite.check_product = check  # the real one loads transformers, which takes longest
    made.write(Path(out), work=Path(work), key=key)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [tiny.model(folder / f"m{seed}", seed=seed, dtype=torch.bfloat16) for seed in (0, 1)]


def run(pair, folder, moment, key="one"):
    code = [sys.executable, "-c", textwrap.dedent(RUN), *map(str, pair), str(folder / "out")]
    done = subprocess.run(
        [*code, str(folder / "work"), moment, key], capture_output=True, text=True, check=False
    )
    computed = (folder / "computed").read_text().splitlines() if (folder / "computed").exists() else []
    (folder / "computed").unlink(missing_ok=True)
    return done, computed


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done, computed = run(pair, folder, "never")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["out"]
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}, computed


@pytest.mark.parametrize("moment", ["first", "middle", "check"])
def test_a_killed_rewrite_goes_on(pair, whole, tmp_path, moment):
    files, every = whole
    killed, first = run(pair, tmp_path, moment)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    again, second = run(pair, tmp_path, "never")
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    assert sorted({*first, *second}) == sorted(set(every))
    if moment == "first":
        assert len(second) == len(every)
    else:
        assert "tensors were written before" in again.stderr
        assert len(second) < len(every)
    if moment == "check":
        assert second == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_command_starts_afresh(pair, whole, tmp_path):
    killed, _ = run(pair, tmp_path, "middle", key="other settings")
    assert killed.returncode == -signal.SIGKILL
    again, computed = run(pair, tmp_path, "never")
    assert again.returncode == 0 and "written before" not in again.stderr
    assert computed == whole[1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole[0]


def test_changed_inputs_start_afresh(pair, tmp_path):
    copy = tiny.model(tmp_path / "copy", seed=1, dtype=torch.bfloat16)
    killed, _ = run([pair[0], copy], tmp_path, "middle")
    assert killed.returncode == -signal.SIGKILL
    tiny.model(copy, seed=2, dtype=torch.bfloat16)
    again, _ = run([pair[0], copy], tmp_path, "never")
    assert again.returncode == 0 and "written before" not in again.stderr


def test_a_line_cut_short_is_no_line(pair, whole, tmp_path):
    run(pair, tmp_path, "middle")
    file = tmp_path / "work" / "journal.jsonl"
    file.write_text(file.read_text()[:-9])
    again, _ = run(pair, tmp_path, "never")
    assert again.returncode == 0 and "written before" in again.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole[0]


def rewrite_of(pair, function):
    inputs = line_up(Checkpoint.open(pair[0]), [Checkpoint.open(pair[1])])
    return inputs.rewrite(elementwise(inputs, function))


def test_an_error_leaves_nothing_to_go_on_from(pair, tmp_path):
    made = rewrite_of(pair, lambda name, base, tuned: base * float("nan"))
    with pytest.raises(ModelError, match="NaN or Inf after rounding"):
        made.write(tmp_path / "out", work=tmp_path / "work", key="k")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_leaves_the_old_state(pair, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    (tmp_path / "old").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(execute.os, "posix_fallocate", full)
        with pytest.raises(DataError, match="disk full while writing"):
            rewrite_of(pair, lambda name, base, tuned: base).write(
                tmp_path / "out", work=tmp_path / "work", key="k"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_interrupt_keeps_what_is_done(pair, tmp_path):
    seen = []

    def stop(name, base, tuned):
        seen.append(name)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return base

    with pytest.raises(KeyboardInterrupt):
        rewrite_of(pair, stop).write(tmp_path / "out", work=tmp_path / "work", key="k")
    assert (tmp_path / "work" / "journal.jsonl").exists() and not (tmp_path / "out").exists()
    rewrite_of(pair, lambda name, base, tuned: base).write(tmp_path / "out", work=tmp_path / "work", key="k")


def test_the_final_folder_is_never_overwritten(pair, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="exists already"):
        rewrite_of(pair, lambda name, base, tuned: base).write(
            tmp_path / "out", work=tmp_path / "work", key="k"
        )
    assert os.listdir(tmp_path) == ["out"]


def test_the_plan_says_what_will_be_done_and_writes_nothing(pair, tmp_path):
    said = rewrite_of(pair, lambda name, base, tuned: base).plan(tmp_path / "out")
    assert "computed      35 tensors" in said and "of 2 checkpoints" in said and "time" in said
    assert list(tmp_path.iterdir()) == []


def test_counts_add_up_over_a_kill(pair, whole, tmp_path):
    run(pair, tmp_path, "middle")
    run(pair, tmp_path, "never")
    found = json.loads((tmp_path / "out" / "rewrite.json").read_text())["counts"]
    assert found == json.loads(whole[0]["rewrite.json"])["counts"] == {"blocks": len(whole[1])}


def test_what_rows_note_survives_a_kill(pair, whole, tmp_path):
    run(pair, tmp_path, "middle")
    run(pair, tmp_path, "never")
    found = json.loads((tmp_path / "out" / "rewrite.json").read_text())["sums"]
    assert found == json.loads(whole[0]["rewrite.json"])["sums"] and set(found) == set(whole[1])
