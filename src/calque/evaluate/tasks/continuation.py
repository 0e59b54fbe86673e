"""The right second half of a sentence among four, made from any text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.distractors import Pool, row, texts
from calque.evaluate.documents import unspaced
from calque.evaluate.files import needed
from calque.evaluate.pack import LanguagePack

_WORDS = 6  # a shorter sentence is not cut in two
_LETTERS = 12  # where there are no blanks between words


def _halves(text: str, language: str) -> tuple[str, str] | None:
    """A sentence cut in the middle, the blank with the second half; None where it is too short."""
    if unspaced(language):
        middle = len(text) // 2
        return (text[:middle], text[middle:]) if len(text) >= _LETTERS else None
    words = text.split()
    middle = len(words) // 2
    if len(words) < _WORDS:
        return None
    return " ".join(words[:middle]), " " + " ".join(words[middle:])


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """A corpus folder (what `calque data corpus` writes) or JSON lines of its examples; any split is all."""
    cut = [(e, halves) for e in texts(path, [language]) if (halves := _halves(e.sides[language], language))]
    pool = Pool.of(second for _, (_, second) in cut)
    for example, (first, second) in cut:
        choices, right = pool.among(second)
        yield row(example, first, choices, right, f"{path}: {example.id}")


def _item(row: Row, language: str, split: str) -> Item:
    fields = {"question": needed(row, "question", str), "choices": tuple(needed(row, "choices", list))}
    return Item(row["id"], language, fields, needed(row, "right", int), row.get("group", ""))


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    whole = [f"{shot.fields['question']}{shot.fields['choices'][shot.gold]}" for shot in shots]
    return Prompt("\n".join([*whole, item.fields["question"]]), item.fields["choices"])


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    return {"correct": float(answer.choice == item.gold)}


def _made(name: str, question: str, right: str, wrong: str) -> Row:
    return {"id": name, "question": question, "choices": [right, wrong], "right": 0}


BENCHMARK = Benchmark(
    name="continuation",
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
    sample={
        "eng_Latn": [
            _made("1", "The children ran to the river", " to look for the boat.", " is a kind of bread."),
            _made(
                "2",
                "After the rain the farmers",
                " went back to their fields.",
                " of the third lamp.",
            ),
        ],
        "nya_Latn": [
            _made("1", "Ana anathamangira ku mtsinje", " kukafuna bwato.", " ndi mtundu wa buku."),
            _made("2", "Mvula itasiya, alimi", " anabwerera kuminda.", " a nyali itatu."),
        ],
    },
)
