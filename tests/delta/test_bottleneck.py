"""Bottleneck adapters: the authors' numbers, and what must not change."""

import numpy as np
import pytest
import torch
from transformers import BartConfig, RobertaConfig
from transformers.models.bart.modeling_bart import BartEncoderLayer
from transformers.models.roberta.modeling_roberta import RobertaOutput

from calque.delta.attach import attach, changes
from calque.delta.bottleneck import adapter, bottleneck, couple, install, uncouple
from calque.delta.delta import Delta
from calque.delta.switch import Switch
from calque.errors import ConfigError

from ..merge.golden import array_of, cases, check
from .runs import beside, logits, moved, plain

CASES = {case.values[0]["name"]: case.values[0] for case in cases("15-unified-petl")}
PLACEMENTS = ["houlsby", "pfeiffer", "parallel", "attention_parallel"]
NAMES = {"down_proj.weight": "down", "down_proj.bias": "down_bias", "up_proj.weight": "up",
         "up_proj.bias": "up_bias", "adapter_layer_norm_before.weight": "norm.weight",
         "adapter_layer_norm_before.bias": "norm.bias"}  # fmt: skip


def arrays(case):
    return {name: torch.from_numpy(array_of(a)) for name, a in case["inputs"]["parameters"].items()}


def layer_of(case):
    """The reference layer in float64 without its additions, and the additions by their published names."""
    p, found = case["params"], arrays(case)
    config = BartConfig(
        d_model=p["d_model"], encoder_attention_heads=p["encoder_attention_heads"],
        encoder_ffn_dim=p["encoder_ffn_dim"], activation_function="gelu", dropout=0.0,
        attn_implementation="sdpa",
    )  # fmt: skip
    layer = BartEncoderLayer(config).double().eval()
    layer.load_state_dict({k: v for k, v in found.items() if "ef_" not in k})
    return layer, {k: v for k, v in found.items() if "ef_" in k}


@pytest.mark.parametrize("name", ["adapter_ln_in", "adapter_parallel_scaled", "adapter_ln_out"])
def test_reference_network(name):
    case = CASES[name]
    numbers = {NAMES[k]: v for k, v in arrays(case).items()}
    x = torch.from_numpy(array_of(case["inputs"]["x"]))
    y = adapter(x, numbers, "", case["params"]["layernorm"], float(case["params"]["scale"]))
    check((y + x if case["params"]["add_residual"] else y).numpy(), case["outputs"]["y"])


@pytest.mark.parametrize("name", ["houlsby", "ffn_parallel_scaled4", "attention_parallel"])
def test_reference_layer(name):
    case = CASES[name]
    layer, added = layer_of(case)
    p = case["params"]
    ffn = {k.removeprefix("ef_ffn_adapter."): v for k, v in added.items() if "ffn" in k}
    attention = {
        k.removeprefix("self_attn.ef_attn_adapter."): v for k, v in added.items() if "attn_adapter" in k
    }
    stands = []
    if attention:
        parallel = p["attn_option"] == "parallel"
        stands.append(("self_attn.out_proj", "self_attn.q_proj" if parallel else "", attention, "in", 1.0,
                       "attention_parallel" if parallel else "houlsby"))  # fmt: skip
    if ffn:
        source = "fc1" if p["ffn_option"] == "parallel" else ""
        scale = float(p["ffn_adapter_scalar"])
        stands.append(("fc2", source, ffn, p["ffn_adapter_layernorm_option"], scale, "parallel"))
    for place, source, numbers, norm, scale, placement in stands:
        own = {f"{place}.{NAMES[k]}": v for k, v in numbers.items()}
        settings = {"norm": norm, "scale": scale, "placement": placement, "source": {place: source}}
        made = Delta("bottleneck", (place,), "own", "fixed", settings, own, {})
        install(layer, made, Wide(own), Switch(["a"]), "a")
    x = torch.from_numpy(array_of(case["inputs"]["x"]))
    with torch.no_grad():
        out = layer(x, attention_mask=None)
    out = out[0] if isinstance(out, tuple) else out
    check(out.numpy(), np.array(case["outputs"]["layer_output"]), atol=1e-4, rtol=1e-4)


