"""The best low-rank product for a matrix."""

from __future__ import annotations

import torch

_OVERSAMPLED, _ROUNDS = 8, 6
_SMALL = 128  # rows or columns; decomposing such a matrix takes no time


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B (m, r) and A (r, n) with B A nearest to `matrix` (m, n) of all products of rank r = min(rank, m, n).

    B = U S and A = V^T of the largest singular values, the largest entry of each row of A positive. Ranks up
    to about a quarter of the full one come from a random range with six power iterations, with an error
    hardly above the smallest (within 1 % even for noise); higher ones, and those of small matrices, from the
    whole decomposition.
    """
    rank = min(rank, *matrix.shape)
    wide = matrix.to(torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    if _SMALL < min(matrix.shape) >= 4 * (rank + _OVERSAMPLED):
        basis = _range(wide, rank + _OVERSAMPLED)
        left, values, right = torch.linalg.svd(basis.T @ wide, full_matrices=False)
        left = basis @ left
    else:
        left, values, right = torch.linalg.svd(wide, full_matrices=False)
    return signed(left[:, :rank] * values[:rank], right[:rank])


def signed(up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product, the largest entry of each row of `down` positive; signs are arbitrary otherwise."""
    if not len(down):
        return up, down
    largest = down.gather(1, down.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(down.dtype)
    return (up * sign.T).contiguous(), (down * sign).contiguous()


def rank_for(values: torch.Tensor, energy: float) -> int:
    """How many of the singular values hold at least the share `energy` of the sum of their squares."""
    held = torch.cumsum(values.double() ** 2, 0)
    if not len(held) or held[-1] == 0:
        return 0
    return int((held < energy * held[-1] * (1 - 1e-12)).sum()) + 1


def _range(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """An orthonormal basis (m, width) of most of what the matrix maps onto."""
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis, _ = torch.linalg.qr(matrix @ sketch)
    for _ in range(_ROUNDS):
        basis, _ = torch.linalg.qr(matrix.T @ basis)
        basis, _ = torch.linalg.qr(matrix @ basis)
    return basis
