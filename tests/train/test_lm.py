"""What trains, what stays, what comes out, and that a kill changes nothing."""

import json
import os
import signal
from multiprocessing import get_context

import pytest
import torch

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.delta.attach import attach
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.prefix import prefix
from calque.delta.shards import shards
from calque.errors import ConfigError, DataError, ModelError
from calque.merge.recurse import recurse
from calque.model.checkpoint import Checkpoint
from calque.train import loop, steps
from calque.train import result as result_module
from calque.train.lm import lm

SMALL = {"batch_tokens": 64, "length": 32, "lr": 3e-3, "precision": "float32"}


def losses(work):
    return [json.loads(line)["loss"] for line in (work / "log.jsonl").read_text().splitlines()]


def changed(base, result):
    return {name for name in base.tensors if not torch.equal(base.read(name), result.read(name))}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_learns(base, corpus, tmp_path, accumulate):
    result = lm(base, corpus, work=tmp_path, steps=40, accumulate=accumulate, **SMALL)
    seen = losses(tmp_path)
    assert len(seen) == 40 and sum(seen[-5:]) / 5 < 0.85 * seen[0]
    assert result.folder == tmp_path / "result"
    line = json.loads((result.folder / "log.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 40 and line["bits_per_byte"] > 0 and line["replay_share"] == 0
    notes = json.loads((result.folder / "training.json").read_text())
    assert notes["stage 0"]["steps"] == 40 and notes["stage 0"]["epochs"][0] > 1


def test_counts_of_the_text_teach_what_a_few_steps_can_not_read(base, corpus, tmp_path):
    last = {}
    for counts in (0.0, 0.8):
        lm(base, corpus, work=tmp_path / str(counts), steps=12, counts=counts, rows="all", **SMALL)
        lines = [json.loads(line) for line in (tmp_path / str(counts) / "log.jsonl").read_text().splitlines()]
        assert ("taught" in lines[0]) == (counts > 0)
        last[counts] = sum(line["causal"] for line in lines[-4:])
    assert last[0.8] < last[0.0]


def test_low_rank_pairs_on_a_looped_model_are_refused(base, corpus, tmp_path):
    looped = recurse(base, loops=2, rank=2).write(tmp_path / "looped")
    with pytest.raises(ConfigError, match="looped"):
        lm(looped, corpus, work=tmp_path / "work", part="lora", steps=1, **SMALL)
    assert not (tmp_path / "work").exists()


def test_each_part_changes_what_it_says(any_base, corpus, tmp_path):
    embeddings = {any_base.input_embedding} | ({any_base.output_embedding} - {None})
    names = set(any_base.tensors)
    outer = {name for name in names if ".layers.0." in name or ".layers.3." in name}
    layers = {name for name in names if ".layers." in name}
    expected = {
        "all": names,
        "embeddings": embeddings,
        "embeddings+outer": embeddings | outer,
        "lora": {name for name in layers if "proj" in name},
    }
    for part, wanted in expected.items():
        result = lm(any_base, corpus, work=tmp_path / part, part=part, outer=1, steps=3, **SMALL)
        assert changed(any_base, result) == wanted, part
        assert result.tied == any_base.tied
        assert json.loads((tmp_path / part / "result" / "training.json").read_text())["stage 0"]["steps"] == 3
    beside = lm(any_base, corpus, work=tmp_path / "x", part="lora", lora_embeddings=True, steps=3, **SMALL)
    assert changed(any_base, beside) == expected["lora"] | embeddings


def test_folded_pairs_give_the_logits_of_the_pairs(base, corpus, tmp_path, monkeypatch):
    ids = torch.arange(2, 14)[None]
    before = {}
    real = result_module.train

    def spied(model, stages, **more):
        original = loop.training.__wrapped__

        from contextlib import contextmanager

        @contextmanager
        def watched(model, stage):
            with contextmanager(original)(model, stage) as trainable:
                yield trainable
                before["logits"] = model(ids).logits.detach()

        monkeypatch.setattr(loop, "training", watched)
        return real(model, stages, **more)

    monkeypatch.setattr(result_module, "train", spied)
    result = lm(base, corpus, work=tmp_path, part="lora", rank=4, steps=10, **SMALL)
    after = result.model()(ids).logits
    assert (after - before["logits"]).abs().max() < 1e-5
    assert (after - base.model()(ids).logits).abs().max() > 1e-3
    assert "lora" not in " ".join(result.tensors)


def test_learning_rates_of_their_own(base, corpus, tmp_path):
    lm(base, corpus, work=tmp_path, steps=4, lr_embeddings=1e-2, schedule="constant", warmup=0.0, **SMALL)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (line["lr"], line["lr_embeddings"]) == (3e-3, 1e-2)


def test_accumulated_parts_are_the_same_step(base, corpus, tmp_path):
    """Constant piece sizes, so that the same pieces meet in a step however it is cut."""
    even = Corpus.of(Example(e.id, {"nya_Latn": ("ab " * 60).strip()}, group=e.group) for e in corpus)
    settings = {**SMALL, "length": 16, "steps": 4}
    one = lm(base, even, work=tmp_path / "1", **settings)
    four = lm(base, even, work=tmp_path / "4", accumulate=4, **settings)
    for name in one.tensors:
        assert torch.allclose(one.read(name), four.read(name), atol=1e-5)


def test_replay_has_its_share(base, corpus, tmp_path):
    other = Corpus.of(Example(str(n), {"eng_Latn": "all human beings " * 3}, group=str(n)) for n in range(5))
    lm(base, corpus, other, work=tmp_path, steps=20, replay_share=0.25, **SMALL)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    share = sum(line["replay_share"] * line["batch_tokens"] for line in lines) / lines[-1]["tokens"]
    assert abs(share - 0.25) < 0.05


def test_replay_goes_to_its_last_share_in_a_straight_line(base, corpus, tmp_path):
    other = Corpus.of(Example(str(n), {"eng_Latn": "all human beings " * 3}, group=str(n)) for n in range(5))
    lm(base, corpus, other, work=tmp_path, steps=40, replay_share=0.6, replay_end=0.1, **SMALL)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    def share(part):
        return sum(x["replay_share"] * x["batch_tokens"] for x in part) / sum(x["batch_tokens"] for x in part)

    assert [share(lines[:10]), share(lines[15:25]), share(lines[-10:])] == pytest.approx(
        [0.54, 0.35, 0.16], abs=0.06
    )


def test_averaging_gives_the_mean_of_the_last_weights(base, corpus, tmp_path):
    settings = {**SMALL, "schedule": "constant", "warmup": 0.0}
    third, fourth = (lm(base, corpus, work=tmp_path / str(n), steps=n, **settings) for n in (3, 4))
    mean = lm(base, corpus, work=tmp_path / "mean", steps=4, average=0.5, **settings)
    for name in base.tensors:
        expected = (third.read(name) + fourth.read(name)) / 2
        assert torch.allclose(mean.read(name), expected, atol=1e-6)


@pytest.mark.parametrize("budget", [{"minutes": 0.02}, {"tokens": 500}])
def test_other_budgets_end(base, corpus, tmp_path, budget):
    lm(base, corpus, work=tmp_path, **budget, **SMALL)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert line["seconds"] >= 1.2 if "minutes" in budget else 500 <= line["tokens"] < 564


def killed_at(step, arguments):
    """Train in a process of its own that kills itself after a step, with no chance to tidy up."""
    real = steps._show

    def show(shown, amount, line):
        real(shown, amount, line)
        if line["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def run():
        steps._show = show
        lm(*arguments[0], **arguments[1])

    process = get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("part", ["all", "lora"])
def test_a_killed_run_ends_as_if_it_had_not_been(base, corpus, tmp_path, part):
    torch.set_num_threads(1)
    settings = {**SMALL, "part": part, "steps": 12, "save_steps": 2, "average": 0.5}
    straight = lm(base, corpus, work=tmp_path / "a", **settings)
    for step in (1, 4, 7, 11):
        killed_at(step, ((base, corpus), {**settings, "work": tmp_path / "b"}))
        assert len(list((tmp_path / "b").glob("state-*"))) == (step > 2)
    resumed = lm(base, corpus, work=tmp_path / "b", **settings)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert not changed(straight, resumed)
    assert lm(base, corpus, work=tmp_path / "b", **settings).folder == resumed.folder  # done: not run again


def test_a_kill_while_saving_leaves_the_state_before(base, corpus, tmp_path):
    settings = {**SMALL, "steps": 6, "save_steps": 2}
    straight = lm(base, corpus, work=tmp_path / "a", **settings)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def run():
        from calque.train import state

        real = state.write_json

        def write(path, value):
            real(path, value)
            if value["progress"]["steps"] == 4:
                die()

        state.write_json = write
        lm(base, corpus, work=tmp_path / "b", **settings)

    process = get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert [p.name for p in sorted((tmp_path / "b").glob("state-*"))] == ["state-000000002"]
    resumed = lm(base, corpus, work=tmp_path / "b", **settings)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and not changed(straight, resumed)


def test_changed_settings_are_shown_and_refused(base, corpus, tmp_path):
    settings = {**SMALL, "steps": 6, "save_steps": 1}
    killed_at(3, ((base, corpus), {**settings, "work": tmp_path}))
    with pytest.raises(ConfigError, match=r"lr was 0.003, now 0.1"):
        lm(base, corpus, work=tmp_path, **{**settings, "lr": 0.1})
    fewer = Corpus.of(list(corpus)[:-1])
    with pytest.raises(ConfigError, match="text was"):
        lm(base, fewer, work=tmp_path, **settings)
    lm(base, corpus, work=tmp_path, **settings)
    with pytest.raises(ConfigError, match=r"steps was 6, now 7"):
        lm(base, corpus, work=tmp_path, **{**settings, "steps": 7})


def test_a_loss_that_is_no_number_stops(base, corpus, tmp_path):
    with pytest.raises(ModelError, match=r"step \d+ .*state-0000"):
        lm(base, corpus, work=tmp_path, steps=40, save_steps=1, warmup=0.0, **{**SMALL, "lr": 1e30})
    assert list(tmp_path.glob("state-*")) and not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of minutes, tokens or steps"),
        ({"steps": 1, "tokens": 5}, "one of minutes"),
        ({"minutes": 0}, "0 minutes"),
        ({"tokens": 0}, "0 tokens"),
        ({"steps": 1, "replay_share": 0.1}, "needs a replay text"),
        ({"steps": 1, "replay_end": 0.1}, "needs a replay_share to come from"),
        ({"steps": 1, "part": "embeddings+outer", "outer": 3}, "model of 4 layers"),
        ({"steps": 1, "batch_tokens": 16}, "less than one piece"),
    ],
)
def test_settings_that_can_not_be(base, corpus, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        lm(base, corpus, work=tmp_path, **{**SMALL, **settings})


def test_text_without_tokens(base, tmp_path):
    with pytest.raises(DataError, match="nothing to train on"):
        lm(base, Corpus.of([Example("1", {"nya_Latn": ""})]), work=tmp_path, steps=1, **SMALL)


def test_dtype_and_company_of_the_base_are_kept(base, corpus, tmp_path):
    model = base.model(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    base.tokenizer().save_pretrained(tmp_path / "base")
    half = Checkpoint.at(tmp_path / "base")
    result = lm(half, corpus, work=tmp_path / "w", steps=2, **SMALL)
    assert {info.dtype for info in result.tensors.values()} == {"BF16"}
    assert (result.folder / "tokenizer.json").read_bytes() == (half.folder / "tokenizer.json").read_bytes()
    assert result.config["use_cache"] == half.config["use_cache"]
    assert "calque" not in (result.folder / "config.json").read_text()


def test_a_step_moves_only_the_rows_of_tokens_in_it():
    from calque.train.optim import keep_seen_rows

    matrix, bias = torch.nn.Parameter(torch.ones(5, 3)), torch.nn.Parameter(torch.ones(5))
    (matrix.sum() + bias.sum()).backward()
    keep_seen_rows([matrix, bias, torch.nn.Parameter(torch.ones(2, 2))], torch.tensor([1, 4]))
    assert matrix.grad.sum(1).tolist() == [0, 3, 0, 0, 3]
    assert bias.grad.tolist() == [1] * 5


@pytest.mark.parametrize("form", ["lora", "shards"])
def test_a_delta_trains_alone_is_saved_beside_and_folded_in(base, corpus, tmp_path, form):
    made = {"lora": lora(base, rank=2), "shards": shards(base, rank=3, pieces=2)}[form]
    result = lm(base, corpus, delta=made, work=tmp_path / "work", steps=6, **SMALL)
    assert changed(base, result) == {f"{module}.weight" for module in made.place}
    trained = Delta.load(result.folder / "delta")
    trained.check_base(base)
    ids, model = torch.arange(2, 14)[None], base.model()
    attach(model, {"a": trained})
    expected = model(ids).logits
    torch.testing.assert_close(result.model()(ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert (expected - base.model()(ids).logits).abs().max() > 1e-4
    assert json.loads((result.folder / "training.json").read_text())["stage 0"]["trainable"] == made.count()
    seen = losses(tmp_path / "work")
    assert seen[-1] < seen[0]


def test_a_delta_goes_with_its_part_and_its_base(base, corpus, tmp_path):
    made = lora(base, rank=2)
    with pytest.raises(ConfigError, match="part 'delta' without a delta"):
        lm(base, corpus, work=tmp_path, part="delta", steps=1, **SMALL)
    with pytest.raises(ConfigError, match="part 'all' with a 'lora' delta, which would not train"):
        lm(base, corpus, delta=made, work=tmp_path, part="all", steps=1, **SMALL)
    other = lm(base, corpus, work=tmp_path / "other", steps=1, **SMALL)
    with pytest.raises(ModelError, match="does not belong to"):
        lm(other, corpus, delta=made, work=tmp_path, steps=1, **SMALL)


def test_a_killed_run_of_a_delta_goes_on(base, corpus, tmp_path):
    torch.set_num_threads(1)
    settings = {**SMALL, "delta": shards(base, rank=3, pieces=2), "steps": 8, "save_steps": 3}
    whole = lm(base, corpus, work=tmp_path / "whole", **settings)
    killed_at(5, ((base, corpus), {**settings, "work": tmp_path / "cut"}))
    again = lm(base, corpus, work=tmp_path / "cut", **settings)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert not changed(whole, again)


@pytest.mark.parametrize("form", ["bottleneck", "prefix", "mam"])
def test_a_delta_that_can_not_be_folded_leaves_the_weights_alone(base, corpus, tmp_path, form, capsys):
    made = {
        "bottleneck": lambda: bottleneck(base, width=4),
        "prefix": lambda: prefix(base, length=3),
        "mam": lambda: mam(base, length=3, width=4),
    }[form]()
    result = lm(base, corpus, delta=made, work=tmp_path, steps=6, **{**SMALL, "lr": 2e-2})
    assert not changed(base, result)
    assert f"'{form}' is not folded" in capsys.readouterr().err
    trained = Delta.load(result.folder / "delta")
    assert trained.count() == made.count() and trained.fingerprint() != made.fingerprint()
    seen = losses(tmp_path)
    assert seen[-1] < seen[0]
