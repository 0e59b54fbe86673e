"""What searches tried: every candidate, its score on the validation texts, and which was taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from calque import disk
from calque.report import charts
from calque.report.run import Run, Step

_SCORES = frozenset({"score", "bits_per_byte"})


@dataclass(frozen=True)
class Candidate:
    """One evaluation of a search.

    Attributes:
        settings: what was tried, in words.
        times: bits per byte over those of the base, geometric mean over the texts.
        bits: bits per byte of each text.
        chosen: whether the result was made with it.
    """

    settings: str
    times: float
    bits: tuple[float, ...]
    chosen: bool


@dataclass(frozen=True)
class Search:
    """One search: its candidates in the order in which they were tried, and the base's bits per byte."""

    step: str
    do: str
    texts: tuple[str, ...]
    base: tuple[float, ...]
    candidates: tuple[Candidate, ...]
    chart: Markup

    @property
    def chosen(self) -> Candidate:
        """The one that was taken."""
        return next(one for one in self.candidates if one.chosen)


def searches(run: Run) -> list[Search]:
    """Every step of the run that kept the curve of a search."""
    return [made for step in run.by_family("merge/") if (made := _search(step)) is not None]


def _search(step: Step) -> Search | None:
    file = step.folder / "rewrite.json"
    notes = disk.read_json(file) if file.is_file() else {}
    found = notes.get("search") or {}
    if not found.get("curve"):
        return None
    texts, taken = tuple(found["base"]), _taken(notes)
    candidates = tuple(
        Candidate(
            _settings(entry),
            2.0 ** entry["score"],
            tuple(entry["bits_per_byte"][text] for text in texts),
            number == taken,
        )
        for number, entry in enumerate(found["curve"])
    )
    times = [one.times for one in candidates]
    curve = charts.Curve(tuple(times), taken, candidates[taken].settings)
    told = (
        f"{len(times)} candidates; the first has {times[0]:.3f} times the base's bits per byte, "
        f"the chosen one, number {taken + 1} with {candidates[taken].settings}, {times[taken]:.3f} times"
    )
    chart = charts.both(charts.search, curve, f"search-{step.name}", told)
    return Search(step.name, step.do, texts, tuple(found["base"].values()), candidates, chart)


def _taken(notes: Mapping[str, Any]) -> int:
    """Place in the curve of what the result was made with; its settings stand in the notes themselves."""
    curve = notes["search"]["curve"]
    same = [
        place
        for place, entry in enumerate(curve)
        if all(notes.get(key) == value for key, value in entry.items() if key not in _SCORES)
    ]
    return min(same or range(len(curve)), key=lambda place: curve[place]["score"])


def _settings(entry: Mapping[str, Any]) -> str:
    """Settings of a candidate: "bottom 5, top 2", "scales 1.20 and 0.85"."""
    return ", ".join(f"{key} {_value(value)}" for key, value in entry.items() if key not in _SCORES)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(_value, value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)
