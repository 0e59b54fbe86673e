"""Optimizer, learning rates by part, schedule and averaging."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from calque.train.spread import own_rows

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Optimization:
    """How weights follow their gradients.

    Attributes:
        lr: learning rate of the layers.
        lr_embeddings: learning rate of input and output rows.
        schedule: how the rate falls after the warm-up: to 0 along a cosine or a line, or not at all.
        warmup: share of the budget over which the rate rises from 0.
        weight_decay: decoupled decay of matrices inside the layers; embeddings, biases and norms have none.
        betas: decay of AdamW's two averages.
        clip: largest norm of the gradient; 0 turns clipping off.
        average: share of the budget, from its end, over which the weights are averaged; 0 turns it off.
        rows: "seen" gives a step's gradient only to the embedding rows of tokens that are in the step;
            "all" also to the rows that the softmax pushes down. AdamW moves a row at its full rate however
            small its gradient is, so with "all" a short training drags every token that never came.
    """

    lr: float
    lr_embeddings: float
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    average: float = 0.0
    rows: Literal["seen", "all"] = "seen"

    def factor(self, progress: float) -> float:
        """Multiplier of the learning rates after a share `progress` of the budget."""
        progress = min(1.0, progress)
        if progress < self.warmup:
            return progress / self.warmup
        rest = (progress - self.warmup) / max(1e-9, 1 - self.warmup)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * rest))
        return 1 - rest if self.schedule == "linear" else 1.0


def adamw(
    layers: Sequence[torch.nn.Parameter],
    embeddings: Sequence[torch.nn.Parameter],
    optimization: Optimization,
) -> torch.optim.AdamW:
    """AdamW with a rate for layers and one for embeddings; each group keeps its full rate in `base`."""
    matrices = [p for p in layers if p.ndim >= 2]
    vectors = [p for p in layers if p.ndim < 2]
    groups = [
        {"name": name, "params": list(params), "lr": lr, "base": lr, "weight_decay": decay}
        for name, params, lr, decay in (
            ("layers", matrices, optimization.lr, optimization.weight_decay),
            ("vectors", vectors, optimization.lr, 0.0),
            ("embeddings", embeddings, optimization.lr_embeddings, 0.0),
        )
        if params
    ]
    return torch.optim.AdamW(groups, betas=optimization.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Put every group at `factor` of its full rate; returns the rates by group."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor
    return {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}


@torch.no_grad()
def keep_seen_rows(embeddings: Iterable[torch.nn.Parameter], seen_N: torch.Tensor) -> None:
    """Zero the gradient of embedding rows (V, D) whose token is not among `seen_N`."""
    for parameter in embeddings:
        if parameter.grad is not None and parameter.ndim == 2:
            unseen_V = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
            unseen_V[seen_N] = False
            rows, first = own_rows(parameter.grad)
            rows[unseen_V[first : first + len(rows)]] = 0


@torch.no_grad()
def add_to_average(
    average: dict[str, torch.Tensor], named: Iterable[tuple[str, torch.Tensor]], count: int
) -> None:
    """Make `average` the mean of `count` weights of which these are the last."""
    for name, value in named:
        if count == 1:
            average[name] = value.detach().clone()
        else:
            average[name].lerp_(value.detach(), 1 / count)
