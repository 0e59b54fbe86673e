"""Mix-and-match: the sum of its parts."""

import torch

from calque.delta.attach import attach
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta
from calque.delta.mam import mam
from calque.delta.prefix import prefix

from .runs import IDS, beside, logits, plain


def test_it_is_its_parts_side_by_side(base, tmp_path):
    made = mam(base, length=3, width=4)
    parts = {"p": prefix(base, length=3), "b": bottleneck(base, width=4, placement="parallel", scale=4.0)}
    torch.testing.assert_close(beside(base, a=made), beside(base, **parts))
    assert made.count() == sum(part.count() for part in parts.values())
    made.save(tmp_path / "d")
    assert torch.equal(beside(base, a=Delta.load(tmp_path / "d")), beside(base, a=made))


def test_its_parts_train_and_come_back(base):
    model = base.model().requires_grad_(False)
    attached = attach(model, {"a": mam(base, length=3, width=4)})
    model(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in attached.named():
                parameter -= 0.5 * parameter.grad
    expected = logits(model)
    trained = attached.detach()["a"]
    torch.testing.assert_close(beside(base, a=trained), expected)
    torch.testing.assert_close(logits(model), plain(base))
    assert (expected - plain(base)).abs().max() > 1e-3
