"""The loss on held-out pieces as a table: what early stopping watches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from calque.data.mixture import Mixture
from calque.data.pack import Batch, Pieces
from calque.evaluate.table import Table, signature
from calque.train.stage import Stage, Watch

LossOf = Callable[[Batch], tuple[torch.Tensor, Mapping[str, float]]]


def watch(stage: Stage, held: Pieces, *, every: int, patience: int, per: str) -> Watch:
    """Early stopping of a stage on the loss of held-out pieces.

    Args:
        stage: gives the noise, the count of terms and the size of the batches.
        held: the pieces.
        every: steps between two checks.
        patience: checks that may be no better than the best one.
        per: what the bits are divided by: "bytes" of text, or "terms" of the loss.
    """

    def table(loss_of: LossOf) -> Table:
        return Table.of(_rows(stage, held, loss_of))

    return Watch(table, "bits", per, every, patience)


def _rows(stage: Stage, held: Pieces, loss_of: LossOf) -> Iterator[dict[str, Any]]:
    """Bits, bytes and terms of each batch; the batches, and their noise, are always the same."""
    stream = Mixture((held,), (1.0,), epochs=1)
    place, number = stream.start(), 0
    made_by = signature("held_out", {"pieces": held.sha256[:8], "tokens": stage.batch_tokens})
    while (found := stream.batch(place, stage.batch_tokens // stage.accumulate)) is not None:
        batch, place = found
        batch = stage.prepare(batch) if stage.prepare else batch
        terms = stage.terms(batch)
        with torch.no_grad():
            nats = float(loss_of(batch)[0]) * terms
        for metric, value in {"bits": nats / math.log(2), "bytes": batch.nbytes, "terms": terms}.items():
            yield {
                "system": "model", "task": "held_out", "language": "", "item": str(number),
                "metric": metric, "value": value, "signature": made_by,
            }  # fmt: skip
        number += 1
