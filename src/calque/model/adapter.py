"""PEFT adapters: written, and folded into their base, so that the result is an ordinary checkpoint."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from calque.disk import clear_disk_errors, new_folder, read_json, write_json
from calque.errors import ModelError
from calque.model.checkpoint import Checkpoint
from calque.model.files import GENERATION, TOKENIZER, companions
from calque.model.tensors import TensorInfo, read_header
from calque.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every name in an adapter's files
STORED_TRANSPOSED = frozenset({"gpt2"})  # architectures whose matrices are stored (in, out)
_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])(?:\.|$)")
_PLAIN_STARTS = frozenset({True, False, "gaussian", "orthogonal", "eva", "pissa", "olora"})


@dataclass(frozen=True, eq=False)
class Adapter:
    """A PEFT adapter still to be saved.

    Attributes:
        config: contents of adapter_config.json.
        tensors: contents of adapter_model.safetensors.
        notes: what was kept and what was lost, for extraction.json; none without them.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the new folder; it appears whole or not at all."""
        with new_folder(folder) as part:
            save_file(dict(self.tensors), part / WEIGHTS, metadata={"format": "pt"})
            write_json(part / CONFIG, dict(self.config))
            if self.notes:
                write_json(part / "extraction.json", dict(self.notes))


def lora_config(base: str, model_type: str, modules: Collection[str], rank: int) -> dict[str, Any]:
    """adapter_config.json of pairs of this rank whose scaling, 1, is in their factors."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": model_type in STORED_TRANSPOSED,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def read_base(adapter: Path) -> str:
    """What the adapter's own configuration names as its base.

    Raises:
        ModelError: the adapter names no base, its weights are missing or pickled, or they need more than
            the base to be folded.
    """
    if not (adapter / CONFIG).is_file():
        raise ModelError(f"{adapter}: no {CONFIG} there; an adapter is a folder with it and {WEIGHTS}")
    if not (adapter / WEIGHTS).is_file():
        pickled = (adapter / "adapter_model.bin").is_file()
        raise ModelError(
            f"{adapter}: {'only pickled adapter weights, which are refused' if pickled else 'no weights'}; "
            f"needed is {WEIGHTS}: load it where you trust it and save it again with a current peft"
        )
    settings = read_json(adapter / CONFIG)
    _check_settings(adapter / CONFIG, settings)
    start = settings.get("init_lora_weights", True)
    if (start.split("_niter_")[0] if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise ModelError(
            f"{adapter}: its matrices start from '{start}', which changes the base by data that is not in "
            "the folder; save it converted to a plain LoRA (peft: path_initial_model_for_weight_conversion)"
        )
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{adapter / CONFIG}: no base_model_name_or_path; write the base's folder or id there"
        )
    if Path(base).resolve() == adapter.resolve():
        raise ModelError(f"{adapter / CONFIG}: names its own folder as its base; write the model's there")
    return base


def _check_settings(file: Path, settings: Any) -> None:
    """What a fold computes with must be numbers; patterns are tables of them."""
    if not isinstance(settings, dict):
        raise ModelError(f"{file}: holds a {type(settings).__name__}, not a table of settings")
    patterns = [settings.get(f"{key}_pattern") or {} for key in ("rank", "alpha")]
    for pattern in patterns:
        if not isinstance(pattern, dict):
            raise ModelError(f"{file}: a pattern is {pattern!r}; expected a table from modules to numbers")
    numbers = [*((key, settings.get(key)) for key in ("r", "lora_alpha")), *patterns[0].items()]
    for key, value in (*numbers, *patterns[1].items()):
        if value is not None and not isinstance(value, int | float):
            raise ModelError(f"{file}: '{key}' is {value!r}; expected a number")


def read_factors(adapter: Path) -> dict[str, TensorInfo]:
    """Where the adapter's tensors lie; every factor must have its counterpart, of the same rank.

    Raises:
        ModelError: a factor is alone (peft would draw the other at random), or the two do not multiply.
    """
    tensors = read_header(adapter / WEIGHTS)
    for name, info in tensors.items():
        found = _FACTOR.search(name)
        if found is None:
            continue
        other = f"{name[: found.start(1)]}{'B' if found[1] == 'A' else 'A'}{name[found.end(1) :]}"
        if other not in tensors:
            raise ModelError(f"{info.file}: '{name}' is there without '{other}'; fetch the adapter again")
        shapes = (info.shape, tensors[other].shape)
        down, up = shapes if found[1] == "A" else shapes[::-1]
        if min(len(down), len(up)) < 2 or down[0] != up[1]:
            raise ModelError(f"{info.file}: '{name}' {shapes[0]} and '{other}' {shapes[1]} are no pair")
    return tensors


