"""One pass over all tensors that finds order statistics of whole task vectors.

A task vector has as many entries as the model has parameters; its quantiles are found while the models
stream by, exactly and in bounded memory (`merge.quantile`). Small samples of every tensor, read first, say
where to look, so that one pass is usually enough; where it is not, the stream is read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from calque.merge.quantile import Keys, OrderStatistic
from calque.merge.rewrite import Pass, Source
from calque.merge.stream import chunks

PIECE = 1 << 16  # entries worked on at once: a few such blocks stay in the processor's cache
CHUNK = 1 << 20  # bytes of a tensor read at once, in float32: what several operations go over should be near
_SMALL = 1 << 22  # streams up to this length are simply collected
_SHARE = 128  # one row in so many is sampled, fewer of a stream that is longer than
_SAMPLED = 1 << 30  # so many numbers
_PLACES = 4  # from so many places of a tensor

Blocks = tuple[torch.Tensor, ...]
Values = Callable[[Blocks], Sequence[Keys]]  # blocks of one stretch of the model -> keys of each stream


def survey(
    label: str,
    sources: tuple[tuple[Source, ...], ...],
    statistics: Sequence[Sequence[OrderStatistic]],
    values: Values,
    done: Callable[[], None],
) -> Pass:
    """The pass that finds `statistics`.

    Args:
        label: what the progress bar says.
        sources: for each tensor of the output the tensors it is computed from.
        statistics: for each stream that `values` gives, what is looked for in it.
        values: turns blocks (float32, may be changed) into the keys of the streams.
        done: called when all of them are found.
    """
    size = sum(math.prod(group[0].shape) for group in sources)
    state = {"sampled": size <= _SMALL}

    def look(blocks: Blocks, index: int, wanted: Sequence[Sequence[OrderStatistic]]) -> None:
        for piece in pieces(blocks):
            for keys, ones in zip(values(piece), wanted, strict=True):
                for statistic in ones:
                    statistic.add(keys, index)

    def add(index: int, blocks: Blocks) -> None:
        if not state["sampled"]:
            _sample(sources, statistics, values)
            state["sampled"] = True
        look(blocks, index, statistics)

    def finish() -> None:
        missing = [[s for s in ones if not s.close()] for ones in statistics]
        while any(missing):
            for index, group in enumerate(sources):
                for blocks in chunks(group, CHUNK):
                    look(blocks, index, missing)
            missing = [[s for s in ones if not s.close()] for ones in missing]
        done()

    return Pass(label, sources, add, finish)


def pieces(blocks: Blocks) -> Iterator[Blocks]:
    """The same stretch of all blocks, flat, so short that work on it stays in the cache."""
    return zip(*(block.reshape(-1).split(PIECE) for block in blocks), strict=True)


def _sample(
    sources: tuple[tuple[Source, ...], ...],
    statistics: Sequence[Sequence[OrderStatistic]],
    values: Values,
) -> None:
    """Give every statistic a first interval, from rows of every tensor."""
    drawn: list[list[Keys]] = [[] for _ in statistics]
    size = sum(math.prod(group[0].shape) for group in sources)
    share = max(_SHARE, _SHARE * size // _SAMPLED)
    for group in sources:
        rows = group[0].shape[0] if group[0].shape else 1
        places = max(1, min(_PLACES, rows // share))
        height = max(1, rows // (share * places))
        for place in range(places):
            first = place * rows // places
            part = slice(first, first + height) if group[0].shape else None
            blocks = tuple(source.read(part).to(torch.float32) for source in group)
            for found, keys in zip(drawn, values(blocks), strict=True):
                found.append(np.array(keys).reshape(-1))
    for ones, found in zip(statistics, drawn, strict=True):
        for statistic in ones:
            statistic.sample(np.concatenate(found))
