"""A bidirectional recurrent network over words: two layers of gated units, 256 a direction.

Paper: Niyongabo et al. 2020, arXiv:2010.12174, whose settings these are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from calque.evaluate.baselines.network import Network, embedding
from calque.evaluate.baselines.words import PAD, UNKNOWN, Vocabulary, padded

_WORDS = 10_000
_LONGEST = 400


class BiGRU(nn.Module):
    """Embeddings, two bidirectional layers, the last states of both directions, one linear map."""

    def __init__(self, table: nn.Embedding, classes: int, hidden: int) -> None:
        """Build it around a table of word vectors."""
        super().__init__()
        self.table = table
        self.drop = nn.Dropout(0.5)
        self.gru = nn.GRU(
            table.embedding_dim, hidden, num_layers=2, bidirectional=True, dropout=0.5, batch_first=True
        )
        self.out = nn.Linear(2 * hidden, classes)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """[B, T] word numbers -> [B, classes] logits; padding is not read."""
        lengths = (ids_BT != PAD).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.drop(self.table(ids_BT)), lengths, batch_first=True, enforce_sorted=False
        )
        last = self.gru(packed)[1]
        return self.out(self.drop(torch.cat([last[-2], last[-1]], dim=-1)))


def bigru(
    texts: Sequence[str], classes: int, given: dict[str, np.ndarray], *, seed: int, epochs: int = 10
) -> tuple[Network, Vocabulary]:
    """The network and its vocabulary, made from training texts; untrained."""
    vocabulary = Vocabulary.of(texts, _WORDS)
    width = len(next(iter(given.values()))) if given else 100
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = BiGRU(embedding(vocabulary.known, width, given), classes, 256)

    def read(batch: Sequence[str]) -> Tensor:
        return torch.tensor(padded([vocabulary.ids(text) or [UNKNOWN] for text in batch], 1, _LONGEST))

    return Network(module, read, torch.optim.Adam, epochs), vocabulary
