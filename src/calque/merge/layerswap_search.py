"""The configuration of a layer swap, found by trying a few on validation texts."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from calque.data.corpus import Corpus
from calque.errors import ConfigError
from calque.merge.change import best_split, by_layer, changes
from calque.merge.inputs import Inputs, Vocabulary, line_up
from calque.merge.layerswap import by_depth, depth, layerswap
from calque.merge.rewrite import Rewrite
from calque.merge.validation import bits_per_byte, score
from calque.model.checkpoint import Checkpoint
from calque.progress import say

Corner = tuple[int, int]


def layerswap_search(
    base: Checkpoint,
    task: Checkpoint,
    language: Checkpoint,
    texts: Mapping[str, Corpus],
    *,
    work: Path,
    evaluations: Annotated[int, Ge(1)] = 10,
    transition: Annotated[int, Ge(0)] = 1,
    max_bytes: Annotated[int, Ge(1)] | None = 8_000,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Search bottom and top of a layer swap on validation texts.

    The score of a configuration is the mean over the texts of log2(bits per byte / that of the base): give a
    text in the language and one of the task, so that neither expert alone is best. The search starts from
    the paper's depths and from what the change of both experts says, then climbs: the four neighbours of the
    best so far, at half the distance once none of them is better.

    Args:
        base: What both experts were tuned from.
        task: Expert of the task.
        language: Expert of the language.
        texts: Validation texts by name; never those a result is reported on.
        work: Folder for scores and for one model at a time; a killed search goes on from it.
        evaluations: Configurations tried at most.
        transition: Averaged layers at either side.
        max_bytes: Bytes read of each text.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite of the best configuration; its notes hold the curve: every configuration and its scores.

    Paper: Bandarkar et al. 2025, ICLR, arXiv:2410.01335 (the configurations that are searched).

    Raises:
        ConfigError: No text.
        ModelError: The models do not fit together.

    Relations:
        With evaluations=1 the paper's depths are taken. No configuration of the curve has a lower score than
        the one returned.
    """
    if not texts:
        raise ConfigError("no validation text; give at least one as NAME=REFERENCE")
    inputs = line_up(base, [task, language], vocabulary=vocabulary)
    room = depth(inputs) - 2 * transition
    trial = _Trial((base, task, language), texts, work, transition, max_bytes, vocabulary)
    floor = trial.bits(base)
    curve: list[dict[str, Any]] = []
    seen: dict[Corner, float] = {}
    for corner in _climb(_starts(inputs, room), room, seen):
        if len(curve) >= evaluations:
            break
        found = trial.merged(corner)
        seen[corner] = score(found, floor)
        bottom, top = corner
        curve.append({"bottom": bottom, "top": top, "score": seen[corner], "bits_per_byte": found})
        tried = f"candidate {len(curve)} of {evaluations}: bottom {bottom}, top {top}"
        say(f"{tried}: {2 ** seen[corner]:.4f} times the base's bits per byte")
    best = min(seen, key=lambda corner: (seen[corner], sum(corner)))
    chosen = trial.rewrite(best)
    notes = {**chosen.notes, "search": {"base": floor, "curve": curve}}
    return dataclasses.replace(chosen, notes=notes)


def _starts(inputs: Inputs, room: int) -> list[Corner]:
    """The paper's depths, and what the change of both experts says."""
    layers = depth(inputs)
    moved = changes(inputs, "change of both experts")
    profiles = [by_layer((both[expert] for both in moved.values()), layers) for expert in (0, 1)]
    found = (by_depth(layers), best_split(profiles[0].tolist(), profiles[1].tolist()))
    return list(dict.fromkeys(_fitting(corner, room) for corner in found))


def _fitting(corner: Corner, room: int) -> Corner:
    bottom = max(0, min(corner[0], room))
    return bottom, max(0, min(corner[1], room - bottom))


def _climb(starts: list[Corner], room: int, seen: Mapping[Corner, float]) -> Iterator[Corner]:
    """Corners to try next; the score of each is in `seen` when the next is asked for."""
    yield from starts
    stride = max(1, room // 6)
    while stride:
        best = min(seen, key=lambda corner: (seen[corner], sum(corner)))
        steps = ((stride, 0), (0, stride), (-stride, 0), (0, -stride))
        near = [_fitting((best[0] + b, best[1] + u), room) for b, u in steps]
        fresh = [corner for corner in dict.fromkeys(near) if corner not in seen]
        yield from fresh
        if min(seen, key=lambda corner: (seen[corner], sum(corner))) == best:
            stride //= 2


@dataclass(frozen=True)
class _Trial:
    """What a configuration is worth; models are written one at a time and removed again."""

    models: tuple[Checkpoint, Checkpoint, Checkpoint]
    texts: Mapping[str, Corpus]
    work: Path
    transition: int
    max_bytes: int | None
    vocabulary: Vocabulary

    def rewrite(self, corner: Corner) -> Rewrite:
        bottom, top = corner
        return layerswap(
            *self.models, bottom=bottom, top=top, transition_bottom=self.transition,
            transition_top=self.transition, vocabulary=self.vocabulary,
        )  # fmt: skip

    def merged(self, corner: Corner) -> dict[str, float]:
        folder = self.work / f"bottom{corner[0]}-top{corner[1]}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return self.bits(self.rewrite(corner).write(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def bits(self, checkpoint: Checkpoint) -> dict[str, float]:
        return bits_per_byte(checkpoint, self.texts, self.max_bytes, self.work / "scores")
