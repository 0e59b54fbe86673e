"""Continued training of a causal language model on text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval

from calque.data.corpus import Corpus
from calque.data.mixture import Mixture
from calque.data.ngram import Ngrams
from calque.data.pack import Pieces, pack
from calque.delta.attach import Attached, attach, fold_in, foldable
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.disk import fingerprint, new_folder, read_json, write_json
from calque.errors import ConfigError, ModelError
from calque.machine import has_bf16
from calque.model.checkpoint import Checkpoint, quiet
from calque.model.files import companions
from calque.model.recursive import MODEL_TYPE as LOOPED
from calque.progress import say
from calque.train.causal import causal_objective
from calque.train.loop import LOG, Saving, train
from calque.train.optim import Optimization
from calque.train.soft import SoftLabels
from calque.train.stage import Budget, Stage
from calque.train.state import refuse_changes
from calque.vocab.tokens import Tokens

RESULT = "result"
NOTES = "training.json"


def lm(
    model: Checkpoint,
    text: Corpus,
    replay: Corpus | None = None,
    delta: Delta | None = None,
    *,
    work: Path,
    part: Literal["all", "embeddings", "embeddings+outer", "lora", "delta"] | None = None,
    outer: Annotated[int, Ge(1)] = 2,
    rank: Annotated[int, Ge(1)] = 16,
    alpha: Annotated[float, Gt(0)] = 32.0,
    lora_embeddings: bool = False,
    minutes: Annotated[float, Gt(0)] | None = None,
    tokens: Annotated[int, Ge(1)] | None = None,
    steps: Annotated[int, Ge(1)] | None = None,
    batch_tokens: Annotated[int, Ge(2)] = 2048,
    accumulate: Annotated[int, Ge(1)] = 1,
    length: Annotated[int, Ge(2)] = 512,
    lr: Annotated[float, Gt(0)] = 5e-4,
    lr_embeddings: Annotated[float, Gt(0)] | None = None,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.05,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    clip: Annotated[float, Ge(0)] = 1.0,
    average: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    rows: Literal["seen", "all"] = "seen",
    replay_share: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    counts: Annotated[float, Interval(ge=0, le=1)] = 0.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    save_seconds: Annotated[float, Ge(0)] = 120.0,
    save_steps: Annotated[int, Ge(0)] = 0,
    seed: int = 0,
) -> Checkpoint:
    """Train a language model further on text.

    Loss = mean of -sum over w of q(w) log p(w | tokens before it in the same document), where q is the token
    that came, or with `counts` = c > 0: (1 - c) of it and c of what an n-gram model of the whole text says.
    Documents lie back to back in a batch, none attends to another, none is padded.

    Args:
        model: What to start from.
        text: What to learn; its groups are the documents.
        replay: Text of what the model knew before, mixed in against forgetting.
        delta: An addition to the model that trains while the model stays as it is.
        work: Folder for state and log; a killed run goes on from it.
        part: What trains: everything, the embeddings, these and the outer layers, low-rank pairs, or the
            given delta. Everything by default, with a delta only that.
        outer: Layers at each end that train in part "embeddings+outer".
        rank: Rank of each pair in part "lora".
        alpha: A pair's product is scaled by alpha / rank.
        lora_embeddings: Train the embeddings beside the pairs or the delta.
        minutes: Budget in wall-clock minutes; give one of minutes, tokens, steps.
        tokens: Budget in tokens read.
        steps: Budget in optimizer steps.
        batch_tokens: Tokens of one step, at most.
        accumulate: Parts that a step is computed in; more parts need less memory.
        length: Tokens of a piece of a document, at most.
        lr: Highest learning rate of the layers.
        lr_embeddings: Highest learning rate of input and output rows; the same as `lr` when not given.
        schedule: How the rate falls after the warm-up.
        warmup: Share of the budget over which the rate rises.
        weight_decay: Decoupled decay of the layers' matrices.
        clip: Largest norm of the gradient; 0 turns clipping off.
        average: Share of the budget, from its end, whose weights are averaged into the result; 0 = off.
        rows: Which embedding rows a step may move: those of tokens in it, or all.
        replay_share: Share of the tokens taken from `replay`.
        counts: Share of each label of `text` that a trigram model of the whole text gives. For a text that
            is much longer than what the budget can read.
        precision: What matrix products are computed in; auto is bfloat16 where the processor has it.
        save_seconds: Seconds between saved states; 0 turns this off.
        save_steps: Steps between saved states; 0 turns this off.
        seed: Decides the order of the text and new parameters.

    Returns:
        The trained checkpoint in `work`/result: a plain folder, in the dtype of the base, with its tokenizer,
        the log (log.jsonl) and notes (training.json). What trained beside the model lies in its folder
        delta/; it is folded in where its form allows, else the weights are those of the base, which is said.

    Raises:
        ConfigError: No or more than one budget, a replay share without replay text, part "delta" without
            a delta or a delta with another part, or changed settings.
        DataError: A text without tokens.
        ModelError: The loss is not a number.

    Paper:
        Remy et al. 2024, arXiv:2408.04303 (embeddings, then embeddings and outer layers, then all).

    Relations:
        A low-rank pair folded in gives the logits of the pair beside the base.
        With batches cut into `accumulate` parts the step is the same step.
        With counts=0 the labels are the tokens themselves.
    """
    part = part or ("delta" if delta else "all")
    settings = {k: v for k, v in locals().items() if k not in ("model", "text", "replay", "delta", "work")}
    delta = _delta(model, delta, part, rank, alpha, seed)
    budget = Budget(minutes, tokens, steps)
    if (replay is None) != (replay_share == 0):
        raise ConfigError(
            f"replay_share = {replay_share} {'needs a replay text' if replay is None else 'leaves it unused'}"
        )
    if batch_tokens // accumulate < length:
        raise ConfigError(
            f"batch_tokens = {batch_tokens} in {accumulate} parts is less than one piece of length {length}"
        )
    if part == "lora" and model.config.get("model_type") == LOOPED:
        raise ConfigError(
            f"{model.folder}: a looped model runs one matrix at several depths, and the pairs of all of them "
            "can not be folded into it; train part 'all'"
        )
    work.mkdir(parents=True, exist_ok=True)
    sources = [
        _pieces(model, corpus, work / f"{name}.tokens", length) for name, corpus in _named(text, replay)
    ]
    settings["model"] = fingerprint(model.folder)
    if part == "delta" and delta:
        settings["delta"] = delta.fingerprint()
    settings["text"] = [source.sha256 for source in sources]
    if (work / RESULT).is_dir():
        refuse_changes(read_json(work / RESULT / NOTES)["settings"], settings, work)
        return Checkpoint.at(work / RESULT)
    rates = (1 - replay_share, replay_share)[: len(sources)]
    loaded = model.model(torch.float32)
    attached = attach(loaded, {"delta": delta}) if delta else None
    size = model.info(model.input_embedding).shape[0]
    ngrams = Ngrams.count(sources[0].ids, sources[0].starts, size) if counts else None
    stage = Stage(
        part=part,
        objective=causal_objective(
            loaded, ngrams and (lambda batch: SoftLabels.counted(ngrams, batch, counts))
        ),
        stream=Mixture(tuple(sources), rates, seed),
        budget=budget,
        batch_tokens=batch_tokens,
        optimization=Optimization(
            lr, lr_embeddings or lr, schedule, warmup, weight_decay, clip=clip, average=average, rows=rows
        ),
        accumulate=accumulate,
        outer=outer,
        deltas=attached,
        delta_embeddings=lora_embeddings,
    )
    loaded, notes = train(
        loaded,
        [stage],
        work=work,
        settings=settings,
        saving=Saving(save_steps, save_seconds),
        seed=seed,
        precision=fast_dtype() if precision == "auto" else getattr(torch, precision),
    )
    say(f"training {part}: {notes['stage 0']['steps']} steps, {notes['stage 0']['tokens']:,} tokens, done")
    return _write(model, loaded, attached, work, {"settings": settings, **notes})


def fast_dtype() -> torch.dtype:
    """The type that matrix products are fastest in here: bfloat16 where the hardware multiplies it."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if has_bf16() else torch.float32


