"""Upcycling: reference outputs of the block, which setting keeps the model, and where experts go."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from calque.errors import CalqueError, ConfigError, ModelError
from calque.language import Language
from calque.merge.upcycle import families, upcycle
from calque.model.checkpoint import Checkpoint
from calque.model.moe import expert_of, forced, loads, routers, with_expert

from .. import tiny
from . import kin
from .golden import array_of, cases

LANGUAGES = ("nya", "swh", "eng", "fra", "arb", "zho")
IDS = torch.tensor([[5, 9, 33, 100, 7, 12]])
PLAIN = {"attention_bias": False, "mlp_bias": False}


def model(folder, architecture="llama", **settings):
    own = PLAIN if architecture == "llama" else {}
    return Checkpoint.at(tiny.model(folder, architecture, **{"num_hidden_layers": 4, **own, **settings}))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return model(tmp_path_factory.mktemp("models") / "base")


def logits(loaded):
    with torch.no_grad():
        return loaded.eval()(input_ids=IDS).logits


def block(case):
    """The block of plain transformers with the weights of a reference case, in double precision."""
    p, given_ = case["params"], case["inputs"]
    config = Qwen2MoeConfig(
        hidden_size=p["hidden"], moe_intermediate_size=p["ffn"], num_experts=p["experts"],
        num_experts_per_tok=p["top_k"], norm_topk_prob=p["norm_topk_prob"], hidden_act=p["act"],
        shared_expert_intermediate_size=p["ffn"] if p["shared_expert"] else 1,
    )  # fmt: skip
    config._experts_implementation = "eager"
    made = Qwen2MoeSparseMoeBlock(config).double()
    parts = {name: torch.from_numpy(array_of(v)) for name, v in given_.items() if isinstance(v, dict)}
    gate, up, down = parts["gate_proj"], parts["up_proj"], parts["down_proj"]
    if "then" in given_:
        gate, up, down = (part[:1].expand_as(part) for part in (gate, up, down))
    with torch.no_grad():
        made.gate.weight.copy_(parts["router"])
        made.experts.gate_up_proj.copy_(torch.cat([gate, up], 1))
        made.experts.down_proj.copy_(down)
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = getattr(made.shared_expert, name).weight
            weight.copy_(parts[f"shared_{name}"]) if p["shared_expert"] else weight.zero_()
        made.shared_expert_gate.weight.copy_(parts.get("shared_expert_gate", torch.zeros(1, p["hidden"])))
    return made, parts["x"], torch.tensor(given_["language_ids"])


@pytest.mark.parametrize("case", cases("13-apollomoe-post-moe"))
def test_reference_block(case):
    made, x, ids = block(case)
    outputs = case["outputs"]
    with torch.no_grad():
        np.testing.assert_allclose(made.eval()(x), outputs["eval_y"], atol=1e-6, rtol=1e-6)
        with forced(made, ids):
            np.testing.assert_allclose(made(x), outputs["eval_y"], atol=1e-6, rtol=1e-6)
            np.testing.assert_allclose(made.train()(x), outputs["train_y"], atol=1e-6, rtol=1e-6)
            scores = made.gate(x)
            assert scores[2].tolist() == outputs["train_selected"]
            np.testing.assert_allclose(scores[0], outputs["router_logits"], atol=1e-6, rtol=1e-6)
        free = made.gate(x)[2]
        assert free.tolist() == outputs["eval_selected"]
        assert int((free != scores[2]).any(1).sum()) == outputs["forced_tokens"]


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("llama", {"shared": True}),
        ("llama", {"router": "zero", "chosen": 3}),
        ("llama", {"experts": 2, "layers": 4}),
        ("llama-tied", {"spread": 3.0}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {}),
    ],
)
def test_preserving_keeps_the_logits(architecture, settings, tmp_path):
    own = {"sliding_window": None} if architecture == "mistral" else {}
    base = model(tmp_path / "base", architecture, **own)
    out = upcycle(base, languages=LANGUAGES, preserve=True, **settings).write(tmp_path / "out")
    assert torch.allclose(logits(out.model()), logits(base.model()), atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(out.folder)
    assert torch.equal(logits(plain), logits(out.model()))


def test_as_published_the_output_is_scaled(base, tmp_path):
    out = upcycle(base, languages=LANGUAGES, router="zero").write(tmp_path / "out")
    dense, mixture = base.model(), out.model()
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    experts = out.config["num_experts"]
    with torch.no_grad():
        expected = dense.model.layers[3].mlp(x) * 2 / experts
        assert torch.allclose(mixture.model.layers[3].mlp(x), expected, atol=1e-6)
    assert not torch.allclose(logits(mixture), logits(dense), atol=1e-3)


@pytest.mark.parametrize("preserve", [True, False])
def test_one_expert_is_the_dense_model(base, preserve, tmp_path):
    rewrite = upcycle(base, languages=["eng", "fra"], experts=1, chosen=1, preserve=preserve)
    assert torch.allclose(logits(rewrite.write(tmp_path / "out").model()), logits(base.model()), atol=1e-5)


def test_experts_are_in_the_last_layers_only(base, tmp_path):
    rewrite = upcycle(base, languages=LANGUAGES, layers=1)
    out = rewrite.write(tmp_path / "out")
    assert {out.layout.place(name)[0] for name in out.tensors if ".experts." in name} == {3}
    assert len(routers(out.model())) == 1
    experts, hidden, ffn = out.config["num_experts"], 32, 48
    small = 3 * hidden + hidden  # the shared expert that the architecture asks for
    grown = (experts - 1) * 3 * hidden * ffn + experts * hidden + small
    assert rewrite.notes["parameters"] == rewrite.notes["parameters_before"] + grown
    assert out.config["mlp_only_layers"] == [0, 1, 2]
    assert kin.weights(out)["model.layers.0.mlp.up_proj.weight"].shape == (ffn, hidden)


def test_languages_keep_their_experts(base, tmp_path):
    out = upcycle(base, languages=LANGUAGES).write(tmp_path / "out")
    config = json.loads((out.folder / "config.json").read_text())
    assert expert_of(config, "Chichewa") == expert_of(config, "swh")
    assert expert_of(config, "eng") == expert_of(config, "fra_Latn") != expert_of(config, "arb")
    with pytest.raises(ConfigError, match="no expert for deu_Latn"):
        expert_of(config, "deu")


def test_forcing_trains_the_expert_of_the_language(base, tmp_path):
    loaded = upcycle(base, languages=LANGUAGES, layers=1, chosen=1).write(tmp_path / "out").model().train()
    wanted = torch.full_like(IDS, 2)
    with forced(loaded, wanted), loads(loaded) as counts:
        loaded(input_ids=IDS, labels=IDS).loss.backward()
    assert counts[0].tolist() == [0, 0, IDS.numel(), *[0] * (len(counts[0]) - 3)]
    gradient = loaded.model.layers[3].mlp.experts.down_proj.grad
    assert [bool(g.any()) for g in gradient] == [n == 2 for n in range(len(gradient))]
    before = copy.deepcopy(loaded).eval()
    assert torch.equal(logits(before), logits(loaded))


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 99))
def test_the_forced_expert_is_chosen_and_none_twice(chosen, experts, seed):
    chosen = min(chosen, experts)
    generator = torch.Generator().manual_seed(seed)
    choices = torch.stack([torch.randperm(experts, generator=generator)[:chosen] for _ in range(9)])
    wanted = torch.randint(-1, experts, (9,), generator=generator)
    result = with_expert(choices, wanted)
    for before, after, expert in zip(choices, result, wanted.tolist(), strict=True):
        assert len(set(after.tolist())) == chosen
        assert torch.equal(after[:-1], before[:-1])
        assert expert in after if expert >= 0 else torch.equal(after, before)
        assert expert not in before or torch.equal(after, before)


def test_forcing_what_is_not_there(base, tmp_path):
    with pytest.raises(ModelError, match="no router"), forced(base.model(), IDS):
        pass
    loaded = upcycle(base, languages=LANGUAGES).write(tmp_path / "out").model().train()
    with pytest.raises(ConfigError, match="the model has 0 to 3"), forced(loaded, IDS):
        pass
    with forced(loaded, torch.zeros(1, 2, dtype=torch.long)), pytest.raises(ConfigError, match="are read"):
        loaded(input_ids=IDS)


def codes(groups):
    return [{language.iso for language in group} for group in groups]


def test_families_come_together_and_apart():
    languages = [Language.parse(name) for name in LANGUAGES]
    assert codes(families(languages)) == [{"nya", "swh"}, {"eng", "fra"}, {"arb"}, {"zho"}]
    assert len(families(languages, 2)) == 2
    assert {"nya", "swh"} in codes(families(languages, 5)) or {"eng", "fra"} in codes(families(languages, 5))
    assert len(families(languages, 6)) == 6


def test_groups_may_be_given(base, tmp_path):
    made = upcycle(base, languages=["zho+nya", "eng"]).write(tmp_path / "out")
    assert made.config["num_experts"] == 2
    assert {expert_of(made.config, "nya"), expert_of(made.config, "zho")} == {0}
    assert expert_of(made.config, "eng") == 1
    with pytest.raises(ConfigError, match="experts = 3, but 2 groups"):
        upcycle(base, languages=["zho+nya", "eng"], experts=3)
    with pytest.raises(ConfigError, match="each once"):
        upcycle(base, languages=["zho+nya", "nya"])


@given(
    st.sets(
        st.sampled_from(["nya", "swh", "zul", "eng", "hin", "arb", "heb", "zho", "eus", "quy"]), min_size=1
    )
)
def test_every_language_is_in_one_group(names):
    languages = [Language.parse(name) for name in sorted(names)]
    for experts in (None, 1, len(languages)):
        groups = families(languages, experts)
        assert sorted(language for group in groups for language in group) == sorted(languages)
        assert experts is None or len(groups) == experts


def test_what_can_not_be_upcycled(base, tmp_path):
    for settings, message in (
        ({"languages": []}, "at least one"),
        ({"languages": ["eng", "eng"]}, "each once"),
        ({"languages": ["eng"], "experts": 2}, "experts = 2"),
        ({"languages": ["eng"], "chosen": 2}, "chosen = 2 of 1"),
        ({"languages": LANGUAGES, "layers": 5}, "layers = 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            upcycle(base, **settings)
    for architecture, message in (("gpt2", "no mixture"), ("mixtral", "no mixture")):
        with pytest.raises(CalqueError, match=message):
            upcycle(Checkpoint.at(tiny.model(tmp_path / architecture, architecture)), languages=LANGUAGES)
    with pytest.raises(ModelError, match="biases"):
        upcycle(Checkpoint.at(tiny.model(tmp_path / "biased")), languages=LANGUAGES)
