"""Continued training of a causal language model on text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval

from calque.data.corpus import Corpus
from calque.data.mixture import Mixture, Rates, by_size, linear
from calque.data.ngram import Ngrams
from calque.data.pack import Pieces, pack
from calque.delta.attach import attach
from calque.delta.delta import Delta
from calque.disk import checksum
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint
from calque.progress import say
from calque.train import places
from calque.train.causal import Teacher, causal_objective
from calque.train.held_out import watch
from calque.train.languages import in_languages
from calque.train.optim import Optimization
from calque.train.part import added
from calque.train.processes import main_first
from calque.train.result import Precision, finished, trained
from calque.train.soft import SoftLabels
from calque.train.spread import world
from calque.train.stage import Budget, Objective, Part, Stage
from calque.train.steps import Saving
from calque.vocab.tokens import Tokens


def lm(
    model: Checkpoint,
    text: Corpus,
    replay: Corpus | None = None,
    delta: Delta | None = None,
    more: Mapping[str, Corpus] | None = None,
    held_out: Corpus | None = None,
    teacher: Checkpoint | None = None,
    *,
    work: Path,
    part: Part | None = None,
    outer: Annotated[int, Ge(1)] = 2,
    rank: Annotated[int, Ge(1)] = 16,
    alpha: Annotated[float, Gt(0)] = 32.0,
    lora_embeddings: bool = False,
    force_experts: bool = False,
    epochs: Annotated[float, Gt(0)] | None = None,
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
    replay_end: Annotated[float, Interval(gt=0, lt=1)] | None = None,
    sampling: Annotated[float, Gt(0)] = 1.0,
    counts: Annotated[float, Interval(ge=0, le=1)] = 0.0,
    taught: Annotated[float, Interval(gt=0, le=1)] = 0.5,
    temperature: Annotated[float, Gt(0)] = 2.0,
    check_steps: Annotated[int, Ge(1)] = 50,
    patience: Annotated[int, Ge(1)] = 3,
    precision: Precision = "auto",
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
        delta: An addition to the model that trains while the model stays as it is. Of a mixture by language
            each piece of text trains the part of its language.
        more: Further texts by name, drawn beside `text`.
        held_out: Text to stop early on: the state of the fewest bits per byte is the result.
        teacher: A model of the same vocabulary whose distributions over the next token are learnt too.
        work: Folder for state and log; a killed run goes on from it.
        part: What trains: everything, everything but the input rows, the embeddings, these and the outer
            layers, the layers' experts and routers, low-rank pairs, or the given delta. Everything by
            default, with a delta only that.
        outer: Layers at each end that train in part "embeddings+outer".
        rank: Rank of each pair in part "lora".
        alpha: A pair's product is scaled by alpha / rank.
        lora_embeddings: Train the embeddings beside the pairs or the delta.
        force_experts: Every token is seen by the expert of its text's language (merge/upcycle) while
            training.
        epochs: Budget in passes over `text`; give one of epochs, minutes, tokens, steps. Beside another one:
            how often `text` may be read before training ends.
        minutes: Budget in wall-clock minutes.
        tokens: Budget in tokens read.
        steps: Budget in optimizer steps.
        batch_tokens: Tokens of one step, at most, on all processes together.
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
        replay_end: The same share at the last step, where it is to go there in a straight line; needs a
            budget in steps.
        sampling: Temperature T over `text` and `more`: each is drawn in proportion to its size^(1/T).
        counts: Share of each label of `text` that a trigram model of the whole text gives. For a text that
            is much longer than what the budget can read.
        taught: Share of the teacher's distributions in the loss, where there is a teacher.
        temperature: Divides the logits of teacher and model before they are compared.
        check_steps: Steps between two checks on `held_out`.
        patience: Checks that may be no better than the best before training ends.
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
    material = ("model", "text", "replay", "delta", "more", "held_out", "teacher", "work", "material")
    settings: dict[str, Any] = {k: v for k, v in locals().items() if k not in material}
    _refuse(replay, replay_share, counts, teacher, batch_tokens // accumulate, length)
    if replay_end is not None and (steps is None or not replay_share):
        raise ConfigError(f"replay_end = {replay_end} needs a replay_share to come from, and steps to go by")
    delta = added(model, delta, part, rank, alpha, seed)
    texts = {"text": text, **{f"more-{name}": found for name, found in (more or {}).items()}}
    if replay is not None:
        texts["replay"] = replay
    with main_first() as main:
        sources = [_pieces(model, c, work / f"{name}.tokens", length, main) for name, c in texts.items()]
        held = _pieces(model, held_out, work / "held_out.tokens", length, main) if held_out else None
    settings["model"] = checksum(model.folder)
    if part == "delta" and delta:
        settings["delta"] = delta.fingerprint()
    settings["text"] = [source.sha256 for source in (*sources, *([held] if held else []))]
    settings["teacher"] = checksum(teacher.folder) if teacher else None
    if found := finished(work, settings):
        return found
    rates: Rates | tuple[float, ...] = _rates(sources, sampling, replay_share)
    if replay_end is not None and steps is not None:
        rates = linear(rates, _rates(sources, sampling, replay_end), steps - 1)
    stream = Mixture(tuple(sources), rates, seed, epochs)
    if epochs is not None and (minutes, tokens, steps) == (None, None, None):
        tokens = round(epochs * stream.epoch_tokens())
    budget = Budget(minutes, tokens, steps)
    loaded = model.model(torch.float32)
    attached = attach(loaded, {"delta": delta}) if delta else None
    size = model.info(model.input_embedding).shape[0]
    ngrams = Ngrams.count(sources[0].ids, sources[0].starts, size) if counts else None

    def objective() -> Objective:
        if teacher is not None:
            return _taught(model, teacher, taught, temperature)
        counted = _counting(ngrams, counts) if ngrams else None
        # Other batches of a step, and other processes, have tokens of their own.
        alone = rows == "seen" and accumulate == 1 and world()[1] == 1
        return causal_objective(loaded, counted, seen_rows=alone)

    stage = Stage(
        part=part,
        objective=in_languages(objective, model, [*texts.values()], attached, force_experts),
        stream=stream,
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
    if held:
        stage = replace(stage, watch=watch(stage, held, every=check_steps, patience=patience, per="bytes"))
    return trained(
        model, loaded, stage, work=work, settings=settings, saving=Saving(save_steps, save_seconds),
        seed=seed, precision=precision,
    )  # fmt: skip


def _refuse(
    replay: Corpus | None,
    replay_share: float,
    counts: float,
    teacher: Checkpoint | None,
    room: int,
    length: int,
) -> None:
    """Raise ConfigError for settings that can not go together."""
    if (replay is None) != (replay_share == 0):
        raise ConfigError(
            f"replay_share = {replay_share} {'needs a replay text' if replay is None else 'leaves it unused'}"
        )
    if counts and teacher is not None:
        raise ConfigError(f"counts = {counts} and a teacher: both would give the labels; choose one")
    if room < length:
        raise ConfigError(
            f"batch_tokens and accumulate leave {room} tokens at once, less than one piece of length {length}"
        )


def _rates(sources: Sequence[Pieces], sampling: float, replay_share: float) -> tuple[float, ...]:
    """Share of each text: `replay`, the last one, has its own; the others go by their sizes."""
    learnt = sources[:-1] if replay_share else sources
    rates = by_size([len(source.ids) for source in learnt], sampling)
    shares = tuple(rate * (1 - replay_share) for rate in rates)
    return (*shares, replay_share) if replay_share else shares


def _counting(ngrams: Ngrams, share: float) -> Teacher:
    """What the counts of the text say for a batch."""
    return lambda batch: SoftLabels.counted(ngrams, batch, share)


def _taught(base: Checkpoint, teacher: Checkpoint, share: float, temperature: float) -> Objective:
    """The next token from the text and from a teacher."""
    if base.tokenizer().get_vocab() != teacher.tokenizer().get_vocab():
        raise ConfigError(f"the teacher {teacher.folder} has another vocabulary than {base.folder}")
    model = teacher.model(torch.float32)
    return places.taught(places.next_tokens, model, "causal", share=share, temperature=temperature)


def _pieces(model: Checkpoint, text: Corpus, file: Path, length: int, write: bool) -> Pieces:
    """The text in the model's tokens, kept in a file; other processes map what the main one wrote."""
    if not write:
        return Pieces.load(file)
    file.parent.mkdir(parents=True, exist_ok=True)
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
