"""Mixtures: the authors' numbers, the limits in which they are something known, and no look ahead."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from calque.delta.attach import attach, changes, fold_in, foldable
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.mixture import kept, mixed, mixture, part_of, running_mean
from calque.delta.prefix import prefix
from calque.errors import ConfigError, ModelError
from calque.model.checkpoint import Checkpoint

from .. import tiny
from ..merge.golden import array_of, check, content
from .runs import IDS, beside, logits, moved, plain

CASES = {case["name"]: case for case in content("06-mt4crossoie")["cases"]}
ROUTERS = ["past", "token"]


@pytest.fixture(scope="module")
def parts(base):
    return {name: moved(lora(base, rank=r), r, 0.1) for name, r in {"one": 2, "two": 3, "three": 4}.items()}


def routed(delta, seed=3):
    """The mixture with routers that are not zero."""
    return moved(delta, seed, 0.2)


@pytest.mark.parametrize("name", ["small", "six_loras_rank4"])
def test_reference_outputs(name):
    case, expected = CASES[name], CASES[name]["outputs"]
    given = {key: torch.from_numpy(array_of(value)) for key, value in case["inputs"].items()}
    scale = case["params"]["alpha"] / case["params"]["rank"]
    x, pairs = given["x"], [*zip(given["A"], given["B"], strict=True)]
    gates = functional.linear(x[:, :1], given["router"]).softmax(-1)
    check(gates[:, 0].numpy(), np.array(expected["gate"]))
    plain = functional.linear(x, given["W"], given["bias"])

    def output(gates):
        return (plain + mixed(x, gates * scale, pairs)).numpy()

    def reference(key):
        return expected[key] if isinstance(expected[key], dict) else np.array(expected[key])

    check(output(gates), reference("y"))
    for key in (key for key in expected if key.startswith("top")):
        number, dropped = int(key[3]), key.partition("_")[2]
        check(output(kept(gates, number, dropped)), reference(key))
        if dropped == "renorm":
            check(kept(gates, number, dropped)[:, 0].numpy(), np.array(expected[f"gate_{key}"]))


def test_reference_gates():
    case = CASES["gate_example"]
    gates = torch.tensor(case["inputs"]["gate"], dtype=torch.float64)
    for dropped, expected in case["outputs"].items():
        check(kept(gates, case["params"]["k"], dropped).numpy(), np.array(expected))


@pytest.mark.parametrize("router", ROUTERS)
def test_it_begins_as_the_mean_of_its_parts(base, parts, router):
    model, folded = base.model(), base.model()
    attached = attach(model, {"m": mixture(base, parts, router=router)})
    for part in parts.values():
        for module, (down, up) in changes(part).items():
            folded.get_submodule(module).weight.data += up @ down / 3
    torch.testing.assert_close(logits(model), logits(folded), atol=2e-5, rtol=1e-4)
    names = [name for name, _ in base.model().named_parameters()]
    attached.detach()
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(logits(model), plain(base))


@pytest.mark.parametrize("router", ROUTERS)
def test_of_one_or_of_equals_it_is_that_part(base, parts, router):
    expected = beside(base, a=parts["one"])
    for held in ({"a": parts["one"]}, dict.fromkeys(("a", "b"), parts["one"])):
        made = routed(mixture(base, held, router=router))
        torch.testing.assert_close(beside(base, m=made), expected, atol=2e-5, rtol=1e-4)
    fresh = {name: lora(base, rank=2, seed=n) for n, name in enumerate("ab")}
    assert torch.equal(beside(base, m=routed(mixture(base, fresh, router=router))), plain(base))


@pytest.mark.parametrize("router", ROUTERS)
def test_no_token_sees_later_ones_and_rows_do_not_see_each_other(base, parts, router):
    made = routed(mixture(base, parts, router=router))
    model = base.model()
    attach(model, {"m": made})
    whole = logits(model)
    torch.testing.assert_close(logits(model, IDS[:, :4]), whole[:, :4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model, IDS.flip(0)), whole.flip(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model, IDS[:1]), whole[:1], atol=1e-4, rtol=1e-4)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5]])
    with torch.no_grad():
        first = model(input_ids=IDS[:, :3], use_cache=True, position_ids=positions[:, :3])
        rest = model(input_ids=IDS[:, 3:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, atol=1e-4, rtol=1e-4)


def test_the_running_mean_begins_anew_with_each_document():
    x = torch.randn(1, 7, 3)
    mean, last = running_mean(x, torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    for start, stop in ((0, 3), (3, 7)):
        own = x[0, start:stop].cumsum(0) / torch.arange(1, stop - start + 1)[:, None]
        torch.testing.assert_close(mean[0, start:stop], own)
    torch.testing.assert_close(last, x[:, 3:].sum(1))
    with pytest.raises(ConfigError, match="reads a text from its beginning"):
        running_mean(x, torch.tensor([[4, 5, 6, 0, 1, 2, 3]]))


def test_chosen_parts_alone_are_evaluated_but_all_are_trained(base, parts):
    whole = routed(mixture(base, parts))
    all_three, one = (routed(mixture(base, parts, chosen=n)) for n in (3, 1))
    assert torch.equal(beside(base, m=all_three), beside(base, m=whole))
    assert not torch.allclose(beside(base, m=one), beside(base, m=whole))
    models = [base.model().train(), base.model().train()]
    for model, made in zip(models, (one, whole), strict=True):
        attach(model, {"m": made})
    assert torch.equal(models[0](IDS).logits, models[1](IDS).logits)


@pytest.mark.parametrize("fixed", ["train", "fixed"])
def test_routers_learn_and_parts_if_they_are_to(base, parts, fixed, tmp_path):
    made = mixture(base, parts, parts=fixed)
    model = base.model().requires_grad_(False)
    attached = attach(model, {"m": made})
    model(input_ids=IDS, labels=IDS).loss.backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert got == attached.named()
    assert sum(p.numel() for n, p in model.named_parameters() if n in got) == made.count()
    assert len(got) == len(made.place) * (1 if fixed == "fixed" else 7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in got:
                p -= p.grad
    expected = logits(model)
    trained = attached.detach()["m"]
    assert all(t.any() for t in trained.tensors.values())
    same = [a.fingerprint() == b.fingerprint() for a, b in zip(trained.parts, made.parts, strict=True)]
    assert all(same) if fixed == "fixed" else not any(same)
    trained.save(tmp_path / "d")
    assert {path.name for path in (tmp_path / "d").iterdir()} >= {"part-0", "part-1", "part-2", "delta.json"}
    back = Delta.load(tmp_path / "d")
    assert back.count() == made.count()
    torch.testing.assert_close(beside(base, m=back), expected)


def test_the_first_token_routes_an_encoder(tmp_path):
    base = Checkpoint.at(tiny.model(tmp_path / "bert", "bert"))
    held = {name: moved(lora(base, rank=2), seed) for seed, name in enumerate("ab")}
    made = routed(mixture(base, held, router="first"))
    model = base.model()
    attach(model, {"m": made})
    whole = logits(model)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[:, 6:] = 0
    with torch.no_grad():
        longer = model.eval()(input_ids=functional.pad(IDS, (0, 2)), attention_mask=mask).logits
    torch.testing.assert_close(longer[:, :6], whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model, IDS.flip(0)), whole.flip(0), atol=1e-5, rtol=1e-5)


FORMS = {
    "lora": lambda base, seed: lora(base, rank=2, seed=seed),
    "bottleneck": lambda base, seed: bottleneck(base, width=4, seed=seed),
    "prefix": lambda base, seed: prefix(base, length=3, seed=seed),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_module_for_each_language_is_chosen_by_example(base, form):
    """The language-modular layers of XMOD: one bottleneck per language, the rest shared."""
    nya, eng = (moved(FORMS[form](base, seed), seed) for seed in (1, 2))
    model = base.model()
    attached = attach(model, {"m": mixture(base, {"Chichewa": nya, "en": eng}, router="language")})
    with pytest.raises(ConfigError, match="no language was chosen for a mixture by language of nya"):
        logits(model)
    attached.speak("nya")
    torch.testing.assert_close(logits(model), beside(base, a=nya), atol=1e-5, rtol=1e-5)
    attached.speak(["eng", "nya"])
    apart = logits(model)
    torch.testing.assert_close(apart[0], beside(base, a=eng)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart[1], beside(base, a=nya)[1], atol=1e-5, rtol=1e-5)
    attached.use("")
    torch.testing.assert_close(logits(model), plain(base), atol=1e-6, rtol=1e-6)
    with pytest.raises(ConfigError, match="no delta 'swh_Latn' is attached; attached are nya_Latn, eng_Latn"):
        attached.speak("swh")


def test_languages_of_runs_of_tokens_in_one_row(base):
    held = {name: moved(bottleneck(base, width=4), seed) for seed, name in enumerate(("nya", "eng"))}
    model = base.model().requires_grad_(False)
    attached = attach(model, {"m": mixture(base, held, router="language")})
    attached.speak(["nya", "eng"], [4, 2])  # back to back, as in training
    mixed_row = logits(model, IDS[:1])
    torch.testing.assert_close(mixed_row[:, :4], beside(base, a=held["nya"])[:1, :4], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed_row[:, 4:], beside(base, a=held["nya"])[:1, 4:])
    attached.speak(["eng"], [6])
    model(input_ids=IDS[:1], labels=IDS[:1]).loss.backward()
    learnt = {key: any(p.grad is not None and p.grad.any() for p in numbers.values())
              for key, numbers in attached.parameters.items()}  # fmt: skip
    assert learnt == {"m_0": False, "m_1": True}
    attached.speak(["eng", "nya"], [6, 6])  # in a row each, as when documents can not share one
    apart = logits(model)
    torch.testing.assert_close(apart[1], beside(base, a=held["nya"])[1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="deltas chosen for 2 examples, but the batch has 1"):
        logits(model, IDS[:1, :4])


def test_a_part_by_itself_can_be_folded(base, parts):
    made = mixture(base, parts)
    assert not foldable(made)
    with pytest.raises(ConfigError, match="'mixture' delta is more than a change of matrices"):
        changes(made)
    model = base.model()
    fold_in(model, part_of(made, "two"))
    torch.testing.assert_close(logits(model), beside(base, a=parts["two"]), atol=2e-5, rtol=1e-4)


def test_what_is_wrong_is_said(base, parts, tmp_path):
    with pytest.raises(ConfigError, match="a mixture of no deltas"):
        mixture(base, {})
    with pytest.raises(ConfigError, match=r"'b' \(bottleneck\) is none: router 'language' takes any form"):
        mixture(base, {"a": parts["one"], "b": bottleneck(base, width=4)})
    with pytest.raises(ConfigError, match="chosen = 4 of 3 deltas; give at most 3"):
        mixture(base, parts, chosen=4)
    with pytest.raises(ConfigError, match="first token of a LlamaForCausalLM sees nothing"):
        mixture(base, parts, router="first")
    with pytest.raises(ConfigError, match=r"'nya_Latn' \(mam\) can not be switched by example"):
        mixture(base, {"nya": mam(base, length=2, width=2)}, router="language")
    with pytest.raises(ConfigError, match="has nothing of its own to train or to choose"):
        mixture(base, {"nya": parts["one"]}, router="language", parts="fixed")
    other = Checkpoint.at(tiny.model(tmp_path / "other", num_hidden_layers=3, seed=5))
    with pytest.raises(ModelError, match="does not belong to"):
        mixture(other, parts)
    with pytest.raises(ConfigError, match="no part 'four' in the mixture; it has one, two, three"):
        part_of(mixture(base, parts), "four")
