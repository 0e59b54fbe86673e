"""Names and slots are one to one, in the tables and in real models of every architecture."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calque.model.checkpoint import Checkpoint
from calque.model.slots import Layout, Slot, layout, model_types

from .. import tiny

FAMILIES = {
    "llama": "model.",
    "gemma": "model.",
    "olmo2": "model.",
    "mixtral": "model.",
    "moe": "model.",
    "gpt_neox": "gpt_neox.",
    "gpt2": "transformer.",
    "bert": "bert.",
    "roberta": "roberta.",
    "t5": "",
    "marian": "model.",
}
EVERY_LAYER = {"attention.q", "attention.qkv", "encoder.attention.q"}


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def checkpoint(request, tmp_path_factory):
    return Checkpoint.at(tiny.model(tmp_path_factory.mktemp("models") / request.param, request.param))


def test_real_models_are_a_bijection(checkpoint):
    assert len(checkpoint.slots) == len(checkpoint.tensors)
    assert set(checkpoint.slots.values()) == set(checkpoint.tensors)
    for slot, name in checkpoint.slots.items():
        assert checkpoint.layout.name(slot.layer, slot.role) == name
        assert slot.shape == checkpoint.tensors[name].shape


def test_real_models_are_fully_in_the_table(checkpoint):
    assert checkpoint.layout.family
    assert not [slot for slot in checkpoint.slots if slot.role.startswith("~")]
    layers = {slot.layer for slot in checkpoint.slots if slot.role in EVERY_LAYER}
    assert layers == {0, 1}


def test_embeddings_are_found_as_transformers_finds_them(checkpoint):
    model = checkpoint.model()
    entry, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    assert torch.equal(checkpoint.read(checkpoint.input_embedding), entry)
    assert checkpoint.tied is (head is None or head.weight is entry)
    if not checkpoint.tied:
        assert torch.equal(checkpoint.read(checkpoint.output_embedding), head.weight)
    if checkpoint.output_bias:
        assert checkpoint.info(checkpoint.output_bias).shape[-1] == len(entry)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_inverts(family):
    from calque.model.slots import _rows

    made = Layout(family, FAMILIES[family])
    seen = {}
    for _, _, template in _rows(family, FAMILIES[family]):
        name = template.format(layer=17, expert=5, stack="decoder", language="sw_KE")
        place = made.place(name)
        assert made.name(*place) == name
        assert seen.setdefault(place, name) == name


@given(st.text(st.characters(codec="ascii", exclude_characters="\n"), min_size=1, max_size=40))
def test_unknown_names_keep_themselves(name):
    for made in (Layout(""), Layout("llama", "model.")):
        slot = made.slot(name, (2, 3))
        assert made.name(slot.layer, slot.role) == name


@given(
    st.lists(
        st.from_regex(r"(enc|dec)\.(blocks?|h)\.([0-9]|[1-9][0-9])\.(attn|mlp\.[0-3])\.w", fullmatch=True),
        unique=True,
        max_size=20,
    )
)
def test_generic_slots_never_collide(names):
    made = Layout("")
    assert len({made.slot(name, (1,)) for name in names}) == len(names)


def test_another_tower_has_no_layers_of_the_text():
    made = Layout("gemma", "model.language_model.")
    names = ("model.vision_tower.encoder.layers.3.mlp.fc1.weight", "model.language_model.layers.3.new.weight")
    assert [made.place(name)[0] for name in names] == [None, 3]
    assert all(made.name(*made.place(name)) == name for name in names)
    assert Layout("t5").place("decoder.block.5.more.weight")[0] == 5
    assert Layout("llama", "model.").place("depth.7.attention.q.A")[0] == 7


def test_generic_rule_finds_layer_and_embeddings():
    shapes = {"net.tok_embeddings.weight": (50, 8), "output.weight": (50, 8), "net.blocks.3.w": (8, 8)}
    made = layout("something-new", shapes)
    assert (made.input, made.output) == ("net.tok_embeddings.weight", "output.weight")
    assert made.slot("net.blocks.3.w", (8, 8)) == Slot(3, "~net.blocks.{layer}.w", (8, 8))
    assert made.name(None, "embed.input") == "net.tok_embeddings.weight"


def test_an_unknown_role_is_a_key_error():
    with pytest.raises(KeyError, match=r"nowhere"):
        Layout("llama", "model.").name(3, "nowhere")


def test_the_table_covers_the_architectures_it_promises():
    promised = {
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "olmo2", "gpt_neox",
        "gpt2", "bert", "roberta", "xlm-roberta", "t5", "mt5", "marian", "m2m_100", "mixtral", "qwen2_moe",
        "qwen3_moe", "olmoe", "xmod",
    }  # fmt: skip
    assert promised <= set(model_types())
