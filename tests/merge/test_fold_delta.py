"""Folding deltas: the logits that the delta gives beside its base, tensor by tensor."""

import pytest
import torch

from calque.delta.bottleneck import bottleneck
from calque.delta.depthwise import depthwise
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.mixture import mixture
from calque.delta.prefix import prefix
from calque.delta.shards import shards
from calque.delta.sparse import sparse
from calque.errors import ConfigError, ModelError
from calque.merge import fold_delta
from calque.merge.fold import fold
from calque.merge.recurse import recurse
from calque.model.tensors import same_bytes

from ..delta.runs import beside, moved, plain
from . import kin


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def family(request, tmp_path_factory):
    return kin.family(tmp_path_factory.mktemp("family"), sizes=(0.02,), architecture=request.param)


@pytest.fixture(params=["lora", "shards", "sparse", "depthwise", "depthwise-relaxed"])
def made(request, family, tmp_path):
    base, (tuned,) = family
    if request.param.startswith("depthwise"):
        rank = 3 if request.param == "depthwise-relaxed" else 0
        base = recurse(base, loops=2, rank=rank).write(tmp_path / "looped")
    delta = {
        "lora": lambda: lora(base, rank=3, alpha=5.0),
        "shards": lambda: shards(base, rank=3, pieces=2),
        "sparse": lambda: sparse(base, tuned, keep=0.1),
    }.get(request.param, lambda: depthwise(base, rank=2))()
    delta = moved(delta, scale=0.1)
    delta.save(tmp_path / "delta")
    return base, delta, tmp_path / "delta"


def test_folded_it_gives_the_logits_of_base_and_delta(made, tmp_path, monkeypatch):
    monkeypatch.setattr(fold_delta, "_CHUNK", 700)  # several blocks for each tensor
    base, delta, folder = made
    rewrite = fold(folder)
    assert rewrite.base.folder == base.folder and rewrite.notes["form"] == delta.form
    out = rewrite.write(tmp_path / "out")
    expected = beside(base, a=delta)
    assert (expected - plain(base)).abs().max() > 1e-3
    torch.testing.assert_close(plain(out), expected, atol=2e-5, rtol=1e-4)
    assert same_bytes(out.info(base.input_embedding), base.info(base.input_embedding))


def test_strength(made, tmp_path):
    base, _, folder = made
    assert kin.same(fold(folder, base, strength=0).write(tmp_path / "none"), base)
    half, full = (fold(folder, strength=s).write(tmp_path / str(s)) for s in (0.5, 1.0))
    for name in base.tensors if half.tensors.keys() == base.tensors.keys() else ():
        if full.info(name).shape == base.info(name).shape:
            middle = (base.read(name) + full.read(name)) / 2
            torch.testing.assert_close(half.read(name), middle, atol=1e-6, rtol=0)


def test_what_can_not_be_folded_is_refused_with_the_reason(family, tmp_path):
    base, _ = family
    many = {"a": lora(base, rank=2), "b": lora(base, rank=2, seed=1)}
    held = {
        "its networks bend": bottleneck(base, width=2),
        "its shares depend": mixture(base, many),
    }
    if base.architecture != "gpt2":
        held |= {"come before the text": prefix(base, length=2), "a prefix and networks": mam(base, length=2)}
    for n, (why, delta) in enumerate(held.items()):
        delta.save(tmp_path / str(n))
        with pytest.raises(
            ConfigError, match=f"'{delta.form}' delta is more than .*{why}.* can not be folded"
        ):
            fold(tmp_path / str(n))


def test_another_base_is_refused_by_its_hash(family, tmp_path):
    base, (tuned,) = family
    lora(base, rank=2).save(tmp_path / "d")
    with pytest.raises(ModelError, match=r"delta made for .* \(weights \w{12}\) does not belong to"):
        fold(tmp_path / "d", tuned)


def test_into_bfloat16_it_is_rounded_once(tmp_path):
    base, _ = kin.family(tmp_path, sizes=(), dtype=torch.bfloat16)
    delta = moved(lora(base, rank=3))
    delta.save(tmp_path / "d")
    out = fold(tmp_path / "d").write(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj"
    scale = 32.0 / 16 * 16 / 3
    whole = (
        base.read(f"{name}.weight").float() + scale * delta.tensors[f"{name}.B"] @ delta.tensors[f"{name}.A"]
    )
    assert out.read(f"{name}.weight").dtype == torch.bfloat16
    torch.testing.assert_close(out.read(f"{name}.weight"), whole.bfloat16(), atol=0, rtol=1 / 128)
