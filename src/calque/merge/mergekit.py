"""mergekit's YAML files: which keys they have, and what a parameter is for one tensor.

A parameter may be a number, a list that is spread linearly over the layers, or a list of conditions
{filter, value} of which the first whose filter is part of the tensor's name counts. It is looked up at the
model, then at the slice, then at the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calque.errors import ConfigError
from calque.merge.trim import Trim

Parameters = Mapping[str, Any]
_TOP = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
        "tokenizer_source", "tokenizer")  # fmt: skip
_UNSUPPORTED = {
    "modules": "models with several modules are not read",
    "chat_template": "set the template in the finished folder",
}
_NUMBERS = ("weight", "density")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Kind:
    """What a mergekit method is here.

    Attributes:
        parameters: names of its parameters.
        trim: for task-vector methods, which entries survive; None for the other methods.
        elects: whether signs are elected.
        normalize: default of that parameter.
        rescale: default of that parameter.
    """

    parameters: tuple[str, ...]
    trim: Trim | None = None
    elects: bool = False
    normalize: bool = False
    rescale: bool = False


def _task(
    trim: Trim, *more: str, elects: bool = False, normalize: bool = False, rescale: bool = False
) -> Kind:
    names = ("weight", "density", "lambda", "normalize", "rescale", "int8_mask", *more)
    return Kind(names, trim, elects, normalize, rescale)


METHODS: dict[str, Kind] = {
    "linear": Kind(("weight", "normalize"), normalize=True),
    "slerp": Kind(("t",)),
    "model_stock": Kind(("filter_wise",)),
    "passthrough": Kind(("scale",)),
    "task_arithmetic": _task("all"),
    "ties": _task("largest", elects=True, normalize=True),
    "dare_linear": _task("random", rescale=True),
    "dare_ties": _task("random", elects=True, rescale=True),
    "breadcrumbs": _task("middle", "gamma"),
    "breadcrumbs_ties": _task("middle", "gamma", elects=True),
    "della": _task("ranked", "epsilon", elects=True, normalize=True, rescale=True),
    "della_linear": _task("ranked", "epsilon", rescale=True),
}


@dataclass(frozen=True)
class Entry:
    """One model in one slice; `layers` is None for all of them."""

    model: str
    layers: tuple[int, int] | None
    parameters: Parameters


@dataclass(frozen=True)
class OutSlice:
    """Some layers of the output: the models they are made of."""

    entries: tuple[Entry, ...]
    parameters: Parameters
    base: str | None


@dataclass(frozen=True)
class File:
    """A mergekit file, its keys checked."""

    path: Path
    method: str
    base: str | None
    slices: tuple[OutSlice, ...]
    sliced: bool
    parameters: Parameters
    dtype: str | None
    tokenizer: str | None

    @property
    def kind(self) -> Kind:
        """What the method is here."""
        return METHODS[self.method]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model, the base first, then in order of appearance."""
        found = [entry.model for part in self.slices for entry in part.entries]
        return tuple(dict.fromkeys([*([self.base] if self.base else []), *found]))

    def value(self, name: str, tensor: str, t: float, levels: Iterable[Parameters], default: Any) -> Any:
        """A parameter for one tensor; `t` is how deep its layer lies, 0 to 1.

        Raises:
            ConfigError: it is required and nowhere given, or not a number where one is needed.
        """
        for level in levels:
            found = evaluate(level[name], tensor, t) if name in level else None
            if found is not None:
                return found
        if default is None:
            raise ConfigError(f"{self.path}: {self.method} needs the parameter '{name}'; none for '{tensor}'")
        return default


