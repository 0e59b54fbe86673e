"""To lm-eval and back: a benchmark as its YAML and data file, and its results as a table.

What is exported is what `evaluate/run` would ask, word for word, one YAML file for each task and language.
Each record of the data carries its item, so that the samples which lm-eval writes (`--log_samples`) are
scored here by the benchmark's own rules, and not by the harness's.

Peer: lm-eval 0.4.13 (EleutherAI), `lm-eval run --tasks NAME --include_path OUT`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge

from calque import __version__
from calque.disk import checksum, read_json, write_text
from calque.errors import ConfigError, DataError
from calque.evaluate.benchmark import Answer, Item, benchmark
from calque.evaluate.files import records
from calque.evaluate.pack import LanguagePack
from calque.evaluate.run import Exam, scored
from calque.evaluate.source import Source, spread
from calque.evaluate.table import Table, signature
from calque.language import Language
from calque.progress import say

_SAMPLES = re.compile(r"samples_(.+?)_\d{4}-\d{2}-\d{2}T.*\.jsonl$")


@dataclass(frozen=True)
class Export:
    """Tasks ready for lm-eval: name -> (its YAML as a mapping, its records)."""

    tasks: Mapping[str, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]

    def save(self, folder: Path) -> None:
        """Write NAME.yaml and NAME.jsonl for each task; run lm-eval inside the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, (config, rows) in self.tasks.items():
            write_text(folder / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(folder / f"{name}.jsonl", "".join(lines))


def export(
    tasks: Mapping[str, Source],
    *,
    languages: list[str] | None = None,
    split: str = "test",
    limit: Annotated[int, Ge(1)] | None = None,
    shots: Annotated[int, Ge(0)] | None = None,
    prompt_language: str = "native",
) -> Export:
    """Write benchmarks as tasks of lm-eval.

    Args:
        tasks: Benchmarks by name, each with its data.
        languages: Codes of the languages; those of the data, where none is given.
        split: Part of the data.
        limit: At most so many items of each task and language, evenly spread over its data.
        shots: Examples before each item, the first items of the split; the benchmark's own number by default.
        prompt_language: Language of the words around an item: "native" or a code.

    Returns:
        YAML files and data, "calque_TASK_LANGUAGE"; choices as multiple_choice, the rest as generate_until.

    Raises:
        ConfigError: No task, no language, a benchmark that only a head answers.
        DataError: A record that is none, an item of which no choice is right.
    """
    if not tasks:
        raise ConfigError("nothing to export; give at least one task")
    found = {}
    for name, source in tasks.items():
        of = benchmark(name)
        codes = languages or source.languages(of)
        if not codes:
            raise ConfigError(f"{name} goes with any language; say which ones with --languages")
        for code in codes:
            language = Language.parse(code).code
            items = source.items(of, language, split)
            count = of.shots if shots is None else shots
            if count >= len(items):
                raise ConfigError(f"{name}, {language}: {len(items)} items, of which {count} are examples")
            pack = LanguagePack.of(language if prompt_language == "native" else prompt_language)
            exam = Exam(of, language, pack, spread(items[count:], limit), items[:count], split)
            found[f"calque_{name}_{language}"] = _task(f"calque_{name}_{language}", exam)
    return Export(found)


def _task(name: str, exam: Exam) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    rows = [_record(exam, item) for item in exam.items]
    chosen = bool(rows[0]["choices"])
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice" if chosen else "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metadata": {"version": exam.benchmark.revision},
    }
    if chosen:
        config["doc_to_choice"] = "choices"
        config["metric_list"] = [{"metric": m, "aggregation": "mean", "higher_is_better": True}
                                 for m in ("acc", "acc_norm")]  # fmt: skip
    else:
        prompt = exam.prompt(exam.items[0])
        until = {
            "until": list(prompt.stop) or ["\n\n"],
            "max_gen_toks": prompt.max_tokens,
            "do_sample": False,
        }
        config["generation_kwargs"] = until
        config["metric_list"] = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    return config, rows


def _record(exam: Exam, item: Item) -> Mapping[str, Any]:
    """What lm-eval asks, and under `item` (as JSON text) what the answer is scored by."""
    prompt = exam.prompt(item)
    gold: Any = item.gold if isinstance(item.gold, str) else json.dumps(item.gold, ensure_ascii=False)
    if prompt.choices:
        gold = _right(exam, item, prompt.choices)
    return {
        "id": item.id,
        "task": exam.benchmark.name,
        "language": exam.language,
        "prompt_language": exam.pack.code,
        "split": exam.split,
        "prompt": prompt.text,
        "choices": list(prompt.choices),
        "gold": gold,
        "item": json.dumps(asdict(item), ensure_ascii=False),
    }


def _right(exam: Exam, item: Item, choices: Sequence[str]) -> int:
    """The choice that the benchmark's own scorer takes for right."""
    for place, choice in enumerate(choices):
        found = exam.benchmark.score(item, Answer(choice.strip(), choice=place), exam.pack)
        if found.get("correct") == 1:
            return place
    raise DataError(f"{exam.benchmark.name}, item '{item.id}': none of its {len(choices)} choices is right")


