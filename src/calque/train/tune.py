"""Tuning on examples: instructions, classes, tags, answers in a text, translations, rankings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from transformers import PreTrainedModel

from calque.data.corpus import Corpus
from calque.data.encode import Encoder, Task, found_labels
from calque.data.mixture import Mixture
from calque.data.pack import Batch, Pieces, store
from calque.delta.attach import attach
from calque.delta.delta import Delta
from calque.disk import checksum
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint
from calque.progress import say
from calque.train import places
from calque.train.causal import causal_objective
from calque.train.head import with_head
from calque.train.held_out import watch
from calque.train.languages import in_languages
from calque.train.optim import Optimization
from calque.train.part import added
from calque.train.processes import main_first
from calque.train.rank import lists, ranking
from calque.train.result import Precision, finished, trained
from calque.train.stage import Budget, Objective, Stage
from calque.train.steps import Saving

_PLACES: dict[str, places.PlacesOf] = {
    "classify": places.each_piece,
    "tag": places.each_token,
    "qa": places.ends_of_span,
}
_HEADS = {"classify": "sequence", "rank": "sequence", "tag": "token", "qa": "span"}


def tune(
    model: Checkpoint,
    data: Corpus,
    held_out: Corpus | None = None,
    teacher: Checkpoint | None = None,
    delta: Delta | None = None,
    *,
    work: Path,
    objective: Task,
    part: Literal["all", "embeddings", "embeddings+outer", "lora", "delta"] | None = None,
    outer: Annotated[int, Ge(1)] = 2,
    rank: Annotated[int, Ge(1)] = 16,
    alpha: Annotated[float, Gt(0)] = 32.0,
    epochs: Annotated[float, Gt(0)] | None = None,
    minutes: Annotated[float, Gt(0)] | None = None,
    steps: Annotated[int, Ge(1)] | None = None,
    batch_tokens: Annotated[int, Ge(2)] = 2048,
    accumulate: Annotated[int, Ge(1)] = 1,
    length: Annotated[int, Ge(8)] = 512,
    lr: Annotated[float, Gt(0)] = 5e-5,
    schedule: Literal["cosine", "linear", "constant"] = "linear",
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.05,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    clip: Annotated[float, Ge(0)] = 1.0,
    compare: Literal["pairwise", "listwise"] = "listwise",
    taught: Annotated[float, Interval(gt=0, le=1)] = 0.5,
    temperature: Annotated[float, Gt(0)] = 2.0,
    check_steps: Annotated[int, Ge(1)] = 50,
    patience: Annotated[int, Ge(1)] = 3,
    precision: Precision = "auto",
    save_seconds: Annotated[float, Ge(0)] = 120.0,
    save_steps: Annotated[int, Ge(0)] = 0,
    seed: int = 0,
) -> Checkpoint:
    """Tune a model on examples of a task.

    Loss, mean over the places that have a label: sft and translate -log p(answer token | prompt and the
    answer's tokens before it), the prompt itself is not learnt; classify -log p(class); tag -log p(tag) at
    the first token of each word; qa the mean of -log p(first token) and -log p(last token) of the answer;
    rank a comparison of the scores in each list. With a teacher: (1 - taught) of it and `taught` of
    temperature^2 KL(teacher || model) at the same places, each item by its weight.

    Args:
        model: What to start from; its own head stays when it is for this task and these labels.
        data: Examples: text, and by objective target (sft, classify, rank), spans (tag, qa), question
            (qa, rank; sft where there is one), two sides (translate), weight.
        held_out: More examples, to stop early on; the best state is the result.
        teacher: A model of the same vocabulary and head whose distributions are learnt too.
        delta: An addition to the model that trains while the model stays as it is.
        work: Folder for state and log; a killed run goes on from it.
        objective: What the examples are for.
        part: What trains beside a new head; everything by default, with a delta only that.
        outer: Layers at each end that train in part "embeddings+outer".
        rank: Rank of each pair in part "lora".
        alpha: A pair's product is scaled by alpha / rank.
        epochs: Budget in passes over the data; give one of epochs, minutes, steps.
        minutes: Budget in wall-clock minutes.
        steps: Budget in optimizer steps.
        batch_tokens: Tokens of one step, at most, on all processes together.
        accumulate: Parts that a step is computed in; more parts need less memory.
        length: Tokens of an example, at most; longer ones are cut, which is counted. In qa a text is read in
            windows.
        lr: Highest learning rate.
        schedule: How the rate falls after the warm-up.
        warmup: Share of the budget over which the rate rises.
        weight_decay: Decoupled decay of the matrices.
        clip: Largest norm of the gradient; 0 turns clipping off.
        compare: How candidates are ranked: by pairs of different grade, or by the whole list.
        taught: Share of the teacher's distributions in the loss, where there is a teacher.
        temperature: Divides the logits of both before they are compared.
        check_steps: Steps between two checks on `held_out`.
        patience: Checks that may be no better than the best before training ends.
        precision: What matrix products are computed in; auto is bfloat16 where the processor has it.
        save_seconds: Seconds between saved states; 0 turns this off.
        save_steps: Steps between saved states; 0 turns this off.
        seed: Decides the order of the examples and new parameters.

    Returns:
        The tuned checkpoint: an ordinary folder, with its head, and the names of the labels in config.json.

    Raises:
        ConfigError: No or more than one budget, a delta without its part, a teacher of another vocabulary, a
            mixture by language for data in several.
        DataError: Examples without what the objective needs.
        ModelError: No such head for this architecture; the loss is not a number.

    Relations:
        Labels that are all ignored give loss 0 and gradient 0.
        With weights of 1 and a teacher equal to the model the divergence is 0.
    """
    part = part or ("delta" if delta else "all")
    given = ("model", "data", "held_out", "teacher", "delta", "work", "given")
    settings: dict[str, Any] = {k: v for k, v in locals().items() if k not in given}
    delta = added(model, delta, part, rank, alpha, seed)
    if part == "delta" and delta:
        settings["delta"] = delta.fingerprint()
    labels = found_labels(objective, data)
    encoder = _encoder(model, data, objective, labels, length)
    texts = [("data", data), *([("held_out", held_out)] if held_out else [])]
    with main_first() as main:
        sources = [_pieces(encoder, objective, text, work / f"{name}.tokens", main) for name, text in texts]
    settings["model"] = checksum(model.folder)
    settings["text"] = [source.sha256 for source in sources]
    settings["teacher"] = checksum(teacher.folder) if teacher else None
    if found := finished(work, settings):
        return found
    loaded, new = _model(model, objective, labels, seed)
    attached = attach(loaded, {"delta": delta}) if delta else None
    if attached and attached.by_language and len(data.languages) > 1:
        raise ConfigError(
            f"a mixture by language learns from data in one language; given: {', '.join(data.languages)}"
        )
    limit = epochs if minutes is None and steps is None else None
    stream = Mixture((sources[0],), (1.0,), seed, epochs=limit)
    task = _task(loaded, objective, compare)
    taught_too = partial(_taught, task, model, teacher, objective, labels, taught, temperature, seed)
    stage = Stage(
        part=part,
        objective=in_languages(taught_too, model, [data], attached, force_experts=False),
        stream=stream,
        budget=Budget(minutes, round(epochs * stream.epoch_tokens()) if epochs else None, steps),
        batch_tokens=batch_tokens,
        optimization=Optimization(lr, lr, schedule, warmup, weight_decay, clip=clip, rows="all"),
        accumulate=accumulate,
        outer=outer,
        deltas=attached,
        beside=new,
        terms=task.terms,
    )
    if held_out:
        per = "terms" if objective in _HEADS else "bytes"
        stopping = watch(stage, sources[1], every=check_steps, patience=patience, per=per)
        stage = replace(stage, watch=stopping)
    return trained(
        model, loaded, stage, work=work, settings=settings, saving=Saving(save_steps, save_seconds),
        seed=seed, precision=precision,
    )  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """The objective of a task, what it is the mean over, and its places if it has some."""

    objective: Objective
    terms: Callable[[Batch], int]
    places: places.PlacesOf | None


def _task(model: PreTrainedModel, objective: Task, compare: Literal["pairwise", "listwise"]) -> _Task:
    if objective == "rank":
        return _Task(ranking(compare), lists, None)
    if objective in _PLACES:
        return _Task(places.labelled(_PLACES[objective], objective), places.labels_given, _PLACES[objective])
    if model.config.is_encoder_decoder:
        return _Task(places.labelled(places.translation, "answer"), Batch.targets, places.translation)
    plain, weighed = causal_objective(model), places.labelled(places.next_tokens, "answer")
    return _Task(
        lambda model, batch: (weighed if batch.weights else plain)(model, batch),
        Batch.targets,
        places.next_tokens,
    )


def _taught(
    task: _Task,
    base: Checkpoint,
    teacher: Checkpoint | None,
    objective: Task,
    labels: tuple[str, ...],
    share: float,
    temperature: float,
    seed: int,
) -> Objective:
    """The objective with a teacher beside the labels, where there is one."""
    if teacher is None:
        return task.objective
    if task.places is None:
        raise ConfigError("a teacher has no distribution over lists; 'rank' is tuned without one")
    if base.tokenizer().get_vocab() != teacher.tokenizer().get_vocab():
        raise ConfigError(f"the teacher {teacher.folder} has another vocabulary than {base.folder}")
    config: Any = teacher.loaded_config
    if labels and tuple(config.id2label.values()) != labels:
        raise ConfigError(
            f"the teacher {teacher.folder} tells {', '.join(config.id2label.values())} apart, "
            f"the examples {', '.join(labels)}; tune it on the same labels first"
        )
    name = objective if objective in _HEADS else "answer"
    model, _ = _model(teacher, objective, labels, seed)
    return places.taught(task.places, model, name, share=share, temperature=temperature)


def _model(
    base: Checkpoint, objective: Task, labels: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model with the head of its task, and the names of what is the head."""
    head: Any = _HEADS.get(objective)
    return with_head(base, head, labels, seed=seed) if head else (base.model(torch.float32), frozenset())


def _encoder(
    base: Checkpoint, data: Corpus, objective: Task, labels: tuple[str, ...], length: int
) -> Encoder:
    both = bool(base.loaded_config.is_encoder_decoder)
    if objective == "translate" and len(data.languages) != 2:
        raise ConfigError(f"translation needs two sides; the data has {', '.join(data.languages)}")
    return Encoder(base.tokenizer(), length, data.languages, labels, both)


def _pieces(encoder: Encoder, objective: Task, text: Corpus, file: Path, write: bool) -> Pieces:
    """The examples in the model's tokens, kept in a file; other processes map what the main one wrote."""
    if not write:
        return Pieces.load(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    encoder = replace(encoder, cut=[], left_out=[])
    found = store(encoder.pieces(objective, text), file)
    said = [f"{file.stem}: {len(text):,} examples, {len(found):,} pieces, {len(found.ids):,} tokens"]
    if encoder.cut:
        said.append(f"{len(encoder.cut):,} longer than {encoder.length} tokens and cut")
    if encoder.left_out:
        said.append(f"{len(encoder.left_out):,} lists of one grade left out")
    say("; ".join(said))
    return found
