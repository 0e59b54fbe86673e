"""Score answers that a file holds: of any system, asked anywhere, by the same rules as `evaluate/run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calque import __version__
from calque.disk import checksum
from calque.errors import ConfigError, DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.files import records
from calque.evaluate.pack import LanguagePack
from calque.evaluate.run import Exam, scored
from calque.evaluate.source import Source
from calque.evaluate.table import Table, signature
from calque.language import Language
from calque.progress import say


def score(
    answers: Mapping[str, Path],
    tasks: Mapping[str, Source],
    *,
    languages: list[str] | None = None,
    split: str = "test",
    prompt_language: str = "native",
    romanized: bool = False,
) -> Table:
    """Score files of answers against the items of benchmarks.

    A file of answers is JSON lines (or another flat format) with `task`, `language`, `id` and `prediction`;
    `choice` (index) and `value` (tags, spans, a ranking) where the task is about these. `task` may be left
    out where there is one task, `language` where there is one language.

    Args:
        answers: Files of answers by the name of the system that gave them.
        tasks: Benchmarks by name, each with its data.
        languages: Codes of the languages to score; those of the data, where none is given.
        split: Part of the data that was asked.
        prompt_language: Language of the words around the items: "native" or a code.
        romanized: Whether short answers are compared in Latin letters too, as "em/romanized"; needs the extra
            `romanize`.

    Returns:
        A table as `evaluate/run` gives. An item without an answer is wrong, and its metric `missing` is 1.

    Raises:
        ConfigError: No file, or no task.
        DataError: An answer to no item or given twice, a record that is none; names file and line.
    """
    if not answers or not tasks:
        raise ConfigError("nothing to score; give at least one file of answers and one task")
    exams = {}
    for name, source in tasks.items():
        of = benchmark(name)
        for code in languages or source.languages(of):
            language = Language.parse(code).code
            pack = LanguagePack.of(language if prompt_language == "native" else prompt_language)
            items = source.items(of, language, split)
            exams[name, language] = Exam(of, language, pack, items, (), split, romanized=romanized)
    if not exams:
        raise ConfigError(f"{', '.join(tasks)}: any language will do; say which ones with --languages")
    rows: list[dict[str, Any]] = []
    for system, path in answers.items():
        given = _read(path, exams)
        for key, exam in exams.items():
            missing = len(exam.items) - len(given[key])
            if missing:
                say(
                    f"{system}, {key[0]}, {key[1]}: {missing} of {len(exam.items)} items unanswered, so wrong"
                )
            said = {"asked": "file", "answers": checksum(path)[:8], "words": exam.pack.label()}
            made_by = signature(f"{key[0]}:{exam.benchmark.revision}", said | {"version": __version__})
            rows += scored(system, exam, given[key], made_by)
    return Table.of(rows)


def _read(path: Path, exams: Mapping[tuple[str, str], Exam]) -> dict[tuple[str, str], dict[str, Answer]]:
    """The answers of a file by task and language, then by item."""
    found: dict[tuple[str, str], dict[str, Answer]] = {key: {} for key in exams}
    known = {key: {item.id for item in exam.items} for key, exam in exams.items()}
    tasks, languages = ({key[n] for key in exams} for n in (0, 1))
    for row in records(path):
        task = str(row.get("task") or (next(iter(tasks)) if len(tasks) == 1 else ""))
        code = str(row.get("language") or (next(iter(languages)) if len(languages) == 1 else ""))
        if not task or not code:
            raise DataError(f"{row['where']}: no '{'language' if task else 'task'}', and there are several")
        if "id" not in row or "prediction" not in row:
            raise DataError(f"{row['where']}: an answer needs 'id' and 'prediction'; it has {', '.join(row)}")
        key = (task, Language.parse(code).code)
        if key not in found:
            continue  # a task or language that was not asked for
        item = str(row["id"])
        if item not in known[key]:
            raise DataError(f"{row['where']}: no item '{item}' in {task}, {code}")
        if item in found[key]:
            raise DataError(f"{row['where']}: item '{item}' of {task}, {code} is answered twice")
        found[key][item] = _answer(row)
    return found


def _answer(row: Mapping[str, Any]) -> Answer:
    choice = row.get("choice")
    if choice is not None and not str(choice).isdigit():
        raise DataError(f"{row['where']}: choice {choice!r}; expected the index of a choice, from 0")
    text = row["prediction"]
    return Answer(
        "" if text is None else str(text), None if choice is None else int(choice), (), row.get("value")
    )
