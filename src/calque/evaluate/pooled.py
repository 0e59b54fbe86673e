"""Texts as vectors: the hidden states of a model's layers, pooled over the tokens of each text.

A token that is added around a text ([CLS], [SEP], the start token) is never pooled. A model whose tokenizer
adds none reads its start token first, as it does for bits per byte: what a decoder computes at its first
place is nearly the same for every text, and would drown the rest of a short one.

Shape letters: N texts, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from calque.delta.attach import Attached
from calque.errors import ConfigError, ModelError
from calque.evaluate.lm import context_length, opened
from calque.model.checkpoint import Checkpoint
from calque.progress import bar, say

Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, and which of its places are pooled (special tokens are not)."""

    ids: Sequence[int]
    pooled: Sequence[bool]


@dataclass(frozen=True)
class Pooled:
    """A model that turns texts into vectors.

    Attributes:
        name: The system's name.
        trunk: The model without its head; of an encoder-decoder the encoder.
        tokenizer: The folder's own.
        start: Id that is put before a text where the tokenizer adds no special token; None for none.
        attached: The delta beside its weights.
    """

    name: str
    trunk: Any
    tokenizer: Any
    start: int | None
    attached: Attached | None = None

    @classmethod
    def open(cls, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> Pooled:
        """Load a checkpoint, with the delta beside it, onto the accelerator if there is one."""
        model, attached = opened(checkpoint, dtype)
        tokenizer: Any = checkpoint.tokenizer()
        start = None
        if not tokenizer.num_special_tokens_to_add():
            bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
            start = eos if bos is None else bos
        trunk = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        return cls(name, trunk, tokenizer, start, attached)

    def encode(self, texts: Sequence[str], length: int) -> list[Encoded]:
        """Token ids of each text, cut to `length`; how many were cut is said."""
        length = min(length, context_length(self.trunk) or length)
        room = length - (self.start is not None)
        begin = [] if self.start is None else [self.start]
        found, cut = [], 0
        given = self.tokenizer(list(texts), truncation=True, max_length=room, return_special_tokens_mask=True)
        for ids, mask in zip(given["input_ids"], given["special_tokens_mask"], strict=True):
            cut += len(ids) == room
            found.append(
                Encoded([*begin, *ids], [*(False for _ in begin), *(not special for special in mask)])
            )
        if cut:
            say(f"{self.name}: {cut} of {len(texts)} texts reach {length} tokens; what is behind is cut off")
        return found

    def embed(
        self,
        texts: Sequence[str],
        *,
        layers: Sequence[int],
        pooling: Pooling,
        length: int,
        batch_tokens: int,
    ) -> dict[int, np.ndarray]:
        """The vectors of the texts at each layer.

        Args:
            texts: N texts.
            layers: 0 is the output of the embeddings, L the last layer's; negative ones count from the end.
            pooling: "mean" of the tokens, the "first" (special) or the "last" (not special) one.
            length: Tokens of a text, at most.
            batch_tokens: Tokens of a batch, padding included.

        Returns:
            Layer (as a number from 0) -> [N, D] float32; a text without any token has the zero vector.

        Raises:
            ConfigError: No such layer, or "first" for a model that has no special token there.
            ModelError: A vector that is no number.
        """
        if pooling == "first" and self.start is not None:
            raise ConfigError(
                f"system '{self.name}' has no special token before a text that could stand for all of it; "
                "pool by mean or last"
            )
        depth = self.trunk.config.num_hidden_layers
        numbers = [_layer(layer, depth) for layer in layers]
        encoded = self.encode(texts, length)
        width = self.trunk.config.hidden_size
        vectors = {number: np.zeros((len(texts), width), np.float32) for number in numbers}
        with bar(f"vectors: {self.name}", len(texts), "text") as shown, torch.inference_mode():
            for rows in _batches(encoded, batch_tokens):
                states = self._states([encoded[row] for row in rows])
                weights_BT = _weights([encoded[row] for row in rows], pooling).to(states[0].device)
                for number in numbers:
                    pooled_BD = (states[number].float() * weights_BT[:, :, None]).sum(1)
                    vectors[number][rows] = pooled_BD.cpu().numpy()
                shown.update(len(rows))
        for number, matrix in vectors.items():
            if len(bad := np.flatnonzero(~np.isfinite(matrix).all(1))):
                raise ModelError(
                    f"system '{self.name}', layer {number}: the vector of '{texts[bad[0]]:.40}' is no number"
                )
        return vectors

    def _states(self, batch: Sequence[Encoded]) -> Sequence[Tensor]:
        """Hidden states [B, T, D] of every layer; padded on the right, which nothing looks at."""
        longest = max(len(entry.ids) for entry in batch)
        ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
        seen_BT = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, entry in enumerate(batch):
            ids_BT[row, : len(entry.ids)] = torch.tensor(entry.ids)
            seen_BT[row, : len(entry.ids)] = 1
        here = next(self.trunk.parameters()).device
        out = self.trunk(
            input_ids=ids_BT.to(here), attention_mask=seen_BT.to(here), output_hidden_states=True
        )
        return out.hidden_states


def _layer(layer: int, depth: int) -> int:
    if not -depth - 1 <= layer <= depth:
        raise ConfigError(f"layer {layer}: this model has 0 (embeddings) to {depth}, or -1 to {-depth - 1}")
    return layer if layer >= 0 else layer + depth + 1


def _weights(batch: Sequence[Encoded], pooling: Pooling) -> Tensor:
    """[B, T] what each place counts; rows sum to 1, or to 0 where there is nothing to pool."""
    longest = max(len(entry.ids) for entry in batch)
    weights_BT = torch.zeros((len(batch), longest))
    for row, entry in enumerate(batch):
        places = [place for place, counts in enumerate(entry.pooled) if counts]
        if places and pooling == "first":
            weights_BT[row, 0] = 1
        elif places and pooling == "last":
            weights_BT[row, places[-1]] = 1
        elif places:
            weights_BT[row, places] = 1 / len(places)
    return weights_BT


def _batches(encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
    """Rows that fit together, longest first; texts without a token are left out."""
    order = sorted(
        (row for row, e in enumerate(encoded) if any(e.pooled)), key=lambda r: -len(encoded[r].ids)
    )
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * len(encoded[batch[0]].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
