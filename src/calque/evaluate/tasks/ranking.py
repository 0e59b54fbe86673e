"""Rankings of documents for queries, judged by relevance.

Records are JSON lines with `id` or `query` (the query's name), `relevant` (a list of documents, or
{document: grade}) and, where they are at hand, `text` (the query in words) and `candidates`; or a TREC qrels
file. An answer's value is a list of documents, best first, or {document: score}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calque.data.read import ending
from calque.errors import DataError
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, records
from calque.evaluate.pack import LanguagePack
from calque.evaluate.ranking import (
    MEASURES,
    best_first,
    grades_of,
    query_of,
    read_judgements,
    score_query,
    scores_of,
)


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    iso = language.split("_")[0]
    names = [f"{part}{end}" for part in (f"{language}*{split}*", f"{iso}*{split}*", f"*{split}*", "*")
             for end in (".jsonl", ".qrels", ".tsv", ".txt")]  # fmt: skip
    file = locate(path, *names)
    if ending(file) == ".jsonl":
        yield from records(file)
        return
    for query, grades in read_judgements(file).items():
        yield {"query": query, "relevant": grades, "where": str(file)}


def _item(row: Row, language: str, split: str) -> Item:
    grades = grades_of(row)
    bad = [grade for grade in grades.values() if isinstance(grade, bool) or not isinstance(grade, int)]
    if bad:
        raise DataError(f"{row['where']}: grade {bad[0]!r}; expected a whole number")
    fields = {"text": str(row.get("text", "")), "candidates": row.get("candidates", ())}
    return Item(query_of(row), language, fields, grades)


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    return Prompt(item.fields["text"])


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    value: Any = answer.value if answer.value is not None else answer.text.split()
    found = scores_of(value, f"ranking of query '{item.id}'")
    scores = dict(found)
    if len(scores) < len(found):
        twice = next(name for n, (name, _) in enumerate(found) if name in dict(found[:n]))
        raise DataError(f"ranking of query '{item.id}': document '{twice}' stands twice")
    return score_query(best_first(scores), item.gold, MEASURES)


BENCHMARK = Benchmark(
    name="ranking",
    paper="",
    licence="of the user's data",
    revision=1,
    languages=(),
    form="ranking",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("ap", "ndcg@10", "rr@10", "recall@100"),
    sample={
        "eng_Latn": (
            {"id": "q1", "text": "how to boil an egg", "relevant": {"eggs": 2, "kitchen": 1}},
            {"id": "q2", "text": "bus to the lake", "relevant": ["timetable"]},
        )
    },
)
