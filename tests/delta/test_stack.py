"""A stack: its parts in order, of which the top alone trains, and a task over languages."""

import pytest
import torch

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.delta.attach import attach
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.mixture import mixture
from calque.delta.stack import stack
from calque.errors import ConfigError, ModelError
from calque.evaluate.benchmark import Item
from calque.evaluate.heads import ask_head
from calque.train.tune import tune

from .runs import IDS, PEFT, beside, logits, moved, plain

pytestmark = pytest.mark.filterwarnings(PEFT)


@pytest.fixture
def parts(base):
    return {
        "adapter": moved(bottleneck(base, width=4, placement="pfeiffer"), 1),
        "pairs": moved(lora(base, rank=2), 2),
        "both": mam(base, length=3, width=4),
    }


@pytest.mark.parametrize("order", [("adapter", "pairs"), ("pairs", "adapter"), ("adapter", "pairs", "both")])
def test_it_is_its_parts_attached_in_order(base, parts, order, tmp_path):
    made = stack(base, [parts[name] for name in order])
    expected = beside(base, **{name: parts[name] for name in order})
    assert (expected - plain(base)).abs().max() > 1e-2
    torch.testing.assert_close(beside(base, a=made), expected)
    assert made.count() == parts[order[-1]].count()
    made.save(tmp_path / "d")
    torch.testing.assert_close(beside(base, a=Delta.load(tmp_path / "d")), expected)


def test_only_the_top_trains(base, parts):
    model = base.model().requires_grad_(False)
    upper = stack(base, [parts["pairs"], parts["both"]])
    attached = attach(model, {"a": stack(base, [parts["adapter"], upper])})
    named = attached.named()
    assert sum(p.numel() for name, p in model.named_parameters() if name in named) == parts["both"].count()
    model(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in named:
                parameter -= 0.5 * parameter.grad
    expected = logits(model)
    found = attached.detach()["a"]
    torch.testing.assert_close(beside(base, a=found), expected)
    torch.testing.assert_close(logits(model), plain(base))
    for before, after in ((parts["adapter"], found.parts[0]), (parts["pairs"], found.parts[1].parts[0])):
        assert all(torch.equal(before.tensors[key], tensor) for key, tensor in after.tensors.items())


def _languages(base):
    networks = {name: moved(bottleneck(base, width=4, placement="pfeiffer"), seed) for seed, name in
                enumerate(("eng", "nya"), 3)}  # fmt: skip
    return networks, mixture(base, networks, router="language")


def test_a_task_is_learnt_over_one_language_and_read_over_another(base, tmp_path):
    networks, below = _languages(base)
    task = bottleneck(base, width=4, placement="pfeiffer")
    words = ["the cat", "a dog", "one house", "my field"]
    data = Corpus.of(
        Example(str(n), {"eng_Latn": text}, target="yes" if n % 2 else "no") for n, text in enumerate(words)
    )
    made = stack(base, [below, task])
    tuned = tune(base, data, delta=made, work=tmp_path, objective="classify", steps=4, lr=0.05)
    trained = Delta.load(tuned.folder / "delta")
    assert trained.form == "stack"
    for before, after in zip(below.parts, trained.parts[0].parts, strict=True):
        assert all(torch.equal(before.tensors[key], after.tensors[key]) for key in before.tensors)
    top = trained.parts[1]
    assert any(not torch.equal(task.tensors[key], top.tensors[key]) for key in task.tensors)

    for language in ("eng_Latn", "nya_Latn"):
        asked = Item("1", language, {"text": "the cat dog"}, "yes")
        ((_, answer),) = ask_head(tuned, "labels", [asked], torch.float32)
        model = tuned.model(torch.float32).eval()
        attach(model, {"language": networks[language[:3]], "task": top})
        ids = tuned.tokenizer()(asked.fields["text"], return_tensors="pt")
        with torch.no_grad():
            logits_1L = model(**ids).logits
        assert answer.text == model.config.id2label[int(logits_1L.argmax())]


def test_refused(base, parts, tmp_path):
    with pytest.raises(ConfigError, match="a stack of 1; give two"):
        stack(base, [parts["adapter"]])
    strange = Delta("lora", (), "own", "fixed", {}, {}, {**parts["pairs"].base, "hash": "0" * 64})
    with pytest.raises(ModelError, match="does not belong"):
        stack(base, [strange, parts["pairs"]])
    _, below = _languages(base)
    sides = {"1": {"eng_Latn": "a"}, "2": {"nya_Latn": "b"}}
    data = Corpus.of(Example(name, side, target=name) for name, side in sides.items())
    both = stack(base, [below, parts["both"]])
    with pytest.raises(ConfigError, match="learns from data in one language; given: eng_Latn, nya_Latn"):
        tune(base, data, delta=both, work=tmp_path, objective="classify", steps=1)