def test_reference_layer_that_normalises_twice():
    case = CASES["pfeiffer_roberta_output"]
    given, found = case["inputs"], arrays(case)
    config = RobertaConfig(
        hidden_size=6, intermediate_size=9, layer_norm_eps=case["params"]["layer_norm_eps"]
    )
    layer = RobertaOutput(config).double().eval()
    layer.load_state_dict({k: v for k, v in found.items() if "ef_" not in k})
    own = {f"LayerNorm.{NAMES[k.removeprefix('ef_ffn_adapter.')]}": v for k, v in found.items() if "ef_" in k}
    settings = {"norm": "none", "scale": 1.0, "placement": "pfeiffer", "source": {"LayerNorm": ""}}
    made = Delta("bottleneck", ("LayerNorm",), "own", "fixed", settings, own, {})
    install(layer, made, Wide(own), Switch(["a"]), "a")
    with torch.no_grad():
        y = layer(*(torch.from_numpy(array_of(given[name])) for name in ("intermediate", "residual_input")))
    check(y.numpy(), np.array(case["outputs"]["y"]), atol=1e-5, rtol=1e-5)


class Wide(dict):
    """Networks compute in float32, whatever the model has."""

    def __getitem__(self, key):
        return super().__getitem__(key).float()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_nothing_changes_at_the_start_and_a_trained_one_changes_much(any_base, placement):
    made = bottleneck(any_base, width=4, placement=placement, scale=4.0, norm="in")
    before = plain(any_base)
    torch.testing.assert_close(beside(any_base, a=made), before, atol=1e-6, rtol=1e-6)
    assert (beside(any_base, a=moved(made)) - before).abs().max() > 1e-3


def test_counts_follow_the_formula(base):
    per_place = 2 * 32 * 4 + 4 + 32
    assert bottleneck(base, width=4).count() == 3 * per_place
    assert bottleneck(base, width=4, placement="houlsby").count() == 6 * per_place
    assert bottleneck(base, width=4, placement="parallel", norm="in").count() == 3 * (per_place + 64)


def test_published_budgets():
    """Two maps of 768 x 768/r with biases in each of 12 layers."""
    budget = next(c for c in _modular() if c["kind"] == "budget")
    for reduction, expected in budget["values"].items():
        width = 768 // int(reduction)
        assert 12 * (2 * 768 * width + width + 768) == expected


def _modular():
    from ..merge.golden import content

    return content("07-modular-clir-reranking")["cases"]


def test_the_coupling_is_undone_exactly(any_base):
    made = moved(bottleneck(any_base, width=4, invertible=True))
    e = torch.randn(2, 5, 32)
    torch.testing.assert_close(uncouple(couple(e, made.tensors), made.tensors), e, atol=1e-5, rtol=1e-5)
    zero = bottleneck(any_base, width=4, invertible=True)
    assert torch.equal(couple(e, zero.tensors), e)
    torch.testing.assert_close(beside(any_base, a=zero), plain(any_base), atol=1e-6, rtol=1e-6)


def test_language_and_task_stack_in_order_and_languages_change_places(base):
    english, chichewa, task = (moved(bottleneck(base, width=4), seed) for seed in (1, 2, 3))
    model = base.model()
    attach(model, {"eng": english, "task": task})
    assert torch.equal(logits(model), beside(base, eng=english, task=task))
    assert not torch.allclose(logits(model), beside(base, task=task, eng=english))
    assert not torch.allclose(logits(model), beside(base, nya=chichewa, task=task))


def test_a_language_for_each_example(base):
    one, two = (moved(bottleneck(base, width=4, placement="houlsby"), seed) for seed in (1, 2))
    model = base.model()
    attach(model, {"nya": one, "swh": two}).use(["swh", "nya"])
    mixed = logits(model)
    torch.testing.assert_close(mixed[0], beside(base, swh=two)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], beside(base, nya=one)[1], atol=1e-5, rtol=1e-5)


def test_it_can_not_be_folded(base):
    with pytest.raises(ConfigError, match="'bottleneck' delta is more than a change of matrices"):
        changes(bottleneck(base))
