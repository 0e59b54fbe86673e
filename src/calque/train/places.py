"""Objectives that compare logits at some places of a batch with the labels that belong there.

What differs between them is only where a model speaks and among what it chooses; the loss is one:

    loss = mean over places n with a label of  w_n * -log softmax(logits_n)[label_n]

with w_n the weight of the item that place n lies in. Without any label it is 0, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from calque.data.pack import IGNORED, Batch
from calque.errors import ModelError
from calque.train.rows import rows, run
from calque.train.stage import Loss, Objective


class Places(NamedTuple):
    """Where a model speaks in a batch.

    Attributes:
        logits: what it says; shape (N, C), float32.
        labels: what it should say; negative where that is not known; shape (N,).
        items: number of the piece each place lies in; shape (N,).
    """

    logits: torch.Tensor
    labels: torch.Tensor
    items: torch.Tensor


PlacesOf = Callable[[PreTrainedModel, Batch], Places]


def next_tokens(model: PreTrainedModel, batch: Batch) -> Places:
    """Every token of a decoder, to say the next one; the tokens of a prompt have no label."""
    out, laid = run(model, batch, use_cache=False)
    return _everywhere(out.logits[laid.real], torch.from_numpy(batch.labels()), batch)


def translation(model: PreTrainedModel, batch: Batch) -> Places:
    """Every place of the decoder of an encoder-decoder; the encoder reads the prompt of each piece.

    Raises:
        ModelError: its configuration does not say what a target begins with.
    """
    if getattr(model.config, "decoder_start_token_id", None) is None:
        raise ModelError(
            f"{type(model).__name__}: no decoder_start_token_id in its config.json; give the token that its "
            "targets begin with (often that of padding)"
        )
    sources = batch.take_parts(lambda ids, prompt: ids[:prompt])
    targets = batch.take_parts(lambda ids, prompt: ids[prompt:])
    laid = rows(model, targets)
    labels = laid.put(torch.from_numpy(targets.ids))
    out, _ = run(model, sources, labels=labels, use_cache=False)
    return _everywhere(out.logits[laid.real], torch.from_numpy(targets.ids), targets)


def each_token(model: PreTrainedModel, batch: Batch) -> Places:
    """Every token, to say its own label (a masked token, a tag)."""
    out, laid = run(model, batch)
    labels = torch.from_numpy(np.concatenate(batch.answers).astype(np.int64))
    return _everywhere(out.logits[laid.real], labels, batch)


def each_piece(model: PreTrainedModel, batch: Batch) -> Places:
    """One place for each piece, to say its class."""
    out, _ = run(model, batch)
    labels = torch.tensor([int(answer[0]) for answer in batch.answers])
    return _places(out.logits, labels, torch.arange(len(labels)))


def ends_of_span(model: PreTrainedModel, batch: Batch) -> Places:
    """Two places for each piece, to say which of its tokens is the first and which the last of the answer."""
    out, laid = run(model, batch)
    least = torch.finfo(torch.float32).min
    both = torch.cat([out.start_logits, out.end_logits]).float().masked_fill(~laid.real.repeat(2, 1), least)
    labels = torch.tensor([[int(n) for n in answer] for answer in batch.answers]).T.reshape(-1)
    return _places(both, labels, torch.arange(len(batch.lengths)).repeat(2))


def labels_given(batch: Batch) -> int:
    """How many places of `each_token`, `each_piece` and `ends_of_span` have a label."""
    return sum(int((answer >= 0).sum()) for answer in batch.answers)


def labelled(places_of: PlacesOf, name: str) -> Objective:
    """The mean cross-entropy at the places; `name` is what the log calls it."""

    def objective(model: PreTrainedModel, batch: Batch) -> Loss:
        total = cross_entropy(places_of(model, batch), batch)
        return Loss(total, {name: float(total.detach())})

    return objective


def taught(
    places_of: PlacesOf, teacher: PreTrainedModel, name: str, *, share: float, temperature: float
) -> Objective:
    """Distillation: (1 - share) of the cross-entropy and `share` of the divergence from a teacher.

    KL = temperature^2 * mean over places with a label of w_n * KL(softmax(u_n / t) || softmax(z_n / t)) with
    teacher logits u and student logits z.

    Paper: Hinton et al. 2015, arXiv:1503.02531.
    """
    teacher.eval().requires_grad_(False)

    def objective(model: PreTrainedModel, batch: Batch) -> Loss:
        said = places_of(model, batch)
        with torch.no_grad():
            meant = places_of(teacher.to(model.device), batch).logits  # pyright: ignore
        hard, soft = cross_entropy(said, batch), divergence(said, meant, batch, temperature)
        total = (1 - share) * hard + share * soft
        return Loss(total, {name: float(hard.detach()), "teacher": float(soft.detach())})

    return objective


def cross_entropy(places: Places, batch: Batch) -> torch.Tensor:
    """Mean over the places with a label of the weighted -log probability of it."""
    rows_N = functional.cross_entropy(places.logits, places.labels, reduction="none", ignore_index=IGNORED)
    return _mean(rows_N, places, batch)


def divergence(places: Places, teacher_NC: torch.Tensor, batch: Batch, temperature: float) -> torch.Tensor:
    """temperature^2 * weighted mean, over the places with a label, of KL(teacher || student)."""
    student = functional.log_softmax(places.logits / temperature, -1)
    teacher = functional.log_softmax(teacher_NC.float() / temperature, -1)
    rows_N = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _mean(rows_N, places, batch)


def _mean(rows_N: torch.Tensor, places: Places, batch: Batch) -> torch.Tensor:
    counted = places.labels >= 0
    if batch.weights:
        weights = torch.tensor(batch.weights, dtype=rows_N.dtype, device=rows_N.device)
        rows_N = rows_N * weights[places.items]
    # Chosen, not multiplied: what is not counted may be no number at all.
    return rows_N[counted].sum() / max(1, int(counted.sum()))


def _everywhere(logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> Places:
    items = torch.arange(len(batch.lengths)).repeat_interleave(torch.tensor(batch.lengths))
    return _places(logits, labels, items)


def _places(logits: torch.Tensor, labels: torch.Tensor, items: torch.Tensor) -> Places:
    return Places(logits.float(), labels.to(logits.device), items.to(logits.device))
