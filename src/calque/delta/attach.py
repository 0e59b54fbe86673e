"""Deltas put on a model and taken off again, without a copy of the model's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calque.delta import bottleneck, lora, low_rank, prefix, shards, sparse
from calque.delta.delta import Delta
from calque.delta.switch import Switch
from calque.errors import ConfigError, ModelError

Changes = dict[str, tuple[torch.Tensor, torch.Tensor]]
_MATRIX_FORMS = ("lora", "shards", "depthwise")


class Attached:
    """Deltas on a model; at first all of them are added, in order.

    Args:
        model: the model; its own parameters are left alone.
        deltas: name -> delta; the ones that come later see what the earlier ones made.
    """

    def __init__(self, model: torch.nn.Module, deltas: Mapping[str, Delta]) -> None:
        self.model, self.deltas, self.switch = model, dict(deltas), Switch([*deltas])
        self.parameters: dict[str, dict[str, torch.nn.Parameter]] = {}
        self._removers: list[Callable[[], None]] = []
        # What peft wraps must be wrapped before others hook the modules by name.
        for name in sorted(deltas, key=lambda name: deltas[name].form != "lora"):
            for piece, part in _pieces(name, deltas[name]):
                _refuse_misfit(model, name, part)
                self._put_on(name, piece, part)

    def use(self, chosen: str | Sequence[str] | Mapping[str, float]) -> None:
        """Choose by name, by mixture weights that sum to 1, or by name for each example of the batches."""
        self.switch.use(chosen)

    def trained(self) -> dict[str, Delta]:
        """The deltas with the numbers as they are now."""
        return {
            name: replace(
                self._now(name, delta),
                parts=tuple(self._now(f"{name}_{n}", part) for n, part in enumerate(delta.parts)),
            )
            for name, delta in self.deltas.items()
        }

    def named(self) -> set[str]:
        """Names of their parameters in the model."""
        own = {id(p) for numbers in self.parameters.values() for p in numbers.values()}
        return {name for name, p in self.model.named_parameters() if id(p) in own}

    def detach(self) -> dict[str, Delta]:
        """Take all off; returns them with the numbers as they are now."""
        done = self.trained()
        for remove in reversed(self._removers):
            remove()
        self._removers.clear()
        return done

    def _now(self, piece: str, delta: Delta) -> Delta:
        numbers = self.parameters.get(piece, {})
        return delta.with_tensors({key: p.detach().cpu().clone() for key, p in numbers.items()})

    def _put_on(self, name: str, piece: str, delta: Delta) -> None:
        parent: Any = self.model
        device = next(parent.parameters()).device
        numbers = {
            key: torch.nn.Parameter(t.clone().float().to(device)) for key, t in delta.trainable.items()
        }
        self.parameters[piece] = numbers
        if delta.form == "lora":
            self._removers.append(lora.install(parent, delta, numbers, self.switch, name, piece))
            return
        bank = torch.nn.Module()
        for key, parameter in numbers.items():
            bank.register_parameter(key.replace(".", "/"), parameter)
        for key, table in delta.tensors.items():
            if key not in numbers:
                bank.register_buffer(key.replace(".", "/"), table.to(device), persistent=False)
        parent.add_module(_bank_name(piece), bank)
        self._removers.append(lambda: delattr(parent, _bank_name(piece)))
        self._removers.append(_install(parent, delta, _Live(bank), self.switch, name))


class _Live(Mapping[str, torch.Tensor]):
    """The tensors of a bank by their own names, wherever they have been moved."""

    def __init__(self, bank: torch.nn.Module) -> None:
        self._bank = bank

    def __getitem__(self, key: str) -> torch.Tensor:
        found: Any = getattr(self._bank, key.replace(".", "/"), None)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Any:
        return (
            key.replace("/", ".") for key, _ in [*self._bank.named_parameters(), *self._bank.named_buffers()]
        )

    def __len__(self) -> int:
        return len([*self])


def attach(model: torch.nn.Module, deltas: Mapping[str, Delta]) -> Attached:
    """Put deltas on a model.

    Raises:
        ModelError: the model lacks a place, or has one of another shape.
        ConfigError: a name that can not be used.
    """
    for name in deltas:
        if not name.replace("-", "_").isidentifier():
            raise ConfigError(f"delta name '{name}': use letters, digits, _ and -")
    return Attached(model, deltas)


def foldable(delta: Delta) -> bool:
    """Whether it can become part of the weights."""
    return delta.form in (*_MATRIX_FORMS, "sparse")


def changes(delta: Delta) -> Changes:
    """Module -> (down (r, in), up (out, r)) whose product is added to its matrix, scaling included.

    Raises:
        ConfigError: the delta is no change of matrices.
    """
    if delta.form not in _MATRIX_FORMS:
        raise ConfigError(
            f"a '{delta.form}' delta is more than a change of matrices and can not be folded; keep it beside "
            "its base"
        )
    scale = float(delta.settings["alpha"]) / int(delta.settings["rank"])
    pairs = _pairs(delta)
    found = {module: pairs(delta.tensors, module) for module in delta.place}
    return {module: (down, up * scale) for module, (down, up) in found.items()}


def fold_in(model: torch.nn.Module, delta: Delta) -> None:
    """Make a delta part of a model's weights, in place and in float32."""
    if delta.form == "sparse":
        sparse.fold_sparse(model, delta)
    elif delta.form == "depthwise":
        looped: Any = model
        looped.add_residuals(changes(delta))
    else:
        low_rank.fold_pairs(model, changes(delta))


