"""Lining up two vocabularies token by token, whatever ids they give their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calque.model.tensors import TensorInfo, as_bytes, read_into
from calque.vocab.tokens import Tokens

Ids = np.ndarray


@dataclass(frozen=True, eq=False)
class RowOrder:
    """The rows of one model's embedding in the order of the output's vocabulary.

    Attributes:
        parts: the tensors that rows come from: the model's own first, then those that stand in.
        origin: V numbers, which of `parts` gives the row of token v.
        rows: V numbers, the row there.
    """

    parts: tuple[TensorInfo, ...]
    origin: Ids
    rows: Ids

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the output's order: V takes the place of the own vocabulary."""
        own = self.parts[0].shape
        return (len(self.rows), *own[1:]) if self._by_row else (*own[:-1], len(self.rows))

    @property
    def _by_row(self) -> bool:
        own = self.parts[0].shape
        return not (len(own) == 2 and own[0] == 1)  # a bias may be stored as (1, V)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that holds the rows of every part exactly."""
        found = self.parts[0].torch_dtype
        for part in self.parts[1:]:
            found = torch.promote_types(found, part.torch_dtype)
        return found

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The rows `rows` of the output's order, all of them by default."""
        if not self._by_row:
            columns = [part.read()[0].to(self.torch_dtype) for part in self.parts]
            picked = [columns[o][r] for o, r in zip(self.origin.tolist(), self.rows.tolist(), strict=True)]
            return torch.stack(picked)[None][rows if rows is not None else slice(None)]
        first, last, _ = (rows or slice(None)).indices(len(self.rows))
        target = torch.empty((max(0, last - first), *self.parts[0].shape[1:]), dtype=self.torch_dtype)
        origin, wanted = self.origin[first:last], self.rows[first:last]
        breaks = np.flatnonzero((np.diff(origin) != 0) | (np.diff(wanted) != 1)) + 1
        for start, stop in zip([0, *breaks], [*breaks, len(wanted)], strict=True):
            if stop > start:
                _fill(self.parts[origin[start]], int(wanted[start]), target[start:stop])
        return target


def _fill(part: TensorInfo, first: int, target: torch.Tensor) -> None:
    """Read a run of rows straight into `target`, or through a conversion where the dtypes differ."""
    if part.torch_dtype == target.dtype:
        read_into(part.file, part.start + first * part.row_bytes, as_bytes(target))
    else:
        target.copy_(part.read(slice(first, first + len(target))))


def match_tokens(target: Tokens, source: Tokens) -> Ids:
    """For each of the V_target tokens the id of the same token in `source`, -1 where it has none.

    Special tokens match by their string; others by their string where it stands for the same bytes, else by
    their bytes (a byte token <0x41> stands for its byte value). Of several tokens with the same bytes, one
    that is written out goes before a byte token.
    """
    special = set(source.special_ids)
    by_string = {string: token for token, string in enumerate(source.strings) if string}
    by_bytes: dict[bytes, int] = {}
    for token, surface in enumerate(source.surface):
        if surface is not None and (surface not in by_bytes or _is_byte(source, by_bytes[surface])):
            by_bytes[surface] = token
    found = np.full(len(target), -1, dtype=np.int64)
    for token, (string, surface) in enumerate(zip(target.strings, target.surface, strict=True)):
        other = by_string.get(string, -1) if string else -1
        if surface is None:
            found[token] = other if other in special else -1
        elif other >= 0 and source.surface[other] == surface:
            found[token] = other
        else:
            found[token] = by_bytes.get(surface, -1)
    return found


def _is_byte(tokens: Tokens, token: int) -> bool:
    string = tokens.strings[token]
    return len(string) == 6 and string.startswith("<0x") and string.endswith(">")


def line_up_rows(infos: Sequence[TensorInfo], matches: Sequence[Ids], sizes: int) -> tuple[RowOrder, ...]:
    """For each model its embedding in the output's order.

    A model without a token takes the row of the first model that has it, so that its own difference to that
    one is zero there. Rows beyond the tokens are padding and are the first model's.

    Args:
        infos: the embedding of each model; the base's first.
        matches: for each model V numbers, the id of each of the output's tokens there, -1 without one.
        sizes: rows of the output, at least V.
    """
    padded = [np.concatenate([ids, np.full(sizes - len(ids), -1)]) for ids in matches]
    rows_of_base = infos[0].shape[-1] if infos[0].shape[0] == 1 else infos[0].shape[0]
    beyond = np.arange(len(matches[0]), sizes)
    padded[0][beyond] = np.minimum(beyond, rows_of_base - 1)
    first = np.argmax(np.stack(padded) >= 0, axis=0)
    stands_in = np.stack(padded)[first, np.arange(sizes)]
    orders = []
    for place, ids in enumerate(padded):
        others = [other for other in range(len(infos)) if other != place]
        number = np.zeros(len(infos), dtype=np.int64)
        number[[place, *others]] = np.arange(len(infos))
        own = ids >= 0
        orders.append(
            RowOrder(
                parts=(infos[place], *(infos[other] for other in others)),
                origin=np.where(own, 0, number[first]),
                rows=np.where(own, ids, stands_in),
            )
        )
    return tuple(orders)
