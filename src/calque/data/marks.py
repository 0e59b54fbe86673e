"""What a row of a file says about its text besides the text: target, question, spans, weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calque.data.example import Span
from calque.errors import DataError

_TARGETS = ("target", "label", "answer")
_QUESTIONS = ("question", "query", "instruction")
WORDS = (*_TARGETS, *_QUESTIONS)  # what a cell of a plain table can say
NAMES = (*WORDS, "spans", "answers", "weight")


def marks(
    place: str, row: Mapping[str, Any], sides: Mapping[str, str], languages: Sequence[str]
) -> dict[str, Any]:
    """Fields of `Example` that a row has besides its sides and its group.

    `spans` is a list of [start, end] or [start, end, label] for the only side, or one such list for each
    language; `answers` may also be SQuAD's {"text": [...], "answer_start": [...]}.

    Args:
        place: what a message begins with: file and line.
        row: names to values.
        sides: the texts that were found in the row.
        languages: codes of the wanted sides; of two, `target` names the second.

    Raises:
        DataError: a value of another kind.
    """
    found: dict[str, Any] = {}
    for name in _TARGETS if len(languages) == 1 else _TARGETS[1:]:
        value = row.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            found["target"] = str(value) if isinstance(value, float) else value
            break
    for name in _QUESTIONS:
        if isinstance(row.get(name), str) and row[name].strip():
            found["question"] = row[name].strip()
            break
    spans = row.get("spans")
    if spans is None and isinstance(row.get("answers"), Mapping):
        spans = _squad(place, row["answers"])
    if spans:
        by_side = spans if isinstance(spans, Mapping) else {languages[0]: spans}
        found["spans"] = {code: _spans(place, listed) for code, listed in by_side.items() if code in sides}
    weight = row.get("weight")
    if weight is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise DataError(f"{place}: weight is {weight!r}, should be a number")
        found["weight"] = float(weight)
    return found


def _spans(place: str, listed: Any) -> tuple[Span, ...]:
    try:
        return tuple(Span(int(s[0]), int(s[1]), str(s[2]) if len(s) > 2 else "") for s in listed)
    except (TypeError, ValueError, IndexError, KeyError):
        raise DataError(
            f"{place}: spans {listed!r:.60}; a span is [start, end] or [start, end, label]"
        ) from None


def _squad(place: str, answers: Mapping[str, Any]) -> list[tuple[int, int]]:
    try:
        pairs = zip(answers["text"], answers["answer_start"], strict=True)
        return [(int(start), int(start) + len(text)) for text, start in pairs]
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f'{place}: answers {answers!r:.60}; should be {{"text": [...], "answer_start": [...]}}'
        ) from None
