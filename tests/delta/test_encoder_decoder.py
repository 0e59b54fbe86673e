"""Deltas on encoder-decoders: in both halves, and in attention from one to the other."""

import pytest
import torch

from calque.delta.attach import attach, fold_in
from calque.delta.bottleneck import bottleneck
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.prefix import prefix
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint

from .. import tiny
from .runs import IDS, PEFT, moved
from .test_bottleneck import PLACEMENTS

pytestmark = pytest.mark.filterwarnings(PEFT)
# networks in two layers of each half: attention stands three times in a pair of layers, the other block twice
NETWORKS = {"houlsby": 10, "pfeiffer": 4, "parallel": 4, "attention_parallel": 6}


@pytest.fixture(scope="module", params=["t5", "marian"])
def both(request, tmp_path_factory):
    return Checkpoint.at(tiny.model(tmp_path_factory.mktemp("base") / request.param, request.param))


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    return Checkpoint.at(tiny.model(tmp_path_factory.mktemp("base") / "marian", "marian"))


def said(model, mask=None):
    with torch.no_grad():
        targets = IDS[:, :4].contiguous()
        return model.eval()(input_ids=IDS, attention_mask=mask, decoder_input_ids=targets).logits


def beside(base, **deltas):
    model = base.model()
    attach(model, deltas)
    return said(model)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_networks_stand_in_encoder_and_decoder(both, placement):
    made = bottleneck(both, width=4, placement=placement, scale=4.0)
    assert len(made.place) == NETWORKS[placement]
    before = said(both.model())
    torch.testing.assert_close(beside(both, a=made), before, atol=1e-6, rtol=1e-6)
    for place in made.place:
        own = {key: moved(made).tensors[key] for key in made.tensors if key.startswith(f"{place}.")}
        assert not torch.equal(beside(both, a=made.with_tensors(own)), before), place


def test_pairs_stand_at_linear_maps_only(both):
    made = moved(lora(both, rank=2), scale=0.05)
    assert not [place for place in made.place if "relative_attention_bias" in place]
    folded = both.model()
    fold_in(folded, made)
    torch.testing.assert_close(said(folded), beside(both, a=made), atol=1e-5, rtol=1e-5)


def test_prefixes_stand_before_all_three_attentions(marian):
    made = prefix(marian, length=3)
    assert len(made.place) == 6
    none = {key: torch.zeros_like(tensor) for key, tensor in made.tensors.items()}
    model, before = marian.model(), said(marian.model())
    attached = attach(model, {"a": moved(made, scale=1.0)})
    assert (said(model) - before).abs().max() > 1e-3
    attached.use("")
    torch.testing.assert_close(said(model), before, atol=1e-5, rtol=1e-5)
    zero = beside(marian, a=made.with_tensors(none))
    for place in made.place:
        own = {key: moved(made, scale=1.0).tensors[key] for key in made.tensors if key.startswith(place)}
        assert not torch.equal(beside(marian, a=made.with_tensors({**none, **own})), zero), place


def test_what_pads_the_source_is_not_seen_beside_a_prefix(marian):
    model = marian.model()
    attach(model, {"a": moved(mam(marian, length=3, width=4))})
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    with torch.no_grad():
        targets = IDS[:, :4].contiguous()
        short = model.eval()(input_ids=IDS[:, :4], decoder_input_ids=targets).logits
    torch.testing.assert_close(said(model, mask), short, atol=1e-5, rtol=1e-5)


def test_a_model_that_adds_to_its_scores_takes_no_prefix(tmp_path):
    t5 = Checkpoint.at(tiny.model(tmp_path / "t5", "t5"))
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration: its attention takes no prefix"):
        attach(t5.model(), {"a": prefix(t5, length=2)})
