"""Streaming the same stretch of several tensors, block by block, read ahead of the computation."""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import torch

from calque.errors import ModelError
from calque.merge.rewrite import Row, Source
from calque.model.tensors import not_finite

if TYPE_CHECKING:
    from calque.merge.inputs import Inputs

Blocks = tuple[torch.Tensor, ...]
Elementwise = Callable[[str, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
_AHEAD = 2
_T = TypeVar("_T")


def chunks(
    sources: Sequence[Source], nbytes: int = 1 << 20, *, dtype: torch.dtype | None = torch.float32
) -> Iterator[Blocks]:
    """The same rows of every source, about `nbytes` of each at a time, in `dtype` and freshly allocated.

    A thread reads ahead. Tensors of more than two axes come as rows of their last one. Without a dtype they
    come as they are stored, as many rows as would be `nbytes` of float32, and NaN and Inf with them: for who
    lets those through to the result, where the executor sees them and looks where they came from.

    Raises:
        ModelError: shapes differ, or a number is NaN or Inf; names tensor, row and file.
    """
    shapes = {source.shape for source in sources}
    if len(shapes) != 1:
        raise ModelError(f"tensors of different shapes in one stream: {sorted(shapes)}")
    return ahead(_read(sources, nbytes, dtype))


def _read(sources: Sequence[Source], nbytes: int, dtype: torch.dtype | None) -> Iterator[Blocks]:
    shape = _flat(sources[0].shape)
    step = max(1, nbytes // ((dtype or torch.float32).itemsize * math.prod(shape[1:])))
    with ExitStack() as stack:
        readers = [_reader(source, stack) for source in sources]
        for first in range(0, shape[0] if shape else 1, step):
            part = slice(first, first + step)
            blocks = (read(part) for read in readers)
            yield tuple(
                block if dtype is None else finite(source, first, block.to(dtype))
                for source, block in zip(sources, blocks, strict=True)
            )


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 2 else shape


def _reader(source: Source, stack: ExitStack) -> Callable[[slice], torch.Tensor]:
    """What reads rows of a source; its file stays open as long as `stack`."""
    if source.order is not None:
        return source.read
    info = dataclasses.replace(source.info, shape=_flat(source.shape))
    stream = stack.enter_context(info.file.open("rb", buffering=0))
    return lambda part: info.read(part if info.shape else None, stream)


def finite(source: Source, first: int, block: torch.Tensor) -> torch.Tensor:
    """The block, whose first row is row `first` of the source.

    Raises:
        ModelError: a number is NaN or Inf; names tensor, row and file.
    """
    if (bad := not_finite(block)) is not None:
        raise ModelError(
            f"{source.info.file}: tensor '{source.name}': {bad[1]} in row {first + bad[0]}; the file is "
            "damaged or training diverged: fetch it again or use an earlier checkpoint"
        )
    return block


def ahead(items: Iterable[_T], depth: int = _AHEAD) -> Iterator[_T]:
    """The same items, made by a thread that is up to `depth` of them ahead."""
    made: queue.Queue[tuple[bool, object]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, object]) -> bool:
        while not stopped.is_set():
            try:
                made.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # raised again where the items are used
            put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            good, item = made.get()
            if good:
                yield item  # pyright: ignore
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        stopped.set()
        thread.join()


def elementwise(inputs: Inputs, function: Elementwise, *, dtype: str | None = None) -> tuple[Row, ...]:
    """One row per merged parameter, computed block by block.

    Args:
        inputs: the checkpoints lined up.
        function: (name, base block, tuned blocks) -> block. Blocks are float32 (float64 where the base is),
            of the same rows and freshly allocated, so that they may be changed in place.
        dtype: of the result, as safetensors calls it; None keeps the base's.
    """
    return tuple(_row(inputs, name, function, dtype, whole=False) for name in inputs.names)


def whole(inputs: Inputs, function: Elementwise, *, dtype: str | None = None) -> tuple[Row, ...]:
    """As `elementwise`, but `function` gets each tensor in one block and in its own shape."""
    return tuple(_row(inputs, name, function, dtype, whole=True) for name in inputs.names)


def _row(inputs: Inputs, name: str, function: Elementwise, dtype: str | None, *, whole: bool) -> Row:
    sources = inputs.sources(name)
    shape = sources[0].shape
    wide = torch.float64 if sources[0].info.dtype == "F64" else torch.float32

    def compute(*given: Source) -> Iterator[torch.Tensor]:
        if whole:
            base, *tuned = (finite(s, 0, s.read().to(wide)) for s in given)
            yield function(name, base, tuned)
            return
        for base, *tuned in chunks(given, dtype=wide):
            yield function(name, base, tuned)

    return Row(name, dtype or sources[0].info.dtype, shape, sources, compute)
