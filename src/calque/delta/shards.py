"""Mixture of Shards: the pairs of all layers are put together from pieces of one pool for each role.

Paper: Wang et al. 2025, ICLR, arXiv:2410.00938. Follows the authors' code for order and start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt

from calque.delta.delta import Delta, base_of
from calque.delta.lora import uniform
from calque.delta.places import Place, linear_places
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint


def shards(
    base: Checkpoint,
    *,
    budget: Annotated[int, Ge(1)] = 2,
    rank: Annotated[int, Ge(1)] = 8,
    private: Annotated[int, Ge(0)] = 1,
    pieces: Annotated[int, Ge(1)] = 4,
    alpha: Annotated[float, Gt(0)] = 16.0,
    dissociate: bool = True,
    roles: tuple[str, ...] = (),
    seed: int = 0,
) -> Delta:
    """Put pairs of high rank at linear maps, made of shards that the layers share.

    For each role a pool of e L l rows of in / l numbers (and one of out / l). The pair of a layer takes
    (r - p) l public rows, drawn once, and its own p l private ones; l rows side by side are a row of A.
    y = W x + (alpha / r) B A x. The pool of A starts uniform within 1 / sqrt(in), that of B zero.

    Args:
        base: The model it is for.
        budget: Equivalent rank e: as many numbers train as in LoRA of this rank.
        rank: Rank r of each pair.
        private: Rank p that each layer owns.
        pieces: Shards l that a vector is cut into.
        alpha: The pair's product is scaled by alpha / rank.
        dissociate: Whether A and B draw their public rows independently.
        roles: The maps that get a pair; all linear maps of the layers by default.
        seed: Decides pools and draws.

    Returns:
        The delta, which changes nothing yet; the drawn tables are saved with it.

    Raises:
        ConfigError: A role that the model does not have, widths that `pieces` does not divide, or a
            pool too small.

    Paper: Wang et al. 2025, ICLR, arXiv:2410.00938.

    Relations:
        At the start the logits are the base's. With private = budget = rank it is LoRA of that rank. As many
        numbers train as in LoRA of rank `budget`. Exported, it is an ordinary LoRA of rank `rank`.
    """
    places = linear_places(base, roles)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for role in dict.fromkeys(place.role for place in places):
        tensors |= _pool(
            role, [p for p in places if p.role == role], budget, rank, private, pieces, generator
        )
        for place in (p for p in places if p.role == role):
            number = [p for p in places if p.role == role].index(place)
            layers = sum(p.role == role for p in places)
            first = draw(number, layers, budget, rank, private, pieces, generator)
            second = draw(number, layers, budget, rank, private, pieces, generator) if dissociate else first
            tensors |= {f"{place.module}.index_A": first, f"{place.module}.index_B": second.clone()}
    settings = {"budget": budget, "rank": rank, "private": private, "pieces": pieces, "alpha": alpha,
                "role": {place.module: place.role for place in places}}  # fmt: skip
    return Delta("shards", tuple(p.module for p in places), "pool", "fixed", settings, tensors, base_of(base))


def count(widths: Sequence[tuple[int, int]], layers: int, budget: int) -> int:
    """Numbers that train, from the (in, out) of each role: sum of e L (in + out)."""
    return sum(budget * layers * (inputs + outputs) for inputs, outputs in widths)


def draw(
    layer: int, layers: int, budget: int, rank: int, private: int, pieces: int, generator: torch.Generator
) -> torch.Tensor:
    """The rows of the pool that make up one matrix of one layer: public ones, then its own."""
    public = (budget - private) * layers * pieces
    drawn = torch.randperm(public, generator=generator)[: (rank - private) * pieces]
    own = torch.arange(private * pieces) + public + layer * private * pieces
    return torch.cat([drawn, own])


def gathered(pool: torch.Tensor, index: torch.Tensor, rank: int) -> torch.Tensor:
    """The matrix (rank, width) of rows of the pool laid side by side."""
    return pool[index].reshape(rank, -1)


def pair(
    tensors: Mapping[str, torch.Tensor], module: str, *, role: str, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(down (r, in), up (out, r)) of a place."""
    down = gathered(tensors[f"{role}.pool_A"], tensors[f"{module}.index_A"], rank)
    return down, gathered(tensors[f"{role}.pool_B"], tensors[f"{module}.index_B"], rank).T


def _pool(
    role: str, places: list[Place], budget: int, rank: int, private: int, pieces: int,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:  # fmt: skip
    place, layers = places[0], len(places)
    if len({(p.inputs, p.outputs) for p in places}) > 1:
        raise ConfigError(f"'{role}' has maps of several shapes, which can not share one pool; leave it out")
    if place.inputs % pieces or place.outputs % pieces:
        raise ConfigError(
            f"pieces = {pieces} does not divide '{role}' ({place.inputs} -> {place.outputs}); give a "
            "divisor of both"
        )
    if private > min(budget, rank) or rank - private > (budget - private) * layers:
        raise ConfigError(
            f"rank = {rank} with private = {private} and budget = {budget}: {layers} layers have "
            f"{max(0, budget - private) * layers} public vectors to draw {rank - private} from; "
            "needed are private <= budget, private <= rank and rank - private <= (budget - private) * layers"
        )
    rows = budget * layers * pieces
    return {
        f"{role}.pool_A": uniform((rows, place.inputs // pieces), place.inputs, generator),
        f"{role}.pool_B": torch.zeros(rows, place.outputs // pieces),
    }
