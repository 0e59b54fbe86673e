"""Models with a delta beside them: named in three ways, scored alike, and never with another's."""

import shutil
from dataclasses import replace

import pytest
import torch

from calque import runner
from calque.delta.attach import attach
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import BESIDE, Delta
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.mixture import mixture
from calque.errors import ConfigError, ModelError
from calque.evaluate.generation import generation
from calque.evaluate.lm import Reader, lm
from calque.model.checkpoint import Checkpoint

from ..delta.runs import moved
from .conftest import corpus, save_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALQUE_CACHE", str(tmp_path / "cache"))


def bits(checkpoint, text):
    table = lm({"m": checkpoint}, {"t": text}, length=32, dtype="float32")
    return [row["value"] for row in table.where(metric="bits").rows()]


@pytest.mark.parametrize("form", ["mam", "lora"])
def test_a_delta_and_its_base_are_a_system(tiny, books, tmp_path, form):
    made = moved(mam(tiny, length=3, width=4) if form == "mam" else lora(tiny, rank=2))
    made.save(tmp_path / "d")
    shutil.copytree(tiny.folder, tmp_path / "own")
    shutil.copytree(tmp_path / "d", tmp_path / "own" / BESIDE)
    systems = [Checkpoint.open(ref) for ref in
               (tmp_path / "d", f"{tiny.folder}+{tmp_path / 'd'}", tmp_path / "own")]  # fmt: skip
    ids = torch.arange(2, 14)[None]
    model = tiny.model()
    attach(model, {"a": made})
    with torch.no_grad():
        expected = model(ids).logits
        for system in systems:
            torch.testing.assert_close(Reader.open("m", system, torch.float32).model(ids).logits, expected)
    found = [bits(system, books) for system in systems]
    assert found[0] == found[1] == found[2] != bits(tiny, books)


def test_what_is_folded_already_is_not_added_again(tiny, books, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "own")
    moved(lora(tiny, rank=2)).save(tmp_path / "own" / BESIDE, folded=True)
    own = Checkpoint.open(tmp_path / "own")
    assert bits(own, books) == bits(tiny, books)
    assert Delta.load(own.folder / BESIDE).form == "lora"


def test_a_mixture_by_language_hears_the_language_of_the_text(tiny, tmp_path):
    nya, eng = (moved(bottleneck(tiny, width=4), seed) for seed in (1, 2))
    mixture(tiny, {"nya": nya, "eng": eng}, router="language").save(tmp_path / "d")
    system = Checkpoint.open(tmp_path / "d")
    for code, part in {"nya_Latn": nya, "eng_Latn": eng}.items():
        part.save(tmp_path / code)
        text = corpus(code)
        assert bits(system, text) == pytest.approx(bits(Checkpoint.open(tmp_path / code), text), rel=1e-6)
        generation({"m": system}, {"t": text}, prompts=1, timed_tokens=2, sample_characters=4)
    with pytest.raises(ConfigError, match="no delta 'swh_Latn' is attached; attached are nya_Latn, eng_Latn"):
        bits(system, corpus("swh_Latn"))


def test_a_delta_of_another_base_is_refused(tiny, books, tokenizer, tmp_path):
    other = save_model(tmp_path / "other", tokenizer, seed=7)
    moved(lora(tiny, rank=2)).save(tmp_path / "d")
    system = Checkpoint.open(f"{other.folder}+{tmp_path / 'd'}")
    with pytest.raises(ModelError, match="does not belong to"):
        bits(system, books)
    replaced = replace(lora(tiny, rank=2), base={**lora(tiny).base, "folder": str(tmp_path / "gone")})
    replaced.save(tmp_path / "lost")
    with pytest.raises(ConfigError, match=r"no model '.*gone'"):
        Checkpoint.open(tmp_path / "lost")
    first = Checkpoint.open(tmp_path / "d")
    with pytest.raises(ConfigError, match="has a delta beside it that is not folded in"):
        Checkpoint.open(f"{first.folder}+{tmp_path / 'd'}")


def test_a_run_is_pinned_by_the_bytes_of_both(tiny, tmp_path):
    moved(lora(tiny, rank=2), 1).save(tmp_path / "d")
    ref = f"{tiny.folder}+{tmp_path / 'd'}"
    before = runner._outside(ref)
    shutil.rmtree(tmp_path / "d")
    moved(lora(tiny, rank=2), 2).save(tmp_path / "d")
    assert runner._outside(ref) != before and not before.startswith("reference")
