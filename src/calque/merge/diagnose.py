"""What a merge did, tensor by tensor: how far each model had moved, whether they agree, what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from calque.model.tensors import TensorInfo

if TYPE_CHECKING:
    from calque.merge.inputs import Inputs
    from calque.merge.rewrite import Row, Source

SHARE = 64  # one row in so many is looked at
_PLACES = 4  # from so many places of a tensor
_LEAST = 1 << 12  # numbers looked at in small tensors


def diagnosis(inputs: Inputs) -> Callable[[Row, TensorInfo], Mapping[str, Any]]:
    """What to ask about every written tensor of a merge; for `Rewrite.inspect`."""
    merged = set(inputs.names)

    def inspect(row: Row, written: TensorInfo) -> Mapping[str, Any]:
        slot = inputs.base.layout.slot(row.name, row.shape)
        said: dict[str, Any] = {"layer": slot.layer, "role": slot.role}
        if row.function is None:
            said["copied"] = str(row.inputs[0].checkpoint.folder)
        if row.name in merged:
            sources = inputs.sources(row.name)
            moved = {source.name for source in row.inputs} - {source.name for source in sources}
            if sources[0].shape == written.shape and not moved:  # where layers are stacked, others stand here
                said |= measure(sources, written)
        return said

    return inspect


def measure(sources: Sequence[Source], written: TensorInfo) -> dict[str, Any]:
    """Task vectors (tuned minus base) and the merged change, on a sample of the rows.

    Args:
        sources: the base's tensor, then the tuned ones'.
        written: the merged tensor.

    Returns:
        norm: length of each task vector; merged: of the merged change; cosine: between task vectors, by
        pairs in order; conflict: share of the numbers on whose sign they disagree; changed: share that
        differs from the base. Lengths are for the whole tensor, estimated from the sample.
    """
    count = len(sources) - 1
    squares = torch.zeros(count + 1, dtype=torch.float64)
    products = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    conflicts = changed = seen = 0
    for part in _sample(written.shape):
        base, *tuned = (source.read(part).to(torch.float32).reshape(-1) for source in sources)
        change = written.read(part).to(torch.float32).reshape(-1) - base
        deltas = torch.stack([one - base for one in tuned])
        squares += torch.cat([deltas, change[None]]).square().sum(dim=1, dtype=torch.float64)
        pairs = [deltas[i] @ deltas[j] for i, j in combinations(range(count), 2)]
        products += torch.tensor(pairs, dtype=torch.float64)
        conflicts += int(((deltas > 0).any(dim=0) & (deltas < 0).any(dim=0)).sum())
        changed += int(torch.count_nonzero(change))
        seen += len(base)
    norms = squares.sqrt().tolist()
    scale = math.sqrt(math.prod(written.shape) / seen)
    cosines = [
        product / (norms[i] * norms[j]) if norms[i] and norms[j] else None
        for product, (i, j) in zip(products.tolist(), combinations(range(count), 2), strict=True)
    ]
    return {
        "norm": [_short(norm * scale) for norm in norms[:-1]],
        "merged": _short(norms[-1] * scale),
        "cosine": [_short(cosine) for cosine in cosines],
        "conflict": _short(conflicts / seen),
        "changed": _short(changed / seen),
        "numbers": math.prod(written.shape),
    }


def _sample(shape: tuple[int, ...]) -> Iterator[slice]:
    """A few stretches of rows, from all over the tensor."""
    if not shape:
        yield slice(None)
        return
    width = math.prod(shape[1:])
    height = max(1, shape[0] // (SHARE * _PLACES), -(-_LEAST // (width * _PLACES)))
    places = min(_PLACES, -(-shape[0] // height))
    for place in range(places):
        first = place * shape[0] // places
        yield slice(first, min(first + height, (place + 1) * shape[0] // places))


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
