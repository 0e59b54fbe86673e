"""Training on text whose noise is to be undone: masked tokens, or spans cut out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval
from transformers import PreTrainedModel

from calque.data.corpus import Corpus
from calque.data.mixture import Mixture
from calque.data.noise import BYTES, byte_sentinels, mask_noise, raw_length, span_noise
from calque.data.pack import Batch, Piece, Pieces, store
from calque.disk import checksum
from calque.errors import ConfigError, ModelError
from calque.model.checkpoint import Checkpoint
from calque.progress import say
from calque.train import places
from calque.train.causal import causal_objective
from calque.train.held_out import watch
from calque.train.optim import Optimization
from calque.train.processes import main_first
from calque.train.result import Precision, finished, trained
from calque.train.stage import Budget, Objective, Stage
from calque.train.steps import Saving
from calque.vocab.tokens import Tokens

Noise = Literal["masks", "spans"]


def denoise(
    model: Checkpoint,
    text: Corpus,
    held_out: Corpus | None = None,
    *,
    work: Path,
    noise: Noise = "masks",
    density: Annotated[float, Interval(gt=0, lt=1)] = 0.15,
    mean_span: Annotated[float, Ge(1)] = 3.0,
    sentinels: Literal["named", "bytes"] = "named",
    part: Literal["all", "embeddings", "embeddings+outer"] = "all",
    outer: Annotated[int, Ge(1)] = 2,
    epochs: Annotated[float, Gt(0)] | None = None,
    minutes: Annotated[float, Gt(0)] | None = None,
    steps: Annotated[int, Ge(1)] | None = None,
    batch_tokens: Annotated[int, Ge(2)] = 2048,
    accumulate: Annotated[int, Ge(1)] = 1,
    length: Annotated[int, Ge(8)] = 512,
    lr: Annotated[float, Gt(0)] = 1e-4,
    schedule: Literal["cosine", "linear", "constant"] = "linear",
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.05,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    clip: Annotated[float, Ge(0)] = 1.0,
    check_steps: Annotated[int, Ge(1)] = 50,
    patience: Annotated[int, Ge(1)] = 3,
    precision: Precision = "auto",
    save_seconds: Annotated[float, Ge(0)] = 120.0,
    save_steps: Annotated[int, Ge(0)] = 0,
    seed: int = 0,
) -> Checkpoint:
    """Train a masked or an encoder-decoder model on text by undoing noise.

    masks: a share `density` of the tokens is chosen; of these 80 % become the mask token, 10 % a random one,
    10 % stay; loss = mean over them of -log p(the token | the noised piece).
    spans: round(density n) tokens are cut out of n in round(that / mean_span) spans, each replaced by a
    sentinel; loss = mean of -log p(token | the corrupted piece, target before it) over the target, which is
    sentinel, span, sentinel, span, ..., end.
    The noise is anew in every epoch and follows from the seed.

    Args:
        model: A masked language model, an encoder-decoder, or for spans also a causal model.
        text: What to learn; its groups are the documents.
        held_out: More text, to stop early on; the best state is the result.
        work: Folder for state and log; a killed run goes on from it.
        noise: What the noise is.
        density: Share of the tokens that are to be restored.
        mean_span: Tokens of a span on average; 20 for byte models.
        sentinels: What stands for the spans: the tokens <extra_id_0>, <extra_id_1>, ... by name, or the
            highest byte ids 258, 257, ... of a byte model.
        part: What trains.
        outer: Layers at each end that train in part "embeddings+outer".
        epochs: Budget in passes over the text; give one of epochs, minutes, steps.
        minutes: Budget in wall-clock minutes.
        steps: Budget in optimizer steps.
        batch_tokens: Tokens of one step before the noise, at most, on all processes together.
        accumulate: Parts that a step is computed in; more parts need less memory.
        length: Tokens of a piece as the model reads it, at most.
        lr: Highest learning rate.
        schedule: How the rate falls after the warm-up.
        warmup: Share of the budget over which the rate rises.
        weight_decay: Decoupled decay of the matrices.
        clip: Largest norm of the gradient; 0 turns clipping off.
        check_steps: Steps between two checks on `held_out`.
        patience: Checks that may be no better than the best before training ends.
        precision: What matrix products are computed in; auto is bfloat16 where the processor has it.
        save_seconds: Seconds between saved states; 0 turns this off.
        save_steps: Steps between saved states; 0 turns this off.
        seed: Decides the order of the text and the noise.

    Returns:
        The trained checkpoint: an ordinary folder with its tokenizer, log and notes.

    Raises:
        ConfigError: No or more than one budget, a model or tokenizer that this noise does not go with.
        DataError: A text without tokens.

    Paper:
        Devlin et al. 2019, arXiv:1810.04805 (masks); Raffel et al. 2020, arXiv:1910.10683 (spans).

    Relations:
        Spans put back at their sentinels give the piece.
    """
    settings: dict[str, Any] = {
        k: v for k, v in locals().items() if k not in ("model", "text", "held_out", "work")
    }
    tokens = Tokens.of(model.tokenizer())
    size, prepare = _noise(model, tokens, noise, density, mean_span, sentinels, length, seed)
    begin, end = _ends(tokens) if noise == "masks" else (None, None)
    texts = [("text", text), *([("held_out", held_out)] if held_out else [])]
    with main_first() as main:
        sources = [
            _pieces(tokens, corpus, work / f"{name}.tokens", size, begin, end, main) for name, corpus in texts
        ]
    settings["model"] = checksum(model.folder)
    settings["text"] = [source.sha256 for source in sources]
    if found := finished(work, settings):
        return found
    loaded = model.model()
    limit = epochs if minutes is None and steps is None else None
    stream = Mixture((sources[0],), (1.0,), seed, epochs=limit)
    stage = Stage(
        part=part,
        objective=_objective(loaded, noise),
        stream=stream,
        budget=Budget(minutes, round(epochs * stream.epoch_tokens()) if epochs else None, steps),
        batch_tokens=batch_tokens,
        optimization=Optimization(lr, lr, schedule, warmup, weight_decay, clip=clip, rows="all"),
        accumulate=accumulate,
        outer=outer,
        prepare=prepare,
        terms=places.labels_given if noise == "masks" else Batch.targets,
    )
    if held_out:
        stopping = watch(stage, sources[1], every=check_steps, patience=patience, per="terms")
        stage = replace(stage, watch=stopping)
    return trained(
        model, loaded, stage, work=work, settings=settings, saving=Saving(save_steps, save_seconds),
        seed=seed, precision=precision,
    )  # fmt: skip


def _objective(model: PreTrainedModel, noise: Noise) -> Objective:
    if noise == "masks":
        return places.labelled(places.each_token, "masked")
    if model.config.is_encoder_decoder:
        return places.labelled(places.translation, "spans")
    return causal_objective(model)


def _noise(
    model: Checkpoint,
    tokens: Tokens,
    noise: Noise,
    density: float,
    mean_span: float,
    sentinels: Literal["named", "bytes"],
    length: int,
    seed: int,
) -> tuple[int, Callable[[Batch], Batch]]:
    """(tokens of a piece before the noise, what noises a batch)."""
    if noise == "masks":
        if "mask" not in tokens.special:
            raise ConfigError(f"{model.folder}: its tokenizer has no mask token; use noise 'spans'")
        kind = str((model.config.get("architectures") or [""])[0])
        if not kind.endswith("ForMaskedLM"):
            raise ConfigError(f"{model.folder}: a {kind} restores no masked tokens; use noise 'spans'")
        special = sorted(tokens.special_ids)
        hide = partial(mask_noise, mask=tokens.special["mask"], vocabulary=len(tokens), special=special)
        return length, partial(hide, seed=seed, share=density)
    end = tokens.special.get("eos")
    if end is None:
        raise ConfigError(f"{model.folder}: its tokenizer has no end token, which ends a target")
    marks = byte_sentinels() if sentinels == "bytes" else _named_sentinels(model, tokens)
    rows = model.info(model.input_embedding).shape[0]
    if sentinels == "bytes" and rows < BYTES:
        raise ConfigError(f"{model.folder}: {rows} rows; byte sentinels need the {BYTES} of a byte model")
    size, _ = raw_length(length, density, mean_span)
    cut = partial(span_noise, sentinels=marks, end=end, density=density, mean_span=mean_span)
    return size, partial(cut, seed=seed)


def _named_sentinels(model: Checkpoint, tokens: Tokens) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1>, ... as far as the tokenizer has them."""
    ids = {string: token for token, string in enumerate(tokens.strings)}
    found: list[int] = []
    while (token := ids.get(f"<extra_id_{len(found)}>")) is not None:
        found.append(token)
    if not found:
        raise ConfigError(
            f"{model.folder}: its tokenizer has no sentinels <extra_id_0>, ...; for a byte model give "
            "sentinels 'bytes'"
        )
    return found


