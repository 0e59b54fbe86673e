"""A convolutional network over characters: six layers of 256 filters, two dense ones.

Paper: Zhang et al. 2015, arXiv:1509.01626; settings of Niyongabo et al. 2020, arXiv:2010.12174, but for the
alphabet, which is that of the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from calque.evaluate.baselines.network import Network
from calque.evaluate.baselines.words import PAD

_ALPHABET = 68
_FILTERS = 256
_WIDTHS = (7, 7, 3, 3, 3, 3)
_POOLED = (0, 1, 5)
_DENSE = 1024
SHORTEST = 123  # characters of which the six layers leave one place


def remaining(characters: int) -> int:
    """Places that the six layers leave of so many characters."""
    length = characters
    for layer, width in enumerate(_WIDTHS):
        length -= width - 1
        if layer in _POOLED:
            length //= 3
    return length


class CharCNN(nn.Module):
    """One-hot characters, six convolutions with three poolings, three linear maps."""

    def __init__(self, characters: int, classes: int) -> None:
        """Build it for texts of so many characters."""
        super().__init__()
        layers: list[nn.Module] = []
        for layer, width in enumerate(_WIDTHS):
            layers += [nn.Conv1d(_FILTERS if layer else _ALPHABET, _FILTERS, width), nn.ReLU()]
            if layer in _POOLED:
                layers.append(nn.MaxPool1d(3))
        self.layers = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Linear(_FILTERS * remaining(characters), _DENSE), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(_DENSE, _DENSE), nn.ReLU(), nn.Dropout(0.5), nn.Linear(_DENSE, classes),
        )  # fmt: skip
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.05)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """[B, T] character numbers -> [B, classes] logits."""
        hot_BTA = nn.functional.one_hot(ids_BT, _ALPHABET + 1)[:, :, 1:].float()
        return self.dense(self.layers(hot_BTA.transpose(1, 2)).flatten(1))


def char_cnn(
    texts: Sequence[str], classes: int, *, seed: int, epochs: int = 20, characters: int = 1500
) -> Network:
    """The network, made from training texts: its alphabet is their 68 most frequent characters."""
    counted = Counter(letter for text in texts for letter in text.lower() if not letter.isspace())
    place = {letter: number for number, (letter, _) in enumerate(counted.most_common(_ALPHABET), 1)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = CharCNN(characters, classes)

    def read(batch: Sequence[str]) -> Tensor:
        rows = [[place[c] for c in text.lower() if c in place][:characters] for text in batch]
        return torch.tensor([row + [PAD] * (characters - len(row)) for row in rows])

    sgd = partial(torch.optim.SGD, lr=0.001, momentum=0.9)
    return Network(module, read, sgd, epochs, batch=128, halve=3)
