"""LoRA: run, exported and imported by peft."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from calque.delta.attach import export_peft
from calque.delta.lora import lora
from calque.errors import ConfigError

from .runs import PEFT, beside, logits, moved


@pytest.mark.filterwarnings(PEFT)
def test_peft_loads_what_is_exported(any_base, tmp_path):
    made = moved(lora(any_base, rank=3, alpha=12.0))
    export_peft(made, tmp_path / "peft")
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
