"""Classes of texts: topics, sources, kinds, from any labelled file.

A language model chooses among the names of the classes by log-likelihood; a model with a head for classes
answers with a name. Every class of the file is a choice, whether the split has texts of it or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, records
from calque.evaluate.labelled import class_counts, of_row
from calque.evaluate.pack import LanguagePack

_ENDINGS = (".jsonl", ".tsv", ".csv", ".parquet", ".json")
_SHOWN = 2000  # characters of a text in a prompt


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    iso = language.split("_")[0]
    globs = (f"{language}*{split}*", f"{iso}*{split}*", f"*{split}*", f"{language}*", f"{iso}*")
    listed = list(records(locate(path, *(f"{glob}{end}" for glob in globs for end in _ENDINGS))))
    named = [{**row, "id": row.get("id", str(number))} for number, row in enumerate(listed, 1)]
    labels = tuple(sorted({of_row(row, row["id"]).label for row in named}))
    if len(labels) < 2:
        raise DataError(f"{path}: one label, '{', '.join(labels)}'; there is nothing to tell apart")
    for row in named:
        yield {**row, "labels": labels}


def _item(row: Row, language: str, split: str) -> Item:
    entry = of_row(row, str(row.get("id", "")))
    labels = tuple(row["labels"])
    if entry.label not in labels:
        raise DataError(f"{row.get('where', 'record')}: label '{entry.label}'; known are {', '.join(labels)}")
    return Item(entry.id, language, {"text": entry.text, "labels": labels}, entry.label, entry.group)


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    lines = [f"{_question(shot, pack)} {shot.gold}" for shot in shots]
    choices = tuple(f" {label}" for label in item.fields["labels"])
    return Prompt("\n\n".join([*lines, _question(item, pack)]), choices)


def _question(item: Item, pack: LanguagePack) -> str:
    return f"{item.fields['text'][:_SHOWN].strip()}\n{pack['answer']}:"


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    labels = item.fields["labels"]
    named = {label.casefold(): label for label in labels}
    said = str(answer.value) if isinstance(answer.value, str) else answer.text
    given = named.get(said.strip().casefold(), "")
    if answer.choice is not None and answer.choice < len(labels):
        given = labels[answer.choice]
    return {**class_counts(item.gold, given), "unknown_label": float(not given)}


_LABELS = ("food", "health", "sport")

BENCHMARK = Benchmark(
    name="classify",
    paper="Thangaraj et al. 2024, arXiv:2409.10965, for its use in transfer",
    licence="of the user's data",
    revision=1,
    languages=(),
    form="labels",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("accuracy", "macro_f1", "macro_f1_gold", "weighted_f1"),
    sample={
        "eng_Latn": (
            {"id": "1", "text": "The team won the cup last night.", "label": "sport", "labels": _LABELS},
            {"id": "2", "text": "Boil the beans for an hour.", "label": "food", "labels": _LABELS},
            {"id": "3", "text": "Wash your hands before you eat.", "label": "health", "labels": _LABELS},
        ),
        "nya_Latn": (
            {"id": "1", "text": "Timu yathu inapambana dzulo usiku.", "label": "sport", "labels": _LABELS},
            {"id": "2", "text": "Wiritsani nyemba kwa ola limodzi.", "label": "food", "labels": _LABELS},
            {"id": "3", "text": "Sambani m'manja musanadye.", "label": "health", "labels": _LABELS},
        ),
    },
)
