"""A model with a head for another task: what stands below stays, the head is new unless it fits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel

from calque.errors import ModelError
from calque.model.checkpoint import Checkpoint, quiet
from calque.progress import say

Task = Literal["sequence", "token", "span"]
_CLASSES = {
    "sequence": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "token": ("AutoModelForTokenClassification", "ForTokenClassification"),
    "span": ("AutoModelForQuestionAnswering", "ForQuestionAnswering"),
}


def with_head(
    base: Checkpoint, task: Task, labels: Sequence[str], *, seed: int
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model in float32 with a head for a task; and the names of the parameters that are new.

    Args:
        base: what to start from; its own head is kept when it is for this task and these labels.
        task: one output for each sequence, for each token, or two for each token.
        labels: names of the outputs; none for spans.
        seed: of the new numbers.

    Raises:
        ModelError: transformers has no such head for this architecture, or one that reads the end token of
            an encoder-decoder, which its tokenizer does not put.
    """
    build, ending = _CLASSES[task]
    if task == "sequence" and base.loaded_config.is_encoder_decoder:
        _refuse_no_end(base)
    config = copy.deepcopy(base.loaded_config)
    if labels:
        config.id2label = dict(enumerate(labels))  # pyright: ignore
        config.label2id = {label: n for n, label in enumerate(labels)}  # pyright: ignore
    _set_padding(base, config)
    own: Any = base.loaded_config
    has_it = str((base.config.get("architectures") or [""])[0]).endswith(ending)
    if has_it and list(labels) == [*own.id2label.values()][: len(labels)]:
        model = base.model(torch.float32)
        model.config.get_text_config().pad_token_id = config.get_text_config().pad_token_id
        return model, frozenset(name for name, _ in model.named_parameters() if _outside(model, name))
    torch.manual_seed(seed)
    try:
        with quiet():
            made: Any = getattr(transformers, build).from_pretrained(
                base.folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, ignore_mismatched_sizes=has_it, output_loading_info=True,
            )  # fmt: skip
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]  # all that it knows follows
        raise ModelError(
            f"{base.folder}: transformers has no {ending.removeprefix('For')} for this model: {first}"
        ) from None
    model, found = made
    new = {*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])}
    if strange := sorted(name for name in new if not _outside(model, name)):
        raise ModelError(f"{base.folder}: {len(strange)} tensors are missing, first {strange[0]}")
    numbers = sum(p.numel() for name, p in model.named_parameters() if name in new)
    say(f"{type(model).__name__}: {numbers:,} new parameters ({', '.join(sorted(new)[:4])})")
    return model, frozenset(name for name, _ in model.named_parameters() if _outside(model, name))


def _outside(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter belongs to the head, or to a pooler that leads to it."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def _refuse_no_end(base: Checkpoint) -> None:
    """Raise ModelError where a head would look for an end token that no example has."""
    tokenizer: Any = base.tokenizer()
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id not in tokenizer("a")["input_ids"]:
        raise ModelError(
            f"{base.folder}: an encoder-decoder tells classes apart at its end token, which its tokenizer "
            "does not put after a text"
        )


def _set_padding(base: Checkpoint, config: Any) -> None:
    """A model that has no padding token pads with its end token, as its tokenizer does or would."""
    tokenizer: Any = base.tokenizer()
    text = config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else text.eos_token_id
        )
        if isinstance(text.pad_token_id, list):
            text.pad_token_id = text.pad_token_id[0]
