"""One training from its stage to the checkpoint it gives: what every training method ends with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from calque.delta.attach import fold_in, foldable
from calque.delta.delta import base_of
from calque.disk import new_folder, read_json, write_json
from calque.errors import ModelError
from calque.machine import has_bf16
from calque.model.checkpoint import Checkpoint, quiet
from calque.model.files import BESIDE, companions, weight_files
from calque.progress import say
from calque.train.loop import train
from calque.train.processes import wait
from calque.train.spread import world
from calque.train.stage import Stage
from calque.train.state import refuse_changes
from calque.train.steps import LOG, Saving

RESULT = "result"
NOTES = "training.json"
Precision = Literal["auto", "float32", "bfloat16"]


def finished(work: Path, settings: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint of a training that was done before in this folder.

    Raises:
        ConfigError: it was done with other settings; the message shows the difference.
    """
    if not (work / RESULT).is_dir():
        return None
    refuse_changes(read_json(work / RESULT / NOTES)["settings"], settings, work)
    return Checkpoint.at(work / RESULT)


_FLOAT32_ALONE = frozenset({"xmod"})  # puts the outputs of its adapters back into a tensor of another type


def trained(
    base: Checkpoint,
    model: PreTrainedModel,
    stage: Stage,
    *,
    work: Path,
    settings: Mapping[str, Any],
    saving: Saving,
    seed: int,
    precision: Precision,
) -> Checkpoint:
    """Train one stage and write the result: a plain folder in the dtype of the base, with its company.

    On several processes the main one writes, and all open what it wrote.

    Raises:
        ModelError: training ended with weights that are no numbers.
    """
    fast = torch.float32 if base.config.get("model_type") in _FLOAT32_ALONE else fast_dtype()
    dtype = fast if precision == "auto" else getattr(torch, precision)
    model, notes = train(
        model, [stage], work=work, settings=settings, saving=saving, seed=seed, precision=dtype
    )
    if world()[0] == 0:
        said = notes["stage 0"]
        say(f"training {stage.part}: {said['steps']} steps, {said['tokens']:,} tokens, done")
        _write(base, model, stage, work, {"settings": settings, **notes})
    wait()
    found = Checkpoint.at(work / RESULT)
    wait()  # the caller of the main process may move the folder
    return found


def fast_dtype() -> torch.dtype:
    """The type that matrix products are fastest in here: bfloat16 where the hardware multiplies it."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if has_bf16() else torch.float32


def _write(base: Checkpoint, model: PreTrainedModel, stage: Stage, work: Path, notes: dict[str, Any]) -> None:
    """Fold in what can be, save the model beside its tokenizer, delta, log and notes, and check it."""
    delta = stage.deltas.detach()["delta"] if stage.deltas else None
    if delta is not None and foldable(delta):
        fold_in(model, delta)
    dtype = base.info(base.input_embedding).torch_dtype
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise ModelError("training ended with weights that are not numbers; nothing was written")
    changed = delta is None or foldable(delta) or stage.delta_embeddings or bool(stage.beside)
    with new_folder(work / RESULT) as folder:
        if changed:
            with quiet():
                model.to(device="cpu", dtype=dtype).save_pretrained(folder)  # pyright: ignore
        else:  # the very files: a delta belongs to them
            for file in weight_files(base.folder):
                shutil.copyfile(file, folder / file.name)
        for path in companions(base.folder):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.folder / path, folder / path)
        if delta is not None:
            if changed and not foldable(delta):
                delta = replace(delta, base={**base_of(Checkpoint.at(folder)), "folder": str(work / RESULT)})
            delta.save(folder / BESIDE, folded=foldable(delta))
            if not foldable(delta):
                say(f"'{delta.form}' is not folded: weights are the base's, delta/ is what trained")
        shutil.copyfile(work / LOG, folder / LOG)
        write_json(folder / NOTES, notes)
        Checkpoint.at(folder).check()
