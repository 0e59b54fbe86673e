"""Tensors that may be spread over several processes, and how many of these there are."""

from __future__ import annotations

import os
from typing import Any

import torch

from calque.machine import processes


def world() -> tuple[int, int]:
    """(number of this process, how many there are), from what the launcher put into the environment."""
    return int(os.environ.get("RANK") or 0), processes()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be spread over processes, all of it; every process must ask."""
    spread: Any = tensor
    return spread.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, spread over the processes as `other` is."""
    if not hasattr(other, "full_tensor") or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = other
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def own_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(the rows of a matrix that this process holds, the number of the first of them)."""
    if not hasattr(tensor, "full_tensor"):
        return tensor, 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    spread: Any = tensor
    _, offset = compute_local_shape_and_global_offset(spread.shape, spread.device_mesh, spread.placements)
    return spread.to_local(), int(offset[0])
