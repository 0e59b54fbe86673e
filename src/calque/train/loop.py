"""The training loop: the only one. Stages follow one another; a kill at any moment loses nothing but time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from calque.errors import ConfigError
from calque.progress import clock, say
from calque.train.memory import enough_memory, freed_memory_kept
from calque.train.optim import adamw
from calque.train.part import Trainable, training
from calque.train.processes import Processes, filled, refuse_sharding, skeleton
from calque.train.stage import Stage
from calque.train.state import Progress, find_state, load_best, load_rest, load_weights
from calque.train.steps import LOG, Saving, Steps


def train(
    model: PreTrainedModel,
    stages: Sequence[Stage],
    *,
    work: Path,
    settings: Mapping[str, Any],
    saving: Saving | None = None,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train a model, stage by stage.

    Begun again with the same `work` it goes on after the last saved state: the same weights, optimizer state,
    place in the streams and random numbers, so the same losses as without the interruption. On several
    processes each computes its share of every step; the number of them may be another one after a kill.

    Args:
        model: float32 weights; changed in place, unless its parameters are spread over processes.
        stages: what to do, in order.
        work: folder for the state and for `log.jsonl`, one line for each step.
        settings: whatever decides the result, as JSON; a run is never continued with other settings.
        saving: when to save; every two minutes when not given.
        seed: for dropout and for new parameters.
        precision: bfloat16 computes matrix products in it while weights stay float32.

    Returns:
        The trained model, in the main process; and notes: steps, tokens, seconds, epochs of each source, last
        loss, for each stage.

    Raises:
        ConfigError: `work` holds a run with other settings, memory does not suffice, or the model can not be
            computed in this precision.
        ModelError: the loss is not a number; the last good state stays in `work`.
    """
    work.mkdir(parents=True, exist_ok=True)
    processes = Processes.here(precision)
    refuse_sharding(processes, stages)
    found = find_state(work, settings)
    if processes.main:
        _trim_log(work / LOG, found[1].all_steps if found else 0)
    model.to(processes.accelerator.device)  # pyright: ignore
    notes: dict[str, Any] = {}
    torch.set_flush_denormal(True)
    try:
        for index, stage in enumerate(stages):
            if found and index < found[1].stage:
                continue
            torch.manual_seed(seed + index)
            run = _Run(model, stage, index, work, settings, saving or Saving(), processes)
            resumed = found if found and index == found[1].stage else None
            before = sum(note["steps"] for note in notes.values())
            with enough_memory(stage), _computable(model, precision):
                model, notes[f"stage {index}"] = run.run(resumed, before)
    finally:
        torch.set_flush_denormal(False)  # it holds for the whole process, which is not ours alone
    return model, notes


@dataclass(frozen=True)
class _Run:
    """One stage being run."""

    model: PreTrainedModel
    stage: Stage
    index: int
    work: Path
    settings: Mapping[str, Any]
    saving: Saving
    processes: Processes

    def run(
        self, resumed: tuple[Path, Progress] | None, steps_before: int
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Train until the budget is used up; returns the model and notes."""
        stage, processes = self.stage, self.processes
        empty = skeleton(self.model) if processes.sharded else None
        with training(self.model, stage) as trainable:
            self._announce(trainable)
            if resumed:
                load_weights(resumed[0], self.model)
            self.model.train()
            objective = processes.spread(self.model, stage.objective)
            trainable = trainable.again(self.model)
            optimizer = processes.optimizer(
                adamw([*trainable.layers.values()], [*trainable.embeddings.values()], stage.optimization)
            )
            average: dict[str, torch.Tensor] = {}
            if resumed:
                average = load_rest(resumed[0], optimizer, trainable.named())
                progress = resumed[1]
                self._say(f"goes on after step {progress.steps}, {clock(progress.seconds)} into the budget")
            else:
                progress = Progress(self.index, 0, 0, 0.0, stage.stream.start(), all_steps=steps_before)
            if processes.rank:
                torch.manual_seed(progress.all_steps * processes.count + processes.rank)
            steps = Steps(
                self.model, stage, self.work, self.settings, self.saving, processes, objective, optimizer,
                trainable, progress, average,
            )  # fmt: skip
            with freed_memory_kept():
                last = steps.run()
            self.model.eval()
            if stage.watch and progress.best_step:
                load_best(self.work, progress.best_step, trainable.named())
            else:
                with torch.no_grad():
                    for name, value in average.items():
                        trainable.named()[name].copy_(value)
        model = filled(empty, self.model, processes) if empty is not None else self.model
        return model, self._notes(progress, trainable, last)

    def _say(self, message: str) -> None:
        if self.processes.main:
            say(message)

    def _announce(self, trainable: Trainable) -> None:
        total = sum(p.numel() for p in self.model.parameters())
        count, (amount, unit) = trainable.count(), self.stage.budget.total()
        limit = clock(amount) if unit == "s" else f"{amount:,.0f} {unit}s"
        self._say(
            f"training {self.stage.part}: {count:,} of {total:,} parameters ({count / total:.1%}), "
            f"about {_memory(self.model, self.stage, count) / 1e9:.1f} GB, {limit}, "
            f"{self._place()}, {torch.get_num_threads()} threads"
        )

    def _place(self) -> str:
        kind = self.processes.accelerator.device.type
        return kind if self.processes.count == 1 else f"{self.processes.count} processes on {kind}"

    def _notes(self, progress: Progress, trainable: Trainable, loss: float) -> dict[str, Any]:
        return {
            "part": self.stage.part,
            "trainable": trainable.count(),
            "steps": progress.steps,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 2),
            "tokens_per_second": round(progress.tokens / max(1e-9, progress.seconds), 1),
            "epochs": [round(epochs, 3) for epochs in self.stage.stream.epochs_read(progress.place)],
            "averaged": progress.averaged,
            "best": progress.best,
            "best_step": progress.best_step,
            "loss": loss,
        }


@contextmanager
def _computable(model: PreTrainedModel, precision: torch.dtype) -> Iterator[None]:
    """Say what to give where a model's own code can not compute in two types at once (XMOD).

    Raises:
        ConfigError: in place of what torch raised.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip()
        if precision == torch.float32 or not any(name in said for name in ("dtype", "BFloat16")):
            raise
        raise ConfigError(
            f"{type(model).__name__} does not compute in {str(precision).removeprefix('torch.')} "
            f"({said.splitlines()[0][:120]}); give precision 'float32'"
        ) from None


def _memory(model: PreTrainedModel, stage: Stage, trainable: int) -> float:
    """Estimate of the bytes in use: weights, gradients, AdamW's averages, activations of one batch."""
    config = model.config.get_text_config()
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    tokens = stage.batch_tokens // stage.accumulate
    activations = tokens * config.num_hidden_layers * (14 * width + 4 * inner)
    return 4.0 * (sum(p.numel() for p in model.parameters()) + 3 * trainable + activations)


def _trim_log(file: Path, steps: int) -> None:
    """Drop the lines of steps that came after the saved state: they are made again."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[:steps]
    part = file.with_name(f".{file.name}.part")
    part.write_text("".join(lines), encoding="utf-8")
    os.replace(part, file)
