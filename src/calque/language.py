"""A language as a value: its code, its names, its family, and how far it is from another one.

The rows stand in `languages.tsv`; its first line names their sources. Reading them takes milliseconds and
happens on first use.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from calque.errors import ConfigError

# One step of the family tree says more about shared words and grammar than a script or a border does.
TREE_WEIGHT, SCRIPT_WEIGHT, PLACE_WEIGHT = 0.6, 0.2, 0.2
_FAR_KM = 10_000.0
_EARTH_RADIUS_KM = 6371.0


class _Row(NamedTuple):
    iso: str
    scripts: tuple[str, ...]
    names: tuple[str, ...]
    codes: tuple[str, ...]
    family: tuple[str, ...]
    area: str
    place: tuple[float, float] | None


@dataclass(frozen=True, order=True)
class Language:
    """A language in one script, e.g. `nya_Latn`: ISO 639-3 code and ISO 15924 script. Equality by code."""

    code: str

    def __post_init__(self) -> None:
        iso, _, script = self.code.partition("_")
        if iso not in _rows() or script not in _scripts():
            raise ConfigError(_unknown(self.code))

    @classmethod
    def parse(cls, text: str | Language) -> Language:
        """The language meant by a code or a name.

        Args:
            text: "nya_Latn", "nya", "ny", "ny-Latn" or "Chichewa", in any case. Without a script, the one
                the language is usually written in.

        Raises:
            ConfigError: nothing or several languages go by this name; the message says what comes near.
        """
        if isinstance(text, Language):
            return text
        asked = text.strip()
        head, _, tail = asked.replace("-", "_").partition("_")
        iso = _codes().get(head.lower())
        script = tail.title()
        if iso and (not tail or script in _scripts()):
            return cls(f"{iso}_{script or _rows()[iso].scripts[0]}")
        named = _names().get(asked.casefold(), ())
        if len(named) == 1:
            return cls(f"{named[0]}_{_rows()[named[0]].scripts[0]}")
        if named:
            raise ConfigError(f"language {asked!r} may be any of {', '.join(named)}; give one of these codes")
        raise ConfigError(_unknown(asked))

    @property
    def iso(self) -> str:
        """ISO 639-3 code, three letters."""
        return self.code.partition("_")[0]

    @property
    def script(self) -> str:
        """ISO 15924 code of the script, four letters."""
        return self.code.partition("_")[2]

    @property
    def name(self) -> str:
        """The usual English name."""
        return _rows()[self.iso].names[0]

    @property
    def short(self) -> str:
        """The two-letter code where there is one, else the three-letter code."""
        return next((code for code in _rows()[self.iso].codes if len(code) == 2), self.iso)

    @property
    def family(self) -> tuple[str, ...]:
        """Path in the family tree from the root to the closest group; empty where none is known."""
        return _rows()[self.iso].family

    @property
    def area(self) -> str:
        """Macroarea (Africa, Eurasia, ...), "" where unknown."""
        return _rows()[self.iso].area

    @property
    def place(self) -> tuple[float, float] | None:
        """Latitude and longitude in degrees of a point where it is spoken, None where unknown."""
        return _rows()[self.iso].place

    def near(self, n: int = 10) -> list[Language]:
        """The `n` languages (each in its usual script) that come nearest, the nearest first."""
        others = [Language(f"{row.iso}_{row.scripts[0]}") for row in _rows().values() if row.iso != self.iso]
        return sorted(others, key=lambda other: (distance(self, other), other.code))[:n]

    def __str__(self) -> str:
        return self.code


def distance(a: Language, b: Language) -> float:
    """How far two languages are from each other: 0 for the same, 1 for nothing in common.

    0.6 tree + 0.2 script + 0.2 place, where tree = 1 - 2 s / (depth_a + depth_b) with s the length of the
    shared beginning of the two family paths (the language itself is the last step), script = 0 when equal
    else 1, place = great-circle distance / 10,000 km, at most 1. An unknown family shares nothing; an
    unknown place counts as half way.

    Relations: distance(a, b) = distance(b, a); distance(a, a) = 0.
    """
    script = float(a.script != b.script)
    if a.iso == b.iso:
        return SCRIPT_WEIGHT * script
    path_a, path_b = (*a.family, a.iso), (*b.family, b.iso)
    shared = 0
    for step_a, step_b in zip(path_a, path_b, strict=False):
        if step_a != step_b:
            break
        shared += 1
    tree = 1 - 2 * shared / (len(path_a) + len(path_b))
    place = 0.5 if a.place is None or b.place is None else min(1.0, _kilometres(a.place, b.place) / _FAR_KM)
    return TREE_WEIGHT * tree + SCRIPT_WEIGHT * script + PLACE_WEIGHT * place


def _kilometres(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Great-circle distance (haversine) between two places in degrees."""
    lat_a, lat_b = math.radians(a[0]), math.radians(b[0])
    half = math.sin((lat_b - lat_a) / 2) ** 2
    half += math.cos(lat_a) * math.cos(lat_b) * math.sin(math.radians(b[1] - a[1]) / 2) ** 2
    return 2 * _EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


