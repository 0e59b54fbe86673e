"""One item of text: its sides by language, its document, its target and the spans marked in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calque.errors import DataError


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (end not included) of one side, with a label."""

    start: int
    end: int
    label: str = ""


@dataclass(frozen=True)
class Example:
    """One item: one side is plain text, two sides are a translation pair.

    Attributes:
        id: stable name (from the content or the position), unique in its corpus.
        sides: language code ("nya_Latn") -> text.
        group: document, chapter or file it belongs to; a split never cuts a group.
        target: label, grade or answer, where the task has one.
        spans: language code -> spans marked in that side.
        question: what is asked of the sides, where the task asks: a question, a query, an instruction.
        weight: how much the item counts beside others.

    Raises:
        DataError: a span lies outside its side, or names a side that is not there; a negative weight.
    """

    id: str
    sides: Mapping[str, str]
    group: str = ""
    target: str | int | None = None
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    question: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise DataError(f"example {self.id}: weight {self.weight}; it must be 0 or more")
        for language, spans in self.spans.items():
            if language not in self.sides:
                raise DataError(f"example {self.id}: spans for {language}, sides are {', '.join(self.sides)}")
            length = len(self.sides[language])
            for span in spans:
                if not 0 <= span.start <= span.end <= length:
                    raise DataError(
                        f"example {self.id}: span {span.start}..{span.end} lies outside its {language} side "
                        f"of {length} characters"
                    )

    def record(self) -> dict[str, Any]:
        """The example as a JSON object; empty fields are left out."""
        found: dict[str, Any] = {"id": self.id, "sides": dict(self.sides)}
        if self.group:
            found["group"] = self.group
        if self.target is not None:
            found["target"] = self.target
        if any(self.spans.values()):
            found["spans"] = {k: [[s.start, s.end, s.label] for s in v] for k, v in self.spans.items() if v}
        if self.question:
            found["question"] = self.question
        if self.weight != 1:
            found["weight"] = self.weight
        return found

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Example:
        """The inverse of `record`."""
        spans = {k: tuple(Span(*span) for span in v) for k, v in record.get("spans", {}).items()}
        return cls(
            record["id"],
            record["sides"],
            record.get("group", ""),
            record.get("target"),
            spans,
            record.get("question", ""),
            record.get("weight", 1.0),
        )
