"""How much of each attached delta is added: by name, by mixture weights, or for each example of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from calque.errors import ConfigError

_TOLERANCE = 1e-6


class Switch:
    """The weights of some deltas; all 1 at first, which stacks them.

    Args:
        names: the deltas.
        within: another switch and a name there, when these deltas are the parts of one: then none is
            chosen at first, and their weights are multiplied with that one's.
    """

    def __init__(self, names: Sequence[str], within: tuple[Switch, str] | None = None) -> None:
        self.names, self._within = tuple(names), within
        self._weights: dict[str, float | torch.Tensor] = {} if within else dict.fromkeys(names, 1.0)
        self._lengths: torch.Tensor | None = None

    def stack(self) -> None:
        """Add all of them."""
        self._weights = dict.fromkeys(self.names, 1.0)

    def use(
        self, chosen: str | Sequence[str] | Mapping[str, float], lengths: Sequence[int] | None = None
    ) -> None:
        """Choose: one by name ("" for none), a mixture by weights, or one for each example of the batches.

        Args:
            chosen: a name, weights by name, or a name for each example.
            lengths: with a name for each: of how many tokens, when the examples may lie back to back in one
                row instead of in one each.

        Raises:
            ConfigError: an unknown name, or weights that do not sum to 1.
        """
        if isinstance(chosen, Mapping):
            total = math.fsum(chosen.values())
            if abs(total - 1) > _TOLERANCE:
                said = ", ".join(f"{name}={weight:g}" for name, weight in chosen.items())
                raise ConfigError(f"mixture weights {said} sum to {total:g}; they must sum to 1")
            self._refuse_unknown(chosen)
            self._weights = {name: float(chosen.get(name, 0.0)) for name in self.names}
        elif isinstance(chosen, str):
            self._refuse_unknown([chosen])
            self._weights = {name: float(name == chosen) for name in self.names}
        else:
            self._refuse_unknown(chosen)
            self._weights = {name: torch.tensor([float(c == name) for c in chosen]) for name in self.names}
        self._lengths = None if lengths is None else torch.tensor(lengths)

    def weight(self, name: str) -> float | torch.Tensor:
        """The weight of a delta: a number, or one number for each example, shape (B,)."""
        if not self._weights:
            raise ConfigError(f"no language was chosen for a mixture by language of {', '.join(self.names)}")
        weight = self._weights[name]
        return weight if self._within is None else self._within[0].weight(self._within[1]) * weight

    def scaled(self, name: str, change: torch.Tensor) -> torch.Tensor:
        """`change` (B, ...) times the weight of its delta; or (1, T, ...) when the examples have lengths.

        Raises:
            ConfigError: weights for another number of examples.
        """
        weight = self.weight(name)
        if not isinstance(weight, torch.Tensor):
            return change if weight == 1 else change * weight
        if self._lengths is not None and change.shape[:2] == (1, int(self._lengths.sum())):
            weight = weight.repeat_interleave(self._lengths)[None]
        elif len(weight) != len(change):
            raise ConfigError(f"deltas chosen for {len(weight)} examples, but the batch has {len(change)}")
        return change * weight.to(change).view(*weight.shape, *[1] * (change.dim() - weight.dim()))

    def _refuse_unknown(self, names: Sequence[str] | Mapping[str, float]) -> None:
        for name in names:
            if name and name not in self.names:
                raise ConfigError(f"no delta '{name}' is attached; attached are {', '.join(self.names)}")
