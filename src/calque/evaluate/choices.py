"""Log-likelihood of choices: every shared beginning of a batch is computed once.

The token sequences of a batch (prompt and choice, for every choice of every item) are laid out as a trie in
one row: each node is one token, sees its ancestors only, and its position is its depth. Choices of one
question share the question, questions of one task share their examples, and none of it is read twice. The
numbers are those of reading each sequence by itself. Models that do not take such a mask (which is tried on
a few tokens) read their sequences one by one, padded into batches.

Shape letters: S nodes of a row, B sequences, T tokens, E scored edges, V vocabulary, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calque.errors import DataError, ModelError
from calque.evaluate import seq2seq
from calque.evaluate.benchmark import Answer, Prompt
from calque.evaluate.lm import Reader

_HEAD_ROWS = 256  # rows of logits held at once


@dataclass(frozen=True)
class Scored:
    """One sequence to score: its tokens, and from which one on they count."""

    ids: tuple[int, ...]
    first: int


def sequences(reader: Reader, prompt: Prompt, start: bool) -> tuple[list[Scored], list[Scored]]:
    """The choices of a prompt as sequences, and the same choices without the question before them.

    The scored part begins where the sequences begin to differ from the prompt alone, so that a choice whose
    first letters join the prompt's last ones into one token is scored whole.

    Raises:
        DataError: A choice without a letter of its own.
    """
    begin = [reader.start] if start and reader.start is not None else []
    alone, *whole = reader.tokens.encode_batch([prompt.text, *(prompt.text + c for c in prompt.choices)])
    shared = min(_common(alone, ids) for ids in whole)
    if any(len(ids) <= shared for ids in whole):
        raise DataError(f"a choice of {prompt.choices} adds nothing to the prompt; every choice needs text")
    if not begin and not shared:
        raise DataError("a prompt of no tokens and no start token; there is nothing to predict a choice from")
    bare = begin or [reader.start if reader.start is not None else alone[-1]]
    answers = reader.tokens.encode_batch(list(prompt.choices))
    return (
        [Scored((*begin, *ids), len(begin) + shared) for ids in whole],
        [Scored((*bare, *ids), len(bare)) for ids in answers],
    )


def choose(reader: Reader, prompts: Sequence[Prompt], *, normalise: str, start: bool) -> list[Answer]:
    """The choice of each prompt, with the log-likelihood of every one in nats.

    Args:
        reader: The model.
        prompts: Each with its choices.
        normalise: What a choice's log-likelihood is divided by, or "unconditional" to subtract its
            log-likelihood without the question: "none", "bytes", "tokens".
        start: Whether the tokenizer's start token stands before the prompt; an encoder-decoder always reads
            prompt and choice with the special tokens of its tokenizer.
    """
    if reader.model.config.is_encoder_decoder:
        return _choose_between(reader, prompts, normalise)
    with_prompt, without = [], []
    for prompt in prompts:
        asked, bare = sequences(reader, prompt, start)
        with_prompt.append(asked)
        without.append(bare)
    flat = [s for asked in with_prompt for s in asked]
    extra = [s for bare in without for s in bare] if normalise == "unconditional" else []
    scores = likelihoods(reader, [*flat, *extra])
    answers, at = [], 0
    for prompt, asked in zip(prompts, with_prompt, strict=True):
        found = scores[at : at + len(asked)]
        base = scores[len(flat) + at : len(flat) + at + len(asked)]
        counts = [len(s.ids) - s.first for s in asked]
        answers.append(_best(prompt, _normalised(found, base, prompt, counts, normalise)))
        at += len(asked)
    return answers


def _choose_between(reader: Reader, prompts: Sequence[Prompt], normalise: str) -> list[Answer]:
    """The choice of each prompt by a model that reads the prompt in its encoder."""
    pairs = [(prompt.text, choice) for prompt in prompts for choice in prompt.choices]
    found, counts = seq2seq.likelihoods(reader, pairs)
    without: list[float] = []
    if normalise == "unconditional":
        without, _ = seq2seq.likelihoods(reader, [("", choice) for _, choice in pairs])
    answers, at = [], 0
    for prompt in prompts:
        here = slice(at, at + len(prompt.choices))
        weighed = _normalised(found[here], without[here], prompt, counts[here], normalise)
        answers.append(_best(prompt, weighed))
        at = here.stop
    return answers


def _best(prompt: Prompt, weighed: Sequence[float]) -> Answer:
    best = max(range(len(weighed)), key=weighed.__getitem__)
    return Answer(prompt.choices[best].strip(), best, tuple(weighed))


def _normalised(
    found: Sequence[float], base: Sequence[float], prompt: Prompt, tokens: Sequence[int], how: str
) -> list[float]:
    if how == "unconditional":
        return [score - without for score, without in zip(found, base, strict=True)]
    if how == "bytes":
        return [score / len(c.encode()) for score, c in zip(found, prompt.choices, strict=True)]
    if how == "tokens":
        return [score / count for score, count in zip(found, tokens, strict=True)]
    return list(found)


def likelihoods(reader: Reader, scored: Sequence[Scored]) -> list[float]:
    """Sum of log p(token | those before it) over the scored tokens of each sequence, in nats."""
    order = sorted(range(len(scored)), key=lambda n: scored[n].ids)
    laid = [scored[n] for n in order]
    read = _read_trie if takes_trie(reader) else _read_rows
    found = read(reader, laid)
    result = [0.0] * len(scored)
    for place, value in zip(order, found, strict=True):
        result[place] = value
    if not all(math.isfinite(value) for value in result):
        raise ModelError(f"system '{reader.name}': the probability of a choice is no number")
    return result


@dataclass(frozen=True)
class Trie:
    """Nodes in the order of a walk that goes down first: a node's descendants are the ones up to `stop`."""

    ids: list[int]
    parent: list[int]
    depth: list[int]
    stop: list[int]

    @classmethod
    def of(cls, sorted_ids: Sequence[Sequence[int]]) -> tuple[Trie, list[list[int]]]:
        """Build the trie of sequences in lexicographic order; also the nodes along each sequence."""
        trie = cls([], [], [], [])
        path: list[int] = []
        paths = []
        for ids in sorted_ids:
            shared = _common([trie.ids[n] for n in path], ids)
            for node in path[shared:]:
                trie.stop[node] = len(trie.ids)
            path = path[:shared]
            for token in ids[shared:]:
                trie.parent.append(path[-1] if path else -1)
                trie.depth.append(len(path))
                path.append(len(trie.ids))
                trie.ids.append(token)
                trie.stop.append(-1)
            paths.append(list(path))
        trie.stop[:] = [len(trie.ids) if stop < 0 else stop for stop in trie.stop]
        return trie, paths

    def mask(self) -> Tensor:
        """[S, S], true where node s may see node t: t is s or an ancestor of it."""
        place = torch.arange(len(self.ids))
        stop = torch.tensor(self.stop)
        return (place[None, :] <= place[:, None]) & (place[:, None] < stop[None, :])


