"""Events: triggers with a type, arguments with a role.

JSON lines with tokens and triggers (tags of event types), or the words of one event with $$$ around its
trigger and labels (tags of roles), as in EusIE and MEE; or with events in full. A head's tags are
scored for what the record tags; a written JSON answer gives whole events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.errors import DataError
from calque.evaluate import events, spans, tagging
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.events import MARK, Event
from calque.evaluate.files import locate, records
from calque.evaluate.pack import LanguagePack
from calque.language import Language


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    of = Language.parse(language)
    names = [f"{folder}/{split}.jsonl" for folder in (of.code, of.iso, of.short)]
    yield from records(locate(path, *names, f"{split}.jsonl"))


def _item(row: Row, language: str, split: str) -> Item:
    where = str(row.get("where", "record"))
    words = row.get("words", row.get("tokens"))
    if "events" in row:
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise DataError(f"{where}: 'words' is {words!r:.60}; expected a list of texts")
        gold, lost = events.from_json(row["events"], words, where)
        if lost:
            raise DataError(f"{where}: {lost} parts of its events are not among the words")
        asked = "events"
    else:
        words, tags = tagging.words_and_tags({**row, "tags": row.get("triggers", row.get("labels"))})
        asked = "arguments" if MARK in words else "triggers"
        gold = _of_tags(words, tags, asked, where)
    return Item(
        tagging.name(row), language, {"words": words, "asked": asked}, gold, str(row.get("group", ""))
    )


def _of_tags(words: Sequence[str], tags: Sequence[str], asked: str, where: str) -> tuple[Event, ...]:
    if asked == "triggers":
        return tuple(Event(span) for span in spans.from_tags(tags, where=where).spans)
    return (events.unmark(words, tags)[1],)


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """A JSON list of events with trigger, type and arguments."""
    told = [f"{_asked(shot, pack)} {_shown(shot)}" for shot in shots]
    return Prompt("\n\n".join([*told, _asked(item, pack)]), stop=("\n\n",), max_tokens=400)


def _asked(item: Item, pack: LanguagePack) -> str:
    return f"{pack['context']} {' '.join(item.fields['words'])}\n{pack['answer']}"


def _bare(item: Item) -> list[str]:
    return [word for word in item.fields["words"] if word != MARK]


def _shown(item: Item) -> str:
    return events.to_json(item.gold, _bare(item))


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    made, unparsed = _made(item, answer)
    found = events.counts(item.gold, made)
    if item.fields["asked"] == "triggers":
        found = {name: value for name, value in found.items() if name.startswith("trigger")}
    elif item.fields["asked"] == "arguments":  # the trigger was given
        found = {name: value for name, value in found.items() if name.startswith("argument")}
    return {**found, "unparsed": float(unparsed)}


def _made(item: Item, answer: Answer) -> tuple[tuple[Event, ...], int]:
    words, asked = item.fields["words"], item.fields["asked"]
    where = f"item {item.id}"
    if isinstance(answer.value, list | tuple):
        if answer.value and isinstance(answer.value[0], Mapping):
            return events.from_json(list(answer.value), _bare(item), where)
        told = tagging.tags_of(item, answer, (), "O")
        return _of_tags(words, told.tags, "triggers" if asked == "events" else asked, where), 0
    begin, end = answer.text.find("["), answer.text.rfind("]")
    try:
        made, lost = events.from_json(answer.text[begin : end + 1], _bare(item), where)
    except DataError:
        return (), 1
    if asked == "arguments":  # roles count, whatever trigger and type the answer names
        given = item.gold[0].trigger
        made = (Event(given, tuple(a for event in made for a in event.arguments)),)
    return made, lost


def _sample(*rows: tuple[str, str, str, dict[str, str]]) -> tuple[Row, ...]:
    return tuple(
        {
            "id": str(n),
            "words": text.split(),
            "events": [{"trigger": trigger, "type": kind, "arguments": roles}] if trigger else [],
        }
        for n, (text, trigger, kind, roles) in enumerate(rows, 1)
    )


BENCHMARK = Benchmark(
    name="events",
    paper="Zubillaga et al. 2024, LREC-COLING (EusIE); Pouran Ben Veyseh et al. 2022 (MEE)",
    licence="EusIE: Apache-2.0; MEE: by its authors",
    revision=1,
    languages=("eus_Latn",),
    form="tags",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("trigger.f1", "trigger_id.f1", "argument.f1", "argument_id.f1"),
    shots=2,
    sample={
        "eng_Latn": _sample(
            ("Anna visited Zomba on Monday .", "visited", "Visit", {"Visitor": "Anna", "Place": "Zomba"}),
            ("Ben bought a house .", "bought", "Purchase", {"Buyer": "Ben", "Thing": "a house"}),
            ("It is warm .", "", "", {}),
        ),
        "eus_Latn": _sample(
            ("Anek Bilbo bisitatu zuen .", "bisitatu", "Visit", {"Visitor": "Anek", "Place": "Bilbo"}),
            ("Mikelek etxe bat erosi zuen .", "erosi", "Purchase", {"Buyer": "Mikelek", "Thing": "etxe bat"}),
            ("Bero egiten du .", "", "", {}),
        ),
    },
)
