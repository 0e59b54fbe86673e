"""LoRA: run, exported and imported by peft."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from calque.delta.delta import Delta
from calque.delta.export import export
from calque.delta.lora import install, lora
from calque.delta.switch import Switch
from calque.errors import ConfigError

from ..merge.golden import array_of, check
from .runs import PEFT, beside, logits, moved
from .test_bottleneck import CASES, layer_of


@pytest.mark.filterwarnings(PEFT)
def test_reference_layer():
    case = CASES["lora_attention"]
    layer, added = layer_of(case)
    pairs = {key.replace(".ef_lora_", "."): torch.nn.Parameter(value) for key, value in added.items()}
    place = tuple(dict.fromkeys(key.rpartition(".")[0] for key in pairs))
    assert place == ("self_attn.q_proj", "self_attn.v_proj")
    settings = {"rank": len(pairs[f"{place[0]}.A"]), "alpha": case["params"]["lora_alpha"]}
    made = Delta("lora", place, "own", "fixed", settings, pairs, {"model_type": "bart"})
    install(layer, made, pairs, Switch(["a"]), "a", "a")
    with torch.no_grad():
        out = layer(torch.from_numpy(array_of(case["inputs"]["x"])), attention_mask=None)
    out = out[0] if isinstance(out, tuple) else out
    check(out.numpy(), np.array(case["outputs"]["layer_output"]), atol=1e-8, rtol=1e-7)


@pytest.mark.filterwarnings(PEFT)
def test_peft_loads_what_is_exported(any_base, tmp_path):
    made = moved(lora(any_base, rank=3, alpha=12.0))
    export(made).save(tmp_path / "peft")
    back = PeftModel.from_pretrained(any_base.model(), str(tmp_path / "peft"))
    torch.testing.assert_close(logits(back), beside(any_base, a=made), atol=1e-5, rtol=1e-5)


def test_roles_choose_places_and_the_count_is_known_from_shapes(base):
    made = lora(base, rank=4, roles=("attention.q", "attention.v"))
    assert made.place == tuple(f"model.layers.{n}.self_attn.{m}_proj" for n in range(3) for m in "qv")
    assert made.count() == 3 * 4 * ((32 + 32) + (32 + 16))


def test_a_looped_model_is_refused(base):
    looped = replace(base, config={**base.config, "recursion": {"shared": 1, "model_type": "llama"}})
    with pytest.raises(ConfigError, match=r"a looped model share their maps.*use delta/depthwise"):
        lora(looped)


def test_a_role_that_is_not_there(base):
    with pytest.raises(ConfigError, match=r"no slot 'attention.query'; it has attention.k, .*mlp.up"):
        lora(base, roles=("attention.query",))
