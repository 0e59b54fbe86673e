"""Layer swapping: sources of every layer, reference outputs, and the search over configurations."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from calque.data.corpus import Corpus
from calque.errors import CalqueError, ConfigError
from calque.merge.change import changes
from calque.merge.inputs import line_up
from calque.merge.layerswap import Plan, by_depth, layerswap
from calque.merge.layerswap_search import layerswap_search
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes

from .. import tiny
from . import kin
from .golden import content

GOLDEN = content("26-layer-swapping")
PLANS = next(case["outputs"] for case in GOLDEN["cases"] if case["name"] == "plans")
SWAPS = [case for case in GOLDEN["cases"] if "b" in case["params"]]
LAYERS = 6


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    base, (task, language) = kin.family(tmp_path_factory.mktemp("models"), num_hidden_layers=LAYERS)
    return base, task, language


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The models of the reference outputs: base, task expert A, language expert B."""
    recipe, folder = GOLDEN["recipe"], tmp_path_factory.mktemp("reference")
    made = []
    for number, size in enumerate((0, recipe["delta"]["A"], recipe["delta"]["B"])):
        target = folder / str(number)
        LlamaForCausalLM(LlamaConfig(**recipe["LlamaConfig"])).save_pretrained(target)
        tiny.tokenizer().save_pretrained(target)
        shapes = {name: info.shape for name, info in Checkpoint.at(target).tensors.items()}
        tensors = {}
        for index, name in enumerate(recipe["names"]):
            seed = recipe["seed0"] + index
            values = np.random.default_rng(seed).standard_normal(shapes[name]) * 0.05 + ("norm" in name)
            if number:
                values += np.random.default_rng(seed + 1000 * number).standard_normal(shapes[name]) * size
            tensors[name] = torch.from_numpy(values.astype(np.float32))
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        made.append(Checkpoint.at(target))
    return made


def named(shares, weight=0.5):
    mixed = f"{weight:g}*language+{1 - weight:g}*task"
    return [{1.0: "language", 0.0: "task"}.get(share, mixed) for share in shares]


def value(rewrite, name):
    (row,) = [row for row in rewrite.rows if row.name == name]
    if row.function is None:
        return row.inputs[0].read()
    return torch.cat(list(row.function(*row.inputs)))


@pytest.mark.parametrize("case", SWAPS, ids=lambda case: case["name"])
def test_reference_outputs(case, reference):
    p = case["params"]
    counts = {"bottom": p["b"], "top": p["u"], "transition_bottom": p["t_b"], "transition_top": p["t_u"]}
    rewrite = layerswap(*reference, **counts, weight=p["w"])
    assert named(rewrite.notes["shares"], p["w"]) == case["outputs"]["layer_sources"]
    for name, (total, norm, first, second) in case["outputs"]["tensors"].items():
        flat = value(rewrite, name).double().reshape(-1)
        found = [flat.sum(), flat.norm(), flat[0], flat[1]]
        assert torch.tensor(found).tolist() == pytest.approx([total, norm, first, second], abs=2e-6, rel=1e-5)


def test_reference_plans():
    assert named(Plan(5, 2).shares(32)) == PLANS["N32_b5_u2_t1"]
    assert named(Plan(5, 2).shares(30)) == PLANS["N30_b5_u2_t1"]
    assert named(Plan(6, 0, 0, 0).shares(6)) == PLANS["all_language_b=N"]
    assert named(Plan(0, 0, 0, 0).shares(6)) == PLANS["all_task"]
    assert named(Plan(0, 0, 6, 0).shares(6)) == PLANS["all_average_tb=N"]
    for bad in PLANS["refuse"]:
        with pytest.raises(ConfigError, match="layers"):
            Plan(bad["b"], bad["u"], bad["t_b"], bad["t_u"]).shares(bad["N"])
    assert by_depth(32) == (5, 2) and by_depth(30) == (5, 2)


def test_reference_change(reference):
    expected = next(case["outputs"] for case in GOLDEN["cases"] if case["name"] == "change_profile")
    base, task, _ = reference
    found = {name: one for name, (one,) in changes(line_up(base, [task]), "change").items()}
    for name, mean in expected["mean_abs_change"].items():
        assert found[name].mean == pytest.approx(mean, rel=1e-5)
    for name, relative in expected["relative_change"].items():
        assert found[name].relative == pytest.approx(relative, rel=1e-5)
    rows = found["model.layers.0.self_attn.q_proj.weight"].rows
    assert rows.tolist() == pytest.approx(expected["row_mean_abs_change_layers.0.self_attn.q_proj"], rel=1e-5)


def test_copied_layers_are_copies_of_files(family, tmp_path):
    base, task, language = family
    rewrite = layerswap(*family, bottom=2, top=1)
    out = rewrite.write(tmp_path / "out")
    assert out.tensors.keys() == base.tensors.keys()
    for name in base.tensors:
        layer = base.layout.place(name)[0]
        source = language if layer in (None, 0, 1, 5) else task
        if layer not in (2, 4):
            assert same_bytes(out.info(name), source.info(name))
            assert next(row for row in rewrite.rows if row.name == name).function is None
        else:
            middle = (task.read(name).double() + language.read(name)) / 2
            assert torch.allclose(out.read(name).double(), middle, atol=1e-7)
    assert json.loads((out.folder / "rewrite.json").read_text())["bottom"] == 2


