"""The steps of one stage, one after another, with their log, their checks and their states."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import PreTrainedModel

from calque.data.mixture import Place
from calque.data.pack import Batch
from calque.errors import ModelError
from calque.progress import Bar, bar, clock, say
from calque.train.against_all import against_all
from calque.train.optim import add_to_average, keep_seen_rows, set_rate
from calque.train.part import Trainable
from calque.train.processes import Processes
from calque.train.spread import whole
from calque.train.stage import Stage
from calque.train.state import Progress, save_best, save_state

LOG = "log.jsonl"
_MEASURED = 3  # steps after which their time is said
_WORTH = 200  # steps still to come, from which on it is worth a few to compare that time
_TEXT_LOSSES = ("causal", "answer")  # parts that are nats of text


@dataclass(frozen=True)
class Saving:
    """When a run puts its state on disk; 0 turns a rule off.

    Attributes:
        steps: every so many steps.
        seconds: every so many seconds.
    """

    steps: int = 0
    seconds: float = 120.0


@dataclass(frozen=True)
class Steps:
    """What the steps of a stage need.

    Attributes:
        model: what trains.
        stage: how.
        work: folder for log and states.
        settings: kept with every state.
        saving: when to save.
        processes: who computes.
        objective: gives loss and parts of a batch.
        optimizer: of what trains.
        trainable: the parameters that do.
        progress: how far the run has come; follows.
        average: running average of the weights; follows.
    """

    model: PreTrainedModel
    stage: Stage
    work: Path
    settings: Mapping[str, Any]
    saving: Saving
    processes: Processes
    objective: Any
    optimizer: Any
    trainable: Trainable
    progress: Progress
    average: dict[str, torch.Tensor]

    def run(self) -> float:
        """All steps that budget, stream and patience leave; returns the last loss."""
        stage, progress = self.stage, self.progress
        began, first = time.monotonic() - progress.seconds, progress.steps
        total, unit = stage.budget.total()
        saved, shown, loss = progress.seconds, 0.0, math.nan
        with bar(f"training {stage.part}", total, unit) as shown_bar, self._log() as log:
            while (used := self._used()) < 1 and not self._impatient():
                line = self._step()
                if line is None:
                    self._say(f"the text ran dry after step {progress.steps}, as its epochs say")
                    break
                loss = line["loss"]
                if stage.optimization.average and used >= 1 - stage.optimization.average:
                    progress.averaged += 1
                    add_to_average(self.average, self.trainable.named().items(), progress.averaged)
                before, progress.seconds = progress.seconds, self._now(began)
                line["tokens_per_second"] = line["batch_tokens"] / max(1e-9, progress.seconds - before)
                if stage.watch and progress.steps % stage.watch.every == 0:
                    line["held_out"] = self._check()
                    progress.seconds = self._now(began)
                log.write(json.dumps({**line, "seconds": progress.seconds}) + "\n")
                log.flush()
                spent = stage.budget.spent(progress.steps, progress.tokens, progress.seconds)
                _show(shown_bar, spent - shown, line)
                shown = spent
                if progress.steps == first + _MEASURED:
                    self._tell_time(progress.seconds - before, line)
                    progress.seconds = self._now(began)
                if self._due(saved):
                    self._save()
                    progress.seconds = saved = self._now(began)
        if stage.watch and progress.steps % stage.watch.every and not self._impatient():
            self._check()
        return loss

    def _step(self) -> dict[str, Any] | None:
        """One step of the optimizer; returns its line for the log, None when the stream has ended."""
        stage, progress, processes = self.stage, self.progress, self.processes
        drawn, place = self._draw()
        if not drawn:
            return None
        batches = [stage.prepare(batch) for batch in drawn] if stage.prepare else drawn
        middle = stage.budget.middle(progress.steps, progress.tokens, progress.seconds, stage.batch_tokens)
        rates = set_rate(self.optimizer, stage.optimization.factor(middle))
        terms = max(1, sum(stage.terms(batch) for batch in batches))
        parts: dict[str, float] = {}
        for number, batch in enumerate(batches):
            for name, value in self._backward(batch, terms, last=number + 1 == len(batches)).items():
                parts[name] = parts.get(name, 0.0) + value
        parts = processes.sum(parts)
        self._refuse_nan(parts["loss"], "loss", rates)
        if stage.optimization.rows == "seen":
            seen = torch.cat([torch.from_numpy(batch.ids) for batch in (*drawn, *batches)]).unique()
            keep_seen_rows(self.trainable.embeddings.values(), seen.to(processes.accelerator.device))
        limit = stage.optimization.clip or math.inf
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.trainable.named().values(), limit)))
        self._refuse_nan(norm, "gradient", rates)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.place = place
        progress.steps, progress.all_steps = progress.steps + 1, progress.all_steps + 1
        return self._line(drawn, terms, parts, rates, norm)

    def _draw(self) -> tuple[list[Batch], Place]:
        """The batches of one step and the place in the stream after them; fewer where the stream ends."""
        batches, place = [], self.progress.place
        for _ in range(self.stage.accumulate):
            tokens = self.stage.batch_tokens // self.stage.accumulate
            found = self.stage.stream.batch(place, tokens, self.progress.steps)
            if found is None:
                break
            batches.append(found[0])
            place = found[1]
        return batches, place

    def _backward(self, batch: Batch, terms: int, *, last: bool) -> dict[str, float]:
        """Add the gradient of this process's share of a batch; returns its part of the loss and its parts."""
        processes = self.processes
        share = batch.share(processes.rank, processes.count)
        # Engines that speak with each other in every pass need all processes to make one.
        weight = self.stage.terms(share) / terms if share is not None else 0.0
        with processes.apart(self.objective, last=last):
            with processes.accelerator.autocast():
                total, parts = self.objective(batch.take([0]) if share is None else share)
            # The engines take the mean over processes; what is wanted is the sum.
            processes.accelerator.backward(total * (weight * processes.count))
        return {name: weight * value for name, value in {"loss": float(total.detach()), **parts}.items()}

    def _line(
        self,
        drawn: list[Batch],
        terms: int,
        parts: Mapping[str, float],
        rates: Mapping[str, float],
        norm: float,
    ) -> dict[str, Any]:
        tokens, nbytes = sum(len(batch.ids) for batch in drawn), sum(batch.nbytes for batch in drawn)
        self.progress.tokens += tokens
        nats = next((parts[name] for name in _TEXT_LOSSES if name in parts), None)
        return {
            "step": self.progress.all_steps,
            "stage": self.progress.stage,
            "part": self.stage.part,
            "tokens": self.progress.tokens,
            "batch_tokens": tokens,
            "bytes": nbytes,
            "bits_per_byte": nats * terms / math.log(2) / nbytes if nbytes and nats is not None else None,
            "gradient_norm": norm,
            "lr": rates.get("layers", rates.get("embeddings")),
            "lr_embeddings": rates.get("embeddings"),
            "replay_share": 1 - sum(batch.tokens[0] for batch in drawn) / tokens,
            **parts,
        }

    def _check(self) -> float:
        """Score the model on held-out material; the best weights so far are kept."""
        watch, progress = self.stage.watch, self.progress
        assert watch is not None
        with self.processes.accelerator.autocast():
            value = self.processes.of_main(watch.value(self.model, self.objective))
        better = progress.best is None or value < progress.best
        if better:
            save_best(self.work, progress.steps, self.trainable.named())
            progress.best, progress.best_step, progress.worse = value, progress.steps, 0
        else:
            progress.worse += 1
        said = "the best so far" if better else f"best {progress.best:.4f} at step {progress.best_step}"
        self._say(f"step {progress.steps}: {watch.numerator}/{watch.denominator} {value:.4f}, {said}")
        if self._impatient():
            self._say(f"{progress.worse} checks without a better one: the stage ends")
        return value

    def _impatient(self) -> bool:
        return self.stage.watch is not None and self.progress.worse >= self.stage.watch.patience

    def _used(self) -> float:
        progress = self.progress
        return self.stage.budget.progress(progress.steps, progress.tokens, progress.seconds)

    def _now(self, began: float) -> float:
        """Seconds of the budget that are used, the same for all processes."""
        return self.processes.of_main(time.monotonic() - began)

    def _refuse_nan(self, value: float, what: str, rates: Mapping[str, float]) -> None:
        if math.isfinite(value):
            return
        states = sorted(path.name for path in self.work.glob("state-*"))
        kept = f"the last good state is {self.work / states[-1]}" if states else "no state was saved before"
        raise ModelError(
            f"training: the {what} became {value} in step {self.progress.all_steps + 1} ({self.stage.part}, "
            f"learning rates {', '.join(f'{name} {rate:.2g}' for name, rate in rates.items())}); {kept}; "
            "check the weights of the base (`calque doctor`), lower the learning rate and begin anew"
        )

    def _due(self, saved: float) -> bool:
        by_steps = self.saving.steps and self.progress.steps % self.saving.steps == 0
        return bool(
            by_steps or (self.saving.seconds and self.progress.seconds - saved >= self.saving.seconds)
        )

    def _save(self) -> None:
        # What an earlier stage trained may be fixed now, but is no longer in the base checkpoint.
        later = self.progress.stage > 0
        weights = dict(self.model.named_parameters()) if later else self.trainable.named()
        save_state(self.work, self.progress, self.settings, weights, self.optimizer, self.average)

    def _log(self) -> TextIO:
        file = self.work / LOG if self.processes.main else Path("/dev/null")
        return file.open("a", encoding="utf-8")

    def _tell_time(self, seconds: float, line: Mapping[str, Any]) -> None:
        spent = self.stage.budget.spent(1, line["batch_tokens"], seconds)
        steps = (1 - self._used()) * self.stage.budget.total()[0] / max(1e-9, spent)
        share = self._against_all() if steps >= _WORTH else None
        saved = (
            f"forward and backward {share:.0%} of what they take when everything trains, " if share else ""
        )
        self._say(
            f"a step takes {seconds:.2f} s ({line['tokens_per_second']:,.0f} tokens/s), {saved}"
            f"about {clock(steps * seconds)} left"
        )

    def _against_all(self) -> float | None:
        """How long the next batch's gradients take, over those of all parameters; engines are not asked."""
        drawn, _ = self._draw()
        if self.processes.count > 1 or not drawn:
            return None
        batch = self.stage.prepare(drawn[0]) if self.stage.prepare else drawn[0]
        with self.processes.accelerator.autocast():
            return against_all(self.model, self.objective, batch)

    def _say(self, message: str) -> None:
        if self.processes.main:
            say(message)


def _show(shown: Bar, amount: float, line: Mapping[str, Any]) -> None:
    shown.update(amount, f"loss {line['loss']:.3f}, {line['tokens_per_second']:,.0f} tokens/s")
