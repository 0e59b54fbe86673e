"""Cross-entropy of a linear output layer, without ever holding the logits of all tokens.

The logits of some tokens at a time are turned into their gradient where they stand, and that at once into
the gradients of the hidden states and of the matrix. So memory does not grow with tokens x vocabulary,
nothing is computed twice, and no copy of the logits is written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from calque.train.soft import SoftLabels

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
        soft: SoftLabels | None,
        learnt_R: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = max(1, int((labels_N >= 0).sum()))
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype = autocast_dtype(hidden_ND)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            d_hidden = torch.empty_like(hidden_ND, dtype=torch.float32) if needs_hidden else None
            d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
            d_learnt = d_weight if learnt_R is None or d_weight is None else d_weight[learnt_R]
            d_bias = (
                torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias and bias_V is not None else None
            )
            total = torch.zeros(2, dtype=torch.float64, device=hidden_ND.device)
            block = weight.new_empty(min(_ROWS, len(hidden_ND)), len(weight))
            for start in range(0, len(hidden_ND), _ROWS):
                rows = slice(start, start + _ROWS)
                hidden = hidden_ND[rows].to(dtype)
                logits = torch.mm(hidden, weight.t(), out=block[: len(hidden)]).float()
                if bias_V is not None:
                    logits += bias_V
                total += _loss_to_gradient(logits, labels_N[rows], soft and soft.slice(rows), count)
                gradient = logits.to(dtype)
                if d_hidden is not None:
                    d_hidden[rows] = torch.mm(gradient, weight)
                if d_learnt is not None:
                    gradient = gradient if learnt_R is None else gradient[:, learnt_R]
                    if dtype == d_learnt.dtype:
                        d_learnt.addmm_(gradient.t(), hidden)
                    else:
                        d_learnt += torch.mm(gradient.t(), hidden)
                if d_bias is not None:
                    d_bias += logits.sum(0)
            if d_weight is not None and d_learnt is not None and learnt_R is not None:
                d_weight[learnt_R] = d_learnt
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        loss, plain = (total / count).float()
        ctx.mark_non_differentiable(plain)
        return loss, plain

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        upstream = grads[0]
        scaled = (
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


def autocast_dtype(hidden: torch.Tensor) -> torch.dtype:
    """What matrix products with this tensor are computed in."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _loss_to_gradient(
    logits: torch.Tensor, labels: torch.Tensor, soft: SoftLabels | None, count: int
) -> torch.Tensor:
    """(sum of the losses of some rows, the same against the labels alone).

    `logits` becomes the gradient of the first sum / count, in place.
    """
    counted = labels >= 0
    gold = labels.clamp(min=0)[:, None]
    gold_logit = logits.gather(1, gold)[:, 0]
    expected = gold_logit if soft is None else soft.mixed(gold_logit, soft.expectation(logits))
    top = logits.amax(1, keepdim=True)
    mass = logits.sub_(top).exp_().sum(1, keepdim=True)
    log_mass = (mass.log() + top)[:, 0]
    share = (counted / count).to(logits.dtype)
    logits.mul_(share[:, None] / mass)
    if soft is None:
        logits.scatter_add_(1, gold, -share[:, None])
    else:
        logits.scatter_add_(1, gold, -(share * (1 - soft.share))[:, None])
        soft.subtract_(logits, share)
    losses = torch.stack([log_mass - expected, log_mass - gold_logit]) * counted
    return losses.sum(1, dtype=torch.float64)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    soft: SoftLabels | None = None,
    learnt: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of -log softmax(hidden @ weight.T + bias)[label] over the labels that are not negative.

    Gradients flow once: a second backward over the same result is not supported.

    Args:
        hidden: shape (N, D).
        weight: output matrix, shape (V, D).
        labels: shape (N,); negative ones do not count.
        bias: shape (V,).
        soft: distributions that take the place of a part of each label.
        learnt: rows of `weight` whose gradient is wanted, each once; that of the others is 0. None: all.

    Returns:
        Two scalars in nats, float32, 0 when no label counts: what is minimised, and what it would be
        without the soft labels, which carries no gradient.
    """
    loss, plain = _LinearCrossEntropy.apply(hidden, weight, bias, labels, soft, learnt)  # pyright: ignore
    return loss, plain


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, soft: SoftLabels | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from logits (N, V) that are there already."""
    counted = max(1, int((labels >= 0).sum()))
    plain = functional.cross_entropy(logits, labels, reduction="sum") / counted
    if soft is None:
        return plain, plain.detach()
    kept = labels >= 0
    gold = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    rows = logits.logsumexp(1) - soft.mixed(gold, soft.expectation(logits))
    return (rows * kept).sum() / counted, plain.detach()
