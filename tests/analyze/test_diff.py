"""Differences of two checkpoints: found where they are, and nowhere else."""

import json
import shutil

import pytest
import torch

from calque.analyze.diff import diff, to_text
from calque.model.checkpoint import Checkpoint

from .. import tiny
from ..merge import kin

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base, (one,) = kin.family(tmp_path_factory.mktemp("models"), sizes=(0.02,))
    return base, one


def copy(base, folder, **config):
    shutil.copytree(base.folder, folder)
    tiny.edit_json(folder / "config.json", **config)
    return Checkpoint.at(folder)


def said(table):
    return {row["item"]: row["output"] for row in table.where(metric="differs").rows()}


def test_a_checkpoint_does_not_differ_from_itself(models):
    base, _ = models
    assert len(diff(base, base)) == 0
    assert to_text(diff(base, base)) == "no difference"
    assert len(diff(base, base, same=True)) == 5 * len(base.tensors)


def test_only_what_changed_is_listed(models, tmp_path):
    base, one = models
    part = kin.changed(base, tmp_path / "part", lambda name, t: one.read(name) if name == UP else t)
    table = diff(base, part)
    assert table.values("item") == [f"tensor {UP}"]
    found = {row["metric"]: row["value"] for row in table.rows()}
    before, after = base.read(UP).double(), one.read(UP).double()
    assert found["norm"] == pytest.approx(float((after - before).norm()), rel=1e-6)
    cosine = torch.nn.functional.cosine_similarity(before.reshape(-1), after.reshape(-1), 0)
    assert found["cosine"] == pytest.approx(float(cosine), rel=1e-6)
    assert found["largest"] == pytest.approx(float((after - before).abs().max()), rel=1e-6)
    assert UP in to_text(table)


def test_both_directions_see_the_same_distance(models):
    base, one = models
    for metric in ("norm", "cosine", "moved", "largest"):
        there = [row["value"] for row in diff(base, one).where(metric=metric).rows()]
        back = [row["value"] for row in diff(one, base).where(metric=metric).rows()]
        assert there == pytest.approx(back, rel=1e-6)


def test_settings(models, tmp_path):
    base, _ = models
    other = copy(base, tmp_path / "other", rms_norm_eps=0.5, new_setting=[1, 2])
    found = said(diff(base, other))
    assert found == {
        "config new_setting": "(not given) -> [1, 2]",
        "config rms_norm_eps": f"{base.config['rms_norm_eps']} -> 0.5",
    }


def test_tokenizer(models, tmp_path):
    base, _ = models
    other = copy(base, tmp_path / "other")
    tiny.tokenizer(tiny.CHICHEWA, size=280).save_pretrained(other.folder)
    found = said(diff(base, other))
    assert any(item.startswith("tokenizer tokens only in the first") for item in found)
    assert any(item.startswith("tokenizer tokens with another id") for item in found)


def test_models_of_other_sizes(models, tmp_path):
    base, _ = models
    other = Checkpoint.at(tiny.model(tmp_path / "wide", intermediate_size=64, num_hidden_layers=3))
    found = said(diff(base, other))
    assert found[f"tensor {UP}"] == "F32 [48, 32] -> F32 [64, 32]"
    assert found["tensor model.layers.2.mlp.up_proj.weight"] == "only in wide: F32 [64, 32]"
    assert found["config num_hidden_layers"] == "2 -> 3"


def test_another_dtype(models, tmp_path):
    base, _ = models
    half = kin.changed(base, tmp_path / "half", lambda name, t: t.to(torch.bfloat16))
    found = diff(base, half)
    assert said(found)[f"tensor {UP}"] == "F32 [48, 32] -> BF16 [48, 32]"
    assert max(row["value"] for row in found.where(metric="relative").rows()) < 0.01


def reordered(base, folder):
    """The model with its ordinary tokens in the opposite order, and its embedding rows with them."""
    content = json.loads((base.folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    ordinary = sorted(i for t, i in vocabulary.items() if t not in tiny.SPECIAL)
    new = dict(zip(ordinary, reversed(ordinary), strict=True))
    rows = torch.tensor([new.get(i, i) for i in range(320)])  # its own inverse
    embeddings = (base.input_embedding, base.output_embedding)
    made = kin.changed(base, folder, lambda name, t: t[rows] if name in embeddings else t)
    content["model"]["vocab"] = {t: new.get(i, i) for t, i in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return made


def test_embeddings_are_compared_by_token(models, tmp_path):
    base, one = models
    items = diff(base, reordered(base, tmp_path / "same")).values("item")
    assert items and not [item for item in items if not item.startswith("tokenizer")]
    moved = reordered(one, tmp_path / "moved")
    by_token, by_index = diff(base, moved), diff(base, one)
    for name in (base.input_embedding, base.output_embedding):
        item = f"tensor {name}"
        there, here = (table.where(item=item, metric="norm").rows() for table in (by_token, by_index))
        assert next(iter(there))["value"] == pytest.approx(next(iter(here))["value"], rel=0.1)
        assert "compared by token" in said(by_token)[f"rows of {name}"]
    assert "compared by token" in to_text(by_token)


def test_tokens_of_one_model_alone_are_left_out(models, tmp_path):
    base, _ = models
    other = copy(base, tmp_path / "other")
    tiny.tokenizer(tiny.CHICHEWA, size=280).save_pretrained(other.folder)
    told = said(diff(base, other))[f"rows of {base.input_embedding}"]
    assert 100 < int(told.split(" for the ")[1].split(" ")[0]) < 290
