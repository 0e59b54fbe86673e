"""The evaluator: ask models the items of benchmarks, score what they answer, keep every item.

Models are asked in the way their head allows: choices by log-likelihood, answers by writing, tags, labels
and spans by a head where a checkpoint has one for them. Each answer is written down as soon as it is given,
so that a killed run goes on behind the last one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge

from calque import __version__
from calque.disk import write_text
from calque.errors import ConfigError
from calque.evaluate import choices, writing
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, benchmark
from calque.evaluate.guards import guards
from calque.evaluate.heads import ask_head, head_of
from calque.evaluate.lm import Dtype, Reader, choose_dtype
from calque.evaluate.normal import romanized_exact
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source, spread
from calque.evaluate.table import Table, signature
from calque.language import Language
from calque.model.checkpoint import Checkpoint
from calque.progress import bar, say

_ASKED = 32  # prompts with choices taken together; their answers are written down together
Normalise = Literal["none", "bytes", "tokens", "unconditional"]


@dataclass(frozen=True)
class Asked:
    """What changes an answer beside the model: part of every signature."""

    split: str
    shots: int | None
    prompt_language: str
    normalise: Normalise
    start: bool
    chat: bool
    constrain: bool
    temperature: float
    seed: int


def run(
    systems: Mapping[str, Checkpoint],
    tasks: Mapping[str, Source],
    *,
    languages: list[str] | None = None,
    split: str = "test",
    limit: Annotated[int, Ge(1)] | None = None,
    shots: Annotated[int, Ge(0)] | None = None,
    shots_split: str = "validation",
    prompt_language: str = "native",
    normalise: Normalise = "none",
    start: bool = True,
    chat: bool = False,
    constrain: bool = False,
    romanized: bool = False,
    temperature: Annotated[float, Ge(0)] = 0.0,
    batch_tokens: Annotated[int, Ge(8)] = 4096,
    dtype: Dtype = "auto",
    seed: int = 0,
    work: Path | None = None,
) -> Table:
    """Ask models the items of benchmarks and score their answers, item by item.

    Args:
        systems: Checkpoints by the name they go by in the table.
        tasks: Benchmarks by name (`calque tasks` lists them), each with its data: a file or folder in the
            published format, "hub", or "sample" for the few items that come along.
        languages: Codes of the languages to ask in; those of the data, where none is given.
        split: Part of the data to score.
        limit: Score at most so many items of each task and language, evenly spread over its data.
        shots: Examples shown before each item; what the benchmark is published with, by default.
        shots_split: Part of the data that examples come from; where the data has none, they are the first
            items of `split`, which are then not scored.
        prompt_language: Language of the words around an item: "native" for the item's own, or a code.
        normalise: What the log-likelihood of a choice is divided by; "unconditional" subtracts that of the
            choice without the question.
        start: Whether the tokenizer's start token stands before the prompt.
        chat: Whether prompts are put into the model's chat template, as what the user says.
        constrain: Whether written answers are held to the grammar of a task that has one (calls of functions,
            tags of words); needs the extra `constrain`.
        romanized: Whether short answers are compared in Latin letters too, as "em/romanized"; needs the extra
            `romanize`.
        temperature: Of sampling; 0 takes the likeliest token each time.
        batch_tokens: Tokens in a batch of written answers; changes speed and memory, not results.
        dtype: As for `evaluate/lm`.
        seed: Of sampling.
        work: Folder for what is done; a killed call given the same folder goes on after the last answer.

    Returns:
        A table with the metrics of each task for each item; `output` holds what was answered. The column
        `group` names the passage that an item shares with others.

    Raises:
        ConfigError: No system or task, an unknown one, a prompt longer than a model's context.
        DataError: A record that is none, an id given twice, a task without items.
        ModelError: A model that gives a probability that is no number.

    Relations: the result is the same for every batch_tokens.
    """
    if not systems or not tasks:
        raise ConfigError("nothing to evaluate; give at least one system and one task")
    asked = Asked(split, shots, prompt_language, normalise, start, chat, constrain, temperature, seed)
    exams = [
        replace(
            _exam(benchmark(name), source, Language.parse(code).code, asked, shots_split, limit),
            romanized=romanized,
        )
        for name, source in tasks.items()
        for code in (languages or _languages(name, source))
    ]
    rows: list[dict[str, Any]] = []
    kind = choose_dtype(dtype)
    for system, checkpoint in systems.items():
        subject = Subject(system, checkpoint, kind)
        for exam in exams:
            answers = _answers(subject, exam, asked, batch_tokens, work)
            rows += scored(system, exam, answers, _signature(subject, exam, asked))
    return Table.of(rows)


@dataclass(frozen=True)
class Exam:
    """The items of one benchmark in one language, with the examples shown before each."""

    benchmark: Benchmark
    language: str
    pack: LanguagePack
    items: Sequence[Item]
    shots: Sequence[Item]
    split: str
    constrain: bool = False
    romanized: bool = False

    def prompt(self, item: Item) -> Prompt:
        """The item in words; with its grammar only where answers are held to it."""
        found = self.benchmark.prompt(item, self.pack, self.shots)
        return found if self.constrain else replace(found, grammar="")


def _languages(name: str, source: Source) -> tuple[str, ...]:
    found = source.languages(benchmark(name))
    if not found:
        raise ConfigError(f"{name} goes with any language; say which ones with --languages")
    return found


def _exam(
    of: Benchmark, source: Source, language: str, asked: Asked, shots_split: str, limit: int | None
) -> Exam:
    items = source.items(of, language, asked.split)
    wanted = of.shots if asked.shots is None else asked.shots
    shown, why = source.examples(of, language, shots_split, asked.split) if wanted else ([], "")
    if why:
        shown, items = items[:wanted], items[wanted:]
        say(f"{of.name}, {language}: the first {len(shown)} items are the examples, and not scored ({why})")
    shown = shown[:wanted]
    if not items:
        raise ConfigError(f"{of.name}, {language}: no item is left to score beside {wanted} examples")
    if len(shown) < wanted:
        raise ConfigError(
            f"{of.name}, {language}: {len(shown)} items to show as examples, {wanted} asked for"
        )
    pack = LanguagePack.of(language if asked.prompt_language == "native" else asked.prompt_language)
    heard = Heard(pack.words)
    of.prompt(items[0], replace(pack, words=heard), shown)
    pack = replace(pack, borrowed=tuple(word for word in pack.borrowed if word in heard.asked))
    if pack.borrowed:
        say(f"{of.name}, {language}: English is used for {', '.join(pack.borrowed)}")
    return Exam(of, language, pack, spread(items, limit), shown, asked.split, asked.constrain)


class Heard(dict[str, str]):
    """Words that remember which of them a prompt has asked for."""

    def __init__(self, words: Mapping[str, str]) -> None:
        """Hold the words."""
        super().__init__(words)
        self.asked: set[str] = set()

    def __getitem__(self, word: str) -> str:
        self.asked.add(word)
        return super().__getitem__(word)


class Subject:
    """A system under examination; its model is loaded when it is first needed."""

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        """Hold the checkpoint; nothing is loaded yet."""
        self.name, self.checkpoint, self.dtype = name, checkpoint, dtype
        self._reader: Reader | None = None

    @property
    def head(self) -> str | None:
        """The form its head answers in: tags, spans, labels; None for a language model."""
        return head_of(self.checkpoint)

    @property
    def reader(self) -> Reader:
        """The loaded language model."""
        self._reader = self._reader or Reader.open(self.name, self.checkpoint, self.dtype)
        return self._reader


def _answers(
    subject: Subject, exam: Exam, asked: Asked, batch_tokens: int, work: Path | None
) -> dict[str, Answer]:
    """The answer to every item, those of an earlier, killed run included."""
    if subject.head and subject.head != exam.benchmark.form:
        raise ConfigError(
            f"system '{subject.name}' has a head for {subject.head}, {exam.benchmark.name} asks for "
            f"{exam.benchmark.form}; give a language model, or one tuned for this"
        )
    prompts = {item.id: exam.prompt(item) for item in exam.items}
    book = _Book.open(work, subject, exam, asked, prompts)
    open_items = [item for item in exam.items if item.id not in book.answers]
    title = f"{exam.benchmark.name}, {exam.language}: {subject.name}"
    with bar(title, len(exam.items), "items") as shown:
        if book.answers:
            shown.update(len(book.answers), "from the run before")
        for item, answer in _ask(subject, exam.language, open_items, prompts, asked, batch_tokens):
            book.add(item.id, answer)
            shown.update(1, "")
    return book.answers


def _ask(
    subject: Subject,
    language: str,
    items: Sequence[Item],
    prompts: Mapping[str, Prompt],
    asked: Asked,
    batch_tokens: int,
) -> Iterator[tuple[Item, Answer]]:
    if not items:
        return
    if subject.head:
        yield from ask_head(subject.checkpoint, subject.head, items, subject.dtype)
        return
    reader = subject.reader
    reader.speak(language)
    start = asked.start and not asked.chat
    given = dict(prompts)
    if asked.chat:
        tokenizer = subject.checkpoint.tokenizer()
        given = {name: _chat(tokenizer, subject.name, prompt) for name, prompt in prompts.items()}
    chosen = [item for item in items if given[item.id].choices]
    for begin in range(0, len(chosen), _ASKED):
        part = chosen[begin : begin + _ASKED]
        answers = choices.choose(
            reader, [given[item.id] for item in part], normalise=asked.normalise, start=start
        )
        yield from zip(part, answers, strict=True)
    written = [item for item in items if not given[item.id].choices]
    for place, answer in writing.write(
        reader,
        [given[item.id] for item in written],
        temperature=asked.temperature,
        seed=asked.seed,
        start=start,
        batch_tokens=batch_tokens,
    ):
        yield written[place], answer


def _chat(tokenizer: Any, system: str, prompt: Prompt) -> Prompt:
    if not tokenizer.chat_template:
        raise ConfigError(f"system '{system}' has no chat template; leave --chat out")
    turn = [{"role": "user", "content": prompt.text}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return replace(prompt, text=text, choices=tuple(choice.lstrip() for choice in prompt.choices))


@dataclass(frozen=True)
class _Book:
    """Answers given so far, in a file of one line each where there is a folder to keep it in."""

    answers: dict[str, Answer]
    path: Path | None

    @classmethod
    def open(
        cls, work: Path | None, subject: Subject, exam: Exam, asked: Asked, prompts: Mapping[str, Prompt]
    ) -> _Book:
        if work is None:
            return cls({}, None)
        said = repr((subject.name, str(subject.checkpoint.folder.resolve()), exam.benchmark.name,
                     exam.benchmark.revision, exam.language, asked, sorted(prompts.items())))  # fmt: skip
        path = work / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.jsonl"
        book = cls({}, path)
        whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n") if path.exists() else ("", "", "")
        for row in map(json.loads, whole.splitlines()):
            answer = Answer(row["text"], row["choice"], tuple(row["scores"]), row["value"])
            book.answers[row["item"]] = answer
        if cut:  # the line that a kill cut in two
            write_text(path, whole + "\n" if whole else "")
        return book

    def add(self, item: str, answer: Answer) -> None:
        self.answers[item] = answer
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"item": item, **asdict(answer)}, ensure_ascii=False) + "\n")


def scored(system: str, exam: Exam, answers: Mapping[str, Answer], made_by: str) -> Iterator[dict[str, Any]]:
    """The rows of a table: every metric of every item; an item without an answer counts as missing."""
    for item in exam.items:
        answer = answers.get(item.id)
        given = answer or Answer("")
        found = dict(exam.benchmark.score(item, given, exam.pack))
        if exam.benchmark.form in ("text", "spans"):
            cut = given.value.get("truncated") if isinstance(given.value, Mapping) else None
            found |= guards(item, given, exam.pack, truncated=cut)
            if exam.romanized and isinstance(item.gold, tuple | list):
                found["em/romanized"] = romanized_exact(given.text, item.gold, LanguagePack.of(item.language))
        found["missing"] = float(answer is None)
        for metric, value in found.items():
            yield {
                "system": system,
                "task": exam.benchmark.name,
                "language": item.language,
                "prompt_language": exam.pack.code,
                "split": exam.split,
                "item": item.id,
                "group": item.group,
                "metric": metric,
                "value": value,
                "signature": made_by,
                "output": given.text if metric == "missing" else None,
            }


def _signature(subject: Subject, exam: Exam, asked: Asked) -> str:
    said = asdict(asked) | {"shots": len(exam.shots)}
    del said["prompt_language"]
    text = repr([exam.prompt(item) for item in exam.items])
    return signature(
        f"{exam.benchmark.name}:{exam.benchmark.revision}",
        {
            "asked": subject.head or ("choice" if exam.prompt(exam.items[0]).choices else "text"),
            "words": exam.pack.label(),
            **said,
            "prompts": hashlib.sha256(text.encode()).hexdigest()[:8],
            "dtype": str(subject.dtype).removeprefix("torch."),
            "version": __version__,
        },
    )
