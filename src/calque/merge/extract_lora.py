"""The difference of two checkpoints as a low-rank adapter that peft loads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval

from calque.errors import ModelError
from calque.merge.inputs import Inputs, line_up
from calque.merge.rewrite import Source
from calque.merge.stream import finite
from calque.model.adapter import PREFIX, STORED_TRANSPOSED, Adapter, lora_config
from calque.model.checkpoint import Checkpoint
from calque.model.low_rank import rank_for, signed, truncated_svd
from calque.progress import bar, say

_EXPERT = re.compile(r"\.experts\.\d")  # in the names of architectures that are not in the table


def extract_lora(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    rank: Annotated[int, Ge(1)] = 16,
    energy: Annotated[float, Interval(gt=0, le=1)] | None = None,
    rest: Literal["save", "drop"] = "save",
) -> Adapter:
    """Write what tuning changed as low-rank pairs on the linear maps.

    Of each matrix W of the layers, (out, in), that differs from its tuned form V: V - W ~ B A by truncated
    singular value decomposition, B = U_r S_r, A = V_r^T, scaling 1.

    Args:
        base: What the adapter will stand on.
        tuned: What base and adapter together shall come near to.
        rank: Rank of each pair, at most.
        energy: Keep as many directions of each matrix as hold this share of its squared change, `rank` at
            most; without it `rank` for all.
        rest: What else changed (embeddings, norms): saved whole, or left out. Biases go with their map.

    Returns:
        The adapter; saved, it is a folder that peft loads and `merge/fold` folds.

    Paper: Hu et al. 2022, ICLR, arXiv:2106.09685 (the form of the adapter).

    Raises:
        ModelError: The models do not fit together, nothing differs, or experts of a mixture changed.

    Relations:
        With full rank, base and adapter give the tuned model's weights within rounding. What is left of a
        change falls with the rank.
    """
    inputs = line_up(base, [tuned])
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    whole: list[str] = []
    squared = left = 0.0
    with bar("extract", base.nbytes, "B") as shown:
        for module, names in _modules(inputs).items():
            gap = _gap(inputs, names)
            shown.update(sum(base.info(name).nbytes for name in names), module)
            if gap is None:
                continue
            size = sum(float(g.double().square().sum()) for g in gap.values())
            squared += size
            if _takes_pair(inputs, module, gap):
                (matrix,) = (g for g in gap.values() if g.dim() == 2)
                up, down = _pair(matrix.T if _transposed(base) else matrix, rank, energy)
                ranks[module] = len(down)
                key = f"{PREFIX}{module}"
                tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
                biases = [name for name in names if gap[name].dim() != 2]
                tensors |= {f"{key}.base_layer.bias": tuned_tensor(inputs, name) for name in biases}
                left += max(0.0, float(matrix.double().square().sum() - up.double().square().sum()))
            elif rest == "save":
                whole.append(module)
                tensors |= {f"{PREFIX}{name}": tuned_tensor(inputs, name) for name in names}
            else:
                left += size
    return _adapter(inputs, tensors, ranks, whole, left / squared if squared else 0.0)


def _adapter(
    inputs: Inputs,
    tensors: dict[str, torch.Tensor],
    ranks: dict[str, int],
    whole: list[str],
    share: float,
) -> Adapter:
    """Put pairs and whole modules together, with the configuration that peft wants."""
    base = inputs.base
    if not ranks:
        raise ModelError(f"{inputs.tuned[0].folder}: no linear map of its layers differs from {base.folder}")
    entry = base.input_embedding.removesuffix(".weight")
    head = base.output_name if entry in whole and base.tied else None
    if head is not None:  # peft would leave the output matrix as it was
        whole.append(head.removesuffix(".weight"))
        tensors[f"{PREFIX}{head}"] = tensors[f"{PREFIX}{base.input_embedding}"].clone()
    highest = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != highest}
    say(
        f"{len(ranks)} pairs of rank {min(ranks.values())} to {highest}, {len(whole)} modules whole; "
        f"{share:.2%} of the squared change is left out"
    )
    config = {
        **lora_config(str(base.folder.resolve()), str(base.config.get("model_type")), ranks, highest),
        "task_type": "CAUSAL_LM" if "CausalLM" in str(base.config.get("architectures")) else None,
        "rank_pattern": others,
        "alpha_pattern": others,
        "modules_to_save": sorted(whole) or None,
        "bias": "all" if any(name.endswith(".base_layer.bias") for name in tensors) else "none",
    }
    notes = {"base": str(base.folder), "tuned": str(inputs.tuned[0].folder), "ranks": ranks, "whole": whole,
             "share_left_out": share}  # fmt: skip
    return Adapter(config, tensors, notes)


def _modules(inputs: Inputs) -> dict[str, list[str]]:
    """Module -> its parameters."""
    found: dict[str, list[str]] = {}
    for name in inputs.names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _gap(inputs: Inputs, names: list[str]) -> dict[str, torch.Tensor] | None:
    """Tuned minus base of each parameter, float32; None when nothing differs."""
    gap = {}
    for name in names:
        before, after = (_read(source) for source in inputs.sources(name))
        gap[name] = after - before
    return gap if any(bool(g.any()) for g in gap.values()) else None


def _read(source: Source) -> torch.Tensor:
    return finite(source, 0, source.read().to(torch.float32))


def tuned_tensor(inputs: Inputs, name: str) -> torch.Tensor:
    """The tuned model's tensor, in its own dtype."""
    return inputs.sources(name)[1].read()


def _takes_pair(inputs: Inputs, module: str, gap: Mapping[str, torch.Tensor]) -> bool:
    """Whether a pair can hold the change: that of one matrix of a layer, with or without a bias."""
    slots = [inputs.slot(name) for name in gap]
    if any(slot.role.startswith("expert.") or _EXPERT.search(slot.role) for slot in slots):
        raise ModelError(
            f"'{module}': a low-rank adapter can not hold experts of a mixture; merge or diff them"
        )
    matrices = [g for g in gap.values() if g.dim() == 2]
    return slots[0].layer is not None and len(matrices) == 1 and bool(matrices[0].any())


def _transposed(base: Checkpoint) -> bool:
    return base.config.get("model_type") in STORED_TRANSPOSED


def _pair(matrix: torch.Tensor, rank: int, energy: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    if energy is None:
        return truncated_svd(matrix, rank)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = max(1, min(rank, rank_for(values, energy)))
    return signed(left[:, :kept] * values[:kept], right[:kept])
