"""Slots: the place of a tensor in a model, whatever its architecture calls it.

The names of the known architectures are rows of two tables beside this file: `architectures.tsv` (which
family of names a model type uses, and what may stand before them) and `slots.tsv` (name pattern <-> role).
In a pattern `*` stands for `weight` or `bias`; a bias has the role of its weight with `.bias` behind it.
A name that no row knows keeps itself as its role, behind a `~`, with its first number as the layer; in a
known architecture only where the layers of its text are (a vision tower has layers of its own).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PLACES = {
    "layer": r"(?P<layer>0|[1-9]\d*)",
    "expert": r"(?P<expert>0|[1-9]\d*)",
    "stack": r"(?P<stack>encoder|decoder)",
    "language": r"(?P<language>[A-Za-z_\-]+)",
}
_MARK = "{layer}"
_NUMBER = re.compile(r"(?:(?<=\.)|^)(?:0|[1-9]\d*)(?=\.)")
_INPUT = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|shared|embedding)\.weight$"
)
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")


@dataclass(frozen=True, order=True)
class Slot:
    """One place in a model.

    Attributes:
        layer: number of the layer, counted within its stack from 0; None outside the layers.
        role: what the tensor does there, in words all architectures share: "attention.q", "mlp.down.bias".
        shape: shape of the tensor as it is stored.
    """

    layer: int | None
    role: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How one model names its parameters: a family of names and the prefix in front of them.

    Attributes:
        family: key into `slots.tsv`; "" when the architecture is unknown.
        prefix: what stands for `{p}` in the patterns ("model.").
        input: name of the input embedding of an unknown architecture.
        output: name of its output matrix.
    """

    family: str
    prefix: str = ""
    input: str = ""
    output: str = ""

    def slot(self, name: str, shape: tuple[int, ...]) -> Slot:
        """The slot of the parameter `name`."""
        layer, role = self.place(name)
        return Slot(layer, role, shape)

    def place(self, name: str) -> tuple[int | None, str]:
        """(layer, role) of the parameter `name`."""
        for exact, role in self._exact():
            if name == exact:
                return None, role
        for pattern, role, _ in _rows(self.family, self.prefix):
            if match := pattern.fullmatch(name):
                found = match.groupdict()
                layer = found.pop("layer", None)
                return None if layer is None else int(layer), role.format(**found)
        known = self.family and not any(head.match(name) for head in _heads(self.family, self.prefix))
        return (None, f"~{name}") if known else _generic_place(name)

    def name(self, layer: int | None, role: str) -> str:
        """The parameter name of (layer, role); the inverse of `place`.

        Raises:
            KeyError: this architecture has no such role.
        """
        for exact, known in self._exact():
            if role == known:
                return exact
        if role.startswith("~"):
            return role[1:] if layer is None else role[1:].replace(_MARK, str(layer), 1)
        for _, known, name in _rows(self.family, self.prefix):
            if (_MARK in name) == (layer is not None) and (match := _pattern(known).fullmatch(role)):
                return name.format(layer=layer, **match.groupdict())
        raise KeyError(f"'{self.family or 'unknown'}' has no role '{role}' at layer {layer}")

    def _exact(self) -> Iterator[tuple[str, str]]:
        if self.input:
            yield self.input, "embed.input"
        if self.output:
            yield self.output, "embed.output"


def layout(model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a model, from its `model_type` and the names and shapes of its parameters.

    An unknown `model_type` gets the generic rule (`family` is ""), its two embeddings found by their usual
    names.
    """
    if model_type in _architectures():
        family, prefixes = _architectures()[model_type]
        for prefix in prefixes:
            candidate = Layout(family, prefix)
            if candidate.name(None, "embed.input") in shapes:
                return candidate
        return Layout(family, prefixes[0])
    return Layout("", input=_largest(_INPUT, shapes), output=_largest(_OUTPUT, shapes))


def _largest(pattern: re.Pattern[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The matrix with most rows whose name fits; "" without one."""
    fits = [name for name, shape in shapes.items() if len(shape) == 2 and pattern.search(name)]
    return max(fits, key=lambda name: shapes[name][0], default="")


def _generic_place(name: str) -> tuple[int | None, str]:
    match = None if _MARK in name else _NUMBER.search(name)
    if match is None:
        return None, f"~{name}"
    return int(match.group()), f"~{name[: match.start()]}{_MARK}{name[match.end() :]}"


@cache
def _rows(family: str, prefix: str) -> tuple[tuple[re.Pattern[str], str, str], ...]:
    """(pattern, role, name template) of every row of a family, the prefix filled in."""
    return tuple(
        (_pattern(name.replace("{p}", prefix)), role, name.replace("{p}", prefix))
        for families, name, role in _table()
        if family in families
    )


@cache
def _heads(family: str, prefix: str) -> tuple[re.Pattern[str], ...]:
    """What stands before the number of a layer; of a looped model also before that of a depth."""
    names = [name for _, _, name in _rows(family, prefix) if _MARK in name]
    return tuple(_pattern(head) for head in dict.fromkeys(["depth.", *(n.split(_MARK)[0] for n in names)]))


@cache
def _table() -> tuple[tuple[frozenset[str], str, str], ...]:
    """Rows of `slots.tsv`, each `*` written out as its two names."""
    rows: list[tuple[frozenset[str], str, str]] = []
    for families, name, role in _read("slots.tsv"):
        known = frozenset(families.split())
        if name.endswith(".*"):
            rows.append((known, f"{name[:-1]}weight", role))
            rows.append((known, f"{name[:-1]}bias", f"{role}.bias"))
        else:
            rows.append((known, name, role))
    return tuple(rows)


@cache
def _architectures() -> dict[str, tuple[str, tuple[str, ...]]]:
    return {
        model_type: (family, tuple(prefixes.split("|")))
        for model_type, family, prefixes in _read("architectures.tsv")
    }


def model_types() -> Iterable[str]:
    """The architectures that have rows in the tables."""
    return _architectures().keys()


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Regular expression of a name or role with places in braces."""
    expression = re.escape(template)
    for place, values in _PLACES.items():
        expression = expression.replace(re.escape("{" + place + "}"), values)
    return re.compile(expression)


def _read(table: str) -> list[list[str]]:
    with Path(__file__).with_name(table).open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream, delimiter="\t"))[1:]
