"""Logits of models, with and without deltas, and deltas with random numbers."""

import torch

from calque.delta.attach import attach

PEFT = "ignore:`is_gradient_checkpointing`:FutureWarning"
IDS = torch.tensor([[5, 9, 33, 100, 7, 12], [8, 8, 50, 61, 3, 200]])


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def moved(delta, seed=1, scale=0.2):
    """The delta with noise on every number that trains."""
    generator = torch.Generator().manual_seed(seed)
    noisy = {k: t + scale * torch.randn(t.shape, generator=generator) for k, t in delta.trainable.items()}
    return delta.with_tensors(noisy)


def beside(base, **deltas):
    """Logits of the base with deltas stacked on it."""
    model = base.model()
    attach(model, deltas)
    return logits(model)


def plain(base):
    return logits(base.model())
