"""What a model writes, and how long it takes to write it.

Two things are measured apart, because a model that drifts into another language writes it at that
language's speed:

- *Time* is that of writing given text: the held-out text itself is fed token by token through the cached
  model, as in generation (one forward pass and one choice per token). The number of tokens for
  1,000 characters and the seconds for one token are exactly those of a model that writes this text.
- *Samples* show what the model itself writes after the beginning of a held-out document, repetition
  included. Special tokens are not allowed, so that every sample has the same length.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge

from calque import __version__
from calque.data.corpus import Corpus
from calque.errors import ConfigError, ModelError
from calque.evaluate.documents import (
    Document,
    documents,
    fingerprint,
    pick,
    repetition,
    sides,
    split_words,
    unspaced,
)
from calque.evaluate.lm import Dtype, Reader, choose_dtype, context_length
from calque.evaluate.table import Table, signature
from calque.model.checkpoint import Checkpoint
from calque.progress import bar

_WARM_UP = 4  # steps before the clock starts: the first ones allocate
_UNSPACED_PROMPT = 3  # characters that stand for a word where there are no blanks


def generation(
    systems: Mapping[str, Checkpoint],
    texts: Mapping[str, Corpus],
    *,
    prompts: Annotated[int, Ge(1)] = 2,
    prompt_words: Annotated[int, Ge(1)] = 8,
    characters: Annotated[int, Ge(1)] = 1000,
    timed_tokens: Annotated[int, Ge(1)] = 64,
    sample_characters: Annotated[int, Ge(0)] = 300,
    temperature: Annotated[float, Ge(0)] = 0.7,
    seed: int = 0,
    dtype: Dtype = "auto",
) -> Table:
    """Sample from each model after fixed prompts, and time how fast it writes.

    Task "generation/NAME"; the items are the documents whose beginnings are the prompts. Metrics:

    - characters, tokens, seconds: of writing the document's first `characters` characters; the seconds are
      the tokens times the median time of the first `timed_tokens` of them.
    - sample_characters, sample_tokens, repetition: of what the model wrote, which is in `output` of
      sample_characters (the prompt is in `output` of prompt_characters). Repetition is the share of
      word pairs that had been written before.

    Args:
        systems: Checkpoints by name.
        texts: Held-out corpora by name; each of their languages is written by itself.
        prompts: How many documents of each text.
        prompt_words: Words of a document's beginning that make the prompt.
        characters: How much text the time is given for.
        timed_tokens: How many tokens are timed for each document.
        sample_characters: How long a sample gets; 0 leaves samples out.
        temperature: Of sampling; 0 takes the likeliest token each time.
        seed: Of sampling; the same for every system and prompt.
        dtype: As for `evaluate/lm`.

    Returns:
        The table; `table.measure("seconds/characters")` times 1,000 is the time for 1,000 characters.

    Raises:
        ConfigError: No system.
        DataError: A text without any text.
        ModelError: A model that gives a probability that is no number.
    """
    if not systems:
        raise ConfigError("no system to write; give at least one checkpoint with a name")
    chosen = [(name, code, pick(documents(text, code), prompts)) for name, code, text in sides(texts)]
    rows: list[dict[str, Any]] = []
    writing = _Writing(prompt_words, characters, timed_tokens, sample_characters, temperature, seed)
    total = len(systems) * sum(len(held) for _, _, held in chosen)
    with bar("write", total, "prompts") as shown, torch.inference_mode():
        for system, checkpoint in systems.items():
            reader = Reader.open(system, checkpoint, choose_dtype(dtype))
            for name, language, held in chosen:
                reader.speak(language)
                head = {"system": system, "task": f"generation/{name}", "language": language}
                head["signature"] = _signature(reader, writing, held)
                for document in held:
                    rows.extend({**head, **row} for row in _document(reader, writing, document, language))
                    shown.update(1, system)
    return Table.of(rows)


@dataclass(frozen=True)
class _Writing:
    """The settings that change a number."""

    prompt_words: int
    characters: int
    timed_tokens: int
    sample_characters: int
    temperature: float
    seed: int


def _document(reader: Reader, w: _Writing, document: Document, language: str) -> list[dict[str, Any]]:
    """All rows of one document."""
    text = document.text[: w.characters]
    ids = reader.tokens.encode(text)
    seconds = len(ids) * seconds_per_token(reader, ids[: w.timed_tokens])
    found: dict[str, float] = {"characters": len(text), "tokens": len(ids), "seconds": seconds}
    outputs: dict[str, str] = {}
    if w.sample_characters:
        prompt = beginning(document.text, language, w.prompt_words)
        made, count = sample(reader, prompt, w.sample_characters, w.temperature, w.seed)
        outputs = {"prompt_characters": prompt, "sample_characters": made}
        found |= {name: len(output) for name, output in outputs.items()}
        found |= {"sample_tokens": count, "repetition": repetition(split_words(made, language))}
    return [
        {"item": document.item, "metric": name, "value": value, "output": outputs.get(name)}
        for name, value in found.items()
    ]


def seconds_per_token(reader: Reader, ids: Sequence[int]) -> float:
    """Median seconds for a token when these are written one by one, past keys and values cached."""
    begin = [reader.start] if reader.start is not None else []
    steps = [*begin, *ids]
    cache, spent = None, []
    for place in range(-_WARM_UP, len(steps)):
        began = time.perf_counter()
        given = torch.tensor([[steps[max(place, 0)]]], device=_device(reader))
        out = reader.model(input_ids=given, past_key_values=cache, use_cache=True)
        int(out.logits[0, -1].argmax())  # the choice a model makes at each step; waits for the device too
        if place >= 0:
            cache = out.past_key_values
            spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def sample(reader: Reader, prompt: str, characters: int, temperature: float, seed: int) -> tuple[str, int]:
    """What the model writes after a prompt, cut to so many characters, and how many tokens that took."""
    begin = [] if reader.start is None else [reader.start]
    given = [*begin, *reader.tokens.encode(prompt)]
    room = (context_length(reader.model) or len(given) + characters) - len(given)
    banned = torch.tensor(sorted(reader.tokens.special_ids), dtype=torch.long, device=_device(reader))
    random = torch.Generator().manual_seed(seed)
    written: list[int] = []
    ids, cache, text = given, None, ""
    before = reader.tokens.decode(given)
    for _ in range(min(room, characters * 4)):
        out = reader.model(
            input_ids=torch.tensor([ids], device=_device(reader)), past_key_values=cache, use_cache=True
        )
        logits_V = out.logits[0, -1, : len(reader.tokens)].float().index_fill(0, banned, float("-inf"))
        if not torch.isfinite(logits_V.max()):
            raise ModelError(f"system '{reader.name}': its next-token probabilities are no numbers")
        written.append(_choose(logits_V.cpu(), temperature, random))
        ids, cache = written[-1:], out.past_key_values
        text = reader.tokens.decode([*given, *written])[len(before) :]
        if len(text) > characters:
            break
    return text[:characters], len(written)


def _choose(logits_V: torch.Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V / temperature).softmax(-1), 1, generator=random))


def beginning(text: str, language: str, words: int) -> str:
    """The first words of a text, with the blanks between them as they are."""
    if unspaced(language):
        return text.strip()[: words * _UNSPACED_PROMPT]
    place = 0
    for word in text.split()[:words]:
        place = text.index(word, place) + len(word)
    return text[:place].lstrip()


def _signature(reader: Reader, writing: _Writing, held: Sequence[Document]) -> str:
    parameter = next(reader.model.parameters())
    said = {
        **vars(writing),
        "text": fingerprint(held),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "threads": torch.get_num_threads(),
        "version": __version__,
    }
    return signature("generation", said)


def _device(reader: Reader) -> torch.device:
    return next(reader.model.parameters()).device
