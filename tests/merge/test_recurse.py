"""Layers tied into a loop: identities of the logits, reference weights, parameter counts."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from calque.errors import ConfigError, ModelError
from calque.merge.layerswap import layerswap
from calque.merge.linear import linear
from calque.merge.passthrough import passthrough
from calque.merge.recurse import mean, origins, recurse, stepwise
from calque.model.checkpoint import Checkpoint
from calque.model.low_rank import truncated_svd

from .. import tiny
from . import kin
from .golden import array_of, cases

CASES = {case.values[0]["name"]: case.values[0] for case in cases("05-relaxed-recursive-transformers")}
LOOPED = ["six_layers_two_loops", "six_layers_three_loops", "identical_loops"]
INITS = ["stepwise", "average", "lower"]
IDS = torch.tensor([[5, 9, 33, 100, 7, 12]])


def logits(checkpoint):
    with torch.no_grad():
        return checkpoint.model().eval()(input_ids=IDS).logits


def model(folder, architecture="llama", layers=6, **settings):
    if architecture == "gpt2":
        settings["n_layer"] = layers
    else:
        settings["num_hidden_layers"] = layers
    return Checkpoint.at(tiny.model(folder, architecture, **settings))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return model(tmp_path_factory.mktemp("models") / "base")


def test_reference_indices():
    outputs = CASES["indices"]["outputs"]
    for case in outputs["stepwise"]:
        assert stepwise(case["layers"], case["K"]) == case["indices"]
    for name, order in outputs["cycle_order"].items():
        layers, loops = int(name[1]), int(name[-1])
        block = origins(layers, loops, "lower")
        assert [block[layer % len(block)][0] for layer in range(layers)] == order


@pytest.mark.parametrize("name", LOOPED)
@pytest.mark.parametrize("init", INITS)
def test_reference_weights(name, init):
    case = CASES[name]
    p, expected = case["params"], case["outputs"][init]
    shared, gaps = (array_of(case["inputs"][key]) for key in ("shared_part", "differences"))
    scale = 0 if name == "identical_loops" and not np.any(gaps) else 1
    weights = [torch.from_numpy(shared[n % p["K"]] + scale * gaps[n]) for n in range(p["layers"])]
    if init == "stepwise":
        assert [o for (o,) in origins(p["layers"], p["loops"], init)] == expected["indices"]
    block = [mean([weights[o].clone() for o in one]) for one in origins(p["layers"], p["loops"], init)]
    np.testing.assert_allclose(torch.stack(block).numpy(), expected["shared"], atol=1e-8, rtol=1e-7)
    gaps = [w - block[n % p["K"]] for n, w in enumerate(weights)]
    norms = [float(gap.norm()) for gap in gaps]
    np.testing.assert_allclose(norms, expected["residual_norm_per_layer"], atol=1e-8)
    for rank in p["ranks"]:
        pairs = [truncated_svd(gap, rank) for gap in gaps]
        whole = torch.stack([block[n % p["K"]] + up @ down for n, (up, down) in enumerate(pairs)])
        wanted = expected[f"rank{rank}"]
        np.testing.assert_allclose(whole.numpy(), wanted["effective_weight"], atol=1e-8, rtol=1e-7)
        errors = [float((gap - up @ down).norm()) for gap, (up, down) in zip(gaps, pairs, strict=True)]
        np.testing.assert_allclose(errors, wanted["frobenius_error_per_layer"], atol=1e-8)


@pytest.mark.parametrize("init", INITS)
def test_full_rank_gives_the_original_logits(base, init, tmp_path):
    out = recurse(base, loops=2, init=init, rank=999).write(tmp_path / "out")
    assert torch.allclose(logits(out), logits(base), atol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["llama-tied", "qwen3", "gemma3", "gpt2", "gpt-neox", "phi3", "phi", "starcoder2"]
)
def test_other_architectures(architecture, tmp_path):
    base = model(tmp_path / "base", architecture, 4)
    out = recurse(base, loops=2, rank=999).write(tmp_path / "out")
    assert torch.allclose(logits(out), logits(base), atol=1e-4)
    out.check()


@pytest.mark.parametrize("init", INITS)
def test_one_loop_is_the_model_itself(base, init, tmp_path):
    out = recurse(base, loops=1, init=init, rank=8).write(tmp_path / "out")
    assert torch.equal(logits(out), logits(base))


def test_error_falls_with_the_rank(base, tmp_path):
    gaps = []
    for rank in (0, 4, 16, 32):
        out = recurse(base, loops=3, rank=rank).write(tmp_path / str(rank))
        gaps.append(float((logits(out) - logits(base)).norm()))
        assert (rank > 0) == any(".A" in name for name in out.tensors)
    assert gaps[0] > gaps[2] > gaps[3] and gaps[3] < 1e-3


@pytest.mark.parametrize("init", ["average", "lower"])
def test_equal_loops_lose_nothing(base, init, tmp_path):
    def tiled(name, tensor):
        layer, role = base.layout.place(name)
        return tensor if layer is None else base.read(base.layout.name(layer % 3, role))

    looped = kin.changed(base, tmp_path / "tiled", tiled)
    out = recurse(looped, loops=2, init=init, rank=0, vectors="shared").write(tmp_path / "out")
    assert torch.allclose(logits(out), logits(looped), atol=1e-5)
    assert sum(info.nbytes for info in out.tensors.values()) < 0.8 * looped.nbytes


def test_average_is_the_nearest_block(base):
    def distance(init):
        total = 0.0
        for role in ("attention.q", "mlp.down"):
            weights = [base.read(base.layout.name(n, role)) for n in range(6)]
            block = [mean([weights[o].clone() for o in one]) for one in origins(6, 2, init)]
            total += sum(float((w - block[n % 3]).norm() ** 2) for n, w in enumerate(weights))
        return total

    assert distance("average") < min(distance("stepwise"), distance("lower"))


def test_depths_that_share_a_matrix_share_one_parameter(base, tmp_path):
    out = recurse(base, loops=2, rank=4).write(tmp_path / "out")
    loaded = out.model()
    counted = sum(p.numel() for p in loaded.parameters())
    assert counted == sum(torch.Size(info.shape).numel() for info in out.tensors.values())


def test_saving_a_loaded_model_keeps_it(base, tmp_path):
    out = recurse(base, loops=2, rank=4).write(tmp_path / "out")
    loaded = out.model()
    loaded.save_pretrained(tmp_path / "saved")
    tiny.tokenizer().save_pretrained(tmp_path / "saved")
    assert kin.same(out, Checkpoint.at(tmp_path / "saved"))


def test_generation_keeps_a_cache_for_each_depth(base, tmp_path):
    loaded = recurse(base, loops=3, rank=4).write(tmp_path / "out").model().eval()
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = loaded.generate(IDS, use_cache=True, **settings)
    assert torch.equal(with_cache, loaded.generate(IDS, use_cache=False, **settings))


def test_plain_transformers_refuses_it(base, tmp_path):
    out = recurse(base, loops=2).write(tmp_path / "out")
    with pytest.raises(ValueError, match="calque_recursive"):
        AutoModelForCausalLM.from_pretrained(out.folder)


def test_missing_and_left_over_tensors(base, tmp_path):
    from safetensors.torch import load_file, save_file

    out = recurse(base, loops=2, rank=4).write(tmp_path / "out")
    tensors = load_file(out.folder / "model.safetensors")
    pair = next(name for name in tensors if name.endswith(".A"))
    save_file(
        {**tensors, "depth.0.nothing": torch.zeros(2)}, out.folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match="no place for tensor"):
        Checkpoint.at(out.folder).model()
    tensors.pop(pair)
    save_file(tensors, out.folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="no place for tensor"):
        Checkpoint.at(out.folder).model()


def test_what_can_not_be_tied(base, tmp_path):
    with pytest.raises(ConfigError, match=r"6 layers; possible are \[2, 3, 6\]"):
        recurse(base, loops=4)
    with pytest.raises(ModelError, match="already"):
        recurse(recurse(base, loops=2).write(tmp_path / "out"), loops=3)
    with pytest.raises(ModelError, match="experts"):
        recurse(model(tmp_path / "olmoe", "olmoe", 2), loops=2)
    with pytest.raises(ModelError, match="encoder and a decoder"):
        recurse(Checkpoint.at(tiny.model(tmp_path / "t5", "t5")), loops=2)
    with pytest.raises(ModelError, match="encoder and a decoder"):
        recurse(Checkpoint.at(tiny.model(tmp_path / "mbart", "mbart")), loops=2)
    with pytest.raises(ModelError, match=r"down_proj' is in 2 of 2 layers, .* only equal layers of matrices"):
        recurse(model(tmp_path / "gpt-oss", "gpt-oss", 2), loops=2)
    with pytest.raises(ModelError, match="is in 1 of 2 layers"):
        recurse(model(tmp_path / "deepseek", "deepseek", 2), loops=2)


def test_a_model_without_a_head(tmp_path):
    base = model(tmp_path / "base", "bert-headless", 2)
    out = recurse(base, loops=2, rank=999).write(tmp_path / "out").model().eval()
    with torch.no_grad():
        one, two = (m(input_ids=IDS).last_hidden_state for m in (out, base.model().eval()))
    assert torch.allclose(one, two, atol=1e-4)


def test_looped_models_are_merged_by_number_only_without_factors(base, tmp_path):
    plain, paired = (recurse(base, rank=rank).write(tmp_path / str(rank)) for rank in (0, 4))
    assert kin.same(linear(plain, [plain, plain]).write(tmp_path / "out"), plain)
    with pytest.raises(ModelError, match="factors of low rank"):
        linear(paired, [paired, paired])
    with pytest.raises(ModelError, match="swap before you tie"):
        layerswap(plain, plain, plain)
    with pytest.raises(ModelError, match="tied into a loop"):
        passthrough(plain, slices=["0:0-1"])


@pytest.mark.asset("smollm2-135m")
def test_reference_parameter_counts():
    base = Checkpoint.open("smollm2-135m")
    expected = CASES["parameter_counts"]["outputs"][0]
    notes = recurse(base, loops=2, rank=32).notes
    assert notes["parameters"] == expected["relaxed_norms_per_depth"]
    assert notes["parameters_before"] == expected["full"]
    shared = recurse(base, loops=2, rank=32, vectors="shared").notes
    assert shared["parameters"] == expected["relaxed_shared_norms"]
    assert recurse(base, loops=2, rank=0, vectors="shared").notes["parameters"] == expected["recursive"]
