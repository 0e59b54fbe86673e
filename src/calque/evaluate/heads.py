"""Answers of models with a head for a task: tags of words, labels of texts, spans of an answer.

What a head reads is what `train/tune` showed it: the words of an item with one blank between them, or its
question and context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from calque.data.encode import question_windows
from calque.errors import DataError
from calque.evaluate.benchmark import Answer, Item
from calque.evaluate.lm import context_length, opened
from calque.model.checkpoint import Checkpoint
from calque.progress import say

_HEADS = {
    "ForTokenClassification": "tags",
    "ForSequenceClassification": "labels",
    "ForQuestionAnswering": "spans",
}
_LONGEST = 512  # tokens a head reads at once
_ANSWER = 30  # tokens of the longest answer looked for


def head_of(checkpoint: Checkpoint) -> str | None:
    """The form a checkpoint's head answers in, None for a language model."""
    name = str((checkpoint.config.get("architectures") or [""])[0])
    return next((form for ending, form in _HEADS.items() if name.endswith(ending)), None)


def ask_head(
    checkpoint: Checkpoint, form: str, items: Sequence[Item], dtype: torch.dtype
) -> Iterator[tuple[Item, Answer]]:
    """The head's answer to each item, in order, with the delta that lies beside the checkpoint.

    Args:
        checkpoint: A model with a head.
        form: "tags" (reads the field `words`), "labels" (`text`), "spans" (`question`, `context`).
        items: What to answer.
        dtype: Of the model in memory.

    Yields:
        (item, Answer): `value` holds the tags or (start, end) in characters; `text` the label or the answer.

    Raises:
        DataError: An item without the fields that the form reads.
    """
    model, attached = opened(checkpoint, dtype)
    tokenizer = checkpoint.tokenizer()
    length = min(_LONGEST, context_length(model) or _LONGEST)
    ask = {"tags": _tags, "labels": _label, "spans": _span}[form]
    with torch.inference_mode():
        for item in items:
            if attached:
                attached.speak(item.language)
            yield item, ask(model, tokenizer, item, length)


def _tags(model: Any, tokenizer: Any, item: Item, length: int) -> Answer:
    """The tag at the first token of each word; words beyond the model's length get O, which is said."""
    words = _field(item, "words")
    found = tokenizer(
        " ".join(words), truncation=True, max_length=length, return_offsets_mapping=True, return_tensors="pt"
    )
    offsets = found.pop("offset_mapping")[0].tolist()
    names = model.config.id2label
    best = model(**found.to(model.device)).logits[0].argmax(-1).tolist()
    begins, at = [], 0
    for word in words:
        begins.append((at, at + len(word)))
        at += len(word) + 1
    places = [
        next((n for n, (a, b) in enumerate(offsets) if a < b and b > begin and a < end), None)
        for begin, end in begins
    ]
    tags = ["O" if place is None else str(names[best[place]]) for place in places]
    if beyond := places.count(None):
        say(f"item {item.id}: {beyond} of {len(words)} words lie beyond the {length} tokens read; tagged O")
    return Answer(" ".join(tags), value=tuple(tags))


def _label(model: Any, tokenizer: Any, item: Item, length: int) -> Answer:
    found = tokenizer(_field(item, "text"), truncation=True, max_length=length, return_tensors="pt")
    logits = model(**found.to(model.device)).logits[0].float()
    best = int(logits.argmax())
    return Answer(str(model.config.id2label[best]), scores=tuple(logits.log_softmax(-1).tolist()))


def _span(model: Any, tokenizer: Any, item: Item, length: int) -> Answer:
    """The best (start, end) over all windows of the context, the start not behind the end."""
    context = _field(item, "context")
    windows = question_windows(tokenizer, _field(item, "question"), context, length)
    best: tuple[float, int, int] | None = None
    for number, ids in enumerate(windows["input_ids"]):
        out = model(input_ids=torch.tensor([ids], device=model.device))
        inside = [n for n, part in enumerate(windows.sequence_ids(number)) if part == 1]
        start, end = (logits[0, inside].float() for logits in (out.start_logits, out.end_logits))
        pairs = start[:, None] + end[None, :]
        allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(_ANSWER - 1)
        pairs = pairs.masked_fill(~allowed, float("-inf"))
        place = int(pairs.argmax())
        first, last = divmod(place, len(inside))
        offsets = windows["offset_mapping"][number]
        found = (float(pairs[first, last]), offsets[inside[first]][0], offsets[inside[last]][1])
        best = max(best, found) if best else found
    if best is None:
        raise DataError(f"item {item.id}: no context to find an answer in")
    _, begin, stop = best
    return Answer(context[begin:stop], value=(begin, stop))


def _field(item: Item, name: str) -> Any:
    if name not in item.fields:
        raise DataError(f"item {item.id}: no '{name}', which a model with a head for this reads")
    return item.fields[name]
