"""Several processes make the same steps as one, write the same checkpoint, and any number of them goes on."""

import json
import os
import socket
import subprocess
import sys
from multiprocessing import get_context

import pytest
import torch
from accelerate.state import AcceleratorState

from calque.train import steps
from calque.train.lm import lm
from calque.train.processes import Processes

SMALL = {
    "batch_tokens": 96,
    "length": 24,
    "lr": 3e-3,
    "precision": "float32",
    "accumulate": 2,
    "rows": "seen",
}
ENGINES = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
}


MADE = {"ddp": "DistributedDataParallel", "fsdp2": "FSDP_Objective"}


def launched(count, engine, call, die_after=None):
    """Run `call` in processes that know of each other as those of `accelerate launch` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank):
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        os.environ.update({key: str(value) for key, value in {**known, **where, **ENGINES[engine]}.items()})
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)  # the process that was forked was alone
        real = steps._show

        def show(shown, amount, line):
            real(shown, amount, line)
            if line["step"] == die_after:
                os._exit(9)

        steps._show = show
        spread = Processes.spread

        def checked(self, *given):
            found = spread(self, *given)
            assert count == 1 or type(found).__name__ == MADE[engine]
            return found

        Processes.spread = checked
        call()
        os._exit(0)

    made = [get_context("fork").Process(target=run, args=(rank,)) for rank in range(count)]
    for process in made:
        process.start()
    for process in made:
        process.join(300)
    return [process.exitcode for process in made]


def losses(work):
    return [json.loads(line)["loss"] for line in (work / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(base, corpus, tmp_path_factory):
    work = tmp_path_factory.mktemp("alone")
    return work, lm(base, corpus, work=work, steps=5, save_steps=2, **SMALL)


def same(result, other, work, straight):
    assert losses(work) == pytest.approx(losses(straight), rel=1e-4)
    assert result.config == other.config
    for name in other.tensors:
        torch.testing.assert_close(result.read(name), other.read(name), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("engine", [*ENGINES])
def test_two_processes_train_what_one_does(base, corpus, tmp_path, alone, engine):
    from calque.model.checkpoint import Checkpoint

    settings = {**SMALL, "work": tmp_path, "steps": 5, "save_steps": 2}
    assert launched(2, engine, lambda: lm(base, corpus, **settings), die_after=3) == [9, 9]
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-000000002"]
    assert launched(2, engine, lambda: lm(base, corpus, **settings)) == [0, 0]
    same(Checkpoint.at(tmp_path / "result"), alone[1], tmp_path, alone[0])


@pytest.mark.parametrize("engine", [*ENGINES])
def test_another_number_of_processes_goes_on(base, corpus, tmp_path, alone, engine):
    from calque.model.checkpoint import Checkpoint

    settings = {**SMALL, "steps": 5, "save_steps": 2}
    shrunk, grown = tmp_path / "shrunk", tmp_path / "grown"
    assert launched(2, engine, lambda: lm(base, corpus, work=shrunk, **settings), die_after=3) == [9, 9]
    same(lm(base, corpus, work=shrunk, **settings), alone[1], shrunk, alone[0])
    assert launched(1, "ddp", lambda: lm(base, corpus, work=grown, **settings), die_after=3) == [9]
    assert launched(2, engine, lambda: lm(base, corpus, work=grown, **settings)) == [0, 0]
    same(Checkpoint.at(grown / "result"), alone[1], grown, alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES])
def test_the_launcher_of_accelerate_runs_the_command(base, corpus, tmp_path, engine):
    """The command line as a user gives it; the folder is that of one process."""
    (tmp_path / "text.txt").write_text("\n".join(corpus.texts()))
    settings = ["--steps", "3", "--batch-tokens", "96", "--length", "24", "--precision", "float32"]
    ask = ["calque", "train", "lm", str(base.folder), f"nya_Latn={tmp_path / 'text.txt'}", *settings, "-o"]
    kind = ["--use_fsdp", "--fsdp_version", "2"] if engine == "fsdp2" else ["--multi_gpu"]
    launcher = ["accelerate.commands.launch", *kind, "--num_processes", "2", "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    for name, words in (("one", ask), ("two", [*launcher, *plain, "-m", *ask])):
        done = subprocess.run(
            [sys.executable, "-m", *words, str(tmp_path / name)], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert {file.name for file in (tmp_path / "two").iterdir()} == {
        file.name for file in (tmp_path / "one").iterdir()
    }