def _rows(reader: Reader, laid: Sequence[Scored]) -> Iterator[list[Scored]]:
    """Neighbours in sorted order, as many as fit into one row of nodes."""
    limit = 768
    batch: list[Scored] = []
    size = 0
    for item in laid:
        new = len(item.ids) - (_common(batch[-1].ids, item.ids) if batch else 0)
        if batch and size + new > limit:
            yield batch
            batch, size, new = [], 0, len(item.ids)
        batch.append(item)
        size += new
    if batch:
        yield batch


def _read_trie(reader: Reader, laid: Sequence[Scored]) -> list[float]:
    found = []
    with torch.inference_mode():
        for batch in _rows(reader, laid):
            trie, paths = Trie.of([item.ids for item in batch])
            edges = sorted({n for item, path in zip(batch, paths, strict=True) for n in path[item.first :]})
            value = dict(zip(edges, _edges(reader, trie, edges), strict=True))
            found += [sum(value[n] for n in path[i.first :]) for i, path in zip(batch, paths, strict=True)]
    return found


def _edges(reader: Reader, trie: Trie, edges: Sequence[int]) -> list[float]:
    """log p(node | its ancestors) of each node asked for."""
    model = reader.model
    here = next(model.parameters())
    hidden_SH = model.base_model(
        input_ids=torch.tensor([trie.ids], device=here.device),
        attention_mask=_additive(trie.mask(), here.dtype).to(here.device),
        position_ids=torch.tensor([trie.depth], device=here.device),
        use_cache=False,
    )[0][0]
    head = model.get_output_embeddings()
    found: list[float] = []
    for begin in range(0, len(edges), _HEAD_ROWS):
        part = edges[begin : begin + _HEAD_ROWS]
        logits_EV = head(hidden_SH[[trie.parent[n] for n in part]]).float()
        targets = torch.tensor([trie.ids[n] for n in part], device=here.device)
        nll = torch.nn.functional.cross_entropy(logits_EV, targets, reduction="none")
        found += (-nll.double()).tolist()
    return found


def _additive(mask_SS: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as transformers passes it to attention: [1, 1, S, S], 0 where seen, very low elsewhere."""
    added = torch.zeros(mask_SS.shape, dtype=dtype)
    return added.masked_fill_(~mask_SS, torch.finfo(dtype).min)[None, None]


def _read_rows(reader: Reader, laid: Sequence[Scored], tokens: int = 2048) -> list[float]:
    """The plain way: every sequence by itself, padded on the right into batches of like lengths."""
    order = sorted(range(len(laid)), key=lambda n: -len(laid[n].ids))
    found = [0.0] * len(laid)
    begin = 0
    here = next(reader.model.parameters()).device
    with torch.inference_mode():
        while begin < len(order):
            longest = len(laid[order[begin]].ids)
            batch = order[begin : begin + max(1, tokens // longest)]
            ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
            scored_BT = torch.zeros((len(batch), longest - 1), dtype=torch.bool)
            for row, n in enumerate(batch):
                ids_BT[row, : len(laid[n].ids)] = torch.tensor(laid[n].ids)
                scored_BT[row, laid[n].first - 1 : len(laid[n].ids) - 1] = True
            nats = reader.surprise(ids_BT.to(here), scored_BT.to(here)).double().cpu()
            counts = [len(laid[n].ids) - laid[n].first for n in batch]
            for n, part in zip(batch, nats.split(counts), strict=True):
                found[n] = -float(part.sum())
            begin += len(batch)
    return found


def takes_trie(reader: Reader) -> bool:
    """Whether a model reads a trie as it reads its sequences; tried once on a few tokens of it."""
    model = reader.model
    if not hasattr(model, "_takes_trie"):
        model._takes_trie = _try_trie(reader)
    return model._takes_trie


def _try_trie(reader: Reader) -> bool:
    config = reader.model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if reader.whole or reader.attached or window is not None:
        return False
    size = len(reader.tokens)
    ids = [(n * 7) % size for n in range(8)]
    tried = sorted(
        (Scored((*ids, *more), 6) for more in ((1 % size, 2 % size), (3 % size,))), key=lambda s: s.ids
    )
    try:
        together = _read_trie(reader, tried)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    apart = _read_rows(reader, tried)
    return all(abs(a - b) < 1e-2 * max(1.0, abs(b)) for a, b in zip(together, apart, strict=True))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the shared beginning."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
