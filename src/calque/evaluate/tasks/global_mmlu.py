"""Global-MMLU: examination questions of 57 subjects in 42 languages, cultural ones marked.

Scores: correct; "sensitive_correct/sensitive" is the accuracy on questions marked as culturally sensitive,
"agnostic_correct/agnostic" on those marked as not. Chance is 0.25.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from calque.evaluate.asking import correct, gold_choice, lettered, lettered_fields
from calque.evaluate.benchmark import Answer, Benchmark, Item, Row
from calque.evaluate.files import locate, needed, records
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_CHOICES = ("option_a", "option_b", "option_c", "option_d")
_CODES = (
    "am", "ar", "bn", "cs", "de", "el", "en", "es", "fa", "fil", "fr", "ha", "he", "hi", "id", "ig", "it",
    "ja", "ko", "ky", "lt", "mg", "ms", "ne", "nl", "ny", "pl", "pt", "ro", "ru", "si", "sn", "so", "sr",
    "sv", "sw", "te", "tr", "uk", "vi", "yo", "zh",
)  # fmt: skip
_OWN = {Language.parse(code).code: code for code in _CODES}


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    name, part = _config(language), {"validation": "dev"}.get(split, split)
    files = (f"{name}/*{part}*.parquet", f"{name}_{part}.csv", f"{name}/{part}.csv", f"{name}_{part}.jsonl")
    return records(locate(path, *files))


def _config(language: str) -> str:
    return _OWN.get(language, Language.parse(language).short)


def _item(row: Row, language: str, split: str) -> Item:
    fields = {
        "question": needed(row, "question", str).strip(),
        "choices": lettered_fields(row, _CHOICES),
        "subject": str(row.get("subject") or ""),
        "culture": str(row.get("cultural_sensitivity_label") or ""),
    }
    gold = gold_choice(row, "answer", ("A", "B", "C", "D"))
    return Item(needed(row, "sample_id", str), language, fields, gold)


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    found = correct(item, answer, pack)
    for name, label in (("sensitive", "CS"), ("agnostic", "CA")):
        marked = float(item.fields["culture"] == label)
        found |= {name: marked, f"{name}_correct": marked * found["correct"]}
    return found


def _row(name: str, culture: str, question: str, *choices: str, answer: str) -> Row:
    asked = {"sample_id": name, "subject": "sample", "question": question, "answer": answer}
    return {**asked, **dict(zip(_CHOICES, choices, strict=True)), "cultural_sensitivity_label": culture}


BENCHMARK = Benchmark(
    name="global_mmlu",
    paper="Singh et al. 2024, arXiv:2412.03304",
    licence="Apache-2.0",
    revision=1,
    languages=tuple(_OWN),
    form="choice",
    rows=_rows,
    item=_item,
    prompt=lettered,
    score=_score,
    measures=("correct", "sensitive_correct/sensitive", "agnostic_correct/agnostic"),
    hub="CohereLabs/Global-MMLU",
    config=_config,
    sample={
        "eng_Latn": (
            _row("s/1", "CA", "How many corners has a hexagon?", "Four", "Five", "Six", "Eight", answer="C"),
            _row("s/2", "CS", "Who wrote Hamlet?", "Shakespeare", "Goethe", "Dante", "Homer", answer="A"),
        ),
        "deu_Latn": (
            _row("s/1", "CA", "Wie viele Ecken hat ein Sechseck?", "4", "5", "6", "8", answer="C"),
            _row("s/2", "CS", "Wer schrieb Hamlet?", "Shakespeare", "Goethe", "Dante", "Homer", answer="A"),
        ),
    },
)
