"""Low-rank deltas as ordinary PEFT adapters."""

from __future__ import annotations

from calque.delta.attach import changes
from calque.delta.delta import Delta
from calque.errors import ConfigError
from calque.model.adapter import PREFIX, Adapter, lora_config


def export(delta: Delta) -> Adapter:
    """Write a low-rank delta as an ordinary LoRA of PEFT.

    The scaling is put into B, so that alpha = r; pairs that share their numbers get numbers of their own.

    Args:
        delta: LoRA or a Mixture of Shards.

    Returns:
        The adapter; saved, it is a folder that peft loads and `merge/fold` folds.

    Raises:
        ConfigError: The delta is no change of matrices, or belongs to a looped model.

    Relations:
        peft loads it and gives the logits of base and delta.
    """
    if delta.form == "depthwise":
        raise ConfigError("a 'depthwise' delta belongs to a looped model, which peft does not know")
    pairs = changes(delta)
    if not pairs:
        raise ConfigError(f"this '{delta.form}' delta has no pair; there is nothing to export")
    tensors = {}
    for module, (down, up) in pairs.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = down.detach().cpu().contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = up.detach().cpu().contiguous()
    rank = max(len(down) for down, _ in pairs.values())
    return Adapter(lora_config(delta.base["folder"], delta.base["model_type"], pairs, rank), tensors)