@cache
def _rows() -> Mapping[str, _Row]:
    with Path(__file__).with_name("languages.tsv").open(encoding="utf-8", newline="") as stream:
        lines = csv.DictReader(
            (line for line in stream if not line.startswith("#")), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        return {line["iso"]: _row(line) for line in lines}


def _row(line: Mapping[str, str]) -> _Row:
    known = bool(line["latitude"])
    return _Row(
        iso=line["iso"],
        scripts=tuple(line["scripts"].split(",")),
        names=tuple(name for name in (line["name"], *line["other_names"].split("; ")) if name),
        codes=tuple(code for code in line["other_codes"].split(",") if code),
        family=tuple(step for step in line["family"].split("/") if step),
        area=line["area"],
        place=(float(line["latitude"]), float(line["longitude"])) if known else None,
    )


@cache
def _codes() -> Mapping[str, str]:
    """Every code -> ISO 639-3; the rows' own codes win."""
    other = {code: row.iso for row in _rows().values() for code in row.codes}
    return {**other, **{iso: iso for iso in _rows()}}


@cache
def _names() -> Mapping[str, tuple[str, ...]]:
    """Name in lower case -> the languages that go by it; a first name wins over other names."""
    first: dict[str, tuple[str, ...]] = {}
    other: dict[str, tuple[str, ...]] = {}
    for row in _rows().values():
        for place, name in enumerate(row.names):
            table = other if place else first
            table[name.casefold()] = (*table.get(name.casefold(), ()), row.iso)
    return {**other, **first}


@cache
def _scripts() -> frozenset[str]:
    return frozenset(script for row in _rows().values() for script in row.scripts)


def _unknown(asked: str) -> str:
    """Message for an unknown language, with what comes near by code, script or name."""
    head, _, tail = asked.replace("-", "_").partition("_")
    iso = _codes().get(head.lower())
    if iso and tail:
        near = difflib.get_close_matches(tail.title(), sorted(_scripts()), n=3) or list(_rows()[iso].scripts)
        return f"unknown script {tail!r} in language {asked!r}; did you mean {_options(near, iso + '_')}?"
    near_names = difflib.get_close_matches(asked.casefold(), list(_names()), n=4, cutoff=0.7)
    found = list(dict.fromkeys(iso for name in near_names for iso in _names()[name]))
    found = found or [_codes()[c] for c in difflib.get_close_matches(head.lower(), list(_codes()), n=3)]
    if not found:
        return f"unknown language {asked!r}; give a code such as nya, ny or nya_Latn, or an English name"
    near = [f"{iso} ({_rows()[iso].names[0]})" for iso in dict.fromkeys(found)]
    return f"unknown language {asked!r}; did you mean {_options(near)}?"


def _options(names: list[str], prefix: str = "") -> str:
    return " or ".join(prefix + name for name in names)
