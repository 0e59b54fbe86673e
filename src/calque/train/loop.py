"""The training loop: the only one. Stages follow one another; a kill at any moment loses nothing but time."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from calque.data.pack import Batch
from calque.errors import ModelError
from calque.progress import Bar, bar, clock, say
from calque.train.memory import freed_memory_kept
from calque.train.optim import adamw, add_to_average, keep_seen_rows, set_rate
from calque.train.part import Trainable, training
from calque.train.stage import Stage
from calque.train.state import Progress, find_state, load_rest, load_weights, save_state

LOG = "log.jsonl"


@dataclass(frozen=True)
class Saving:
    """When a run puts its state on disk; 0 turns a rule off.

    Attributes:
        steps: every so many steps.
        seconds: every so many seconds.
    """

    steps: int = 0
    seconds: float = 120.0


def train(
    model: PreTrainedModel,
    stages: Sequence[Stage],
    *,
    work: Path,
    settings: Mapping[str, Any],
    saving: Saving = Saving(),
    seed: int = 0,
    precision: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train a model in place, stage by stage.

    Begun again with the same `work` it goes on after the last saved state: the same weights, optimizer state,
    place in the streams and random numbers, so the same losses as without the interruption.

    Args:
        model: float32 weights; changed in place.
        stages: what to do, in order.
        work: folder for the state and for `log.jsonl`, one line for each step.
        settings: whatever decides the result, as JSON; a run is never continued with other settings.
        saving: when to save.
        seed: for dropout and for new parameters.
        precision: bfloat16 computes matrix products in it while weights stay float32.

    Returns:
        Notes: steps, tokens, seconds, epochs of each source, last loss, for each stage.

    Raises:
        ConfigError: `work` holds a run with other settings.
        ModelError: the loss is not a number; the last good state stays in `work`.
    """
    work.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator(precision)
    found = find_state(work, settings)
    _trim_log(work / LOG, found[1].all_steps if found else 0)
    model.to(accelerator.device)
    notes: dict[str, Any] = {}
    torch.set_flush_denormal(True)
    try:
        for index, stage in enumerate(stages):
            if found and index < found[1].stage:
                continue
            torch.manual_seed(seed + index)
            run = _Run(model, stage, index, len(stages), work, settings, saving, accelerator)
            resumed = found if found and index == found[1].stage else None
            before = sum(note["steps"] for note in notes.values())
            notes[f"stage {index}"] = run.run(resumed, before)
    finally:
        torch.set_flush_denormal(False)  # it holds for the whole process, which is not ours alone
    return notes


