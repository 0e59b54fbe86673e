"""Examples as token pieces: for each objective what a model reads, and what it is to give."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from calque.data.example import Example, Span
from calque.data.pack import IGNORED, Piece
from calque.errors import DataError
from calque.language import Language

Task = Literal["sft", "classify", "tag", "qa", "translate", "rank"]
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Encoder:
    """How examples become pieces for one model.

    Attributes:
        tokenizer: a fast transformers tokenizer.
        length: tokens of a piece, at most; of an encoder-decoder, of each of its two sides.
        languages: codes of the sides that are read; a translation goes from the first to the second.
        labels: names of the classes or tags, by number.
        encoder_decoder: whether prompt and answer are two sequences.
        cut: how many examples were longer than `length`; grows.
        left_out: how many had nothing to learn from; grows.
    """

    tokenizer: Any
    length: int
    languages: tuple[str, ...]
    labels: tuple[str, ...] = ()
    encoder_decoder: bool = False
    cut: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def pieces(self, task: Task, examples: Iterable[Example]) -> Iterator[Piece]:
        """The pieces of all examples."""
        if task == "rank":
            yield from self._lists(examples)
            return
        one = {"sft": self._answer, "classify": self._class, "tag": self._tags, "qa": self._spans}
        for example in examples:
            if task == "translate":
                yield self._translation(example)
            else:
                yield from one[task](example)

    def _answer(self, example: Example) -> Iterator[Piece]:
        """The prompt, and after it the answer and an end token; of both only the answer is learnt."""
        answer = self._target(example)
        asked = "\n".join(filter(None, (example.question, self._text(example))))
        if self.encoder_decoder:
            yield self._two_sided(example, asked, answer)
        elif self.tokenizer.chat_template:
            turn = [{"role": "user", "content": asked}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            yield self._one_sided(example, self._plain(text), self._plain(answer), answer)
        else:
            yield self._one_sided(
                example, self._begin() + self._plain(f"{asked}\n"), self._plain(answer), answer
            )

    def _translation(self, example: Example) -> Piece:
        first, second = self.languages
        if first not in example.sides or second not in example.sides:
            raise DataError(
                f"example {example.id}: sides {', '.join(example.sides)}; needed are {first}, {second}"
            )
        source, target = example.sides[first], example.sides[second]
        if self.encoder_decoder:
            return self._two_sided(example, source, target)
        prompt = translation_prompt(source, first, second)
        return self._one_sided(
            example, self._begin() + self._plain(prompt), self._plain(f" {target}"), target
        )

    def _one_sided(self, example: Example, prompt: list[int], answer: list[int], text: str) -> Piece:
        answer = [*answer, self.tokenizer.eos_token_id]
        if len(prompt) + len(answer) > self.length:
            self.cut.append(example.id)
            answer = answer[: self.length - 1]
            # What a prompt ends with leads over to the answer.
            prompt = prompt[max(0, len(prompt) + len(answer) - self.length) :]
        return Piece([*prompt, *answer], len(text.encode()), len(prompt), (), example.weight)

    def _two_sided(self, example: Example, source: str, target: str) -> Piece:
        for side, code in zip(("src_lang", "tgt_lang"), self.languages[-2:], strict=False):
            if hasattr(self.tokenizer, side) and code in self.tokenizer.get_vocab():
                setattr(self.tokenizer, side, code)
        limits = {"truncation": True, "max_length": self.length}
        left = self.tokenizer(source, **limits)["input_ids"]
        right = self.tokenizer(text_target=target, **limits)["input_ids"]
        if max(len(left), len(right)) == self.length:
            self.cut.append(example.id)
        return Piece([*left, *right], len(target.encode()), len(left), (), example.weight)

    def _class(self, example: Example) -> Iterator[Piece]:
        ids, prompt, _ = self._read(example)
        label = self._target(example)
        if label not in self.labels:
            raise DataError(f"example {example.id}: label {label!r}; known are {', '.join(self.labels)}")
        yield Piece(ids, 0, prompt, (self.labels.index(label),), example.weight)

    def _tags(self, example: Example) -> Iterator[Piece]:
        """The tag of each word at the first token that writes of it; no label elsewhere."""
        text = self._text(example)
        found = self.tokenizer(text, truncation=True, max_length=self.length, return_offsets_mapping=True)
        offsets = found["offset_mapping"]
        tagged = tags(text, example.spans.get(self._side(example), ()))
        answer = [IGNORED] * len(offsets)
        words = iter(tagged)
        start, stop, tag = next(words, (len(text), len(text), ""))
        for place, (begin, end) in enumerate(offsets):
            while start < stop <= begin:
                start, stop, tag = next(words, (len(text), len(text), ""))
            if tag and begin < end and end > start:
                answer[place] = self.labels.index(tag)
                start, stop, tag = next(words, (len(text), len(text), ""))
        if tag:
            self.cut.append(example.id)
        yield Piece(found["input_ids"], 0, 0, answer, example.weight)

    def _spans(self, example: Example) -> Iterator[Piece]:
        """Windows over the context, each with the question; place 0 is the answer of one that lacks it."""
        if not example.question:
            raise DataError(f"example {example.id}: no question; give it as 'question'")
        windows = question_windows(self.tokenizer, example.question, self._text(example), self.length)
        marked = example.spans.get(self._side(example), ())
        for number, ids in enumerate(windows["input_ids"]):
            parts = windows.sequence_ids(number)
            inside = [place for place, part in enumerate(parts) if part == 1]
            answer = _in_window(windows["offset_mapping"][number], inside, marked[0]) if marked else (0, 0)
            yield Piece(ids, 0, inside[0] if inside else 0, answer, example.weight)

    def _lists(self, examples: Iterable[Example]) -> Iterator[Piece]:
        """One piece for each run of examples with the same question: its candidates and their grades."""
        for question, run in itertools.groupby(examples, key=lambda example: example.question):
            listed = list(run)
            if not question:
                raise DataError(f"example {listed[0].id}: no question; candidates are ranked for a 'query'")
            grades = [_grade(example) for example in listed]
            if len(set(grades)) < 2:
                self.left_out.append(listed[0].id)
                continue
            read = [self._read(example) for example in listed]
            answer = [*(len(ids) for ids, _, _ in read), *grades]
            yield Piece(np.concatenate([ids for ids, _, _ in read]), 0, read[0][1], answer, listed[0].weight)

    def _read(self, example: Example) -> tuple[list[int], int, Any]:
        """(tokens of question and text, those of the first segment when there are two)."""
        text, limits = self._text(example), {"truncation": True, "max_length": self.length}
        pairs = (
            self.tokenizer.num_special_tokens_to_add(pair=True) > self.tokenizer.num_special_tokens_to_add()
        )
        if example.question and pairs:
            found = self.tokenizer(example.question, text, **limits)
            parts = found.sequence_ids(0)
            prompt = parts.index(1) if 1 in parts else len(parts)
        else:
            found = self.tokenizer("\n".join(filter(None, (example.question, text))), **limits)
            prompt = 0
        if len(found["input_ids"]) == self.length:
            self.cut.append(example.id)
        return found["input_ids"], prompt, found

    def _side(self, example: Example) -> str:
        return next((code for code in self.languages if code in example.sides), next(iter(example.sides)))

    def _text(self, example: Example) -> str:
        return example.sides[self._side(example)]

    def _target(self, example: Example) -> str:
        if example.target is None:
            raise DataError(f"example {example.id}: no target; give it as 'target', 'label' or 'answer'")
        return str(example.target)

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _begin(self) -> list[int]:
        begin = self.tokenizer.bos_token_id
        return [] if begin is None else [begin]


def question_windows(tokenizer: Any, question: str, text: str, length: int) -> Any:
    """A question with each window of a text, as transformers encodes them; windows overlap by a quarter."""
    return tokenizer(
        question, text, truncation="only_second", max_length=length, stride=length // 4,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip


def translation_prompt(text: str, source: str, target: str) -> str:
    """What a decoder reads before it translates."""
    return f"{Language.parse(source).name}: {text}\n{Language.parse(target).name}:"


def class_names(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels of all examples, numbers in their order and then words in theirs."""
    found = {str(example.target) for example in examples if example.target is not None}
    return tuple(
        sorted(found, key=lambda label: (not label.isdigit(), int(label) if label.isdigit() else 0, label))
    )


