import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from calque.train import blocks
from calque.train.blocks import causal_attention


def drawn(length, heads=6, key_heads=2, width=4, dtype=torch.float64):
    """Query, key and value as layers give them: heads are an axis that was moved."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(1, length, heads, width), (1, length, key_heads, width), (1, length, key_heads, width)]
    made = [torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2) for shape in shapes]
    return [one.requires_grad_() for one in made]


def results(attend, given, weight):
    out = attend(*given)
    return [out, *torch.autograd.grad((out * weight).sum(), given)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_is_causal_attention_with_its_gradients(monkeypatch, length, heads, key_heads, scaling):
    monkeypatch.setattr(blocks, "_BLOCK", 3)
    given = drawn(length, heads, key_heads)
    weight = torch.randn(1, heads, length, 4, dtype=torch.float64)
    mine = results(lambda q, k, v: causal_attention(q, k, v, scaling), given, weight)
    right = results(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True),
        given,
        weight,
    )
    for one, other in zip(mine, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_function(monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK", 2)
    assert torch.autograd.gradcheck(causal_attention, drawn(5, 2, 1, 3))


def test_bfloat16_is_as_near_to_float32_as_the_fused_attention_is():
    exact = drawn(300, 9, 3, 64, torch.float32)
    weight = torch.randn(1, 9, 300, 64)
    right = [t.detach() for t in results(causal_attention, exact, weight)]
    rounded = [t.detach().bfloat16().requires_grad_() for t in exact]
    mine = results(causal_attention, rounded, weight.bfloat16())
    fused = results(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        rounded,
        weight.bfloat16(),
    )
    for one, other, truth in zip(mine, fused, right, strict=True):
        assert one.dtype == torch.bfloat16
        error, usual = (float((t.detach().float() - truth).norm() / truth.norm()) for t in (one, other))
        assert error < max(2 * usual, 0.02)
        assert error < 0.02
