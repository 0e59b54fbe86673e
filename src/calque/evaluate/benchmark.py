"""One benchmark as one record: where its data is, how an item is asked, how an answer is scored.

A benchmark is never written once per language: languages differ by the words of their pack
(`calque.evaluate.pack`) and by the data. Each benchmark is one file in `calque.evaluate.tasks` that binds a
`Benchmark` to the name `BENCHMARK`; the file's name is the benchmark's name, the first line of its docstring
its title, so that all can be listed without importing any.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from calque.errors import ConfigError, did_you_mean
from calque.evaluate.pack import LanguagePack

Form = Literal["choice", "text", "tags", "spans", "labels", "ranking"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One question of a benchmark, before it is put into words.

    Attributes:
        id: Stable name, unique in its benchmark, language and split.
        language: Code of the language of its content, "nya_Latn".
        fields: What a prompt shows of it: question, context, choices, tools, ...
        gold: What an answer is compared with: accepted strings, the index of a choice, spans, calls, ...
        group: Passage or document it shares with others; tests draw a group as one.
    """

    id: str
    language: str
    fields: Mapping[str, Any]
    gold: Any
    group: str = ""


@dataclass(frozen=True)
class Prompt:
    """What a model is given.

    Attributes:
        text: The text before the answer, examples included, without trailing blank.
        choices: Continuations to choose from by log-likelihood, each with its leading blank; () to generate.
        stop: Strings that end a generated answer; none of them is part of it.
        max_tokens: Longest generated answer.
        grammar: What an answer must match, where decoding is constrained: a Lark grammar or a JSON schema.
    """

    text: str
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    max_tokens: int = 64
    grammar: str = ""


@dataclass(frozen=True)
class Answer:
    """What a model answered, or a file of answers says that it did.

    Attributes:
        text: The answer in words: what was generated, or the choice taken.
        choice: Index of the choice taken; None where none was offered or none was taken.
        scores: Log-likelihood of each choice in nats, where choices were offered.
        value: A structured answer (tags, spans, ranking) where a model or file gives one; else None.
    """

    text: str
    choice: int | None = None
    scores: tuple[float, ...] = ()
    value: Any = None


@dataclass(frozen=True)
class Benchmark:
    """Everything that is particular to one benchmark.

    Attributes:
        name: The name of its file.
        paper: Who made it.
        licence: Of its data.
        revision: What is raised whenever a change here changes a score; part of every signature.
        languages: Codes of the languages it was published in; () where any will do.
        form: "choice" (log-likelihood), "text" (generated), or what a head gives: tags, spans, labels,
            ranking.
        rows: (file or folder, language, split) -> the published records, each a mapping; local files.
        item: (record, language, split) -> Item. Raises DataError for a record that is none.
        prompt: (item, pack, examples) -> Prompt, in the words of the pack.
        score: (item, answer, pack) -> metrics by name. Missing answers are scored too, as Answer("").
            Where the authors' scorer has a defect, "NAME" is as intended and "NAME/published" as theirs.
        measures: The headline measures (`calque.evaluate.measures`), the first one first.
        shots: Examples shown by default.
        hub: Data set id, "owner/name"; its configuration is `config` of the language. "" where none.
        config: language code -> configuration of the hub data set.
        sample: Records of `item`'s kind that ship with the package, by hand: {language: rows}.
    """

    name: str
    paper: str
    licence: str
    revision: int
    languages: tuple[str, ...]
    form: Form
    rows: Callable[[Path, str, str], Iterator[Row]]
    item: Callable[[Row, str, str], Item]
    prompt: Callable[[Item, LanguagePack, Sequence[Item]], Prompt]
    score: Callable[[Item, Answer, LanguagePack], Mapping[str, float]]
    measures: tuple[str, ...]
    shots: int = 0
    hub: str = ""
    config: Callable[[str], str] = field(default=lambda language: language)
    sample: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def titles() -> dict[str, str]:
    """Every benchmark with its title, read from the files without importing them."""
    folder = Path(__file__).with_name("tasks")
    found = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem != "__init__":
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = doc.split("\n")[0].rstrip(".")
    return found


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; an unknown one is a ConfigError with the nearest names."""
    known = titles()
    if name not in known:
        raise ConfigError(f"no task '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    return importlib.import_module(f"calque.evaluate.tasks.{name}").BENCHMARK
