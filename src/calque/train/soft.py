"""Soft labels: a distribution over the next token where a plain label names one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from calque.data.ngram import Ngrams
from calque.data.pack import Batch


class SoftLabels(NamedTuple):
    """Distributions over V tokens for each of N positions: a sparse part and a shared rest.

    p_n = sum over entries k with row_k = n of value_k * onehot(column_k) + rest_n * base

    Attributes:
        rows: position of each entry, ascending, shape (K,).
        columns: token of each entry, shape (K,).
        values: its probability mass, shape (K,).
        rest: mass that the shared distribution gets, shape (N,).
        base: the shared distribution, shape (V,).
        share: how much of the label the distribution replaces, shape (N,).
    """

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor
    base: torch.Tensor
    share: torch.Tensor

    @classmethod
    def counted(cls, ngrams: Ngrams, batch: Batch, share: float) -> SoftLabels:
        """What an n-gram model says for a batch; pieces of other sources than the first keep their labels."""
        found = ngrams.followers(batch.ids, batch.lengths)
        taught = np.repeat(np.equal(batch.sources, 0), batch.lengths)
        return cls(
            torch.from_numpy(found.rows),
            torch.from_numpy(found.columns),
            torch.from_numpy(found.values).float(),
            torch.from_numpy(found.rest).float(),
            torch.from_numpy(ngrams.base).float(),
            torch.from_numpy(taught).float() * share,
        )

    def slice(self, positions: slice) -> SoftLabels:
        """Those of some positions one after another."""
        last = min(positions.stop, len(self.rest))
        ends = torch.tensor([positions.start, last], device=self.rows.device)
        first, stop = torch.searchsorted(self.rows, ends).tolist()
        entries = slice(first, stop)
        return SoftLabels(
            self.rows[entries] - positions.start,
            self.columns[entries],
            self.values[entries],
            self.rest[positions],
            self.base,
            self.share[positions],
        )

    def expectation(self, logits: torch.Tensor) -> torch.Tensor:
        """Mean of the logits (N, V) under each distribution, shape (N,)."""
        found = self.rest * (logits @ self.base)
        return found.index_add(0, self.rows, logits[self.rows, self.columns] * self.values)

    def mixed(self, label: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        """What is expected when `share` of the label is replaced; all of shape (N,)."""
        return torch.lerp(label, soft, self.share)

    def subtract_(self, gradient: torch.Tensor, weight: torch.Tensor) -> None:
        """Take weight * share * distribution off the rows of `gradient` (N, V), in place."""
        mass = weight * self.share
        entries = (self.rows, self.columns)
        gradient.index_put_(entries, -mass[self.rows] * self.values, accumulate=True)
        gradient.addr_(mass * self.rest, self.base, alpha=-1.0)
