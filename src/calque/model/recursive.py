"""Looped models: one block of layers run several times, with a low-rank residual for each depth.

A looped checkpoint keeps the names of its architecture for the shared block, layers 0 to K - 1, and adds

    depth.{l}.{role}.A (r, in), depth.{l}.{role}.B (out, r)    W_l = shared W_{l mod K} + B A
    depth.{l}.{role}                                           vectors of depth l that are its own

for the depths l = 0 to L - 1. Its config.json is that of the full model, with a table `recursion` and the
`model_type` `calque_recursive`, which plain transformers refuses instead of reading it wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calque.disk import write_json
from calque.errors import ModelError
from calque.model.files import CONFIG, WEIGHTS
from calque.model.slots import layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from calque.model.checkpoint import Checkpoint

MODEL_TYPE = "calque_recursive"


class DepthLinear(nn.Module):
    """A shared linear map and the residual of one depth: y = shared(x) + B A x."""

    def __init__(self, shared: nn.Module, down: nn.Parameter, up: nn.Parameter) -> None:
        super().__init__()
        self.shared, self.down, self.up = shared, down, up

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.shared(x) + (x @ self.down.T) @ self.up.T


def full_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The configuration of the model as it runs, all depths counted."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    plain = {key: value for key, value in checkpoint.config.items() if key != "recursion"}
    try:
        return AutoConfig.for_model(**{**plain, "model_type": checkpoint.config["recursion"]["model_type"]})
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ModelError(f"{checkpoint.folder}/config.json: transformers does not know it: {error}") from None


def build(checkpoint: Checkpoint, dtype: torch.dtype | None = torch.float32) -> PreTrainedModel:
    """The model of a looped checkpoint; a parameter that several depths share is one object.

    Its `save_pretrained` writes a looped checkpoint again, its `add_residuals` (module -> (A, B)) makes pairs
    part of what that writes. The cache of generation is indexed by depth.

    Raises:
        ModelError: the files lack a tensor, or hold one that the model has no place for.
    """
    from accelerate import init_empty_weights

    from calque.model.checkpoint import UNBUILDABLE, model_class

    config, kind = full_config(checkpoint), model_class(checkpoint.config)
    if kind is None:
        raise ModelError(f"{checkpoint.folder}/config.json: transformers has no class of its 'architectures'")
    try:
        with init_empty_weights(include_buffers=False):
            model = kind(config)
    except UNBUILDABLE as error:
        raise ModelError(f"{checkpoint.folder}: transformers can not build this model: {error}") from error
    held = {
        name: nn.Parameter(checkpoint.read(name).to(dtype or checkpoint.info(name).torch_dtype))
        for name in checkpoint.tensors
    }
    used = _fill(model, checkpoint, held) | _add_residuals(model, checkpoint, held)
    if unused := sorted(held.keys() - used):
        raise ModelError(f"{checkpoint.folder}: the model has no place for tensor '{unused[0]}'")
    if checkpoint.tied and (output := model.get_output_embeddings()) is not None:
        output.weight = model.get_input_embeddings().weight
    model.save_pretrained = partial(_save, held, dict(checkpoint.config))
    model.add_residuals = partial(_grow, model, checkpoint.architecture, held)
    return model


def _fill(model: Any, checkpoint: Checkpoint, held: dict[str, nn.Parameter]) -> set[str]:
    """Put the tensors of the files into the empty model; returns which were used."""
    shared = int(checkpoint.config["recursion"]["shared"])
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    places = layout(checkpoint.architecture, {name: () for name in names})
    used, output = set(), model.get_output_embeddings()
    for name in names:
        module, _, last = name.rpartition(".")
        layer, role = places.place(name)
        if model.get_submodule(module) is output:  # not everywhere called as in the files
            if last == "weight":
                role = "embed.output"
            elif places.family:
                role = f"embed.output.{last}"
        own = f"depth.{layer}.{role}"
        if own in held:
            source = own
        elif role == "embed.output" and checkpoint.tied:
            source = checkpoint.input_embedding
        else:
            source = checkpoint.layout.name(None if layer is None else layer % shared, role)
        if source not in held:
            raise ModelError(f"{checkpoint.folder}: tensor '{source}' is missing")
        wanted, shape = (tuple(one.shape) for one in (model.get_parameter(name), held[source]))
        if wanted != shape:
            raise ModelError(f"{checkpoint.folder}: tensor '{source}' has shape {shape}, needed is {wanted}")
        setattr(model.get_submodule(module), last, held[source])
        used.add(source)
    return used


def _add_residuals(model: Any, checkpoint: Checkpoint, held: dict[str, nn.Parameter]) -> set[str]:
    """Wrap the linear maps whose depth has a residual; returns the tensors used."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    places = layout(checkpoint.architecture, {name: () for name in names})
    used: set[str] = set()
    for name in names:
        layer, role = places.place(name)
        down, up = f"depth.{layer}.{role}.A", f"depth.{layer}.{role}.B"
        if down in held and up in held:
            path = name.rpartition(".")[0]
            parent, _, child = path.rpartition(".")
            wrapped = DepthLinear(model.get_submodule(path), held[down], held[up])
            setattr(model.get_submodule(parent), child, wrapped)
            used |= {down, up}
    return used


def _grow(
    model: Any, architecture: str, held: dict[str, nn.Parameter], pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Add B A to the residual that each of these maps has at its depth, or has not yet."""
    places = layout(architecture, {name: () for name, _ in model.named_parameters()})
    for module, (down, up) in pairs.items():
        layer, role = places.place(f"{module}.weight")
        at = model.get_submodule(module)
        if isinstance(at, DepthLinear):
            down, up = torch.cat([at.down.detach(), down]), torch.cat([at.up.detach(), up], 1)
            at = at.shared
        names = [f"depth.{layer}.{role}.{side}" for side in "AB"]
        held |= {name: nn.Parameter(t) for name, t in zip(names, (down, up), strict=True)}
        parent, _, child = module.rpartition(".")
        setattr(model.get_submodule(parent), child, DepthLinear(at, *(held[name] for name in names)))


def _save(held: dict[str, nn.Parameter], config: dict[str, Any], folder: str | Path, **_: Any) -> None:
    """Write weights and configuration as they were read, with the numbers as they are now."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in held.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    write_json(Path(folder) / CONFIG, config)