def fold(adapter: Path, base: Path, folder: Path) -> None:
    """Write the base with the adapter folded in to the existing empty `folder`.

    The sum is taken in float32 and rounded once to the base's dtype; tensors that the adapter does not touch
    keep their bits. The adapter's own tokenizer, if it has one, goes with the result.

    Raises:
        ModelError: the adapter was made for another base, or is of a kind that can not be folded.
    """
    checkpoint = Checkpoint.at(base)
    dtype = checkpoint.info(checkpoint.input_embedding).torch_dtype
    tensors = read_factors(adapter)
    model = checkpoint.model(torch.float32)
    _fit_vocabulary(model, tensors)
    _check_fit(adapter, checkpoint, model, tensors)
    merged: Any = _merge(adapter, model)
    if checkpoint.tied:
        _settle_tie(adapter, merged)
    merged.to(dtype)
    with clear_disk_errors(folder):
        merged.save_pretrained(folder)
        _copy_company(adapter, base, folder)
    Checkpoint.at(folder).check()


def _merge(adapter: Path, model: PreTrainedModel) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
        try:
            config: Any = PeftConfig.from_pretrained(str(adapter))
            config.auto_mapping = None  # names a module to import
            if hasattr(config, "megatron_config"):
                config.megatron_config = None  # likewise
            wrapped: Any = PeftModel.from_pretrained(model, str(adapter), config=config)
            if not hasattr(wrapped, "merge_and_unload"):
                kind = config.peft_type.value
                raise ModelError(f"{adapter}: a {kind} adapter can not be folded into weights")
            return wrapped.merge_and_unload(safe_merge=True)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, re.error) as error:
            raise ModelError(f"{adapter}: peft can not fold it into this base: {error}") from None


def _settle_tie(adapter: Path, model: Any) -> None:
    """An adapter may have trained the input embedding of a tied model away from its output matrix."""
    entry, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        return
    if torch.equal(entry.weight, head.weight):
        head.weight = entry.weight
        model.config.tie_word_embeddings = True
    else:
        say(f"{adapter}: its embedding and output matrix differ; the folded model is no longer tied")
        model.config.tie_word_embeddings = False


def _fit_vocabulary(model: PreTrainedModel, tensors: dict[str, TensorInfo]) -> None:
    """Give the base as many rows as the embedding saved with the adapter, which may hold added tokens."""
    embedding: Any = model.get_input_embeddings()
    current = tuple(embedding.weight.shape)
    for name, info in tensors.items():
        if name.endswith(".weight") and "embed" in name and "lora_" not in name and len(info.shape) == 2:
            if info.shape[1] == current[1] and info.shape[0] != current[0]:
                model.resize_token_embeddings(info.shape[0], mean_resizing=False)
            return


def _check_fit(
    adapter: Path, base: Checkpoint, model: PreTrainedModel, tensors: dict[str, TensorInfo]
) -> None:
    """Every low-rank factor must find its module, of its size, in the base."""
    modules = dict(model.named_modules())
    for name, info in tensors.items():
        for side in ("lora_A", "lora_B"):
            path, found, _ = name.removeprefix(PREFIX).partition(f".{side}.")
            if not found or len(info.shape) != 2:
                continue
            weight = getattr(modules.get(path), "weight", None)
            if weight is None:
                raise ModelError(
                    f"{adapter}: made for another base: it changes '{path}', which {base.folder} has not"
                )
            width = info.shape[1] if side == "lora_A" else info.shape[0]
            if width not in weight.shape:
                raise ModelError(
                    f"{adapter}: made for another base: '{name}' has shape {info.shape}, but '{path}.weight' "
                    f"of {base.folder} has {tuple(weight.shape)}"
                )


def _copy_company(adapter: Path, base: Path, folder: Path) -> None:
    """Tokenizer and everything else beside the weights; the adapter's tokenizer replaces the base's."""
    own = (adapter / "tokenizer.json").is_file()
    for path in companions(base):
        if not (own and path.name in TOKENIZER):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / path, folder / path)
    if (base / GENERATION).is_file():
        shutil.copyfile(base / GENERATION, folder / GENERATION)
    for name in (*sorted(TOKENIZER), "chat_template.jinja") if own else ():
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)
