"""Cross-entropy of a linear output layer, without ever holding the logits of all tokens.

The logits of some tokens at a time are turned into their gradient where they stand, and that at once into
the gradients of the hidden states and of the matrix. So memory does not grow with tokens x vocabulary,
nothing is computed twice, and no copy of the logits is written.
"""

from __future__ import annotations

from typing import Any

import torch

_ROWS = 512


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes the loss and, where asked for, its gradients; backward hands them out."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
    ) -> torch.Tensor:
        count = max(1, int((labels_N >= 0).sum()))
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype = _autocast_dtype(hidden_ND)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            d_hidden = torch.empty_like(hidden_ND, dtype=torch.float32) if needs_hidden else None
            d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
            d_bias = (
                torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias and bias_V is not None else None
            )
            total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
            block = weight.new_empty(min(_ROWS, len(hidden_ND)), len(weight))
            for start in range(0, len(hidden_ND), _ROWS):
                rows = slice(start, start + _ROWS)
                hidden = hidden_ND[rows].to(dtype)
                logits = torch.mm(hidden, weight.t(), out=block[: len(hidden)]).float()
                if bias_V is not None:
                    logits += bias_V
                total += _loss_to_gradient(logits, labels_N[rows], count)
                gradient = logits.to(dtype)
                if d_hidden is not None:
                    d_hidden[rows] = torch.mm(gradient, weight)
                if d_weight is not None:
                    if dtype == d_weight.dtype:
                        d_weight.addmm_(gradient.t(), hidden)
                    else:
                        d_weight += torch.mm(gradient.t(), hidden)
                if d_bias is not None:
                    d_bias += logits.sum(0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (upstream,) = grads
        scaled = (
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None


def _autocast_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _loss_to_gradient(logits: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of the losses of some rows; `logits` becomes the gradient of sum / count, in place."""
    counted = labels >= 0
    gold = labels.clamp(min=0)[:, None]
    top = logits.amax(1, keepdim=True)
    gold_logit = logits.gather(1, gold) - top
    mass = logits.sub_(top).exp_().sum(1, keepdim=True)
    loss = ((mass.log() - gold_logit)[:, 0] * counted).sum(dtype=torch.float64)
    share = (counted / count)[:, None].to(logits.dtype)
    logits.mul_(share / mass)
    logits.scatter_add_(1, gold, -share)
    return loss


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of -log softmax(hidden @ weight.T + bias)[label] over the labels that are not negative.

    Gradients flow once: a second backward over the same result is not supported.

    Args:
        hidden: shape (N, D).
        weight: output matrix, shape (V, D).
        labels: shape (N,); negative ones do not count.
        bias: shape (V,).

    Returns:
        Scalar in nats, float32; 0 when no label counts.
    """
    loss = _LinearCrossEntropy.apply(hidden, weight, bias, labels)
    assert isinstance(loss, torch.Tensor)
    return loss
