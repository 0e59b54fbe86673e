"""Events: triggers with a type and arguments with a role, as spans of words; formats and scores.

Scores follow the usage of the field (Li et al. 2013). A trigger is identified when its words are right, and
classified when its type is right too. An argument is identified when its words and the type of its event
are right, and classified when its role is right too. Each is counted once in a sentence.

Paper of the marked form: Zubillaga et al. 2024, LREC-COLING (events in Basque).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calque.data.example import Span
from calque.errors import DataError
from calque.evaluate import spans

MARK = "$$$"


@dataclass(frozen=True)
class Event:
    """A trigger, whose label is the type of the event, and its arguments, whose labels are their roles."""

    trigger: Span
    arguments: tuple[Span, ...] = ()


def counts(gold: Sequence[Event], made: Sequence[Event]) -> dict[str, float]:
    """tp, fp and fn of the four scores: trigger_id, trigger, argument_id, argument ("trigger.tp", ...)."""
    triggers = [[event.trigger for event in side] for side in (gold, made)]
    arguments = [
        [Span(a.start, a.end, f"{e.trigger.label}\t{a.label}") for e in side for a in e.arguments]
        for side in (gold, made)
    ]
    typed = [[Span(a.start, a.end, a.label.split("\t")[0]) for a in side] for side in arguments]
    return {
        **spans.counts(triggers[0], triggers[1], prefix="trigger_id.", labels=False),
        **spans.counts(triggers[0], triggers[1], prefix="trigger."),
        **spans.counts(typed[0], typed[1], prefix="argument_id."),
        **spans.counts(arguments[0], arguments[1], prefix="argument."),
    }


def from_json(value: str | Any, words: Sequence[str], where: str = "events") -> tuple[tuple[Event, ...], int]:
    """The events that a JSON answer names, and how many of its parts are not among the words.

    Read is a list of {"trigger": T, "type": X, "arguments": [...]}; T is the trigger's text or [start, end],
    an argument {"role": R, "text": "..."} or [start, end, R], or "arguments" maps roles to texts.

    Raises:
        DataError: No JSON, another structure, a start or end outside the words.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(value, list):
        raise DataError(f"{where}: {type(value).__name__}; expected a list of events")
    found: list[Event] = []
    lost = 0
    for entry in value:
        event, missing = _event(entry, words, found, where)
        lost += missing
        if event:
            found.append(event)
    return tuple(found), lost


def _event(entry: Any, words: Sequence[str], before: Sequence[Event], where: str) -> tuple[Event | None, int]:
    if not isinstance(entry, Mapping) or "trigger" not in entry or not isinstance(entry.get("type"), str):
        raise DataError(f"{where}: {entry!r:.60} is no event; expected trigger, type and arguments")
    trigger, kind = entry["trigger"], entry["type"]
    placed: Any = [*trigger, kind] if isinstance(trigger, list | tuple) else {"text": trigger, "label": kind}
    taken = [event.trigger for event in before if event.trigger.label == kind]
    head = spans.find(str(trigger).split(), kind, words, taken) if isinstance(placed, dict) else None
    if not isinstance(placed, dict):
        head = spans.from_json([placed], words, where=where).spans[0]
    if head is None:
        return None, 1
    arguments = entry.get("arguments", [])
    if isinstance(arguments, list):
        arguments = [_labelled(argument) for argument in arguments]
    read = spans.from_json(arguments, words, where=where)
    return Event(head, read.spans), read.illegal


def _labelled(argument: Any) -> Any:
    """An argument under the names of `spans.from_json`, "role" being its label."""
    if isinstance(argument, Mapping) and "role" in argument:
        return {("label" if name == "role" else name): part for name, part in argument.items()}
    return argument


def to_json(events: Sequence[Event], words: Sequence[str]) -> str:
    """The events as `from_json` reads them, in words."""
    listed = [
        {
            "trigger": " ".join(words[event.trigger.start : event.trigger.end]),
            "type": event.trigger.label,
            "arguments": [
                {"role": a.label, "text": " ".join(words[a.start : a.end])} for a in event.arguments
            ],
        }
        for event in events
    ]
    return json.dumps(listed, ensure_ascii=False)


def mark(words: Sequence[str], event: Event) -> tuple[list[str], list[str]]:
    """The words with a mark before and after the trigger, and the tags of the arguments, "O" on the marks.

    Raises:
        DataError: Arguments that overlap or lie outside the words, words that hold the mark already.

    Relations: unmark(*mark(words, event)) gives words and event back but for the type.
    """
    if MARK in words:
        raise DataError(f"a word is the mark {MARK} itself; events can not be marked here")
    begin, end = event.trigger.start, event.trigger.end
    spans.disjoint([event.trigger], len(words), "trigger")
    tags = spans.to_tags(event.arguments, len(words))
    marked = [*words[:begin], MARK, *words[begin:end], MARK, *words[end:]]
    return marked, [*tags[:begin], "O", *tags[begin:end], "O", *tags[end:]]


def unmark(words: Sequence[str], tags: Sequence[str], kind: str = "") -> tuple[list[str], Event]:
    """Words and event of a marked row; illegal tags are repaired (see `calque.evaluate.spans`).

    Raises:
        DataError: Not exactly two marks, or not one tag for each word.
    """
    places = [n for n, word in enumerate(words) if word == MARK]
    if len(places) != 2 or places[1] == places[0] + 1:
        raise DataError(f"{len(places)} marks {MARK}; expected one before and one after the trigger")
    if len(tags) != len(words):
        raise DataError(f"{len(tags)} tags for {len(words)} words; one tag for each word is expected")
    rest = [[part for n, part in enumerate(row) if n not in places] for row in (words, tags)]
    trigger = Span(places[0], places[1] - 1, kind)
    return rest[0], Event(trigger, spans.from_tags(rest[1]).spans)
