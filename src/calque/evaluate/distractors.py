"""Wrong choices for an item, taken from other items of the same text: as long as the right one, nearly.

Which ones are taken depends on the item and the other texts alone, never on their order or on chance that
can not be repeated.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calque.data.example import Example
from calque.errors import DataError
from calque.evaluate.files import Row, locate, needed, records

_NEAR = 12  # candidates of like length that the wrong ones are drawn from


def texts(path: Path, languages: Sequence[str]) -> list[Example]:
    """The examples of a corpus folder or JSON lines file that have a side in each of these languages.

    Raises:
        DataError: A record that is no example, or none with these sides.
    """
    file = locate(path, "examples.jsonl", "*.jsonl")
    found = []
    for row in records(file):
        sides = needed(row, "sides", dict)
        if all(str(sides.get(code, "")).strip() for code in languages):
            found.append(
                Example.of_record(
                    {"id": needed(row, "id", str), "group": row.get("group", ""), "sides": sides}
                )
            )
    if not found:
        raise DataError(f"{file}: no example with a side in {' and '.join(languages)}")
    return found


@dataclass(frozen=True)
class Pool:
    """Texts in the order of their lengths, each once."""

    listed: list[str]

    @classmethod
    def of(cls, given: Iterable[str]) -> Pool:
        """Collect the texts that choices are taken from."""
        return cls(sorted(set(given), key=lambda text: (len(text), text)))

    def among(self, own: str, wrong: int = 3) -> tuple[list[str], int]:
        """A text of the pool with `wrong` others, in an order of their own, and where the text stands.

        The others are drawn, by a digest, from the texts nearest in length.

        Raises:
            DataError: Fewer than that many other texts.
        """
        if len(self.listed) <= wrong:
            count = len(self.listed) - 1
            raise DataError(f"{count} other texts to take {wrong} wrong choices from; give more text")
        place = bisect_left(self.listed, (len(own), own), key=lambda text: (len(text), text))
        around = self.listed[max(0, place - _NEAR) : place] + self.listed[place + 1 : place + 1 + _NEAR]
        near = sorted(around, key=lambda text: (abs(len(text) - len(own)), text))[:_NEAR]
        drawn = sorted(near, key=lambda text: _digest(own, text))[:wrong]
        choices = sorted([own, *drawn], key=lambda text: _digest(text, f"{own} in order"))
        return choices, choices.index(own)


def _digest(one: str, other: str) -> bytes:
    return hashlib.sha256(f"{one}\0{other}".encode()).digest()


def row(example: Example, question: str, choices: Sequence[str], right: int, where: str) -> Row:
    """One record of a choice made from a text."""
    return {
        "id": example.id, "group": example.group, "question": question, "choices": list(choices),
        "right": right, "where": where,
    }  # fmt: skip
