"""Depth-wise pairs: a looped model runs one block at several depths, and each depth gets pairs of its own.

Paper: Bae et al. 2025, ICLR, arXiv:2410.20672.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge

from calque.delta.delta import Delta, base_of
from calque.delta.lora import uniform
from calque.delta.places import Place, depth_places
from calque.errors import ModelError
from calque.model.adapter import STORED_TRANSPOSED
from calque.model.checkpoint import Checkpoint
from calque.model.low_rank import truncated_svd
from calque.progress import bar


def depthwise(
    base: Checkpoint,
    original: Checkpoint | None = None,
    *,
    rank: Annotated[int, Ge(1)] = 64,
    roles: tuple[str, ...] = (),
    seed: int = 0,
) -> Delta:
    """Put a low-rank pair at every depth of each linear map of a looped model.

    At depth l, y = W'_k x + B_l A_l x with k = l mod K, A_l (r, in), B_l (out, r), no scaling, r at most
    min(in, out). Without `original`, A_l starts uniform and B_l zero. With it, B_l A_l is the best rank-r
    approximation of W_l - W'_k (less the residual that depth has already): B_l = U_r S_r, A_l = V_r^T.

    Args:
        base: The looped model (merge/recurse).
        original: The model it was made from, to start from what the loop lost.
        rank: Rank r of each pair.
        roles: The maps that get one; all linear ones by default.
        seed: Decides A where there is no `original`.

    Returns:
        The delta. Folded in, it is a residual of the looped checkpoint.

    Raises:
        ConfigError: A model that is not looped, or a role that it does not have.
        ModelError: The original has not the shapes of the loop.

    Paper: Bae et al. 2025, ICLR, arXiv:2410.20672.

    Relations:
        Without `original` the logits are the looped model's at the start. With it and rank r, on a loop
        without residuals, they are those of merge/recurse at rank r; at full rank, with vectors of their own,
        those of the original. One pair per depth: the depths of one map share nothing but its weights.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    places = depth_places(base, roles)
    with bar("pairs", len(places), "map") as shown:
        for place in places:
            size = min(rank, place.inputs, place.outputs)
            if original is None:
                up = torch.zeros(place.outputs, size)
                down = uniform((size, place.inputs), place.inputs, generator)
            else:
                up, down = truncated_svd(_lost(base, original, place), size)
            tensors |= {f"{place.module}.A": down, f"{place.module}.B": up}
            shown.update(1, place.module)
    settings = {"rank": rank, "alpha": rank}
    return Delta(
        "depthwise", tuple(p.module for p in places), "depth", "fixed", settings, tensors, base_of(base)
    )


def _lost(base: Checkpoint, original: Checkpoint, place: Place) -> torch.Tensor:
    """W_l - W'_k - what the checkpoint adds at depth l already, (out, in)."""
    name = f"{place.module}.weight"
    shared = base.layout.name(place.layer % int(base.config["recursion"]["shared"]), place.role)
    if name not in original.tensors or original.info(name).shape != base.info(shared).shape:
        raise ModelError(
            f"{original.folder}: '{name}' is missing or of another shape than '{shared}' in {base.folder}; "
            "give the model that the loop was made from"
        )
    gap = original.read(name).float() - base.read(shared).float()
    gap = gap.T if base.architecture in STORED_TRANSPOSED else gap
    down, up = (f"depth.{place.layer}.{place.role}.{side}" for side in "AB")
    if down in base.tensors and up in base.tensors:
        gap = gap - base.read(up).float() @ base.read(down).float()
    return gap
