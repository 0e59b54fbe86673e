"""Training that goes by language, the parts it takes, and forms with a place of their own."""

import json

import numpy as np
import pytest
import torch

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.data.pack import Batch
from calque.delta.attach import attach
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta, beside
from calque.delta.depthwise import depthwise
from calque.delta.lora import lora
from calque.delta.mixture import mixture
from calque.delta.prefix import prefix
from calque.errors import ConfigError, ModelError
from calque.evaluate.lm import Reader
from calque.merge.recurse import recurse
from calque.merge.upcycle import upcycle
from calque.train.causal import hidden_states
from calque.train.lm import lm

from ..delta.runs import moved
from .conftest import document
from .test_lm import SMALL, changed, losses


@pytest.fixture(scope="module")
def english():
    lines = (" ".join(document(n).split()[::-1]) for n in range(20))
    return Corpus.of(Example(f"e{n}", {"eng_Latn": line}, group=f"e{n}") for n, line in enumerate(lines))


def same(one, other):
    return one.fingerprint() == other.fingerprint()


def test_each_text_trains_the_part_of_its_language(base, corpus, english, tmp_path):
    held = {name: bottleneck(base, width=4, seed=n) for n, name in enumerate(("nya", "eng", "swh"))}
    made = mixture(base, held, router="language")
    result = lm(base, corpus, english, made, work=tmp_path / "both", steps=4, replay_share=0.3, **SMALL)
    trained = Delta.load(result.folder / "delta")
    assert [same(a, b) for a, b in zip(trained.parts, made.parts, strict=True)] == [False, False, True]
    alone = lm(base, corpus, delta=made, work=tmp_path / "alone", steps=4, **SMALL)
    parts = Delta.load(alone.folder / "delta").parts
    single = lm(base, corpus, delta=held["nya"], work=tmp_path / "single", steps=4, **SMALL)
    plain = Delta.load(single.folder / "delta")
    for key, tensor in plain.tensors.items():
        torch.testing.assert_close(parts[0].tensors[key], tensor, atol=1e-6, rtol=1e-5)
    assert same(parts[1], made.parts[1])
    with pytest.raises(ConfigError, match="no delta 'nya_Latn' is attached; attached are eng_Latn"):
        lm(base, corpus, delta=mixture(base, {"eng": held["eng"]}, router="language"),
           work=tmp_path / "none", steps=1, **SMALL)  # fmt: skip


def test_documents_back_to_back_have_the_prefix_of_their_language(base, corpus, english, tmp_path):
    held = {name: moved(prefix(base, length=3), n) for n, name in enumerate(("nya", "eng"))}
    made = mixture(base, held, router="language")
    ids = np.arange(5, 17)
    expected = []
    for language, own in (("nya", ids[:7]), ("eng", ids[7:])):
        alone = base.model().eval()
        attach(alone, {"a": held[language]})
        with torch.no_grad():
            expected.append(alone.model(torch.from_numpy(own)[None]).last_hidden_state[0])
    model = base.model().eval()
    attached = attach(model, {"m": made})
    attached.speak(["nya", "eng"], [7, 5])
    batch = Batch(ids, (7, 5), 0, (12,), (0, 1))
    with torch.no_grad():
        torch.testing.assert_close(hidden_states(model, batch), torch.cat(expected), atol=1e-5, rtol=1e-5)
    attached.speak(["nya"], [12])
    with pytest.raises(ConfigError, match="deltas chosen for 1 examples, but the batch has 2"):
        hidden_states(model, batch)
    result = lm(base, corpus, english, made, work=tmp_path, steps=4, replay_share=0.3, **SMALL)
    parts = Delta.load(result.folder / "delta").parts
    assert [same(a, b) for a, b in zip(parts, made.parts, strict=True)] == [False, False]


