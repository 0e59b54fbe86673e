"""Tiny checkpoints of one family: a base and models that differ from it by noise."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from calque.model.checkpoint import Checkpoint
from calque.model.tensors import DTYPES

from .. import tiny


def family(folder: Path, sizes=(0.02, 0.03), architecture: str = "llama", **settings):
    """(base, tuned...): noise of the given sizes on every parameter; size 0 is a copy."""
    base = Checkpoint.open(tiny.model(folder / "base", architecture, **settings))
    return base, [relative(base, folder / f"tuned-{n}", size, n) for n, size in enumerate(sizes)]


def relative(base: Checkpoint, folder: Path, size: float, seed: int) -> Checkpoint:
    """A model with noise of standard deviation `size` on the base's parameters."""
    generator = torch.Generator().manual_seed(seed)

    def moved(name, tensor):
        return (tensor.float() + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)

    return changed(base, folder, moved)


def changed(base: Checkpoint, folder: Path, function) -> Checkpoint:
    """A model with `function(name, tensor)` in the place of every floating-point tensor."""
    shutil.copytree(base.folder, folder)
    file = folder / "model.safetensors"
    tensors = {
        name: function(name, tensor) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return Checkpoint.open(folder)


def weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """All tensors as float64."""
    return {name: checkpoint.read(name).double().numpy() for name in checkpoint.tensors}


def vectors(base: Checkpoint, tuned) -> np.ndarray:
    """Task vectors (n, D) of all parameters in the order of the file; float32 differences, as methods see."""
    return np.stack(
        [
            np.concatenate(
                [(t.read(name).float() - base.read(name).float()).numpy().ravel() for name in base.tensors]
            )
            for t in tuned
        ]
    )


def vector(base: Checkpoint, merged: Checkpoint) -> np.ndarray:
    """The task vector (D,) of a merged model."""
    return vectors(base, [merged])[0]


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints agree in every number."""
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.read(name), other.read(name)) for name in one.tensors
    )


def close(one: Checkpoint, other: Checkpoint, atol: float = 1e-6) -> bool:
    """Whether two checkpoints agree within rounding."""
    return all(torch.allclose(one.read(n).float(), other.read(n).float(), atol=atol) for n in one.tensors)


def computed(rewrite) -> dict[str, torch.Tensor]:
    """Every tensor that a rewrite would write, without writing it."""
    for one in rewrite.passes:
        one.run()
    return {row.name: _values(row) for row in rewrite.rows}


def _values(row) -> torch.Tensor:
    if row.function is None:
        return row.inputs[0].read()
    blocks = [block.reshape(-1) for block in row.function(*row.inputs)]
    return torch.cat(blocks).reshape(row.shape).to(DTYPES[row.dtype])
