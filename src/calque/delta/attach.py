"""Deltas put on a model and taken off again, without a copy of the model's code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from calque.delta import bottleneck, lora, low_rank, mixture, prefix, shards, sparse
from calque.delta.delta import Delta
from calque.delta.switch import Switch
from calque.errors import ConfigError, ModelError
from calque.language import Language

Changes = dict[str, tuple[torch.Tensor, torch.Tensor]]
_MATRIX_FORMS = ("lora", "shards", "depthwise")
_MORE = {  # what keeps a form from being a change of weights
    "bottleneck": "its networks bend what passes through",
    "prefix": "keys and values come before the text",
    "mam": "it holds a prefix and networks",
    "mixture": "its shares depend on the text",
    "stack": "its parts bend what passes through",
    "sparse": "it changes single weights",
}


class Attached:
    """Deltas on a model; at first all of them are added, in order.

    Args:
        model: the model; its own parameters are left alone.
        deltas: name -> delta; the ones that come later see what the earlier ones made.
    """

    def __init__(self, model: torch.nn.Module, deltas: Mapping[str, Delta]) -> None:
        self.model, self.deltas, self.switch = model, dict(deltas), Switch([*deltas])
        self.parameters: dict[str, dict[str, torch.nn.Parameter]] = {}
        self.by_language: list[Switch] = []
        self._fixed: set[str] = set()
        self._removers: list[Callable[[], None]] = []
        levels = [level for name, delta in deltas.items() for level in _levels(name, name, delta)]
        # What peft wraps must be wrapped before others hook the modules by name.
        for name, whole, delta, trains in sorted(levels, key=lambda level: "lora" not in _forms(level[2])):
            for _, part in _pieces(whole, delta):
                _refuse_misfit(model, name, part)
            before = set(self.parameters)
            if delta.form == "mixture":
                self._put_on_mixture(name, whole, delta)
            else:
                for piece, part in _pieces(whole, delta):
                    self._put_on(name, piece, part, self.switch)
            if not trains:
                self._fixed |= set(self.parameters) - before

    def use(self, chosen: str | Sequence[str] | Mapping[str, float]) -> None:
        """Choose by name, by mixture weights that sum to 1, or by name for each example of the batches."""
        self.switch.use(chosen)

    def speak(self, languages: str | Sequence[str], lengths: Sequence[int] | None = None) -> None:
        """Tell mixtures by language which one the batches are in, or each example of them.

        Args:
            languages: one, or one for each example.
            lengths: of how many tokens each is, when the examples lie back to back in one row.

        Raises:
            ConfigError: a language that a mixture has no delta for.
        """
        if isinstance(languages, str):
            codes: str | list[str] = Language.parse(languages).code
        else:
            codes = [Language.parse(language).code for language in languages]
        for switch in self.by_language:
            switch.use(codes, lengths)

    def trained(self) -> dict[str, Delta]:
        """The deltas with the numbers as they are now."""
        return {name: self._now(name, delta) for name, delta in self.deltas.items()}

    def named(self) -> set[str]:
        """Names of those of their parameters in the model that train: of a stack those of its top."""
        training = (numbers for piece, numbers in self.parameters.items() if piece not in self._fixed)
        own = {id(p) for numbers in training for p in numbers.values()}
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
        done = delta.with_tensors({key: p.detach().cpu().clone() for key, p in numbers.items()})
        parts = (self._now(f"{piece}_{n}", part) for n, part in enumerate(delta.parts))
        return replace(done, parts=tuple(parts))

    def _put_on(self, name: str, piece: str, delta: Delta, switch: Switch) -> None:
        if delta.form == "lora":
            numbers = self._numbers(piece, delta)
            self._removers.append(lora.install(self.model, delta, numbers, switch, name, piece))
        else:
            bank = self._bank(piece, delta)
            self._removers.append(_install(self.model, delta, bank, switch, name))

    def _put_on_mixture(self, name: str, whole: str, delta: Delta) -> None:
        pieces = _pieces(whole, delta)
        if delta.gate == "language":
            switch = Switch(delta.settings["names"], within=(self.switch, name))
            self.by_language.append(switch)
            for language, (piece, part) in zip(switch.names, pieces, strict=True):
                self._put_on(language, piece, part, switch)
            return
        parts = [self._bank(piece, part, trains=not delta.fixed_parts) for piece, part in pieces]
        own = self._bank(whole, delta)
        self._removers.append(mixture.install(self.model, delta, parts, own, self.switch, name))

    def _numbers(self, piece: str, delta: Delta) -> dict[str, torch.nn.Parameter]:
        device = next(self.model.parameters()).device
        self.parameters[piece] = {
            key: torch.nn.Parameter(t.clone().float().to(device)) for key, t in delta.trainable.items()
        }
        return self.parameters[piece]

    def _bank(self, piece: str, delta: Delta, trains: bool = True) -> _Live:
        """A module of the model that holds the numbers of a piece, so that they move and save with it."""
        parent: Any = self.model
        numbers = self._numbers(piece, delta) if trains else {}
        bank = torch.nn.Module()
        for key, parameter in numbers.items():
            bank.register_parameter(key.replace(".", "/"), parameter)
        device = next(parent.parameters()).device
        for key, table in delta.tensors.items():
            if key not in numbers:
                bank.register_buffer(key.replace(".", "/"), table.to(device), persistent=False)
        parent.add_module(_bank_name(piece), bank)
        self._removers.append(lambda: delattr(parent, _bank_name(piece)))
        return _Live(bank)


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
    """Whether it can become part of the weights: changes of matrices, or of single weights (stacks too)."""
    if delta.form == "stack":
        return all(part.form == "sparse" for part in delta.parts)
    return delta.form in (*_MATRIX_FORMS, "sparse")


def changes(delta: Delta) -> Changes:
    """Module -> (down (r, in), up (out, r)) whose product is added to its matrix, scaling included.

    Raises:
        ConfigError: the delta is no change of matrices.
    """
    if delta.form not in _MATRIX_FORMS:
        raise ConfigError(
            f"a '{delta.form}' delta is more than a change of matrices ({_MORE[delta.form]}) and can not be "
            "folded; keep it beside its base"
        )
    scale = float(delta.settings["alpha"]) / int(delta.settings["rank"])
    pairs = _pairs(delta)
    found = {module: pairs(delta.tensors, module) for module in delta.place}
    return {module: (down, up * scale) for module, (down, up) in found.items()}


def fold_in(model: torch.nn.Module, delta: Delta) -> None:
    """Make a delta part of a model's weights, in place and in float32."""
    if foldable(delta) and delta.form == "stack":
        sparse.fold_sparse(model, sparse.add(delta.parts))
    elif delta.form == "sparse":
        sparse.fold_sparse(model, delta)
    elif delta.form == "depthwise":
        looped: Any = model
        looped.add_residuals(changes(delta))
    else:
        low_rank.fold_pairs(model, changes(delta))


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


def _levels(
    name: str, whole: str, delta: Delta, trains: bool = True
) -> Iterator[tuple[str, str, Delta, bool]]:
    """The levels of a stack, bottom first: name to switch by, name of its own, delta, whether it trains."""
    if delta.form != "stack":
        yield name, whole, delta, trains
        return
    for n, part in enumerate(delta.parts):
        yield from _levels(name, f"{whole}_{n}", part, trains and n == len(delta.parts) - 1)


def _forms(delta: Delta) -> set[str]:
    return {delta.form, *(part.form for part in delta.parts)}


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