@pytest.mark.parametrize("router", ["past", "token"])
def test_routers_train_on_documents_back_to_back(base, corpus, tmp_path, router, capsys):
    made = mixture(base, {"a": lora(base, rank=2), "b": lora(base, rank=2, seed=1)}, router=router)
    result = lm(base, corpus, delta=made, work=tmp_path, steps=10, **{**SMALL, "lr": 2e-2})
    assert "padded rows" not in capsys.readouterr().err
    trained = Delta.load(result.folder / "delta")
    assert all(t.any() for t in trained.tensors.values())
    assert not any(same(a, b) for a, b in zip(trained.parts, made.parts, strict=True))
    seen = losses(tmp_path)
    assert sum(seen[-3:]) < sum(seen[:3])


def test_what_is_not_folded_lies_beside_the_very_weights(base, corpus, tmp_path):
    for name, settings in {"plain": {}, "rows": {"lora_embeddings": True}}.items():
        made = bottleneck(base, width=4)
        result = lm(base, corpus, delta=made, work=tmp_path / name, steps=4, **SMALL, **settings)
        assert changed(base, result) == ({base.input_embedding} if settings else set())
        assert (Delta.load(result.folder / "delta").base["hash"] == made.base["hash"]) is not bool(settings)
        trained, model, ids = beside(result), result.model(), torch.arange(2, 14)[None]
        attach(model, {"a": trained})
        torch.testing.assert_close(
            Reader.open("m", result, torch.float32).model(ids).logits, model(ids).logits
        )
    folded = lm(base, corpus, delta=lora(base, rank=2), work=tmp_path / "folded", steps=2, **SMALL)
    assert beside(folded) is None and json.loads((folded.folder / "delta/delta.json").read_text())["folded"]


def test_pairs_of_each_depth_train_and_become_residuals(base, corpus, tmp_path):
    looped = recurse(base, loops=2, rank=2).write(tmp_path / "looped")
    result = lm(looped, corpus, delta=depthwise(looped, base, rank=3), work=tmp_path / "w", steps=6, **SMALL)
    trained = Delta.load(result.folder / "delta")
    ids, model = torch.arange(2, 14)[None], looped.model()
    attach(model, {"a": trained})
    torch.testing.assert_close(result.model()(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    assert result.tensors["depth.3.mlp.up.A"].shape[0] == 5
    shared = [name for name in looped.tensors if not name.endswith((".A", ".B"))]
    assert all(torch.equal(looped.read(name), result.read(name)) for name in shared)
    seen = losses(tmp_path / "w")
    assert seen[-1] < seen[0]


def test_layers_without_the_input_rows(base, corpus, tmp_path):
    result = lm(base, corpus, work=tmp_path, steps=2, part="layers", **SMALL)
    assert changed(base, result) == set(base.tensors) - {base.input_embedding}


@pytest.fixture(scope="module")
def experts(base, tmp_path_factory):
    made = upcycle(base, languages=("nya", "swh", "eng", "arb"), experts=4, layers=2, chosen=1, preserve=True)
    return made.write(tmp_path_factory.mktemp("experts") / "m")


def moved_experts(before, after):
    found = {int(name.split("experts.")[1].split(".")[0]) for name in changed(before, after)
             if ".experts." in name}  # fmt: skip
    return found


def test_a_language_trains_its_own_expert_when_forced(experts, corpus, english, tmp_path):
    settings = {"part": "experts", "steps": 3, "force_experts": True, **SMALL}
    own = experts.config["calque_experts"]
    forced = lm(experts, corpus, work=tmp_path / "forced", **settings)
    assert moved_experts(experts, forced) == {own["nya_Latn"]}
    outside = {name for name in changed(experts, forced) if ".mlp." not in name}
    assert not outside
    both = lm(experts, corpus, english, work=tmp_path / "both", replay_share=0.4, **settings)
    assert moved_experts(experts, both) == {own["nya_Latn"], own["eng_Latn"]}


def test_what_is_wrong_is_said(base, corpus, tmp_path):
    with pytest.raises(ConfigError, match="no expert for nya_Latn; this model has experts for none"):
        lm(base, corpus, work=tmp_path / "a", steps=1, force_experts=True, **SMALL)
    with pytest.raises(ModelError, match="no router of experts found"):
        lm(base, corpus, work=tmp_path / "c", steps=1, part="experts", **SMALL)
