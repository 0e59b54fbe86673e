"""Pieces as rows of a rectangle, for models that take them so."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from calque.data.pack import IGNORED, Batch


class Rows(NamedTuple):
    """A batch of B pieces, padded on the right to the longest, T tokens.

    Attributes:
        ids: shape (B, T).
        real: true where a token is, false at padding; shape (B, T).
    """

    ids: torch.Tensor
    real: torch.Tensor

    def put(self, values: torch.Tensor) -> torch.Tensor:
        """One number for each real token, laid back to back (N,), as rows (B, T); IGNORED at padding."""
        found = torch.full(self.ids.shape, IGNORED, dtype=torch.long)
        found[self.real.cpu()] = values
        return found.to(self.ids.device)


def rows(model: PreTrainedModel, batch: Batch) -> Rows:
    """The pieces of a batch as rows on the model's device."""
    device: Any = model.device
    longest = max(batch.lengths)
    real = torch.arange(longest)[None] < torch.tensor(batch.lengths)[:, None]
    padding = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    ids = torch.full(real.shape, padding, dtype=torch.long)
    ids[real] = torch.from_numpy(batch.ids)
    return Rows(ids.to(device), real.to(device))


def run(model: PreTrainedModel, batch: Batch, **more: Any) -> tuple[Any, Rows]:
    """The model's own output on the padded rows of a batch, and the rows.

    A model with two segments gets the prompt of each piece as the first and the rest as the second.
    """
    laid = rows(model, batch)
    segments = getattr(model.config.get_text_config(), "type_vocab_size", 0)
    if any(batch.prompts) and (segments or 0) > 1:
        first = torch.tensor(batch.prompts, device=laid.ids.device)[:, None]
        places = torch.arange(laid.ids.shape[1], device=laid.ids.device)[None]
        more["token_type_ids"] = ((places >= first) & (first > 0) & laid.real).long()
    model_: Any = model
    return model_(input_ids=laid.ids, attention_mask=laid.real.long(), **more), laid