def test_equal_experts_give_that_expert(family, tmp_path):
    base, task, _ = family
    assert kin.same(layerswap(base, task, task).write(tmp_path / "out"), task)


def test_all_layers_of_one_expert(family, tmp_path):
    _, task, language = family
    none = {"transition_bottom": 0, "transition_top": 0}
    assert kin.same(layerswap(*family, bottom=LAYERS, top=0, **none).write(tmp_path / "a"), language)
    task_outside = {"embeddings": "task", "head": "task", "norm": "task"}
    out = layerswap(*family, bottom=0, top=0, **none, **task_outside).write(tmp_path / "b")
    assert kin.same(out, task)


def test_complementary_merges_add_up_to_both_experts(family):
    base, task, language = family
    one = layerswap(base, task, language, bottom=2, top=1)
    other = layerswap(base, language, task, bottom=2, top=1)
    for name in base.tensors:
        both = task.read(name).double() + language.read(name).double()
        assert torch.allclose(value(one, name).double() + value(other, name).double(), both, atol=1e-6)


def test_outer_parts_from_either_side(family):
    base, task, language = family
    rewrite = layerswap(*family, embeddings="base", head="average", norm="task")
    assert torch.equal(value(rewrite, base.input_embedding), base.read(base.input_embedding))
    assert torch.equal(value(rewrite, "model.norm.weight"), task.read("model.norm.weight"))
    head = base.output_embedding
    assert torch.allclose(value(rewrite, head), (task.read(head) + language.read(head)) / 2, atol=1e-7)


def test_a_tied_head_goes_with_the_embedding(tmp_path):
    base, tuned = kin.family(tmp_path, architecture="llama-tied", num_hidden_layers=4)
    with pytest.raises(ConfigError, match="ties the output matrix"):
        layerswap(base, *tuned, head="task")
    assert kin.weights(layerswap(base, *tuned).write(tmp_path / "out")).keys() == kin.weights(base).keys()


def test_layers_by_change(family, tmp_path):
    base, task, language = family
    outer = ("layers.0.", "layers.1.", f"layers.{LAYERS - 1}.")

    def keep(expert, outside):
        return lambda name, t: expert.read(name) if any(o in name for o in outer) == outside else t

    found = layerswap(
        base,
        kin.changed(base, tmp_path / "task", keep(task, False)),
        kin.changed(base, tmp_path / "language", keep(language, True)),
        choose="change",
    )
    assert (found.notes["bottom"], found.notes["top"]) == (2, 1)
    assert len(found.notes["change"]["task"]) == LAYERS


def test_more_layers_than_there_are(family):
    with pytest.raises(ConfigError, match="do not fit into a model of 6 layers"):
        layerswap(*family, bottom=4, top=2)


def test_two_stacks_are_refused(tmp_path):
    base, tuned = kin.family(tmp_path, architecture="t5")
    with pytest.raises(CalqueError, match="encoder and a decoder"):
        layerswap(base, *tuned)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 4), st.integers(0, 4), st.integers(1, 40))
def test_every_layer_has_one_share(bottom, top, low, high, layers):
    if bottom + top + low + high > layers:
        with pytest.raises(ConfigError):
            Plan(bottom, top, low, high).shares(layers)
        return
    shares = Plan(bottom, top, low, high).shares(layers)
    assert len(shares) == layers
    assert (shares.count(1.0), shares.count(0.5)) == (bottom + top, low + high)
    assert shares[::-1] == Plan(top, bottom, high, low).shares(layers)


def text(tmp_path, lines, language):
    file = tmp_path / f"{language}.txt"
    file.write_text("\n".join(lines * 3))
    return Corpus.open(file, language=language, dedupe=False)


def test_search_returns_the_best_of_its_curve(family, tmp_path):
    spoken = {"nya_Latn": tiny.CHICHEWA, "eng_Latn": tiny.ENGLISH}
    texts = {language: text(tmp_path, lines, language) for language, lines in spoken.items()}
    work = tmp_path / "work"
    work.mkdir()
    found = layerswap_search(*family, texts, work=work, evaluations=5, transition=0)
    curve = found.notes["search"]["curve"]
    assert 1 <= len(curve) <= 5
    assert len({(point["bottom"], point["top"]) for point in curve}) == len(curve)
    assert (curve[0]["bottom"], curve[0]["top"]) == by_depth(LAYERS)
    best = min(curve, key=lambda point: point["score"])
    assert (found.notes["bottom"], found.notes["top"]) == (best["bottom"], best["top"])
    assert {path.name for path in work.iterdir()} == {"scores"}
    assert kin.same(found.write(tmp_path / "out"), found.write(tmp_path / "again"))


def test_search_with_one_evaluation_takes_the_papers_depths(family, tmp_path):
    texts = {"eng": text(tmp_path, tiny.ENGLISH, "eng_Latn")}
    found = layerswap_search(*family, texts, work=tmp_path, evaluations=1, transition=0)
    assert (found.notes["bottom"], found.notes["top"]) == by_depth(LAYERS)


def test_search_without_text_is_refused(family, tmp_path):
    with pytest.raises(ConfigError, match="no validation text"):
        layerswap_search(*family, {}, work=tmp_path)
