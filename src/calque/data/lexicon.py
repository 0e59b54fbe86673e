"""A lexicon: which words of two languages translate each other, and how often."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calque.disk import read_json, write_json, write_text
from calque.errors import DataError

TABLE, NOTES = "lexicon.tsv", "lexicon.json"


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Word translations with expected counts, sorted by count, the most frequent first.

    A word stands without the blanks around it. Words of one entry met `count` times as translations of
    each other; links to nothing are not counted.

    Attributes:
        source: source word of each entry.
        target: target word of each entry.
        count: float64 (entries,), expected number of links, above 0.
        probability: float64 (entries,), p(target word | source word) among all links of the source word;
            entries that were dropped as too rare are part of that sum, so it is at most 1.
        notes: settings, pairs read, words, entries dropped.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    count: np.ndarray
    probability: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(self.source), len(self.target), len(self.count), len(self.probability)}
        if len(sizes) > 1:
            raise DataError(f"a lexicon of columns with different lengths: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str, float]]:
        """(source word, target word, expected count) of each entry."""
        return zip(self.source, self.target, self.count.tolist(), strict=True)

    def dictionary(self, *, min_count: float = 3.0, min_probability: float = 0.1) -> list[tuple[str, str]]:
        """Word pairs of which each is the other's most frequent translation, the most frequent first.

        Args:
            min_count: expected links a pair needs, to be more than an accident.
            min_probability: share of the source word's links that the pair needs.
        """
        best: dict[str, int] = {}
        best_back: dict[str, int] = {}
        for place, (one, two) in enumerate(zip(self.source, self.target, strict=True)):
            best.setdefault(one, place)
            best_back.setdefault(two, place)
        return [
            (one, two)
            for place, (one, two) in enumerate(zip(self.source, self.target, strict=True))
            if best[one] == place == best_back[two]
            and self.count[place] >= min_count
            and self.probability[place] >= min_probability
        ]

    def save(self, folder: Path) -> None:
        """Write `lexicon.tsv` (source, target, natural log of p(target | source), count) and the notes."""
        lines = []
        for one, two, count, p in zip(self.source, self.target, self.count, self.probability, strict=True):
            if any(mark in one + two for mark in "\t\n\r"):
                raise DataError(
                    f"the words {one!r} and {two!r} hold a tab or line break, which a TSV can not"
                )
            lines.append(f"{one}\t{two}\t{math.log(p):.9g}\t{count:.9g}\n")
        write_text(folder / TABLE, "".join(lines))
        write_json(folder / NOTES, dict(self.notes))

    @classmethod
    def load(cls, folder: Path) -> Lexicon:
        """Read what `save` wrote, or any TSV of this form.

        Args:
            folder: folder that holds `lexicon.tsv`, or the TSV itself.

        Raises:
            DataError: no such file, or a line without the four columns.
        """
        file = folder if folder.is_file() else folder / TABLE
        if not file.is_file():
            raise DataError(f"{folder}: no lexicon here (needs {TABLE})")
        rows = [
            _row(line, file, number)
            for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1)
            if line
        ]
        source, target, logarithm, count = zip(*rows, strict=True) if rows else ((), (), (), ())
        notes = read_json(file.with_name(NOTES)) if file.with_name(NOTES).is_file() else {}
        return cls(source, target, np.array(count, float), np.exp(np.array(logarithm, float)), notes)


def _row(line: str, file: Path, number: int) -> tuple[str, str, float, float]:
    try:
        one, two, logarithm, count = line.split("\t")
        return one, two, float(logarithm), float(count)
    except ValueError:
        raise DataError(
            f"{file}:{number}: not 'source <tab> target <tab> log probability <tab> count': {line[:80]!r}"
        ) from None
