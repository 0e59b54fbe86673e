"""What a candidate of a search is worth: bits per byte of validation texts, against those of the base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from calque.data.corpus import Corpus
from calque.evaluate.lm import lm
from calque.model.checkpoint import Checkpoint

Bits = Mapping[str, float]


def bits_per_byte(
    checkpoint: Checkpoint, texts: Mapping[str, Corpus], max_bytes: int | None, work: Path | None = None
) -> dict[str, float]:
    """Bits per byte of each text, by its name."""
    table = lm({"candidate": checkpoint}, texts, max_bytes=max_bytes, work=work)
    return {
        entry.group["task"].removeprefix("lm/"): entry.estimate.value
        for entry in table.measure("bits/bytes", by=("task",))
    }


def score(found: Bits, floor: Bits) -> float:
    """Mean over the texts of log2(bits per byte / those of the base); below 0 is better than the base."""
    return sum(math.log2(found[name] / floor[name]) for name in floor) / len(floor)
