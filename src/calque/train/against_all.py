"""What it saves that only a part of a model trains: measured, since it depends on model, part and machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from calque.data.pack import Batch


def against_all(
    model: torch.nn.Module, loss_of: Callable[[Batch], tuple[torch.Tensor, Any]], batch: Batch
) -> float | None:
    """Seconds of forward and backward as they are, over the seconds if everything trained.

    Nothing changes by it: no weight, no gradient, no random number. A gradient is dropped as soon as it is
    there, so that memory suffices also where it would not for training everything; and only half of the
    pieces are read, since everything may hold on to twice as many activations.

    Args:
        model: its frozen parameters are trained for the time of the measurement.
        loss_of: gives the loss of a batch.
        batch: what is computed.

    Returns:
        The quotient, the better of two measurements each; None where everything trains already, or could not.
    """
    numbers = [p for p in model.parameters() if p.is_floating_point()]
    frozen = [p for p in numbers if not p.requires_grad]
    if not frozen:
        return None
    batch = batch.take(range(max(1, len(batch.lengths) // 2)))
    device = frozen[0].device
    for parameter in frozen:
        parameter.requires_grad_(True)
    hooks = [p.register_post_accumulate_grad_hook(_drop) for p in numbers]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            whole = min(_seconds(loss_of, batch, device) for _ in range(2))
            for parameter in frozen:
                parameter.requires_grad_(False)
            return min(_seconds(loss_of, batch, device) for _ in range(2)) / whole
    except RuntimeError:  # out of memory, or weights that take no gradient: then there is nothing to tell
        return None
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
        for parameter in numbers:
            parameter.grad = None


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _seconds(
    loss_of: Callable[[Batch], tuple[torch.Tensor, Any]], batch: Batch, device: torch.device
) -> float:
    _settle(device)
    began = time.perf_counter()
    loss_of(batch)[0].backward()
    _settle(device)
    return time.perf_counter() - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
