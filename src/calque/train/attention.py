"""Attention of documents that lie back to back in one row: each sees itself only, and nothing is padded.

Registered with transformers as an attention implementation, so that it serves every architecture that
takes one; the lengths arrive as the keyword `cu_seq_lens_q` that transformers passes through to attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from calque.delta.prefix import has_prefix, prepend
from calque.train.blocks import causal_attention
from calque.train.cross_entropy import autocast_dtype

NAME = "calque_documents"


def attend_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: torch.Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Args:
        module: the attention layer, for the number of query heads per key head.
        query: shape (1, heads, T, d).
        key: shape (1, key heads, T, d).
        value: shape (1, key heads, T, d).
        attention_mask: unused; the lengths say it.
        scaling: factor on the scores; None means 1/sqrt(d).
        dropout: probability of dropping an attention weight.
        cu_seq_lens_q: where the documents begin, and the end of the last; shape (documents + 1,).
        sliding_window: how many tokens back a token sees, itself included.
        softcap: not supported; the check before training sees to it that it is not needed.
        rest: what transformers passes to other implementations.

    Returns:
        (shape (1, T, heads, d), None).
    """
    if softcap is not None or rest.get("s_aux") is not None:
        raise NotImplementedError("soft caps and sinks")
    lengths = cu_seq_lens_q.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    dtype = autocast_dtype(query)
    fast = (query.device.type, dtype, dropout) == ("cpu", torch.bfloat16, 0) and not has_prefix(module)
    if fast:
        query, key, value = (given.to(dtype) for given in (query, key, value))
    outs = []
    pieces = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    for number, (q, k, v) in enumerate(pieces):
        size = q.shape[2]
        if fast and (sliding_window is None or size <= sliding_window):
            outs.append(causal_attention(q, k, v, scaling).transpose(1, 2))
            continue
        band = None
        if sliding_window is not None and size > sliding_window:
            band = torch.ones(size, size, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
        if has_prefix(module):
            band = torch.ones(size, size, dtype=torch.bool, device=q.device).tril() if band is None else band
            k, v, band = prepend(module, q, k, v, band[None, None], (number, len(lengths)))
        outs.append(
            functional.scaled_dot_product_attention(
                q, k, v, band, dropout, is_causal=band is None, scale=scaling, enable_gqa=grouped
            ).transpose(1, 2)
        )
    return torch.cat(outs, 1), None


@contextmanager
def documents_apart(model: PreTrainedModel) -> Iterator[None]:
    """Give the model this attention for the time of the block."""
    before = model.config._attn_implementation
    AttentionInterface.register(NAME, attend_documents)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # pyright: ignore
