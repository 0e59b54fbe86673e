"""Answers that a model writes: batched, greedy or sampled, ended by stop strings, within a grammar.

Sampling adds Gumbel noise to the logits and takes the largest, with a random stream for each prompt, so
that what is written after a prompt does not depend on what else is in its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from calque.errors import ConfigError
from calque.evaluate.benchmark import Answer, Prompt
from calque.evaluate.lm import Reader, context_length
from calque.evaluate.seq2seq import encoded
from calque.vocab.tokens import Tokens

_TAIL = 24  # tokens looked at for a stop string; none is longer


def write(
    reader: Reader,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    seed: int,
    start: bool,
    batch_tokens: int,
) -> Iterator[tuple[int, Answer]]:
    """What the model writes after each prompt, longest prompts first.

    Args:
        reader: The model; decoder-only models are given the prompts padded on the left.
        prompts: What to write after.
        temperature: Of sampling; 0 takes the likeliest token each time.
        seed: Of sampling.
        start: Whether the tokenizer's start token stands before the prompt; an encoder-decoder reads it with
            the special tokens of its tokenizer.
        batch_tokens: Tokens of a batch, answers included; changes speed and memory only.

    Yields:
        (place of the prompt, Answer). `Answer.value` is {"truncated": whether the limit ended it}.

    Raises:
        ConfigError: A prompt longer than the model's context.
    """
    begin = [reader.start] if start and reader.start is not None else []
    texts = [prompt.text for prompt in prompts]
    if reader.model.config.is_encoder_decoder:
        ids = [[*encoded(reader, text)] for text in texts]
    else:
        ids = [[*begin, *found] for found in reader.tokens.encode_batch(texts)]
    room = context_length(reader.model)
    for n, prompt in enumerate(prompts):
        if room and len(ids[n]) + 1 > room:
            raise ConfigError(
                f"a prompt has {len(ids[n])} tokens, the context of '{reader.name}' {room}; "
                "show fewer examples"
            )
        if prompt.choices:
            raise ConfigError("a prompt with choices is not one to write after")
    order = sorted(range(len(prompts)), key=lambda n: (prompts[n].grammar, -len(ids[n])))
    while order:
        batch = _take(order, ids, prompts, batch_tokens)
        order = order[len(batch) :]
        limit = max(prompts[n].max_tokens for n in batch)
        if room:
            limit = min(limit, room - max(len(ids[n]) for n in batch))
        written = _generate(
            reader, [ids[n] for n in batch], [prompts[n] for n in batch], limit, temperature, seed
        )
        for n, tokens in zip(batch, written, strict=True):
            yield n, _answer(reader, ids[n], tokens, prompts[n])


def _take(order: Sequence[int], ids: Sequence[list[int]], prompts: Sequence[Prompt], most: int) -> list[int]:
    """The next prompts of one grammar that fit into a batch; at least one."""
    batch = [order[0]]
    for n in order[1:]:
        longest = len(ids[batch[0]]) + max(prompts[m].max_tokens for m in (*batch, n))
        if prompts[n].grammar != prompts[batch[0]].grammar or longest * (len(batch) + 1) > most:
            break
        batch.append(n)
    return batch


def _generate(
    reader: Reader,
    ids: Sequence[list[int]],
    prompts: Sequence[Prompt],
    limit: int,
    temperature: float,
    seed: int,
) -> list[list[int]]:
    """Tokens written after each prompt, end and padding cut off."""
    model = reader.model
    here = next(model.parameters()).device
    both = bool(model.config.is_encoder_decoder)
    longest = max(map(len, ids))
    ids_BT = torch.zeros((len(ids), longest), dtype=torch.long)
    seen_BT = torch.zeros_like(ids_BT)
    for row, found in enumerate(ids):
        place = slice(0, len(found)) if both else slice(longest - len(found), longest)
        ids_BT[row, place] = torch.tensor(found)
        seen_BT[row, place] = 1
    ends = _ends(reader)
    stop = _Stop(reader.tokens, prompts, 1 if both else longest)
    processors: list[Any] = [_Within(len(reader.tokens))]
    if prompts[0].grammar:
        from calque.evaluate.grammar import constrain

        processors.append(constrain(reader.tokens, prompts[0].grammar, ends, 1 if both else longest))
    if temperature:
        processors.append(_Gumbel(temperature, [f"{seed}:{prompt.text}" for prompt in prompts]))
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids_BT.to(here),
            attention_mask=seen_BT.to(here),
            max_new_tokens=limit,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            forced_eos_token_id=None,  # an end put at the limit would hide that the answer was cut
            stopping_criteria=StoppingCriteriaList([stop]),
            logits_processor=LogitsProcessorList(processors),
            do_sample=False,
        )
    written = []
    for row, prompt in zip(out[:, 1 if both else longest :].tolist(), prompts, strict=True):
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        written.append(row[: min(end, prompt.max_tokens) + (end < prompt.max_tokens and end < len(row))])
    return written


def _answer(reader: Reader, given: list[int], written: list[int], prompt: Prompt) -> Answer:
    ended = bool(written) and written[-1] in _ends(reader)
    kept = written[:-1] if ended else written
    if reader.model.config.is_encoder_decoder:
        text = reader.tokens.decode(kept)
    else:
        text = reader.tokens.decode([*given, *kept])[len(reader.tokens.decode(given)) :]
    cut = min((place for stop in prompt.stop if (place := text.find(stop)) >= 0), default=None)
    truncated = not ended and cut is None and len(kept) >= prompt.max_tokens
    return Answer(text if cut is None else text[:cut], value={"truncated": truncated})


def _ends(reader: Reader) -> list[int]:
    """Ids that end a text: the model's own, or the tokenizer's."""
    own = reader.model.generation_config.eos_token_id
    listed = [own] if isinstance(own, int) else list(own or [])
    if not listed and "eos" in reader.tokens.special:
        listed = [reader.tokens.special["eos"]]
    return listed


class _Stop(StoppingCriteria):
    """Each row ends when its text holds one of its stop strings, or its own limit is reached."""

    def __init__(self, tokens: Tokens, prompts: Sequence[Prompt], begin: int) -> None:
        self.tokens, self.prompts, self.begin = tokens, prompts, begin

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # pyright: ignore
        written = input_ids[:, self.begin :]
        tails = written[:, -_TAIL:].tolist()
        over = [
            written.shape[1] >= prompt.max_tokens
            or any(stop in self.tokens.decode(tail) for stop in prompt.stop)
            for tail, prompt in zip(tails, self.prompts, strict=True)
        ]
        return torch.tensor(over, device=input_ids.device)


class _Gumbel(LogitsProcessor):
    """Noise that makes the largest logit a sample; a random stream for each row."""

    def __init__(self, temperature: float, names: Sequence[str]) -> None:
        self.temperature = temperature
        seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) for name in names]
        self.random = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        size = scores.shape[-1]
        noise = torch.stack([torch.empty(size).exponential_(generator=r).log() for r in self.random])
        return scores / self.temperature - noise.to(scores)


class _Within(LogitsProcessor):
    """No id beyond the tokenizer's: an output matrix may have more rows than there are tokens."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return scores if scores.shape[-1] <= self.size else scores.index_fill(
            -1, torch.arange(self.size, scores.shape[-1], device=scores.device), float("-inf")
        )  # fmt: skip
