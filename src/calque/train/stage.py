"""A stage of training: what trains, towards which objective, on which stream, for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from calque.data.mixture import Mixture
from calque.data.pack import Batch
from calque.delta.attach import Attached
from calque.errors import ConfigError
from calque.evaluate.table import Table
from calque.train.optim import Optimization

# Share of a budget in minutes that the first step is taken to last, before any was measured.
_FIRST_STEP = 0.01

Part = Literal["all", "layers", "embeddings", "embeddings+outer", "experts", "lora", "delta"]


@dataclass(frozen=True)
class Loss:
    """What an objective says about a batch.

    Attributes:
        total: scalar to minimise: the weighted sum of the parts.
        parts: part -> its own value, for the log.
    """

    total: torch.Tensor
    parts: Mapping[str, float]


Objective = Callable[[PreTrainedModel, Batch], Loss]


@dataclass(frozen=True)
class Watch:
    """Early stopping: a stage ends when a metric on held-out material no longer falls.

    The weights of the best check are what the stage gives.

    Attributes:
        table: scores the model as it is now, by a function that gives the loss of a batch.
        numerator: metric of the table above the line.
        denominator: metric of the table below the line; watched is the quotient of their sums, the lower the
            better.
        every: steps between two checks.
        patience: checks in a row that may be no better than the best before the stage ends.
    """

    table: Callable[[Callable[[Batch], Any]], Table]
    numerator: str
    denominator: str
    every: int
    patience: int

    def value(self, model: PreTrainedModel, loss_of: Callable[[Batch], Any]) -> float:
        """The metric now."""
        was_training = model.training
        model.eval()
        try:
            (found,) = self.table(loss_of).measure(f"{self.numerator}/{self.denominator}", by=())
        finally:
            model.train(was_training)
        return found.estimate.value


@dataclass(frozen=True)
class Budget:
    """How long a stage lasts: exactly one of the three.

    Attributes:
        minutes: wall-clock, saving included; what a killed run has used counts.
        tokens: tokens read.
        steps: steps of the optimizer.
    """

    minutes: float | None = None
    tokens: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            said = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
            raise ConfigError(f"a training budget is one of minutes, tokens or steps; given: {said}")
        ((name, value),) = given.items()
        if not 0 < value < float("inf"):
            raise ConfigError(f"a training budget of {value} {name}; it must be more than 0")

    def total(self) -> tuple[float, str]:
        """(amount, unit) for a progress bar; minutes count in seconds."""
        if self.minutes is not None:
            return self.minutes * 60, "s"
        return (float(self.tokens), "token") if self.tokens is not None else (float(self.steps or 0), "step")

    def spent(self, steps: int, tokens: int, seconds: float) -> float:
        """How much is used up, in the unit of `total`."""
        return seconds if self.minutes is not None else tokens if self.tokens is not None else steps

    def progress(self, steps: int, tokens: int, seconds: float) -> float:
        """Share that is used up; 1 and more means over."""
        return self.spent(steps, tokens, seconds) / self.total()[0]

    def middle(self, steps: int, tokens: int, seconds: float, batch_tokens: int) -> float:
        """Share that will be used up in the middle of the next step: where the schedule is read.

        Read at a step's begin, the first step of a warm-up would train with rate 0; at its end, the last.
        """
        ahead = seconds / steps if steps else _FIRST_STEP * self.total()[0]
        if self.minutes is None:
            ahead = batch_tokens if self.tokens is not None else 1
        return (self.spent(steps, tokens, seconds) + ahead / 2) / self.total()[0]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage.

    Attributes:
        part: what trains.
        objective: the loss of a batch.
        stream: where batches come from.
        budget: how long.
        batch_tokens: tokens of one step, at most.
        accumulate: batches whose gradients one step sums; they share `batch_tokens`.
        optimization: rates, schedule, clipping, averaging.
        outer: layers at each end that train in part "embeddings+outer".
        deltas: what is attached to the model; it trains in parts "lora" and "delta".
        delta_embeddings: whether the embeddings train beside it.
        beside: names of further parameters that always train: those of a new head.
        prepare: what is done to a batch before its use, a function of the batch alone: noise.
        terms: how many terms the loss of a batch is the mean of; it weighs the batches of one step.
        watch: when to stop early.
    """

    part: Part
    objective: Objective
    stream: Mixture
    budget: Budget
    batch_tokens: int
    optimization: Optimization
    accumulate: int = 1
    outer: int = 2
    deltas: Attached | None = None
    delta_embeddings: bool = False
    beside: frozenset[str] = frozenset()
    prepare: Callable[[Batch], Batch] | None = None
    terms: Callable[[Batch], int] = Batch.targets
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.watch and self.optimization.average:
            raise ConfigError(
                "early stopping gives the best weights, averaging the mean of the last: choose one"
            )
