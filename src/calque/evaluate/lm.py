"""Bits per byte: how many bits a language model needs for each byte of text it has never seen.

For a document with UTF-8 bytes b and tokens t_1..t_n of a system's own tokenizer,

    bits = - sum_i log2 p(t_i | start, t_1 .. t_{i-1}),    bits per byte = sum of bits / sum of bytes.

Every token is scored, the first one given the start token (`bos`, else `eos`; a tokenizer with neither
pays log2 V for the first token), and no end token is. So each system pays for exactly the same bytes, and
systems with different tokenizers can be compared, which perplexity per token does not allow. A tokenizer
that loses text (unknown tokens, lower-casing) would pay too little: such documents are counted and said.

Documents longer than the context are read in windows: each new window begins `overlap` tokens before what
is still to be scored, so that every token but a document's first ones has at least that much context. A
context of so many tokens holds more text for a tokenizer that needs fewer of them; that is a real gain of
such a tokenizer, and part of what is measured.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from calque import __version__
from calque.data.corpus import Corpus
from calque.delta.attach import Attached, attach
from calque.delta.delta import beside
from calque.errors import ConfigError, ModelError
from calque.evaluate.documents import Document, documents, fingerprint, sides, unspaced, words
from calque.evaluate.table import Table, signature
from calque.machine import has_bf16
from calque.model.checkpoint import Checkpoint
from calque.progress import Bar, bar, say
from calque.vocab.tokens import Tokens

Dtype = Literal["auto", "float32", "bfloat16"]
_HEAD_ROWS = 256  # rows of logits held at once: 256 x 50k x 4 bytes = 50 MB, whatever the batch


def opened(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, Attached | None]:
    """A checkpoint's model to be read with, the delta beside it attached, on the accelerator if there is one.

    A mixture by language speaks its first one until another is asked for.
    """
    model: Any = checkpoint.model(dtype).eval().to(device())  # pyright: ignore
    delta = beside(checkpoint)
    attached = attach(model, {"delta": delta}) if delta else None
    if attached and attached.by_language:
        attached.speak(attached.by_language[0].names[0])
    return model, attached


@dataclass(frozen=True)
class Reader:
    """A model ready to be read with: B sequences of T tokens in, log-probabilities out.

    Attributes:
        name: The system's name.
        model: In evaluation mode, on its device.
        tokens: Its tokenizer.
        start: Id of the token every document begins with; None where the tokenizer has none.
        whole: Whether logits have to be taken from the model itself because something follows its head.
        attached: The delta that lies beside its weights, on the model.
    """

    name: str
    model: Any
    tokens: Tokens
    start: int | None
    whole: bool
    attached: Attached | None = None

    @classmethod
    def open(cls, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> Reader:
        """Load a checkpoint, with the delta beside it, onto the accelerator if there is one, else here."""
        model, attached = opened(checkpoint, dtype)
        tokens = Tokens.of(checkpoint.tokenizer())
        start = tokens.special.get("bos", tokens.special.get("eos"))
        rows = model.get_input_embeddings().num_embeddings
        if len(tokens) > rows:
            raise ModelError(f"system '{name}': {len(tokens)} tokens for an embedding of {rows} rows")
        whole = not model.config.is_encoder_decoder and not _head_is_last(model, rows)
        if whole:
            say(f"{name}: something follows the output matrix; logits are taken whole, in smaller batches")
        return cls(name, model, tokens, start, whole, attached)

    def speak(self, language: str) -> None:
        """Say in which language the next texts are, to a delta that goes by that."""
        if self.attached:
            self.attached.speak(language)

    def surprise(self, ids_BT: Tensor, scored_BT: Tensor) -> Tensor:
        """Negative log-probabilities (nats) of the tokens marked in `scored_BT`, row by row, flattened.

        Args:
            ids_BT: [B, T + 1] token ids, padded on the right: with causal attention padding changes nothing.
            scored_BT: [B, T] marks which of ids_BT[:, 1:] to score.

        Raises:
            ModelError: An encoder-decoder, which gives a text a probability after another text only.
        """
        if self.model.config.is_encoder_decoder:
            raise ModelError(
                f"system '{self.name}' is an encoder-decoder: it has no bits per byte of a text by itself; "
                "score its translations or answers (evaluate run)"
            )
        targets = ids_BT[:, 1:][scored_BT]
        if self.whole:
            logits_NV = self.model(input_ids=ids_BT[:, :-1], use_cache=False).logits[scored_BT]
            return _nll(logits_NV, targets)
        hidden_NH = self.model.base_model(input_ids=ids_BT[:, :-1], use_cache=False)[0][scored_BT]
        head = self.model.get_output_embeddings()
        return torch.cat(
            [
                _nll(head(rows), wanted)
                for rows, wanted in zip(hidden_NH.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
            ]
        )


def lm(
    systems: Mapping[str, Checkpoint],
    texts: Mapping[str, Corpus],
    *,
    length: Annotated[int, Ge(8)] = 1024,
    overlap: Annotated[float, Interval(ge=0, le=0.9)] = 0.25,
    batch_tokens: Annotated[int, Ge(8)] = 2048,
    max_bytes: Annotated[int, Ge(1)] | None = None,
    dtype: Dtype = "auto",
    work: Path | None = None,
) -> Table:
    """Score held-out documents in bits per byte.

    Args:
        systems: Checkpoints by the name they go by in the table.
        texts: Held-out corpora by name; each of their languages is scored by itself.
        length: Tokens in a window, the start token included; shorter where a model's own context is.
        overlap: Share of a window that is read again as context of the next one.
        batch_tokens: Tokens in a batch, padding included; changes speed and memory, not results.
        max_bytes: Score at most so many bytes of each text: the beginnings of as many documents as can have
            2,000 bytes each, or stand whole.
        dtype: "auto" takes bfloat16 where the hardware multiplies it, else float32.
        work: Folder for what is done; a killed call given the same folder goes on after the last text.

    Returns:
        A table with the metrics bits, bytes, tokens, words and lossless (1 where decoding gives the text
        back) for each document; task "lm/NAME". `table.measure("bits/bytes")` is bits per byte.

    Raises:
        ConfigError: No system.
        DataError: A text without any text.
        ModelError: A model that gives a probability that is no number.

    Relations: a model with equal logits everywhere gives tokens * log2(V) bits, as `evaluate/floors` does.
    The result is the same for every batch_tokens.
    """
    if not systems:
        raise ConfigError("no system to score; give at least one checkpoint with a name")
    kind = choose_dtype(dtype)
    found = [(name, code, documents(corpus, code, max_bytes)) for name, code, corpus in sides(texts)]
    tables = []
    for system, checkpoint in systems.items():
        reader = None
        stated = {"max_bytes": max_bytes or "all", "overlap": overlap}
        for name, code, held in found:
            path = work and work / _part(system, checkpoint, name, code, held, length, str(kind), stated)
            if path and path.exists():
                tables.append(Table.load(path))
                continue
            reader = reader or Reader.open(system, checkpoint, kind)
            reader.speak(code)
            window = min(length, context_length(reader.model) or length)
            table = _score(reader, name, code, held, window, int(window * overlap), batch_tokens, stated)
            if path:
                table.save(path)
            tables.append(table)
    return tables[0].join(*tables[1:])


def _score(
    reader: Reader,
    name: str,
    language: str,
    held: Sequence[Document],
    length: int,
    overlap: int,
    batch_tokens: int,
    stated: Mapping[str, object],
) -> Table:
    """All documents of one text by one system."""
    ids = reader.tokens.encode_batch([document.text for document in held])
    if empty := [d.item for d, found in zip(held, ids, strict=True) if not found]:
        raise ModelError(f"system '{reader.name}': its tokenizer gives no token at all for '{empty[0]}'")
    nats = [0.0 if reader.start is not None else math.log(len(reader.tokens)) for _ in held]
    sequences = [found if reader.start is None else [reader.start, *found] for found in ids]
    begun, size = time.monotonic(), sum(document.nbytes for document in held)
    per_token = size / sum(len(found) for found in ids)
    batch_tokens = min(batch_tokens, 1024) if reader.whole else batch_tokens
    with bar(f"bits per byte: {reader.name}, {name}", size, "B") as shown, torch.inference_mode():
        for batch in batches([len(s) for s in sequences], length, overlap, batch_tokens):
            _add(reader, sequences, batch, nats)
            scored = sum(window.stop - window.first for window in batch)
            _tell(shown, scored * per_token, begun)
    for document, value in zip(held, nats, strict=True):
        if not math.isfinite(value):
            raise ModelError(
                f"system '{reader.name}': the probability of '{document.item}' is no number ({value}); "
                "its weights have diverged or are damaged"
            )
    lossless = [float(reader.tokens.decode(i) == d.text) for i, d in zip(ids, held, strict=True)]
    if lost := lossless.count(0.0):
        say(
            f"{reader.name}, {name}: {lost} of {len(held)} documents do not come back from the tokenizer "
            "byte for byte; their bits are not those of the whole text"
        )
    made_by = _signature(reader, held, language, length, stated)
    return Table.of(
        {
            "system": reader.name,
            "task": f"lm/{name}",
            "language": language,
            "item": document.item,
            "metric": metric,
            "value": value,
            "signature": made_by,
        }
        for document, found, nat, same in zip(held, ids, nats, lossless, strict=True)
        for metric, value in {
            "bits": nat / math.log(2),
            "bytes": document.nbytes,
            "tokens": len(found),
            "words": words(document.text, language),
            "lossless": same,
        }.items()
    )


@dataclass(frozen=True)
class Window:
    """Part of sequence `index`: reads positions [begin, stop), scores those from `first` on."""

    index: int
    begin: int
    first: int
    stop: int


def windows(index: int, size: int, length: int, overlap: int) -> Iterator[Window]:
    """Cover positions 1..size-1 of a sequence, each scored exactly once, with `overlap` tokens of context."""
    first = 1
    while first < size:
        begin = 0 if first == 1 else max(0, first - max(1, overlap))
        stop = min(size, begin + length + 1)
        yield Window(index, begin, first, stop)
        first = stop


def batches(sizes: Sequence[int], length: int, overlap: int, batch_tokens: int) -> Iterator[list[Window]]:
    """All windows of all sequences, longest first, as many together as fit into `batch_tokens`."""
    listed = [w for index, size in enumerate(sizes) for w in windows(index, size, length, overlap)]
    listed.sort(key=lambda w: w.begin - w.stop)
    batch: list[Window] = []
    for window in listed:
        longest = (batch[0] if batch else window).stop - (batch[0] if batch else window).begin
        if batch and (len(batch) + 1) * longest > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _add(reader: Reader, sequences: Sequence[list[int]], batch: Sequence[Window], nats: list[float]) -> None:
    """Score one batch and add each token's surprise to its document, in double precision."""
    longest = max(window.stop - window.begin for window in batch)
    ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
    scored_BT = torch.zeros((len(batch), longest - 1), dtype=torch.bool)
    for row, window in enumerate(batch):
        piece = sequences[window.index][window.begin : window.stop]
        ids_BT[row, : len(piece)] = torch.tensor(piece)
        scored_BT[row, window.first - window.begin - 1 : len(piece) - 1] = True
    here = next(reader.model.parameters()).device
    surprise = reader.surprise(ids_BT.to(here), scored_BT.to(here)).double().cpu()
    counts = [window.stop - window.first for window in batch]
    for window, part in zip(batch, surprise.split(counts), strict=True):
        nats[window.index] += float(part.sum())


