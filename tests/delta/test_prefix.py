"""Prefixes: the authors' numbers, the gate identity, caches and batches."""

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from calque.delta.attach import attach
from calque.delta.bottleneck import install
from calque.delta.delta import Delta
from calque.delta.prefix import NAME, attend, key_value, prefix, settled
from calque.delta.switch import Switch
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint

from .. import tiny
from ..merge.golden import array_of, check
from .runs import IDS, beside, logits, moved, plain
from .test_bottleneck import CASES, NAMES, Wide, arrays, layer_of


def test_reference_network_of_prefixes():
    case = CASES["prefix_mlp"]
    found, p = arrays(case), case["params"]
    numbers = {"embedding": found["wte_enc.weight"], "in": found["control_trans_enc.0.weight"],
               "in_bias": found["control_trans_enc.0.bias"], "out": found["control_trans_enc.2.weight"],
               "out_bias": found["control_trans_enc.2.bias"]}  # fmt: skip
    for layer, expected in enumerate(case["outputs"]["encoder_per_layer"]):
        key, value = key_value(numbers, ("0", "1"), str(layer))
        for side, made in (("key", key), ("value", value)):
            split = made.view(p["prefix_length"], p["heads"], -1).transpose(0, 1)
            check(split.numpy(), np.array(expected["encoder"][side]))


def test_reference_gate_and_identity():
    case = CASES["gate"]
    front, text = (
        torch.from_numpy(array_of(case["inputs"][k])) for k in ("prefix_logits", "attention_logits")
    )
    share = front.exp().sum(-1) / (front.exp().sum(-1) + text.exp().sum(-1))
    check(share.numpy(), np.array(case["outputs"]["lambda_prefix"]))
    q, k, v, pk, pv = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (3, 5, 5, 2, 2))
    module = torch.nn.Module()
    flat = [t.transpose(1, 2).reshape(2, 8) for t in (pk, pv)]

    class On:
        def weight(self, _):
            return 1.0

    module._calque_prefixes = [(lambda: flat, On(), "a")]
    out = attend(module, q, k, v, None, is_causal=False)[0].transpose(1, 2)
    text, front = (q @ t.transpose(-1, -2) / 2 for t in (k, pk))
    share = front.exp().sum(-1) / (front.exp().sum(-1) + text.exp().sum(-1))
    apart = (1 - share)[..., None] * (text.softmax(-1) @ v) + share[..., None] * (front.softmax(-1) @ pv)
    torch.testing.assert_close(out, apart, atol=1e-10, rtol=1e-8)


def test_weight_zero_is_no_prefix_and_rows_of_a_batch_choose(base):
    one, two = moved(prefix(base, length=3)), moved(prefix(base, length=5), 2)
    model = base.model()
    attached = attach(model, {"nya": one, "swh": two})
    attached.use("")
    torch.testing.assert_close(logits(model), plain(base), atol=1e-5, rtol=1e-5)
    attached.use(["swh", "nya"])
    torch.testing.assert_close(logits(model)[0], beside(base, swh=two)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model)[1], beside(base, nya=one)[1], atol=1e-5, rtol=1e-5)
    attached.detach()
    torch.testing.assert_close(logits(model), plain(base), atol=1e-6, rtol=1e-6)
    assert (beside(base, nya=one) - plain(base)).abs().max() > 1e-3


def test_the_cache_of_generation_changes_nothing(base):
    model = base.model().eval()
    attach(model, {"a": moved(prefix(base, length=3))})
    whole = logits(model)
    with torch.no_grad():
        first = model(input_ids=IDS[:, :4], use_cache=True)
        rest = model(input_ids=IDS[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-5, rtol=1e-5)


def test_padding_is_not_seen_and_the_prefix_is(base):
    model = base.model()
    attach(model, {"a": moved(prefix(base, length=3))})
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], 1)
    mask = torch.tensor([[0, 0] + [1] * 6] * 2)
    positions = torch.tensor([[0, 0, *range(6)]] * 2)
    with torch.no_grad():
        out = model.eval()(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(out, logits(model), atol=1e-5, rtol=1e-5)


def test_the_network_folds_away(base, tmp_path):
    made = moved(prefix(base, length=3, middle=5))
    expected = beside(base, a=made)
    settled(made).save(tmp_path / "d")
    torch.testing.assert_close(beside(base, a=Delta.load(tmp_path / "d")), expected, atol=1e-5, rtol=1e-5)


def test_a_model_without_key_maps(tmp_path):
    gpt2 = Checkpoint.at(tiny.model(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(ConfigError, match=r"no slot 'attention.k'; it has attention.o, attention.qkv"):
        prefix(gpt2)


@pytest.mark.parametrize("name", ["prefix_concat", "prefix_gate_add_noln", "mam"])
def test_reference_layer(name):
    """Concatenation gives the published layer, and so the gated form, which is equal."""
    case = CASES[name]
    layer, added = layer_of(case)
    AttentionInterface.register(NAME, attend)
    layer.self_attn.config._attn_implementation = NAME
    own = tuple(torch.from_numpy(array_of(case["inputs"][f"prefix_{side}"])) for side in ("key", "value"))
    layer.self_attn._calque_prefixes = [(lambda: own, Switch(["a"]), "a")]
    if added:
        numbers = {f"fc2.{NAMES[k.removeprefix('ef_ffn_adapter.')]}": v for k, v in added.items()}
        settings = {"norm": "none", "scale": 4.0, "placement": "parallel", "source": {"fc2": "fc1"}}
        made = Delta("bottleneck", ("fc2",), "own", "fixed", settings, numbers, {})
        install(layer, made, Wide(numbers), Switch(["a"]), "a")
    mask = torch.tensor(case["inputs"]["attention_mask"], dtype=torch.bool)
    x = torch.from_numpy(array_of(case["inputs"]["x"]))
    with torch.no_grad():
        out = layer(x, attention_mask=mask[:, None, None].expand(-1, 1, x.shape[1], -1))
    out = out[0] if isinstance(out, tuple) else out
    check(out.numpy(), np.array(case["outputs"]["layer_output"]), atol=1e-4, rtol=1e-4)
