"""What a rewrite is going to do, said before it is done."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from calque.merge.execute import nbytes
from calque.progress import clock

if TYPE_CHECKING:
    from calque.merge.rewrite import Rewrite, Source

_PROBE = 32 << 20
_START = 8.0  # seconds for loading the product with transformers, whatever its size


def describe(rewrite: Rewrite) -> list[str]:
    """Lines on rows, bytes, passes and time; reads a few megabytes to see how fast the disk is."""
    copied = [row for row in rewrite.rows if row.function is None]
    computed = [row for row in rewrite.rows if row.function is not None]
    inputs = [source for row in computed for source in row.inputs]
    passes = [(one, [source for group in one.sources for source in group]) for one in rewrite.passes]
    read, streamed = _size(inputs), sum(_size(found) for _, found in passes)
    written = sum(map(nbytes, rewrite.rows))
    speed = _speed([*inputs, *(row.inputs[0] for row in copied)])
    seconds = (read + streamed + written) / speed + _START
    kinds = [("copied", copied, [row.inputs[0] for row in copied]), ("computed", computed, inputs)]
    return [
        *(
            f"  {kind:9} {len(rows):6} tensors {_amount(sum(map(nbytes, rows)))}, from "
            f"{_amount(_size(found)).strip()} of {_checkpoints(found)}"
            for kind, rows, found in kinds
            if rows
        ),
        *(f"  pass      {one.label}: reads {_amount(_size(found)).strip()}" for one, found in passes),
        f"  output    {len(rewrite.rows):6} tensors {_amount(written)}",
        f"  time      about {clock(seconds)}, at {speed / 1e6:,.0f} MB/s as measured here",
    ]


def _checkpoints(sources: Iterable[Source]) -> str:
    count = len({source.checkpoint.folder for source in sources})
    return f"{count} checkpoint{'s' * (count > 1)}"


def _size(sources: Iterable[Source]) -> int:
    return sum(source.info.nbytes for source in sources)


def _amount(size: float) -> str:
    return f"{size / 1e6:12,.1f} MB"


def _speed(sources: list[Source]) -> float:
    """Bytes per second of reading and widening the beginning of the largest input."""
    largest = max(sources, key=lambda source: source.info.nbytes).info
    start, done = time.perf_counter(), 0
    for _, block in largest.blocks(1 << 20):
        block.to(torch.float32) if largest.is_float else block
        done += block.numel() * block.element_size()
        if done >= _PROBE:
            break
    return max(done, 1) / max(time.perf_counter() - start, 1e-6)
