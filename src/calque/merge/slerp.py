"""Spherical interpolation between two checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Annotated

import torch
from annotated_types import Interval

from calque.merge.inputs import Vocabulary, line_up
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.stream import chunks
from calque.merge.survey import CHUNK, Blocks, pieces
from calque.merge.task_vector import held
from calque.model.checkpoint import Checkpoint

_PARALLEL = 0.9995  # |cosine| from which the arc is taken for a line
_TINY = 1e-8
_LINE = f"slerp: straight line instead of the arc, |cos| > {_PARALLEL}"


def slerp(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    t: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Go from one model to another along the arc between them, tensor by tensor.

    With a and b the whole tensors as vectors and theta the angle between them:

        out = (sin((1 - t) theta) a + sin(t theta) b) / sin(theta)

    Where |cos(theta)| > 0.9995 this is all but a straight line, and the line (1 - t) a + t b is taken. Models
    tuned from one base are usually that close, so that slerp is then plain averaging; how many tensors took
    the line is said at the end, and noted.

    Args:
        base: Where t = 0.
        tuned: Where t = 1.
        t: How far to go.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite; each tensor is read twice.

    Paper: Shoemake 1985, SIGGRAPH.

    Raises:
        ModelError: The models do not fit together.

    Relations:
        t=0 gives the base and t=1 the other model. Exchanging the models and t for 1 - t changes nothing.
        Between tensors of equal length the result has that length.
    """
    inputs = line_up(base, [tuned], vocabulary=vocabulary)
    counts: dict[str, int] = {}
    rows = tuple(
        slerp_row(name, inputs.sources(name)[0].info.dtype, inputs.sources(name), t, counts)
        for name in inputs.names
    )
    return dataclasses.replace(inputs.rewrite(rows, notes={"method": "slerp", "t": t}), counts=counts)


def slerp_row(
    name: str, dtype: str, sources: Sequence[Source], t: float, counts: MutableMapping[str, int]
) -> Row:
    """The row of one interpolated tensor; `counts` learns when a straight line was taken."""
    shape = sources[0].shape

    def function(*inputs: Source) -> Iterator[torch.Tensor]:
        stream = held(lambda: chunks(inputs, CHUNK), math.prod(shape) * 2)
        first, second, straight = coefficients(t, _cosine(stream))
        if straight:
            counts[_LINE] = counts.get(_LINE, 0) + 1
        for one, other in stream():
            for a, b in pieces((one, other)):
                a.mul_(first).add_(b, alpha=second)
            yield one

    return Row(name, dtype, shape, tuple(sources), function)


def coefficients(t: float, cosine: float) -> tuple[float, float, bool]:
    """(factor of the first, factor of the second, whether the straight line was taken)."""
    if abs(cosine) > _PARALLEL:
        return 1 - t, t, True
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle), False


def _cosine(stream: Callable[[], Iterator[Blocks]]) -> float:
    """Cosine of the angle between two tensors as long vectors; sums of pieces are added in float64."""
    squares = [0.0, 0.0]
    product = 0.0
    for blocks in stream():
        for a, b in pieces(blocks):
            squares[0] += float(torch.dot(a, a))
            squares[1] += float(torch.dot(b, b))
            product += float(torch.dot(a, b))
    lengths = [length if (length := math.sqrt(square)) > _TINY else 1.0 for square in squares]
    return max(-1.0, min(1.0, product / lengths[0] / lengths[1]))
