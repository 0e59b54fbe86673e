"""One training run on several processes: who does what, and tensors that are spread over them.

`accelerate launch` starts the processes and says how they share the work: with copies of the model (DDP) or
with its pieces (FSDP2). Each draws the same batches and computes its share of each, so a step is the same
step on any number of them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from transformers import PreTrainedModel

from calque.data.pack import Batch
from calque.errors import ConfigError
from calque.train.spread import whole, world
from calque.train.stage import Objective


@contextmanager
def main_first() -> Iterator[bool]:
    """The main process runs the block before the others do; yields whether this is the main one."""
    rank, size = world()
    if size == 1:
        yield True
        return
    with _state().main_process_first():
        yield rank == 0


def wait() -> None:
    """Go on when all processes are here."""
    if world()[1] > 1:
        _state().wait_for_everyone()


def _state() -> PartialState:
    """What joins the processes; on the processor where there is nothing else."""
    return PartialState(cpu=_on_processor())


def _on_processor() -> bool:
    return world()[1] > 1 and not torch.accelerator.is_available()


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        accelerator: the engine.
        rank: number of this process.
        count: how many there are.
    """

    accelerator: Accelerator
    rank: int
    count: int

    @classmethod
    def here(cls, precision: torch.dtype) -> Processes:
        """What the launcher made of this process; alone when there was none."""
        mixed = "bf16" if precision == torch.bfloat16 else "no"
        state: Any = AcceleratorState._shared_state
        if state and state.get("_mixed_precision", mixed) != mixed:
            AcceleratorState._reset_state()  # it is kept for the process, and an earlier run chose otherwise
        accelerator = Accelerator(cpu=_on_processor(), mixed_precision=mixed)
        return cls(accelerator, accelerator.process_index, accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds a piece of every parameter only; the launcher's `--use_fsdp` says it."""
        return self.count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over all processes of each value; all must give the same names."""
        if self.count == 1:
            return dict(values)
        added = torch.tensor([*values.values()], dtype=torch.float64, device=self.accelerator.device)
        torch.distributed.all_reduce(added)
        return dict(zip(values, added.tolist(), strict=True))

    def of_main(self, value: float) -> float:
        """What the main process says, so that all decide alike."""
        return self.sum({"": value if self.main else 0.0})[""]

    def spread(self, model: PreTrainedModel, objective: Objective) -> Any:
        """What computes the loss of a batch on these processes; parameters may be others afterwards.

        FSDP2 is torch's own: accelerate has it for accelerators only, and here it is the same everywhere.
        """
        if self.count == 1:
            return _Whole(model, objective)
        whole = _Objective(model, objective)
        if not self.sharded:
            return self.accelerator.prepare_model(whole)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.accelerator.device.type, (self.count,))
        layers = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
        for module in (*layers, whole):
            fully_shard(module, mesh=mesh)
        return whole

    def optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer, ready for these processes."""
        return optimizer if self.sharded else self.accelerator.prepare_optimizer(optimizer)

    @contextmanager
    def apart(self, objective: Any, *, last: bool) -> Iterator[None]:
        """Gradients of the block stay where they are until the last batch of a step."""
        if self.count == 1 or self.sharded:
            if self.sharded:
                objective.set_requires_gradient_sync(last)
            yield
            return
        with nullcontext() if last else self.accelerator.no_sync(objective):
            yield


class _Whole:
    """The objective of a run in one process: nothing stands between the loop and the model."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        self.model, self.objective = model, objective

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Mapping[str, float]]:
        loss = self.objective(self.model, batch)
        return loss.total, loss.parts


class _Objective(torch.nn.Module):
    """The model and its objective as one module, whose forward the engines can hook."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Mapping[str, float]]:
        loss = self.objective(self.model, batch)
        return loss.total.clone(), loss.parts  # FSDP hooks what comes out, and warns of views


def refuse_sharding(processes: Processes, stages: Sequence[Any]) -> None:
    """Raise ConfigError for what pieces of parameters can not do."""
    if processes.sharded and len(stages) > 1:
        raise ConfigError(f"{len(stages)} stages in one run do not go with FSDP; run them one after another")
    if processes.sharded and any(stage.deltas is not None for stage in stages):
        raise ConfigError("deltas and low-rank pairs do not go with FSDP; they are small: use DDP")


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model without numbers: shapes, buffers and settings."""
    known: dict[int, Any] = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, known)


def filled(empty: PreTrainedModel, model: torch.nn.Module, processes: Processes) -> PreTrainedModel:
    """The skeleton with the whole parameters of a sharded model; only in the main process they stay."""
    places = {name: module for name, module in empty.named_modules(remove_duplicate=False)}
    made: dict[str, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        value = whole(parameter.detach())
        made[name] = torch.nn.Parameter(
            value.cpu() if processes.main else value.new_empty(0), parameter.requires_grad
        )
    old = dict(empty.named_parameters())
    of_old = {id(old[name]): parameter for name, parameter in made.items()}
    for module in places.values():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = of_old[id(parameter)]
    return empty
