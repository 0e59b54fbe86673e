"""The right translation of a sentence among four, made from any parallel text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.distractors import Pool, row, texts
from calque.evaluate.files import locate, needed, records
from calque.evaluate.pack import LanguagePack
from calque.language import Language


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """A parallel corpus folder or JSON lines of its examples; the question is the other side's text."""
    first = next(iter(records(locate(path, "examples.jsonl", "*.jsonl"))))
    other = next((code for code in needed(first, "sides", dict) if code != language), None)
    if other is None:
        raise DataError(f"{first['where']}: one side, {language}; translations are picked for another")
    pairs = texts(path, [language, other])
    pool = Pool.of(example.sides[language].strip() for example in pairs)
    for example in pairs:
        choices, right = pool.among(example.sides[language].strip())
        made = row(example, example.sides[other].strip(), choices, right, f"{path}: {example.id}")
        yield made | {"from": other}


def _item(row: Row, language: str, split: str) -> Item:
    fields = {
        "question": needed(row, "question", str),
        "choices": tuple(needed(row, "choices", list)),
        "from": Language.parse(needed(row, "from", str)).name,
        "to": Language.parse(language).name,
    }
    return Item(row["id"], language, fields, needed(row, "right", int), row.get("group", ""))


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """Pairs of lines, each begun by the name of its language."""
    asked = [f"{_ask(shot)} {shot.fields['choices'][shot.gold]}" for shot in shots]
    return Prompt("\n".join([*asked, _ask(item)]), tuple(f" {choice}" for choice in item.fields["choices"]))


def _ask(item: Item) -> str:
    return f"{item.fields['from']}: {item.fields['question']}\n{item.fields['to']}:"


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    return {"correct": float(answer.choice == item.gold)}


_PAIRS = (("water", "madzi"), ("house", "nyumba"), ("book", "buku"), ("fish", "nsomba"))


def _sample(to: int, code: str) -> list[Row]:
    words = [pair[to] for pair in _PAIRS]
    return [
        {"id": pair[0], "question": pair[1 - to], "choices": words, "right": n, "from": code}
        for n, pair in enumerate(_PAIRS)
    ]


BENCHMARK = Benchmark(
    name="matching",
    paper="",
    licence="that of the text",
    revision=1,
    languages=(),
    form="choice",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("correct",),
    sample={"nya_Latn": _sample(1, "eng_Latn"), "eng_Latn": _sample(0, "nya_Latn")},
)