def export_peft(delta: Delta, folder: Path) -> None:
    """Write a delta as an ordinary LoRA folder that peft loads."""
    if delta.form == "depthwise":
        raise ConfigError("a 'depthwise' delta belongs to a looped model, which peft does not know")
    low_rank.save_peft(folder, delta, changes(delta))


def _pairs(delta: Delta) -> low_rank.Pairs:
    if delta.form == "shards":
        roles, rank = delta.settings["role"], int(delta.settings["rank"])
        return lambda tensors, module: shards.pair(tensors, module, role=roles[module], rank=rank)
    return low_rank.own_pair


def _install(
    model: torch.nn.Module, delta: Delta, numbers: Mapping[str, torch.Tensor], switch: Switch, name: str
) -> Callable[[], None]:
    installers: dict[str, Callable[..., Callable[[], None]]] = {
        "shards": partial(low_rank.add_pairs, pairs=_pairs(delta)),
        "depthwise": partial(low_rank.add_pairs, pairs=_pairs(delta)),
        "bottleneck": bottleneck.install,
        "prefix": prefix.install,
        "sparse": sparse.install,
    }
    return installers[delta.form](model, delta, numbers, switch=switch, name=name)


def _pieces(name: str, delta: Delta) -> list[tuple[str, Delta]]:
    """What a delta is put together from, each with a name of its own."""
    return [(f"{name}_{n}", part) for n, part in enumerate(delta.parts)] or [(name, delta)]


def _bank_name(name: str) -> str:
    return f"delta_{name}"


def _refuse_misfit(model: torch.nn.Module, name: str, delta: Delta) -> None:
    modules = dict(model.named_modules())
    # A sparse delta stands at parameters; what another one made a sum of is still an attribute.
    ends = (module.rpartition(".") if delta.form == "sparse" else (module, "", "") for module in delta.place)
    whole = [path in modules and (not last or hasattr(modules[path], last)) for path, _, last in ends]
    missing = [module for module, found in zip(delta.place, whole, strict=True) if not found]
    if missing:
        raise ModelError(
            f"delta '{name}' ({delta.form}) was made for another model ({delta.base['model_type']}): "
            f"no '{missing[0]}'"
        )
    for module in delta.place if delta.form == "lora" else ():
        weight: Any = getattr(modules[module], "base_layer", modules[module])
        shape = set(weight.weight.shape)
        if delta.tensors[f"{module}.A"].shape[1] not in shape:
            raise ModelError(
                f"delta '{name}': '{module}' has shape {tuple(weight.weight.shape)}, which it does not fit"
            )