def _ends(tokens: Tokens) -> tuple[int | None, int | None]:
    """What stands around each piece of a masked model."""
    begin = tokens.special.get("cls", tokens.special.get("bos"))
    return begin, tokens.special.get("sep", tokens.special.get("eos"))


def _pieces(
    tokens: Tokens, text: Corpus, file: Path, size: int, begin: int | None, end: int | None, write: bool
) -> Pieces:
    """The text cut to pieces of at most `size` tokens, what stands around them included, kept in a file."""
    if not write:
        return Pieces.load(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    found = store(_cut(tokens, text, size, begin, end), file)
    size_mb = int(found.nbytes.sum()) / 1e6
    say(f"{file.stem}: {size_mb:.2f} MB, {len(found.ids):,} tokens, {len(found):,} pieces")
    return found


def _cut(tokens: Tokens, text: Corpus, size: int, begin: int | None, end: int | None) -> Iterator[Piece]:
    widths = np.array([len(surface or b"") for surface in tokens.surface], dtype=np.int64)
    room = size - (begin is not None) - (end is not None)
    if room < 2:
        raise ModelError(f"pieces of {size} tokens leave room for {room} of the text; give a greater length")
    for document in text.passages():
        ids = np.asarray(tokens.encode(document), dtype=np.int64)
        # In parts of about equal size: the last must not be too short to be restored from itself.
        for body in np.array_split(ids, -(-len(ids) // room)) if len(ids) > 1 else ():
            around = [[token] if token is not None else [] for token in (begin, end)]
            yield Piece([*around[0], *body.tolist(), *around[1]], int(widths[body].sum()))
