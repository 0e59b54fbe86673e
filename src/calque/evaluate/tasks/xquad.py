"""XQuAD: the answer to a question in a text, question and text in any two languages.

Scores: em and f1 in the words of the context's language; em/published and f1/published as SQuAD's scorer.
The language of an item is that of its context and its answer; a part "test:es" asks in Spanish (G-XLT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calque.errors import DataError
from calque.evaluate.asking import beside, shown
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, needed, squad
from calque.evaluate.normal import published_squad, short_answer
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_CODES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """The questions about the texts in a language, asked in the language behind the part's colon."""
    part, _, asked = split.partition(":")
    if part not in ("test", "validation"):
        raise DataError(f"{path}: XQuAD has one part, validation or test; asked for '{split}'")
    code = Language.parse(asked or language).code
    rows = squad(_file(path, language))
    if code == language:
        yield from ({**row, "question_language": code} for row in rows)
        return
    other = _file(path, code)
    questions = {row["id"]: row["question"] for row in squad(other)}
    for row in rows:
        if row["id"] not in questions:
            raise DataError(f"{row['where']}: {other} has no question '{row['id']}'")
        yield {**row, "question": questions[row["id"]], "question_language": code}


def _file(path: Path, language: str) -> Path:
    if path.is_file():
        raise DataError(f"{path}: a file; give the folder with xquad.LANGUAGE.json of every language")
    return locate(path, f"xquad.{Language.parse(language).short}.json")


def _item(row: Row, language: str, split: str) -> Item:
    answers = _answers(row, needed(row, "context", str))
    fields = {
        "question": needed(row, "question", str).strip(),
        "context": row["context"],
        "question_language": row.get("question_language", language),
        "spans": tuple((start, start + len(text)) for text, start in answers),
    }
    golds = tuple(dict.fromkeys(text for text, _ in answers))
    return Item(needed(row, "id", str), language, fields, golds, str(row.get("passage", "")))


def _answers(row: Row, context: str) -> list[tuple[str, int]]:
    found: Any = row.get("answers")
    if isinstance(found, dict):  # as the hub gives them
        found = list(zip(found.get("text", ()), found.get("answer_start", ()), strict=False))
    where = row.get("where", "record")
    if not found:
        raise DataError(f"{where}: no answer; a question has at least one")
    for text, start in found:
        if start < 0 or not text.strip() or context[start : start + len(text)] != text:
            raise DataError(f"{where}: answer '{text:.40}' is not at {start} of the context")
    return found


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    def ask(one: Item) -> str:
        context = beside(pack["context"], one.fields["context"])
        return f"{context}\n{beside(pack['question'], one.fields['question'])}\n{pack['answer']}"

    return Prompt(shown(item, shots, ask, lambda shot: shot.gold[0]), stop=("\n",), max_tokens=48)


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    """The whole answer; a given span must lie inside the context."""
    size = len(item.fields["context"])
    if isinstance(answer.value, Sequence) and len(answer.value) == 2:
        start, end = answer.value
        if not 0 <= start <= end <= size:
            raise DataError(
                f"item {item.id}: span {start} to {end} is outside its context of {size} characters"
            )
    return short_answer(answer.text, item.gold, LanguagePack.of(item.language), published_squad)


def _row(name: str, context: str, question: str, answer: str) -> Row:
    answers = [(answer, context.index(answer))]
    return {"id": name, "context": context, "question": question, "answers": answers, "passage": "0"}


_ENGLISH = "The old mill stands by the river. Anna Berg built it in 1874 for the village."
_SPANISH = "El viejo molino está junto al río. Anna Berg lo construyó en 1874 para el pueblo."

BENCHMARK = Benchmark(
    name="xquad",
    paper="Artetxe et al. 2020, 2020.acl-main.421; Carrino et al. 2023 for question x context languages",
    licence="CC-BY-SA-4.0",
    revision=1,
    languages=tuple(Language.parse(code).code for code in _CODES),
    form="spans",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("f1", "em", "f1/published", "em/published"),
    hub="google/xquad",
    config=lambda language: f"xquad.{Language.parse(language).short}",
    sample={
        "eng_Latn": (
            _row("a", _ENGLISH, "Who built the mill?", "Anna Berg"),
            _row("b", _ENGLISH, "Where is the mill?", "by the river"),
        ),
        "spa_Latn": (
            _row("a", _SPANISH, "¿Quién construyó el molino?", "Anna Berg"),
            _row("b", _SPANISH, "¿Dónde está el molino?", "junto al río"),
        ),
    },
)
