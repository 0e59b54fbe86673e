"""A convolutional network over words: 150 filters each of three, four and five words, the largest of each.

Paper: Kim 2014, arXiv:1408.5882; settings of Niyongabo et al. 2020, arXiv:2010.12174.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from calque.evaluate.baselines.network import Network, embedding
from calque.evaluate.baselines.words import UNKNOWN, Vocabulary, padded

_WORDS = 15_000
_LONGEST = 400
_WIDTHS = (3, 4, 5)


class CNN(nn.Module):
    """Embeddings, convolutions of three widths, the maximum over the text, dropout, one linear map."""

    def __init__(self, table: nn.Embedding, classes: int, filters: int = 150) -> None:
        """Build it around a table of word vectors."""
        super().__init__()
        self.table = table
        self.layers = nn.ModuleList(nn.Conv1d(table.embedding_dim, filters, width) for width in _WIDTHS)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(filters * len(_WIDTHS), classes)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """[B, T] word numbers, at least as many as the widest filter -> [B, classes] logits."""
        vectors_BDT = self.table(ids_BT).transpose(1, 2)
        largest = [layer(vectors_BDT).relu().amax(-1) for layer in self.layers]
        return self.out(self.drop(torch.cat(largest, dim=-1)))


def cnn(
    texts: Sequence[str], classes: int, given: dict[str, np.ndarray], *, seed: int, epochs: int = 8
) -> tuple[Network, Vocabulary]:
    """The network and its vocabulary, made from training texts; untrained."""
    vocabulary = Vocabulary.of(texts, _WORDS)
    width = len(next(iter(given.values()))) if given else 50
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = CNN(embedding(vocabulary.known, width, given), classes)

    def read(batch: Sequence[str]) -> Tensor:
        rows = [vocabulary.ids(text) or [UNKNOWN] for text in batch]
        return torch.tensor(padded(rows, max(_WIDTHS), _LONGEST))

    return Network(module, read, torch.optim.Adam, epochs), vocabulary
