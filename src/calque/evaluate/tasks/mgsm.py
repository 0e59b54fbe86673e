"""MGSM: grade-school problems whose answer is a number, scored in any digits.

Scores: correct is the number meant, in the language's digits and marks; correct/published is the rule of a
widely used harness: the last run of ASCII digits and marks, compared without punctuation.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from calque.errors import DataError
from calque.evaluate.asking import beside, place, shown
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, needed, records
from calque.evaluate.numbers import number, readings
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_CODES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
_PUBLISHED = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_NO_MARKS = str.maketrans("", "", string.punctuation)


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    short = Language.parse(language).short
    if split != "test":
        raise DataError(f"{path}: MGSM's files have one part, test; asked for '{split}'")
    return records(locate(path, f"mgsm_{short}.tsv"), ("question", "answer_number"))


def _item(row: Row, language: str, split: str) -> Item:
    """The gold number is written with English marks in every language ("5,600")."""
    value = row.get("answer_number")
    gold = number(str(value), LanguagePack.of("eng_Latn"))
    if value is None or gold is None:
        raise DataError(f"{row.get('where', 'record')}: the answer is {value!r}, expected a number")
    return Item(place(row), language, {"question": needed(row, "question", str).strip()}, gold)


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    def ask(one: Item) -> str:
        return f"{beside(pack['question'], one.fields['question'])}\n{pack['answer']}"

    text = shown(item, shots, ask, lambda shot: str(shot.gold))
    return Prompt(text, stop=("\n\n", pack["question"]), max_tokens=256)


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    own = LanguagePack.of(item.language)
    return {
        "correct": float(item.gold in _meant(answer.text, (own, pack))),
        "correct/published": float(published(answer.text, item.gold)),
        "unparsed": float(not readings(answer.text, own)),
    }


def _meant(text: str, packs: Sequence[LanguagePack]) -> tuple[Fraction, ...]:
    """The number behind the last "The answer is" in one of the languages, else the last one, read any way."""
    for pack in packs:
        _, cue, rest = text.rpartition(pack["step_answer"])
        if cue and (found := readings(rest, pack, "first")):
            return found
    return tuple(value for pack in packs for value in readings(text, pack))


def published(text: str, gold: Fraction) -> bool:
    """The harness's rule: last match, then case and ASCII punctuation aside."""
    found = _PUBLISHED.findall(text)
    last = next(group for group in found[-1] if group) if found else "[invalid]"
    return last.strip().lower().translate(_NO_MARKS) == str(gold).translate(_NO_MARKS)


BENCHMARK = Benchmark(
    name="mgsm",
    paper="Shi et al. 2022, arXiv:2210.03057",
    licence="CC-BY-4.0",
    revision=1,
    languages=tuple(Language.parse(code).code for code in _CODES),
    form="text",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("correct", "correct/published"),
    hub="juletxara/mgsm",
    config=lambda language: Language.parse(language).short,
    sample={
        "eng_Latn": (
            {
                "id": "1",
                "question": "Amina has 3 baskets with 12 mangoes each. How many in all?",
                "answer_number": "36",
            },
            {
                "id": "2",
                "question": "A book costs 1,250 and a pen 50. What do both cost?",
                "answer_number": "1,300",
            },
        ),
        "ben_Beng": (
            {"id": "1", "question": "আমিনার ৩টি ঝুড়িতে ১২টি করে আম আছে। মোট কতটি আম?", "answer_number": "36"},
            {
                "id": "2",
                "question": "একটি বইয়ের দাম ১,২৫০ টাকা আর একটি কলমের ৫০ টাকা। দুটির দাম কত?",
                "answer_number": "1,300",
            },
        ),
    },
)
