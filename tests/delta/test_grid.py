"""The grid: what exists, sizes by budget, one table, and nothing done twice."""

import pytest

from calque import grid as module
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.errors import ConfigError
from calque.evaluate.lm import lm as score
from calque.grid import cells, grid, of_budget, shown
from calque.train.lm import lm as train

from ..evaluate.conftest import corpus, save_model

SMALL = {"steps": 2, "batch_tokens": 64, "length": 32}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("tiny"), tokenizer)


@pytest.fixture(scope="module")
def tokenizer():
    from ..evaluate.conftest import byte_level

    return byte_level()


def test_combinations_that_exist():
    assert len(cells((), ())) == 11
    assert cells(("lora", "prefix"), ("attention",)) == [("lora", "attention"), ("prefix", "attention")]
    with pytest.raises(ConfigError, match="no form 'adapter'; there are lora, mam, parallel"):
        cells(("adapter",), ())
    with pytest.raises(ConfigError, match="no place 'head'; there are all, attention, ffn"):
        cells((), ("head",))
    with pytest.raises(ConfigError, match="no form of prefix stands at ffn"):
        cells(("prefix",), ("ffn",))


@pytest.mark.parametrize("cell", cells((), ()), ids=" ".join)
def test_the_size_is_the_one_nearest_to_the_budget(tiny, cell):
    for numbers in (2000, 9000):
        made = of_budget(tiny, cell, numbers, 0)
        one = of_budget(tiny, cell, 1, 0).count()
        assert abs(made.count() - numbers) <= max(one, 0.2 * numbers)


def test_one_table_and_nothing_is_done_twice(tiny, tmp_path, monkeypatch, capsys):
    text, heldout = corpus(documents=3), corpus(documents=2, lines=2)
    settings = {**SMALL, "forms": ("lora", "mam"), "places": ("all",), "budgets": (3.0, 6.0)}
    monkeypatch.setattr(module, "train", lambda *a, **k: train(*a, **k) if len(done) < 3 else 1 / 0)
    done = []
    monkeypatch.setattr(module, "_trainable", lambda *a: done.append(a[0]) or trainable(*a))
    with pytest.raises(ZeroDivisionError):
        grid(tiny, text, heldout, work=tmp_path, **settings)
    monkeypatch.setattr(module, "train", train)
    table = grid(tiny, text, heldout, work=tmp_path, **settings)
    assert done == ["lora all 3%", "mam all 3%", "lora all 6%", "mam all 6%"]
    assert table.values("system") == ["base", *done]
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("mam all 6%") for line in lines) and "lora all 3%" in shown(table)
    counts = {row["system"]: row["value"] for row in table.where(metric="trainable").rows()}
    assert counts["lora all 6%"] > counts["lora all 3%"] and counts["mam all 6%"] > 0
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "scores"]


def test_what_was_trained_on_another_text_is_not_taken_for_this_one(tiny, tmp_path):
    heldout = corpus(documents=2, lines=2)
    chosen = {**SMALL, "forms": ("lora",), "places": ("all",), "budgets": (3.0,), "work": tmp_path}
    tables = [grid(tiny, corpus(documents=n), heldout, **chosen) for n in (3, 2, 3)]
    bits = [[row["value"] for row in t.where(system="lora all 3%", metric="bits").rows()] for t in tables]
    assert bits[0] != bits[1] and bits[0] == bits[2]
    assert len([*tmp_path.glob("*.parquet")]) == 2


def test_a_cell_is_its_three_steps(tiny, tmp_path):
    text, heldout = corpus(documents=3), corpus(documents=2, lines=2)
    table = grid(tiny, text, heldout, work=tmp_path / "g", forms=("mam",), budgets=(5.0,), **SMALL)
    delta = of_budget(tiny, ("mam", "all"), round(0.05 * parameters(tiny)), 0)
    result = train(tiny, text, delta=delta, work=tmp_path / "t", lr=1e-3, seed=0, **SMALL)
    alone = score({"mam all 5%": result}, {"heldout": heldout}, length=32)
    both = [
        [row["value"] for row in t.where(system="mam all 5%", metric="bits").rows()] for t in (table, alone)
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    assert delta.form == mam(tiny).form != lora(tiny).form


def parameters(checkpoint):
    return sum(read.numel() for read in map(checkpoint.read, checkpoint.tensors))


trainable = module._trainable
