"""Truncated decompositions: errors against the singular values, and stable signs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calque.model.low_rank import rank_for, truncated_svd


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 45), st.integers(0, 99))
def test_error_is_what_the_singular_values_leave(rows, columns, rank, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    up, down = truncated_svd(matrix, rank)
    values = torch.linalg.svdvals(matrix)
    error = float((matrix - up @ down).norm())
    assert error == pytest.approx(float(values[rank:].norm()), abs=1e-9)
    assert up.shape[1] == down.shape[0] == min(rank, rows, columns)


def test_low_ranks_of_large_matrices_are_nearly_best():
    matrix = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    for rank in (4, 16, 40):
        up, down = truncated_svd(matrix, rank)
        best = float(torch.linalg.svdvals(matrix)[rank:].norm())
        assert best * (1 - 1e-5) <= float((matrix - up @ down).norm()) <= 1.01 * best


def test_signs_do_not_depend_on_the_matrix_sign():
    matrix = torch.randn(12, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    up, down = truncated_svd(matrix, 3)
    other_up, other_down = truncated_svd(-matrix, 3)
    assert torch.allclose(down, other_down) and torch.allclose(up, -other_up)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.floats(0.01, 1))
def test_rank_holds_the_energy_and_no_rank_below_does(numbers, energy):
    values = torch.tensor(sorted(numbers, reverse=True), dtype=torch.float64)
    rank = rank_for(values, energy)
    held = torch.cumsum(values**2, 0) / (values**2).sum()
    assert held[rank - 1] >= energy * (1 - 1e-9)
    assert rank == 1 or held[rank - 2] < energy


def test_no_change_has_rank_zero():
    assert rank_for(torch.zeros(3), 0.9) == 0