def _named(text: Corpus, replay: Corpus | None) -> list[tuple[str, Corpus]]:
    return [("text", text), *([("replay", replay)] if replay is not None else [])]


def _pieces(model: Checkpoint, text: Corpus, file: Path, length: int) -> Pieces:
    """The text in the model's tokens, kept in a file."""
    tokens = Tokens.of(model.tokenizer())
    end = tokens.special.get("eos")
    found = pack(
        text.passages(),
        lambda texts: (
            e.ids for e in tokens.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ),
        file=file,
        length=length,
        begin=tokens.special.get("bos", end),
        end=end,
        token_bytes=np.array([len(surface or b"") for surface in tokens.surface], dtype=np.int64),
    )
    nbytes, count = int(found.nbytes.sum()), len(found.ids)
    say(
        f"{file.stem}: {nbytes / 1e6:.2f} MB, {count:,} tokens ({nbytes / count:.2f} bytes each), "
        f"{len(found):,} pieces"
    )
    return found


def _delta(
    model: Checkpoint, delta: Delta | None, part: str, rank: int, alpha: float, seed: int
) -> Delta | None:
    """The delta that trains, if one does."""
    if (delta is not None) != (part == "delta"):
        what = "without a delta" if delta is None else f"with a '{delta.form}' delta, which would not train"
        raise ConfigError(f"part '{part}' {what}; part 'delta' and a delta belong together")
    if delta is not None:
        delta.check_base(model)
        return delta
    return lora(model, rank=rank, alpha=alpha, seed=seed) if part == "lora" else None


def _write(
    base: Checkpoint, model: Any, attached: Attached | None, work: Path, notes: dict[str, Any]
) -> Checkpoint:
    """Fold in what can be, save the model beside its tokenizer, delta, log and notes, and read it back."""
    delta = attached.detach()["delta"] if attached else None
    if delta is not None and foldable(delta):
        fold_in(model, delta)
    dtype = base.info(base.input_embedding).torch_dtype
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise ModelError("training ended with weights that are not numbers; nothing was written")
    with new_folder(work / RESULT) as folder:
        with quiet():
            model.to(device="cpu", dtype=dtype).save_pretrained(folder)
        for path in companions(base.folder):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.folder / path, folder / path)
        if delta is not None:
            delta.save(folder / "delta")
            if not foldable(delta):
                say(f"'{delta.form}' is not folded: weights are the base's, delta/ is what trained")
        shutil.copyfile(work / LOG, folder / LOG)
        write_json(folder / NOTES, notes)
        Checkpoint.at(folder).check()
    return Checkpoint.at(work / RESULT)