def tag_names(examples: Iterable[Example]) -> tuple[str, ...]:
    """O, then B- and I- of every label of a span."""
    labels = {span.label for example in examples for spans in example.spans.values() for span in spans}
    return ("O", *(f"{mark}-{label}" for label in sorted(labels) for mark in "BI"))


def tags(text: str, spans: Sequence[Span]) -> list[tuple[int, int, str]]:
    """(start, end, tag) of each word: B- at the begin of a span, I- inside it, O outside.

    Words are runs without blanks, cut where a span begins or ends.
    """
    borders = sorted({edge for span in spans for edge in (span.start, span.end)})
    found = []
    for match in _WORD.finditer(text):
        cuts = [match.start(), *(b for b in borders if match.start() < b < match.end()), match.end()]
        for start, end in itertools.pairwise(cuts):
            span = next((s for s in spans if s.start <= start < s.end), None)
            first = span is not None and not text[span.start : start].strip()
            found.append((start, end, "O" if span is None else f"{'B' if first else 'I'}-{span.label}"))
    return found


def _in_window(offsets: Sequence[tuple[int, int]], inside: Sequence[int], span: Span) -> tuple[int, int]:
    """First and last token of a span among the tokens of the context, (0, 0) when it is not whole there."""
    held = [n for n in inside if offsets[n][1] > span.start and offsets[n][0] < span.end]
    whole = held and offsets[held[0]][0] <= span.start and offsets[held[-1]][1] >= span.end
    return (held[0], held[-1]) if whole else (0, 0)


def _grade(example: Example) -> int:
    try:
        return int(str(example.target))
    except ValueError:
        raise DataError(f"example {example.id}: grade {example.target!r}; should be a whole number") from None


def found_labels(task: Task, examples: Iterable[Example]) -> tuple[str, ...]:
    """Names of what a head is to tell apart for a task.

    Raises:
        DataError: fewer than two.
    """
    makers: Mapping[str, Any] = {"classify": class_names, "tag": tag_names}
    if task not in makers:
        return ("score",) if task == "rank" else ()
    labels = makers[task](examples)
    if len(labels) < 2:
        raise DataError(
            f"labels {', '.join(labels) or 'none'}: there is nothing to tell apart; give at least two"
        )
    return labels
