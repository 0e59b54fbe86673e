"""Adapters folded into their base: what was learned beside a model becomes part of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from calque.disk import read_json
from calque.errors import ConfigError, ModelError
from calque.merge.fold_delta import added, fold_delta
from calque.merge.rewrite import Rewrite, Row, Source
from calque.model.adapter import CONFIG, PREFIX, STORED_TRANSPOSED, read_base, read_factors
from calque.model.checkpoint import Checkpoint
from calque.model.files import DELTA
from calque.model.source import folded_adapter
from calque.model.tensors import TensorInfo, same_bytes
from calque.progress import say

_CHUNK = 16 << 20
_OTHER_KINDS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
)


def fold(
    adapter: Path, base: Checkpoint | None = None, *, strength: Annotated[float, Ge(0)] = 1.0
) -> Rewrite:
    """Fold a PEFT adapter or a delta into its base.

    A LoRA pair on a matrix W: W + strength * s B A, s = alpha / r (alpha / sqrt(r) when rank-stabilised),
    block by block in float32 with one rounding. A module saved whole: W + strength * (V - W). Everything
    else is copied. Other kinds (DoRA, LoHa, IA3, LoRA on embeddings ...) are folded by peft, in memory.

    Of the deltas, lora and shards are pairs; sparse adds its numbers at their places; depthwise becomes a
    residual of its looped base. A delta is folded into the very weights it was made for and no others.

    Args:
        adapter: The folder of the adapter or delta.
        base: What it is folded into; what its configuration names by default.
        strength: How much of it; 1 is the adapter as it was trained, 0 the base.

    Returns:
        The rewrite.

    Paper: Hu et al. 2022, ICLR, arXiv:2106.09685.

    Raises:
        ModelError: The adapter was made for another base, is pickled, or is of a kind that can not be folded.
        ConfigError: A strength other than 1 for what only peft can fold, or a delta that is no change of
            weights: bottleneck, prefix, mam, mixture, stack.

    Relations:
        Folded in, an adapter gives the logits that it gives beside its base. With strength=0 the result is
        the base, bit for bit.
    """
    if (adapter / DELTA).is_file():
        return fold_delta(adapter, base, strength)
    named = read_base(adapter)
    base = base or Checkpoint.open(named)
    settings, tensors = read_json(adapter / CONFIG), read_factors(adapter)
    why = _not_plain(adapter, settings, tensors, base)
    if why:
        if strength != 1:
            raise ConfigError(
                f"{adapter}: strength = {strength}, but {why}: it can be folded with strength 1 only"
            )
        say(f"{adapter}: {why}; folded by peft in memory")
        whole = Checkpoint.at(folded_adapter(adapter, base.folder))
        return Rewrite(base=whole, rows=tuple(Row.copy(whole, name) for name in whole.tensors))
    found = {f"{module}.weight" for module in _pairs(tensors)}
    rows = tuple(_row(base, name, name in found, settings, tensors, strength) for name in base.tensors)
    notes = {"method": "fold", "adapter": str(adapter), "pairs": len(found), "strength": strength}
    return Rewrite(base=base, rows=rows, notes=notes)


def _row(
    base: Checkpoint, name: str, pair: bool, settings: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo], strength: float,
) -> Row:  # fmt: skip
    info = base.info(name)
    saved = tensors.get(f"{PREFIX}{name}") or tensors.get(f"{PREFIX}{_wrapped(name)}")
    if strength == 0 or not (pair or saved):
        return Row.copy(base, name)
    if saved is not None:
        return Row(name, info.dtype, info.shape, (Source(base, name),), _towards(saved, strength))
    module = name.removesuffix(".weight")
    down, up = (tensors[f"{PREFIX}{module}.{side}.weight"].read() for side in ("lora_A", "lora_B"))
    scale = strength * _scaling(module, settings, down.shape[0])
    if _transposed(base, settings):
        down, up = up.T, down.T
    return Row(name, info.dtype, info.shape, (Source(base, name),), added(down.float(), up.float() * scale))


def _towards(saved: TensorInfo, strength: float) -> Any:
    def function(source: Source) -> Iterator[torch.Tensor]:
        first = 0
        for block in source.blocks(_CHUNK):
            height = len(block) if block.dim() else 1
            target = saved.read(slice(first, first + height) if block.dim() else None)
            yield block.float().lerp_(target.float(), strength)
            first += height

    return function


def _pairs(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The modules that have a pair."""
    ending = ".lora_A.weight"
    return [name.removeprefix(PREFIX).removesuffix(ending) for name in tensors if name.endswith(ending)]


def _transposed(base: Checkpoint, settings: Mapping[str, Any]) -> bool:
    """Whether matrices are stored (in, out)."""
    return bool(settings.get("fan_in_fan_out")) or base.config.get("model_type") in STORED_TRANSPOSED


def _wrapped(name: str) -> str:
    """What peft calls the bias of a module that has a pair."""
    return re.sub(r"\.bias$", ".base_layer.bias", name)


def _scaling(module: str, settings: Mapping[str, Any], rank: int) -> float:
    """alpha / r, or what the configuration says for this module."""
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise ModelError(f"alpha_pattern '{pattern}' is no regular expression: {error}") from None
        if found:
            alpha = value
            break
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _not_plain(
    adapter: Path, settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], base: Checkpoint
) -> str:
    """Why the adapter is more than pairs on matrices and modules saved whole; "" when it is not."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"a {kind} adapter"
    if used := next((key for key in _OTHER_KINDS if settings.get(key)), None):
        return f"a LoRA adapter with {used}"
    own = adapter / "tokenizer.json"
    if own.is_file() and own.read_bytes() != (base.folder / "tokenizer.json").read_bytes():
        return "a tokenizer of its own"
    for module in _pairs(tensors):
        down, up = (tensors[f"{PREFIX}{module}.{side}.weight"].shape for side in ("lora_A", "lora_B"))
        shape = (down[-1], up[0]) if _transposed(base, settings) else (up[0], down[-1])
        name = f"{module}.weight"
        if name not in base.tensors or base.info(name).shape != shape:
            return f"a pair '{module}' that no matrix of the base's files fits"
    for name, info in tensors.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        plain = name.removeprefix(PREFIX).replace(".base_layer.bias", ".bias")
        if base.tied and plain == base.output_name:
            entry = tensors.get(f"{PREFIX}{base.input_embedding}")
            if entry is None or not same_bytes(entry, info):
                return "an output matrix of its own beside a tied embedding"
        elif plain not in base.tensors or base.info(plain).shape != info.shape:
            return f"a tensor '{name}' without its like in the base"
    return ""
