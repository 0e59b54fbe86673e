"""How the small networks learn: epochs over shuffled batches, the best one on held-back texts kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

_HELD_BACK = 0.1


@dataclass
class Network:
    """A torch module with the way texts become its input.

    Attributes:
        module: Input [B, T] ids -> logits [B, classes].
        read: Texts -> ids [B, T].
        optimizer: Parameters -> what updates them; made anew for each training.
        epochs: At most so many.
        batch: Texts of a step.
        halve: Epochs after which the rate is halved, again and again; 0 for never.
        patience: Epochs without a better result on the held-back tenth after which training ends.
    """

    module: nn.Module
    read: Callable[[Sequence[str]], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    epochs: int
    batch: int = 32
    halve: int = 0
    patience: int = 3

    def fit(self, texts: Sequence[str], labels_N: np.ndarray, *, seed: int) -> None:
        """Train on from the weights as they are; a tenth of the texts decides which epoch is kept."""
        order = np.random.default_rng(1234).permutation(len(texts))
        back = order[: int(_HELD_BACK * len(texts))]
        train = order[len(back) :]
        shuffle = np.random.default_rng(seed)
        optimizer = self.optimizer(self.module.parameters())
        labels = torch.as_tensor(np.asarray(labels_N), dtype=torch.long)
        best, kept, since = -1.0, None, 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for epoch in range(self.epochs):
                if self.halve and epoch and epoch % self.halve == 0:
                    for group in optimizer.param_groups:
                        group["lr"] /= 2
                self._epoch(texts, labels, shuffle.permutation(train), optimizer)
                right = self._accuracy([texts[int(i)] for i in back], labels_N[back]) if len(back) else epoch
                since += 1
                if right > best:
                    best, kept, since = right, copy.deepcopy(self.module.state_dict()), 0
                if since >= self.patience:
                    break
        if kept is not None:
            self.module.load_state_dict(kept)

    def _epoch(
        self, texts: Sequence[str], labels: Tensor, order: np.ndarray, optimizer: torch.optim.Optimizer
    ) -> None:
        self.module.train()
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            logits = self.module(self.read([texts[int(row)] for row in rows]))
            loss = nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _accuracy(self, texts: Sequence[str], labels_N: np.ndarray) -> float:
        return float((self.predict(texts) == labels_N).mean())

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """[N] class of each text."""
        self.module.eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), self.batch):
                found.append(self.module(self.read(texts[start : start + self.batch])).argmax(-1))
        return torch.cat(found).numpy() if found else np.zeros(0, np.int64)


def embedding(known: Sequence[str], width: int, given: dict[str, np.ndarray]) -> nn.Embedding:
    """Rows for padding, the unknown word and the known words; given vectors are copied, the rest is small."""
    table = nn.Embedding(len(known) + 2, width, padding_idx=0)
    with torch.no_grad():
        table.weight.uniform_(-0.25, 0.25)
        table.weight[:2] = 0
        for number, word in enumerate(known, 2):
            if word in given:
                table.weight[number] = torch.as_tensor(given[word])
    return table
