import pytest
import torch
from peft import PeftModel

from calque.delta.bottleneck import bottleneck
from calque.delta.export import export
from calque.delta.lora import lora
from calque.delta.shards import shards
from calque.errors import ConfigError
from calque.merge.fold import fold
from calque.model.checkpoint import Checkpoint

from .runs import PEFT, beside, logits, moved

MAKES = {
    "lora": lambda base: lora(base, rank=3, alpha=12.0),
    "shards": lambda base: shards(base, rank=3, pieces=2),
    "some": lambda base: lora(base, rank=2, roles=("attention.q",)),
}


@pytest.mark.filterwarnings(PEFT)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_peft_gives_the_logits_of_base_and_delta(base, make, tmp_path):
    made = moved(make(base))
    export(made).save(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    back = PeftModel.from_pretrained(base.model(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(back), beside(base, a=made), atol=2e-5, rtol=1e-4)


def test_the_adapter_folds_to_what_the_delta_folds_to(base, tmp_path):
    made = moved(shards(base, rank=3, pieces=2))
    made.save(tmp_path / "delta")
    export(made).save(tmp_path / "adapter")
    found = [fold(tmp_path / kind, base).write(tmp_path / f"of-{kind}") for kind in ("delta", "adapter")]
    one, other = (Checkpoint.at(f.folder) for f in found)
    for name in one.tensors:
        torch.testing.assert_close(one.read(name), other.read(name), atol=1e-6, rtol=1e-5)


def test_what_is_more_than_matrices_is_refused(base):
    with pytest.raises(ConfigError, match="'bottleneck' delta is more than a change of matrices"):
        export(bottleneck(base, width=2))