def evaluate(setting: Any, tensor: str, t: float) -> Any:
    """What a parameter is for one tensor; None when no condition fits."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if setting is None:
        return None
    if not isinstance(setting, list):
        if not isinstance(setting, int | float) or not math.isfinite(setting):
            raise ConfigError(f"parameter {setting!r}: expected a number, a list or conditions with a value")
        return setting
    if setting and all(isinstance(entry, int | float) for entry in setting):
        place = t * (len(setting) - 1)
        first = int(place)
        second = min(len(setting) - 1, first + 1)
        share = place - first
        return (1 - share) * setting[first] + share * setting[second]
    for condition in setting:
        if not isinstance(condition, Mapping) or "value" not in condition:
            raise ConfigError(f"parameter {setting!r}: expected numbers, or conditions with filter and value")
        part = condition.get("filter")
        if part in (None, "*") or str(part) in tensor:
            return evaluate(condition["value"], tensor, t)
    return None


def read(path: Path) -> File:
    """Read a file and check its keys.

    Raises:
        ConfigError: it is no such file, or asks for something that is not there.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    top = _table(content, str(path), _TOP, _UNSUPPORTED)
    method = top.get("merge_method")
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"{path}: merge_method '{method}' is not known; from a file these are: {', '.join(METHODS)}"
        )
    if ("models" in top) == ("slices" in top):
        raise ConfigError(f"{path}: exactly one of 'models' and 'slices' must be there")
    sliced = "slices" in top
    parts = top["slices"] if sliced else [{"sources": top["models"]}]
    return File(
        path=path,
        method=method,
        base=reference(path, top["base_model"]) if top.get("base_model") else None,
        slices=tuple(_slice(path, method, part, n, sliced) for n, part in enumerate(_list(path, parts))),
        sliced=sliced,
        parameters=_parameters(path, method, top),
        dtype=_dtype(path, top),
        tokenizer=_tokenizer(path, top),
    )


def _table(content: Any, where: str, known: Sequence[str], refused: Mapping[str, str] | None = None) -> Any:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: holds a {type(content).__name__}, expected a table of settings")
    for key in content:
        if key in (refused or {}):
            raise ConfigError(f"{where}: '{key}' can not be followed here: {(refused or {})[key]}")
        if key not in known:
            raise ConfigError(f"{where}: no setting '{key}'; known are {', '.join(known)}")
    return content


def _list(path: Path, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{path}: 'models', 'slices' and 'sources' are lists with at least one entry")
    return value


def _slice(path: Path, method: str, part: Any, number: int, sliced: bool) -> OutSlice:
    where = f"{path}: slice {number}" if sliced else str(path)
    part = _table(part, where, ("sources", "parameters", "base_model"))
    entries = tuple(_entry(path, method, entry, where, sliced) for entry in _list(path, part.get("sources")))
    lengths = {entry.layers[1] - entry.layers[0] for entry in entries if entry.layers}
    if len(lengths) > 1:
        raise ConfigError(f"{where}: its sources have {sorted(lengths)} layers; they must have equally many")
    base = reference(path, part["base_model"]) if part.get("base_model") else None
    return OutSlice(entries, _parameters(path, method, part), base)


def _entry(path: Path, method: str, entry: Any, where: str, sliced: bool) -> Entry:
    known = ("model", "parameters", "layer_range") if sliced else ("model", "parameters")
    entry = _table(entry, where, known)
    layers = entry.get("layer_range")
    if sliced and not (isinstance(layers, list) and len(layers) == 2 and all(type(n) is int for n in layers)):
        raise ConfigError(f"{where}: layer_range is {layers!r}, expected two numbers [first, end]")
    model = reference(path, entry.get("model"))
    return Entry(model, (layers[0], layers[1]) if layers else None, _parameters(path, method, entry))


def reference(path: Path, model: Any) -> str:
    """A model's path or name; a relative path may also be meant from the file's folder."""
    if not isinstance(model, str) or not model:
        raise ConfigError(f"{path}: a model is {model!r}; expected a path or a name")
    if "+" in model and not Path(model).exists():
        raise ConfigError(f"{path}: model '{model}': give the adapter's own folder; it is put on its base")
    beside = path.parent / model
    return str(beside) if not Path(model).exists() and beside.exists() else model


def _parameters(path: Path, method: str, table: Mapping[str, Any]) -> Parameters:
    found = table.get("parameters") or {}
    return _table(found, f"{path}: parameters of {method}", METHODS[method].parameters)


def _dtype(path: Path, top: Mapping[str, Any]) -> str | None:
    """The output's dtype: `out_dtype`, else `dtype`; arithmetic is done in float32 whatever it says."""
    name = top.get("out_dtype") or top.get("dtype")
    if name is not None and (not isinstance(name, str) or name not in DTYPES):
        raise ConfigError(f"{path}: dtype '{name}' is not known; known are {', '.join(DTYPES)}")
    return name


def _tokenizer(path: Path, top: Mapping[str, Any]) -> str | None:
    """ "base", "union", a model, or None when the file does not say."""
    if "tokenizer" not in top:
        return top.get("tokenizer_source")
    if "tokenizer_source" in top:
        raise ConfigError(f"{path}: give either 'tokenizer' or 'tokenizer_source'")
    why = "rows are matched by token alone"
    refused = {"tokens": why, "pad_to_multiple_of": why}
    return _table(top["tokenizer"], f"{path}: tokenizer", ("source",), refused).get("source", "union")