def choose_dtype(dtype: Dtype) -> torch.dtype:
    """The dtype asked for; "auto" is bfloat16 only where the hardware multiplies it."""
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if has_bf16() else torch.float32


def device() -> str:
    """Where models run: the accelerator if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def context_length(model: Any) -> int | None:
    """Positions a model was made for; None where its configuration does not say."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def _signature(
    reader: Reader, held: Sequence[Document], language: str, length: int, stated: Mapping[str, object]
) -> str:
    start = "none" if reader.start is None else reader.tokens.strings[reader.start]
    backend = hashlib.sha256(reader.tokens.backend.to_str().encode()).hexdigest()[:8]
    parameter = next(reader.model.parameters())
    return signature(
        "lm",
        {
            "start": start,
            "length": length,
            **stated,
            "text": fingerprint(held),
            "tokenizer": backend,
            "words": "characters" if unspaced(language) else "blanks",
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": parameter.device.type,
            "version": __version__,
        },
    )


def _nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def _head_is_last(model: Any, rows: int) -> bool:
    """Whether trunk then output matrix gives the model's own logits (no scaling or capping after it)."""
    ids_BT = (torch.arange(12, device=next(model.parameters()).device) % rows)[None]
    head: Callable[[Tensor], Tensor] | None = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    with torch.inference_mode():
        own = model(input_ids=ids_BT, use_cache=False).logits.float()
        ours = head(model.base_model(input_ids=ids_BT, use_cache=False)[0]).float()
    return ours.shape == own.shape and torch.allclose(ours, own, rtol=1e-3, atol=1e-3)


def _tell(shown: Bar, nbytes: float, begun: float) -> None:
    seconds = max(time.monotonic() - begun, 1e-3)
    shown.update(nbytes, f"{(shown.done + nbytes) / seconds / 1e3:.1f} kB/s")


def _part(system: str, checkpoint: Checkpoint, *settings: object) -> str:
    """File name of a finished part: a digest of everything it depends on."""
    said = repr((system, str(checkpoint.folder.resolve()), *settings))
    return f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.parquet"
