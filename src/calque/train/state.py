"""The state of a training run on disk: everything the next step depends on.

A state is a folder of its own that appears by one rename; the one before it is removed only then. Tensors
are kept as safetensors, everything else as JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from calque.data.mixture import Place
from calque.disk import clear_disk_errors, read_json, write_json
from calque.errors import ConfigError, DataError
from calque.train.spread import spread_like, whole, world

_FOLDER, _BEST = "state-", "best-"


@dataclass
class Progress:
    """How far a run has come; counts are of the present stage where not said otherwise.

    Attributes:
        stage: index of the stage.
        steps: optimizer steps.
        tokens: tokens read.
        seconds: wall-clock used, those before a kill included.
        place: how far the stream has been read.
        averaged: weights in the running average.
        all_steps: optimizer steps of all stages.
        best: lowest value of the watched metric; None before the first check.
        best_step: the step of the stage after which it was so low.
        worse: checks since then.
    """

    stage: int
    steps: int
    tokens: int
    seconds: float
    place: Place
    averaged: int = 0
    all_steps: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0


def save_state(
    work: Path,
    progress: Progress,
    settings: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, torch.Tensor],
) -> None:
    """Write a state; older ones are removed when it is whole.

    Every process calls this, since each may hold a piece of every tensor; the main one writes.
    """
    target = work / f"{_FOLDER}{progress.all_steps:09d}"
    tensors = {
        "weights": _whole(weights),
        "average": _whole(average),
        "optimizer": _whole(_flat(optimizer)),
    }
    if world()[0]:
        return
    part = work / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    with clear_disk_errors(target):
        part.mkdir(parents=True)
        for name, named in tensors.items():
            _save(part / f"{name}.safetensors", named)
        _save(part / "random.safetensors", _random())
        record = {**asdict(progress), "place": progress.place.record()}
        write_json(part / "state.json", {"progress": record, "settings": settings})
        shutil.rmtree(target, ignore_errors=True)
        os.rename(part, target)
    best = work / f"{_BEST}{progress.best_step:09d}"
    for old in (*work.glob(f"{_FOLDER}*"), *work.glob(f"{_BEST}*")):
        if old not in (target, best):
            shutil.rmtree(old)


def save_best(work: Path, step: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Keep the weights of the best check; those of the one before go when the next state is saved."""
    target = work / f"{_BEST}{step:09d}"
    part = work / f".{target.name}.part"
    tensors = _whole(weights)
    if world()[0]:
        return
    with clear_disk_errors(target):
        for left in (part, target):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        _save(part / "weights.safetensors", tensors)
        os.rename(part, target)


def load_best(work: Path, step: int, named: Mapping[str, torch.Tensor]) -> None:
    """Put the weights of the best check into the parameters, in place."""
    _load_into(work / f"{_BEST}{step:09d}" / "weights.safetensors", named)


def find_state(work: Path, settings: Mapping[str, Any]) -> tuple[Path, Progress] | None:
    """The newest state in `work`, or None.

    Raises:
        ConfigError: the state was made with other settings; the message shows the difference.
        DataError: the state is damaged.
    """
    for part in (*work.glob(f".{_FOLDER}*.part"), *work.glob(f".{_BEST}*.part")):
        shutil.rmtree(part, ignore_errors=True)
    folders = sorted(work.glob(f"{_FOLDER}*"))
    if not folders:
        return None
    try:
        found = read_json(folders[-1] / "state.json")
        record = found["progress"]
        progress = Progress(**{**record, "place": Place.of_record(record["place"])})
        before = found["settings"]
    except (OSError, KeyError, TypeError) as error:
        raise DataError(
            f"{folders[-1]}: damaged training state ({error}); remove {work} to begin anew"
        ) from None
    refuse_changes(before, settings, work)
    return folders[-1], progress


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], work: Path) -> None:
    """Raise ConfigError when a run would go on with other settings than it began with."""
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{work} holds a training run with other settings: {'; '.join(changed)}; "
            "give the old settings to go on, or remove the folder to begin anew"
        )


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Put the saved weights into the model, in place."""
    _load_into(folder / "weights.safetensors", dict(model.named_parameters()))


def load_rest(
    folder: Path, optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Put back the optimizer's state and the random generator; returns the running average.

    Args:
        folder: the state.
        optimizer: of the parameters in `named`.
        named: they are spread over the processes as what is read will be.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = spread_like(value, parameters[int(index)])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    random = load_file(folder / "random.safetensors")
    torch.set_rng_state(random["torch"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    average = load_file(folder / "average.safetensors")
    return {name: spread_like(value, named[name]) for name, value in average.items()}


def _random() -> dict[str, torch.Tensor]:
    """States of the random generators; a graphics card has one of its own, which dropout draws from there."""
    card = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"torch": torch.get_rng_state(), **card}


def _load_into(file: Path, named: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in load_file(file).items():
            named[name].copy_(spread_like(value, named[name]))


def _whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: whole(value.detach()) for name, value in tensors.items()}


def _save(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, file)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}
