"""mergekit files: mergekit's own numbers, and what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file

from calque.errors import CalqueError, ConfigError
from calque.merge.linear import linear
from calque.merge.mergekit import evaluate
from calque.merge.passthrough import passthrough
from calque.merge.run import run
from calque.merge.ties import ties_per_tensor
from calque.model.checkpoint import Checkpoint

from .golden import content
from .kin import close, computed, family, same

GOLDEN = content("90-merge-baselines")
RECIPE = GOLDEN["recipe"]


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    """The checkpoints of the recipe: base, A, B, C."""
    root = tmp_path_factory.mktemp("recipe")
    config = transformers.LlamaConfig(**RECIPE["LlamaConfig"])
    shapes = {n: t.shape for n, t in transformers.LlamaForCausalLM(config).state_dict().items()}
    names, seed = sorted(shapes), RECIPE["seed0"]

    def drawn(place, name, size):
        return np.random.default_rng(place).standard_normal(tuple(shapes[name])) * size

    base = {n: drawn(seed + i, n, 0.05) + ("norm" in n) for i, n in enumerate(names)}
    models = {"base": base}
    for number, model in enumerate("ABC", 1):
        size = RECIPE["delta"][model]
        models[model] = {n: base[n] + drawn(seed + 1000 * number + i, n, size) for i, n in enumerate(names)}
    for model, tensors in models.items():
        config.save_pretrained(root / model)
        found = {n: torch.from_numpy(t.astype(np.float32)) for n, t in tensors.items()}
        save_file(found, root / model / "model.safetensors", metadata={"format": "pt"})
        (root / model / "tokenizer.json").write_text("{}")
    for model in ("base", "A"):
        check(root, model)
    return root


def check(root, model):
    checkpoint = Checkpoint.open(root / model)
    for name, expected in RECIPE[f"{model}_check"].items():
        np.testing.assert_allclose(summary(checkpoint.read(name)), expected, rtol=1e-5, atol=1e-6)


def summary(tensor):
    flat = tensor.double().numpy().ravel()
    return [flat.sum(), np.linalg.norm(flat), flat[0], flat[1]]


def written(root, config, name="config.yml"):
    """The file of a merge, with paths in the place of model names."""
    file = root / name
    file.write_text(yaml.safe_dump(config))
    return file


CASES = [c for c in GOLDEN["cases"] if c["outputs"].get("tensors")]


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_mergekits_own_numbers(case, makers):
    rewrite = run(written(makers, case["params"]["config"]))
    found = computed(rewrite)
    outputs = case["outputs"]
    assert len(found) == outputs["tensor_count"]
    for name, model in outputs.get("outer_tensors", {}).items():
        assert torch.allclose(found[name], Checkpoint.open(makers / model).read(name), atol=1e-6), name
    for name, expected in outputs["tensors"].items():
        total, *others = summary(found[name])
        assert total == pytest.approx(expected[0], abs=1e-4), name
        np.testing.assert_allclose(others, expected[1:], atol=2e-6, rtol=2e-5, err_msg=name)
    layers = rewrite.config.get("num_hidden_layers", RECIPE["LlamaConfig"]["num_hidden_layers"])
    assert layers == outputs["num_hidden_layers"]


def test_dare_restores_the_l1_norm_as_mergekit_does(makers):
    config = {
        "merge_method": "dare_linear", "base_model": "base", "dtype": "float32",
        "models": [{"model": "A", "parameters": {"weight": 1.0, "density": 0.25}}],
    }  # fmt: skip
    base, tuned = (Checkpoint.open(makers / name) for name in ("base", "A"))
    found = computed(run(written(makers, config)))
    for name in base.tensors:
        before = (tuned.read(name) - base.read(name)).abs().sum()
        after = (found[name] - base.read(name)).abs().sum()
        assert float(after) == pytest.approx(float(before), rel=1e-4)
    config["models"][0]["parameters"]["density"] = 1.0
    whole = computed(run(written(makers, config)))
    assert all(torch.allclose(whole[n], tuned.read(n), atol=1e-7) for n in base.tensors)


def test_parameters_for_a_tensor():
    assert evaluate(0.5, "x", 0.3) == 0.5
    assert evaluate([0, 0.5, 1], "x", 0.25) == 0.25
    assert evaluate([0, 1, 0], "x", 1.0) == 0
    conditions = [{"filter": "mlp", "value": [1, 0]}, {"value": 0.3}]
    assert evaluate(conditions, "layers.0.mlp.up", 0.25) == 0.75
    assert evaluate(conditions, "layers.0.self_attn.q", 0.25) == 0.3
    assert evaluate({"filter": "mlp", "value": 1}, "attn", 0) is None
    assert evaluate(True, "x", 0) is True


def test_filters_choose_tensors(makers):
    config = {
        "merge_method": "slerp", "base_model": "A", "models": [{"model": "A"}, {"model": "B"}],
        "parameters": {"t": [{"filter": "mlp", "value": 1.0}, {"value": 0.0}]},
    }  # fmt: skip
    found = computed(run(written(makers, config)))
    a, b = (Checkpoint.open(makers / name) for name in "AB")
    for name in a.tensors:
        assert torch.allclose(found[name], (b if "mlp" in name else a).read(name), atol=1e-6), name


def test_slices_have_parameters_of_their_own(makers):
    def source(model, weight):
        return {"model": model, "layer_range": None, "parameters": {"weight": weight}}

    def part(first, end, weight):
        sources = [{**source("A", weight), "layer_range": [first, end]},
                   {**source("B", 1 - weight), "layer_range": [first, end]}]  # fmt: skip
        return {"sources": sources}

    config = {"merge_method": "linear", "slices": [part(0, 1, 1.0), part(1, 3, 0.0)]}
    found = computed(run(written(makers, config)))
    a, b = (Checkpoint.open(makers / name) for name in "AB")
    for name in a.tensors:
        mine = a if "layers.0." in name or "embed" in name else b
        assert torch.equal(found[name], mine.read(name)), name


def test_layers_can_be_merged_with_other_layers(makers):
    config = {
        "merge_method": "task_arithmetic", "base_model": "base",
        "slices": [{"sources": [{"model": "base", "layer_range": [0, 2]},
                                {"model": "A", "layer_range": [1, 3], "parameters": {"weight": 1.0}}]}],
    }  # fmt: skip
    rewrite = run(written(makers, config))
    found = computed(rewrite)
    a = Checkpoint.open(makers / "A")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.allclose(found[name.format(0)], a.read(name.format(1)), atol=1e-7)
    assert rewrite.config["num_hidden_layers"] == 2 and name.format(2) not in found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.01, 0.02), dtype=torch.bfloat16)


def test_a_file_gives_what_the_commands_give(models, tmp_path):
    base, tuned = models
    entries = [
        {"model": str(t.folder), "parameters": {"weight": w}} for t, w in zip(tuned, (0.3, 0.7), strict=True)
    ]
    file = written(tmp_path, {"merge_method": "linear", "models": entries})
    out = run(file).write(tmp_path / "linear")
    assert same(out, linear(tuned[0], tuned, weights=[0.3, 0.7]).write(tmp_path / "own-linear"))
    assert "merge_method: linear" in json.loads((out.folder / "rewrite.json").read_text())["config"]
    for entry in entries:
        entry["parameters"]["density"] = 0.4
    config = {"merge_method": "ties", "base_model": str(base.folder), "models": entries}
    config |= {"out_dtype": "float32", "parameters": {"lambda": 0.9}}
    out = run(written(tmp_path, config)).write(tmp_path / "ties")
    own = ties_per_tensor(base, tuned, weights=[0.3, 0.7], density=0.4, scale=0.9).write(tmp_path / "own")
    assert close(out, own, atol=1e-2) and out.info("lm_head.weight").dtype == "F32"
    assert out.config.get("dtype", out.config.get("torch_dtype")) == "float32"


def test_a_stack_of_merged_layers_may_be_deeper_than_the_models(models, tmp_path):
    refs = [str(t.folder) for t in models[1]]
    parts = [
        {"sources": [{"model": ref, "layer_range": layers, "parameters": {"weight": 1}} for ref in refs]}
        for layers in ([0, 2], [1, 2])
    ]
    out = run(written(tmp_path, {"merge_method": "linear", "slices": parts})).write(tmp_path / "out")
    up = [out.read(f"model.layers.{layer}.mlp.up_proj.weight") for layer in (1, 2)]
    assert torch.equal(*up) and out.config["num_hidden_layers"] == 3
    found = json.loads((out.folder / "rewrite.json").read_text())["tensors"]
    told = [found[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (1, 2)]
    assert [one["layer"] for one in told] == [1, 2] and ["norm" in one for one in told] == [True, False]


def test_passthrough_files(models, tmp_path):
    base, tuned = models
    refs = [str(c.folder) for c in (base, tuned[0])]
    slices = [{"sources": [{"model": refs[0], "layer_range": [0, 2]}]},
              {"sources": [{"model": refs[1], "layer_range": [1, 2], "parameters": {
                  "scale": [{"filter": "o_proj", "value": 0.0}, {"value": 1.0}]}}]}]  # fmt: skip
    out = run(written(tmp_path, {"merge_method": "passthrough", "slices": slices})).write(tmp_path / "out")
    plain = passthrough(base, tuned, slices=["0:0-2", "1:1-2"]).write(tmp_path / "plain")
    different = [n for n in out.tensors if not torch.equal(out.read(n), plain.read(n))]
    assert set(different) == {f"model.layers.2.self_attn.o_proj.{kind}" for kind in ("bias", "weight")}
    assert not out.read("model.layers.2.self_attn.o_proj.weight").any()


A = {"model": "A", "parameters": {"weight": 1.0}}
B = {"model": "B", "parameters": {"weight": 1.0}}
WRONG = {
    "no such method": ({"merge_method": "frobnicate", "models": [A, B]}, "frobnicate"),
    "method of ours": ({"merge_method": "pcb", "models": [A, B]}, "linear"),
    "unknown key": ({"merge_method": "linear", "models": [A, B], "colour": 1}, "colour"),
    "modules": ({"merge_method": "linear", "modules": {}}, "modules"),
    "models and slices": ({"merge_method": "linear", "models": [A], "slices": []}, "exactly one"),
    "neither": ({"merge_method": "linear"}, "exactly one"),
    "unknown parameter": (
        {"merge_method": "linear", "models": [{"model": "A", "parameters": {"density": 1}}, B]}, "density"),
    "missing weight": ({"merge_method": "linear", "models": [A, {"model": "B"}]}, "weight"),
    "no base": ({"merge_method": "ties", "models": [A, B]}, "base_model"),
    "slerp of three": (
        {"merge_method": "slerp", "base_model": "A", "parameters": {"t": 0.5},
         "models": [{"model": m} for m in "ABC"]}, "two models"),
    "slerp without t": (
        {"merge_method": "slerp", "base_model": "A", "models": [{"model": m} for m in "AB"]}, "'t'"),
    "one for model_stock": (
        {"merge_method": "model_stock", "base_model": "base", "models": [{"model": "A"}]}, "two models"),
    "wrong dtype": ({"merge_method": "linear", "models": [A, B], "dtype": "int3"}, "int3"),
    "tokens": (
        {"merge_method": "linear", "models": [A, B], "tokenizer": {"source": "union", "tokens": {}}},
        "token"),
    "two tokenizers": (
        {"merge_method": "linear", "models": [A, B], "tokenizer": {}, "tokenizer_source": "base"}, "either"),
    "chat template": ({"merge_method": "linear", "models": [A, B], "chat_template": "auto"}, "template"),
    "layers beyond the last": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "A", "layer_range": [0, 9]}]}]},
        "layers 0 to 2"),
    "no layer range": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "A"}]}]}, "layer_range"),
    "unequal ranges": (
        {"merge_method": "linear", "slices": [{"sources": [
            {"model": "A", "layer_range": [0, 1]}, {"model": "B", "layer_range": [0, 2]}]}]}, "equally many"),
    "passthrough of two": (
        {"merge_method": "passthrough", "slices": [{"sources": [
            {"model": "A", "layer_range": [0, 1]}, {"model": "B", "layer_range": [0, 1]}]}]}, "exactly one"),
    "base not in the slice": (
        {"merge_method": "ties", "base_model": "base", "slices": [{"sources": [
            {"model": "A", "layer_range": [0, 3], "parameters": {"weight": 1}}]}]}, "does not list"),
    "one model": ({"merge_method": "linear", "models": [A]}, "one model"),
    "no such model": ({"merge_method": "linear", "models": [A, {**B, "model": "Z"}]}, "Z"),
    "weights of nothing": (
        {"merge_method": "linear", "models": [{**A, "parameters": {"weight": 0}}, 
            {**B, "parameters": {"weight": 0}}]},
        "add up"),
    "impossible probability": (
        {"merge_method": "della", "base_model": "base", "models": [
            {"model": "A", "parameters": {"weight": 1, "density": 0.1}}]}, "epsilon"),
    "gradient of nothing": (
        {"merge_method": "linear", "models": [A, {"model": "B", "parameters": {"weight": ["a"]}}]},
        "conditions"),
    "weight of letters": (
        {"merge_method": "linear", "models": [A, {"model": "B", "parameters": {"weight": "abc"}}]},
        "expected a number"),
    "weight that is none": (
        {"merge_method": "linear", "models": [A, {"model": "B", "parameters": {"weight": float("nan")}}]},
        "expected a number"),
    "filter of a number": (
        {"merge_method": "linear", "models": [A, {"model": "B", "parameters": {
            "weight": {"filter": 77, "value": 1}}}]}, "'weight'"),
    "density beyond 1": (
        {"merge_method": "ties", "base_model": "base", "models": [
            {"model": "A", "parameters": {"weight": 1, "density": 1.7}}]}, "no share"),
    "method in a list": ({"merge_method": ["linear"], "models": [A, B]}, "merge_method"),
    "dtype in a list": ({"merge_method": "linear", "models": [A, B], "dtype": ["float32"]}, "dtype"),
    "empty sources": ({"merge_method": "linear", "models": []}, "at least one"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(name, makers):
    config, part = WRONG[name]
    with pytest.raises(CalqueError, match=part):
        run(written(makers, config))


@pytest.mark.parametrize("text", ["[", "- 1", "3", "", "!!python/object/apply:os.getcwd []"])
def test_what_is_no_table_is_refused(text, tmp_path):
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yml"):
        run(file)
    with pytest.raises(ConfigError, match=r"none\.yml"):
        run(tmp_path / "none.yml")
