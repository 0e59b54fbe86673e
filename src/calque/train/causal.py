"""Objective of a causal language model on documents that lie back to back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from calque.data.pack import Batch
from calque.progress import say
from calque.train.attention import documents_apart
from calque.train.cross_entropy import cross_entropy, linear_cross_entropy
from calque.train.rows import run
from calque.train.soft import SoftLabels
from calque.train.stage import Loss, Objective

_TOLERANCE = 1e-3
Teacher = Callable[[Batch], SoftLabels]


def causal_objective(
    model: PreTrainedModel, teacher: Teacher | None = None, *, seen_rows: bool = False
) -> Objective:
    """The fastest objective that is right for this model: mean nats per predicted token.

    Whether the model keeps documents apart that lie in one row, and whether its output layer is linear in
    its last hidden state, is not read from a list of architectures but tried: on two documents of random
    ids, whose logits must be those of each document alone. A model that fails is trained on padded rows
    instead, and that is said.

    Args:
        model: what will be trained.
        teacher: gives the soft labels of a batch; without one the labels are the tokens themselves.
        seen_rows: the output rows of tokens that a batch has not get no gradient, where that saves work.
    """
    loss = _loss_function(model)
    if seen_rows and loss is back_to_back:
        loss = partial(back_to_back, seen_rows=True)
    if teacher is None:
        return loss
    return lambda model, batch: loss(model, batch, teacher(batch))


def _loss_function(model: PreTrainedModel) -> Callable[..., Loss]:
    if _keeps_apart(model):
        return back_to_back
    say(
        f"{type(model).__name__}: does not take documents back to back, or changes its logits after the "
        "output layer; training on padded rows, which is slower"
    )
    return padded


def back_to_back(
    model: PreTrainedModel, batch: Batch, soft: SoftLabels | None = None, *, seen_rows: bool = False
) -> Loss:
    """Loss over documents in one row, each attending to itself only; logits never exist as a whole."""
    hidden_ND = hidden_states(model, batch)
    output: Any = model.get_output_embeddings()
    labels = torch.from_numpy(batch.labels()).to(hidden_ND.device)
    bias = getattr(output, "bias", None)
    learnt = torch.from_numpy(np.unique(batch.ids)).to(hidden_ND.device) if seen_rows else None
    soft = _on(hidden_ND, soft)
    total, plain = linear_cross_entropy(hidden_ND, output.weight, labels, bias, soft, learnt)
    return Loss(total, _parts(total, plain, soft))


def _parts(total: torch.Tensor, plain: torch.Tensor, soft: SoftLabels | None) -> dict[str, float]:
    taught = {} if soft is None else {"taught": float(total.detach())}
    return {"causal": float(plain.detach()), **taught}


def _on(place: torch.Tensor, soft: SoftLabels | None) -> SoftLabels | None:
    return soft and SoftLabels(*(part.to(place.device) for part in soft))


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Last hidden state of each token, shape (T, D); each document attends to itself only."""
    device = model.device
    ends = torch.tensor([0, *batch.lengths]).cumsum(0, dtype=torch.int32)
    longest = max(batch.lengths)
    decoder: Any = model.get_decoder()
    with documents_apart(model):
        out = decoder(
            input_ids=torch.from_numpy(batch.ids)[None].to(device),
            position_ids=torch.from_numpy(batch.positions())[None].to(device),
            use_cache=False,
            cu_seq_lens_q=ends,
            cu_seq_lens_k=ends,
            max_length_q=longest,
            max_length_k=longest,
        )
    return out.last_hidden_state[0]


def padded(model: PreTrainedModel, batch: Batch, soft: SoftLabels | None = None) -> Loss:
    """Loss over documents in a row each, padded to the longest; for models that need it so."""
    out, laid = run(model, batch, use_cache=False)
    logits = out.logits[laid.real].float()
    total, plain = cross_entropy(
        logits, torch.from_numpy(batch.labels()).to(logits.device), _on(logits, soft)
    )
    return Loss(total, _parts(total, plain, soft))


@torch.no_grad()
def _keeps_apart(model: PreTrainedModel) -> bool:
    """Whether `back_to_back` gives the logits of each document alone, within the tolerance."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (12,), generator=generator)
    batch = Batch(ids.numpy(), (5, 7), 0, (12,), (0, 0))
    output: Any = model.get_output_embeddings()
    was_training = model.training
    model.eval()
    try:
        together = output(hidden_states(model, batch))
        device: Any = model.device
        model_: Any = model
        alone = [
            model_(part[None].to(device), use_cache=False).logits[0] for part in ids.split(batch.lengths)
        ]
    except (TypeError, NotImplementedError, AttributeError) as error:
        say(f"{type(model).__name__}: documents back to back do not work here ({error})")
        return False
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float()
    return bool((together.float() - expected).abs().max() <= _TOLERANCE * (1 + expected.abs().max()))