def import_results(results: Mapping[str, Path], *, language: str | None = None) -> Table:
    """Read what lm-eval wrote.

    Args:
        results: By system: a samples file (`samples_TASK_DATE.jsonl`), a folder of them, or a results file
            (`results_DATE.json`), which has aggregates only.
        language: Code of the language of tasks that were not exported from here.

    Returns:
        A table. Samples of exported tasks are scored by the benchmark's own rules; others have the metrics
        that lm-eval gave each item. A results file has one item "all" for each task: no interval.

    Raises:
        ConfigError: No file; no language for a task that states none.
        DataError: A line that is no sample, a sample twice, a file of another format; with file and line.
    """
    if not results:
        raise ConfigError("nothing to import; give at least one results file with the name of its system")
    code = None if language is None else Language.parse(language).code
    rows: list[dict[str, Any]] = []
    for system, path in results.items():
        for file in _files(path):
            rows += (
                _samples(system, file, code) if file.suffix == ".jsonl" else _aggregates(system, file, code)
            )
    return Table.of(rows)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.rglob("samples_*.jsonl")) or sorted(path.rglob("results_*.json"))
    if not found:
        raise DataError(f"{path}: no samples_*.jsonl or results_*.json of lm-eval here")
    return found


def _samples(system: str, path: Path, language: str | None) -> Iterator[dict[str, Any]]:
    named = _SAMPLES.search(path.name)
    exams: dict[tuple[str, str, str, str], tuple[list[Item], dict[str, Answer]]] = {}
    made_by = {"answers": checksum(path)[:8], "version": __version__}
    seen: set[tuple[str, str]] = set()
    for row in records(path):
        doc = row.get("doc")
        if not isinstance(doc, Mapping) or "filtered_resps" not in row:
            raise DataError(f"{row['where']}: no sample of lm-eval; one has 'doc' and 'filtered_resps'")
        task = str(doc.get("task") or (named[1] if named else path.stem))
        name = str(doc.get("id", row.get("doc_id", "")))
        if (task, name) in seen:
            raise DataError(f"{row['where']}: item '{name}' of {task} is there twice")
        seen.add((task, name))
        if not isinstance(doc.get("item"), str):
            head = {"system": system, "task": task, "language": _known(language, task), "item": name}
            given = row.get("metrics") or [key for key in row if _number(row[key]) and key != "doc_id"]
            head["signature"] = signature("lm-eval", made_by)
            yield from ({**head, "metric": m, "value": float(row[m])} for m in given if _number(row.get(m)))
            continue
        item = _item(json.loads(doc["item"]))
        key = (task, str(doc["language"]), str(doc["prompt_language"]), str(doc["split"]))
        items, answers = exams.setdefault(key, ([], {}))
        items.append(item)
        answers[item.id] = _answer(row, doc)
    for (task, code, words, split), (items, answers) in exams.items():
        of = benchmark(task)
        exam = Exam(of, code, LanguagePack.of(words), items, (), split)
        said = signature(f"{task}:{of.revision}", {"asked": "lm-eval", **made_by, "words": exam.pack.label()})
        yield from scored(system, exam, answers, said)


def _answer(row: Mapping[str, Any], doc: Mapping[str, Any]) -> Answer:
    """Choices come as [log-likelihood, greedy], written answers as text."""
    responses, choices = row["filtered_resps"], doc.get("choices") or ()
    if not choices:
        return Answer(str(responses[0] if responses else ""))
    try:
        likely = tuple(float(response[0]) for response in responses)
    except (TypeError, ValueError, IndexError):
        raise DataError(f"{row['where']}: {responses!r:.60} are no log-likelihoods") from None
    if len(likely) != len(choices):
        raise DataError(f"{row['where']}: {len(likely)} log-likelihoods for {len(choices)} choices")
    best = max(range(len(likely)), key=likely.__getitem__)
    return Answer(choices[best].strip(), best, likely)


def _aggregates(system: str, path: Path, language: str | None) -> Iterator[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("results"), Mapping):
        raise DataError(f"{path}: no results of lm-eval; they have a table 'results' by task")
    say(f"{path.name}: aggregates only; with --log_samples lm-eval writes the items, and there are intervals")
    made_by = signature(
        "lm-eval", {"answers": checksum(path)[:8], "aggregate": "yes", "version": __version__}
    )
    for task, values in content["results"].items():
        head = {"system": system, "task": task, "item": "all", "signature": made_by}
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if filtered and _number(value) and not metric.endswith("_stderr"):
                code = _known(language, task)
                shown = metric if filtered == "none" else f"{metric},{filtered}"
                yield {**head, "language": code, "metric": shown, "value": float(value)}


def _known(language: str | None, task: str) -> str:
    exported = re.fullmatch(r"calque_.+_([a-z]{3}_[A-Z][a-z]{3})", task)
    if language is None and not exported:
        raise ConfigError(f"{task} does not say its language; give it with --language")
    return language or (exported[1] if exported else "")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _item(stored: Mapping[str, Any]) -> Item:
    """An item as it was; JSON knows no tuples, items have no lists."""
    fields = {name: _fixed(value) for name, value in stored["fields"].items()}
    return Item(stored["id"], stored["language"], fields, _fixed(stored["gold"]), stored["group"])


def _fixed(value: Any) -> Any:
    return tuple(_fixed(part) for part in value) if isinstance(value, list) else value
