"""Objectives that know the language of each piece: the delta or the expert of a language learns from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from calque.data.corpus import Corpus
from calque.data.pack import Batch
from calque.delta.attach import Attached
from calque.model.checkpoint import Checkpoint
from calque.model.moe import expert_of, forced
from calque.train.stage import Loss, Objective


def in_languages(
    make: Callable[[], Objective],
    checkpoint: Checkpoint,
    texts: Sequence[Corpus],
    attached: Attached | None,
    force_experts: bool,
) -> Objective:
    """An objective that tells mixtures by language, and the experts of languages, what each piece is in.

    Args:
        make: makes the plain objective; called once the attached deltas know a language.
        checkpoint: what trains; its configuration knows the expert of each language.
        texts: the sources of the batches, in the order of their numbers.
        attached: the deltas on the model.
        force_experts: whether every token is seen by the expert of its language.

    Raises:
        ConfigError: a language that has no expert or no delta.
    """
    by_language = attached is not None and bool(attached.by_language)
    if not by_language and not force_experts:
        return make()
    codes = [text.languages[0] for text in texts]  # packing refuses texts in several
    experts = [expert_of(checkpoint.config, code) for code in codes] if force_experts else []
    if attached:
        for code in reversed(codes):
            attached.speak(code)  # refuses what it does not know before anything is trained
    objective = make()

    def told(model: PreTrainedModel, batch: Batch) -> Loss:
        if attached:
            attached.speak([codes[source] for source in batch.sources], batch.lengths)
        if not experts:
            return objective(model, batch)
        per_piece = torch.tensor([experts[source] for source in batch.sources])
        with forced(model, per_piece.repeat_interleave(torch.tensor(batch.lengths))):
            return objective(model, batch)

    return told