@dataclass(frozen=True)
class _Run:
    """One stage being run."""

    model: PreTrainedModel
    stage: Stage
    index: int
    stages: int
    work: Path
    settings: Mapping[str, Any]
    saving: Saving
    accelerator: Accelerator

    def run(self, resumed: tuple[Path, Progress] | None, steps_before: int) -> dict[str, Any]:
        """Train until the budget is used up; returns notes."""
        stage = self.stage
        with training(self.model, stage) as trainable:
            optimizer = adamw(
                [*trainable.layers.values()], [*trainable.embeddings.values()], stage.optimization
            )
            average: dict[str, torch.Tensor] = {}
            if resumed:
                load_weights(resumed[0], self.model)
                average = load_rest(resumed[0], optimizer)
                progress = resumed[1]
                say(f"goes on after step {progress.steps}, {clock(progress.seconds)} into the budget")
            else:
                progress = Progress(self.index, 0, 0, 0.0, stage.stream.start(), all_steps=steps_before)
            self._announce(trainable)
            optimizer = self.accelerator.prepare_optimizer(optimizer)
            self.model.train()
            with freed_memory_kept():
                last = self._steps(progress, trainable, optimizer, average)
            self.model.eval()
            with torch.no_grad():
                for name, value in average.items():
                    trainable.named()[name].copy_(value)
        return self._notes(progress, trainable, last)

    def _steps(
        self, progress: Progress, trainable: Trainable, optimizer: Any, average: dict[str, torch.Tensor]
    ) -> float:
        """All steps that the budget leaves; `progress` and `average` follow. Returns the last loss."""
        stage, began = self.stage, time.monotonic() - progress.seconds
        share, (total, unit) = stage.budget.progress, stage.budget.total()
        saved = time.monotonic()
        shown, loss = 0.0, math.nan
        with (
            bar(f"training {stage.part}", total, unit) as shown_bar,
            (self.work / LOG).open("a", encoding="utf-8") as log,
        ):
            while (used := share(progress.steps, progress.tokens, progress.seconds)) < 1:
                line = self._step(progress, trainable, optimizer)
                loss = line["loss"]
                if stage.optimization.average and used >= 1 - stage.optimization.average:
                    progress.averaged += 1
                    add_to_average(average, trainable.named().items(), progress.averaged)
                before, progress.seconds = progress.seconds, time.monotonic() - began
                line["tokens_per_second"] = line["batch_tokens"] / max(1e-9, progress.seconds - before)
                log.write(json.dumps({**line, "seconds": progress.seconds}) + "\n")
                log.flush()
                spent = stage.budget.spent(progress.steps, progress.tokens, progress.seconds)
                _show(shown_bar, spent - shown, line)
                shown = spent
                if self._due(progress, saved):
                    self._save(progress, trainable, optimizer, average)
                    progress.seconds, saved = time.monotonic() - began, time.monotonic()
        return loss

    def _step(self, progress: Progress, trainable: Trainable, optimizer: Any) -> dict[str, Any]:
        """One step of the optimizer; returns its line for the log."""
        stage = self.stage
        batches, place = self._draw(progress)
        middle = stage.budget.middle(progress.steps, progress.tokens, progress.seconds, stage.batch_tokens)
        rates = set_rate(optimizer, stage.optimization.factor(middle))
        targets = max(1, sum(batch.targets() for batch in batches))
        parts: dict[str, float] = {}
        for batch in batches:
            weight = batch.targets() / targets
            with self.accelerator.autocast():
                loss = stage.objective(self.model, batch)
            self._refuse_nan(float(loss.total.detach()), "loss", progress, rates)
            self.accelerator.backward(loss.total * weight)
            for name, value in {"loss": float(loss.total.detach()), **loss.parts}.items():
                parts[name] = parts.get(name, 0.0) + weight * value
        if stage.optimization.rows == "seen":
            seen = torch.cat([torch.from_numpy(batch.ids) for batch in batches]).unique()
            keep_seen_rows(trainable.embeddings.values(), seen.to(loss.total.device))
        limit = stage.optimization.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(trainable.named().values(), limit))
        self._refuse_nan(norm, "gradient", progress, rates)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        drawn = sum(len(batch.ids) for batch in batches)
        replay = 1 - sum(batch.tokens[0] for batch in batches) / drawn
        progress.place = place
        progress.steps, progress.all_steps = progress.steps + 1, progress.all_steps + 1
        progress.tokens += drawn
        nbytes = sum(batch.nbytes for batch in batches)
        plain = parts.get("causal", parts["loss"])
        return {
            "step": progress.all_steps,
            "stage": self.index,
            "part": stage.part,
            "tokens": progress.tokens,
            "batch_tokens": drawn,
            "bytes": nbytes,
            "bits_per_byte": plain * targets / math.log(2) / nbytes if nbytes else None,
            "gradient_norm": norm,
            "lr": rates.get("layers", rates.get("embeddings")),
            "lr_embeddings": rates.get("embeddings"),
            "replay_share": replay,
            **parts,
        }

    def _draw(self, progress: Progress) -> tuple[list[Batch], Any]:
        """The batches of one step and the place in the stream after them."""
        batches, place = [], progress.place
        for _ in range(self.stage.accumulate):
            batch, place = self.stage.stream.batch(place, self.stage.batch_tokens // self.stage.accumulate)
            batches.append(batch)
        return batches, place

    def _refuse_nan(self, value: float, what: str, progress: Progress, rates: Mapping[str, float]) -> None:
        if math.isfinite(value):
            return
        states = sorted(path.name for path in self.work.glob("state-*"))
        kept = f"the last good state is {self.work / states[-1]}" if states else "no state was saved before"
        raise ModelError(
            f"training: the {what} became {value} in step {progress.all_steps + 1} ({self.stage.part}, "
            f"learning rates {', '.join(f'{name} {rate:.2g}' for name, rate in rates.items())}); {kept}; "
            "check the weights of the base (`calque doctor`), lower the learning rate and begin anew"
        )

    def _due(self, progress: Progress, saved: float) -> bool:
        by_steps = self.saving.steps and progress.steps % self.saving.steps == 0
        return bool(by_steps or (self.saving.seconds and time.monotonic() - saved >= self.saving.seconds))

    def _save(
        self, progress: Progress, trainable: Trainable, optimizer: Any, average: Mapping[str, torch.Tensor]
    ) -> None:
        # What an earlier stage trained may be fixed now, but is no longer in the base checkpoint.
        weights = dict(self.model.named_parameters()) if self.index else trainable.named()
        save_state(self.work, progress, self.settings, weights, optimizer, average)

    def _announce(self, trainable: Trainable) -> None:
        total = sum(p.numel() for p in self.model.parameters())
        count, (amount, unit) = trainable.count(), self.stage.budget.total()
        limit = clock(amount) if unit == "s" else f"{amount:,.0f} {unit}s"
        say(
            f"training {self.stage.part}: {count:,} of {total:,} parameters ({count / total:.1%}), "
            f"about {_memory(self.model, self.stage, count) / 1e9:.1f} GB, {limit}, "
            f"{self.accelerator.device.type}, {torch.get_num_threads()} threads"
        )

    def _notes(self, progress: Progress, trainable: Trainable, loss: float) -> dict[str, Any]:
        return {
            "part": self.stage.part,
            "trainable": trainable.count(),
            "steps": progress.steps,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 2),
            "tokens_per_second": round(progress.tokens / max(1e-9, progress.seconds), 1),
            "epochs": [round(epochs, 3) for epochs in self.stage.stream.epochs(progress.place)],
            "averaged": progress.averaged,
            "loss": loss,
        }


def _show(shown: Bar, amount: float, line: Mapping[str, Any]) -> None:
    shown.update(amount, f"loss {line['loss']:.3f}, {line['tokens_per_second']:,.0f} tokens/s")


def _memory(model: PreTrainedModel, stage: Stage, trainable: int) -> float:
    """Estimate of the bytes in use: weights, gradients, AdamW's averages, activations of one batch."""
    config = model.config.get_text_config()
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    tokens = stage.batch_tokens // stage.accumulate
    activations = tokens * config.num_hidden_layers * (14 * width + 4 * inner)
    return 4.0 * (sum(p.numel() for p in model.parameters()) + 3 * trainable + activations)


def _accelerator(precision: torch.dtype) -> Accelerator:
    mixed = "bf16" if precision == torch.bfloat16 else "no"
    state: Any = AcceleratorState._shared_state
    if state and state.get("_mixed_precision", mixed) != mixed:
        AcceleratorState._reset_state()  # it is kept for the process, and an earlier run chose otherwise
    return Accelerator(mixed_precision=mixed)


def _trim_log(file: Path, steps: int) -> None:
    """Drop the lines of steps that came after the saved state: they are made again."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[:steps]
    part = file.with_name(f".{file.name}.part")
    part.write_text("".join(lines), encoding="utf-8")
    os.replace(part, file)
