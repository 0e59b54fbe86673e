"""Streams that end, several texts, early stopping on bits per byte, memory that does not suffice."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.data.pack import Batch, Pieces
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint
from calque.train import steps
from calque.train.against_all import against_all
from calque.train.causal import causal_objective
from calque.train.lm import lm

from .. import tiny
from .conftest import document
from .test_lm import SMALL, changed, losses


def lines(work):
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def test_a_text_that_runs_dry_ends_the_stage(base, corpus, tmp_path, capsys):
    result = lm(base, corpus, work=tmp_path, steps=1000, epochs=1, **SMALL)
    tokens = len(Pieces.load(tmp_path / "text.tokens").ids)
    assert lines(tmp_path)[-1]["tokens"] == tokens
    said = capsys.readouterr().err
    assert f"ran dry after step {len(lines(tmp_path))}" in said and "a step takes" in said
    notes = json.loads((result.folder / "training.json").read_text())["stage 0"]
    assert notes["epochs"] == [1.0]
    alone = lm(base, corpus, work=tmp_path / "budget", epochs=1, **SMALL)
    assert json.loads((alone.folder / "training.json").read_text())["stage 0"]["tokens"] == tokens
    assert lines(tmp_path / "budget")[-1]["lr"] < 0.1 * SMALL["lr"]  # the schedule ends with the epochs


def test_texts_are_sampled_by_temperature(base, corpus, tmp_path):
    other = Corpus.of(Example(str(n), {"eng_Latn": "all human beings " * 3}, str(n)) for n in range(3))
    shares = {}
    for sampling in (1.0, 1e6):
        work = tmp_path / str(sampling)
        lm(base, corpus, more={"english": other}, work=work, steps=12, sampling=sampling, **SMALL)
        drawn = [line["replay_share"] * line["batch_tokens"] for line in lines(work)]
        shares[sampling] = sum(drawn) / lines(work)[-1]["tokens"]
    sizes = [len(Pieces.load(work / f"{name}.tokens").ids) for name in ("text", "more-english")]
    assert shares[1.0] == pytest.approx(sizes[1] / sum(sizes), abs=0.05)
    assert shares[1e6] == pytest.approx(0.5, abs=0.05)


def test_bits_per_byte_of_held_out_text_choose_the_state(base, tmp_path):
    """What is held out is unlike the text, so that more training makes it worse."""
    text = Corpus.of(Example(str(n), {"nya_Latn": document(n)}, str(n)) for n in range(20))
    held = Corpus.of(Example(str(n), {"nya_Latn": "0123456789 " * 6}, str(n)) for n in range(2))
    settings = {**SMALL, "schedule": "constant", "warmup": 0.0, "lr": 2e-2, "rows": "all"}
    result = lm(
        base, text, held_out=held, work=tmp_path / "a", steps=60, check_steps=1, patience=3, **settings
    )
    notes = json.loads((result.folder / "training.json").read_text())["stage 0"]
    seen = [line["held_out"] for line in lines(tmp_path / "a")]
    assert notes["best"] == min(seen) and notes["best_step"] == seen.index(min(seen)) + 1
    assert notes["steps"] == notes["best_step"] + 3 < 60
    best = lm(base, text, work=tmp_path / "b", steps=notes["best_step"], **settings)
    assert not changed(best, result)
    with pytest.raises(ConfigError, match="choose one"):
        lm(base, text, held_out=held, work=tmp_path / "c", steps=1, average=0.5, **settings)


def test_a_teacher_of_the_same_vocabulary_is_learnt(base, corpus, tmp_path):
    teacher = lm(base, corpus, work=tmp_path / "t", steps=15, **SMALL)
    lm(base, corpus, teacher=teacher, work=tmp_path / "s", steps=3, taught=0.25, **SMALL)
    line = lines(tmp_path / "s")[0]
    assert line["loss"] == pytest.approx(0.75 * line["causal"] + 0.25 * line["teacher"])
    assert losses(tmp_path / "s")[-1] < losses(tmp_path / "s")[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_memory_that_does_not_suffice_says_what_to_lower(base, corpus, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(steps, "_show", full)
    with pytest.raises(ConfigError, match=r"out of memory .*accumulate = 2\), lower batch_tokens or length"):
        lm(base, corpus, work=tmp_path, steps=2, **SMALL)
    monkeypatch.setattr(steps, "_show", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm(base, corpus, work=tmp_path, steps=2, **SMALL)


def test_a_text_larger_than_its_share_of_memory_is_packed(tmp_path):
    """40 MB in one document, 160 MB as token ids, take a part of that."""
    script = """
import sys
from pathlib import Path
import numpy as np
from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.data.mixture import Mixture
from calque.data.pack import pack
from calque.machine import peak_memory, reset_peak_memory
def source():
    for n in range(20_000):
        yield Example(str(n), {"nya_Latn": f"{n:07d}" * 285}, "one document")
text = Corpus(source, b"\\1" * 20_000, ("nya_Latn",), {})
def encode(texts):
    return (np.frombuffer(one.encode(), np.uint8) for one in texts)
reset_peak_memory()
before = peak_memory()
ones = np.ones(256, np.int64)
pieces = pack(
    text.passages(), encode, file=Path(sys.argv[1]), length=1024, begin=1, end=2, token_bytes=ones
)
assert len(pieces.ids) > 39e6, len(pieces.ids)
stream = Mixture((pieces,), (1.0,))
place = stream.start()
for _ in range(50):
    _, place = stream.batch(place, 20_000)
print((peak_memory() - before) / 1e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "ids")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


@pytest.mark.parametrize("part", ["embeddings", "lora", "all"])
def test_the_time_is_compared_with_training_everything_and_nothing_changes_by_it(
    tmp_path, corpus, monkeypatch, capsys, part
):
    dropping = Checkpoint.at(tiny.model(tmp_path / "gpt2", "gpt2"))
    lm(dropping, corpus, work=tmp_path / "without", part=part, steps=6, **SMALL)
    assert "of what they take when everything trains" not in capsys.readouterr().err
    monkeypatch.setattr(steps, "_WORTH", 1)
    lm(dropping, corpus, work=tmp_path / "with", part=part, steps=6, **SMALL)
    assert ("of what they take when everything trains" in capsys.readouterr().err) is (part != "all")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    results = [load_file(tmp_path / name / "result/model.safetensors") for name in ("with", "without")]
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_what_can_not_train_is_not_compared(base):
    model = base.model().requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    batch = Batch(np.arange(5, 15), (5, 5), 0, (10,), (0, 0))

    def loss_of(batch):
        raise torch.OutOfMemoryError("too much")

    assert against_all(model, loss_of, batch) is None
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [base.input_embedding]
    objective = causal_objective(model)
    share = against_all(model, lambda batch: (objective(model, batch).total, {}), batch)
    assert share is not None and share > 0
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [base.input_embedding]
    assert all(p.grad is None for p in model.parameters())
