"""The mix-and-match adapter: a prefix in attention, scaled networks beside the feed-forward block.

Paper: He et al. 2022, ICLR, arXiv:2110.04366.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta, base_of
from calque.delta.prefix import prefix
from calque.model.checkpoint import Checkpoint


def mam(
    base: Checkpoint,
    *,
    length: Annotated[int, Ge(1)] = 30,
    width: Annotated[int, Ge(1)] = 512,
    scale: float = 4.0,
    middle: Annotated[int, Ge(0)] = 0,
    seed: int = 0,
) -> Delta:
    """Put a prefix into attention and a scaled parallel network beside the feed-forward block.

    Args:
        base: The model it is for.
        length: Length of the prefix.
        width: Width of the networks.
        scale: Factor of the networks.
        middle: Width of the network that makes the prefix while training; 0 = none.
        seed: Decides the first numbers.

    Returns:
        The delta, of two parts. It can not be folded.

    Raises:
        ConfigError: The model has no separate key maps, or no plain feed-forward block.

    Paper: He et al. 2022, ICLR, arXiv:2110.04366.

    Relations:
        It equals prefix and parallel bottleneck attached together.
    """
    parts = (
        prefix(base, length=length, middle=middle, seed=seed),
        bottleneck(base, width=width, placement="parallel", scale=scale, seed=seed),
    )
    place = tuple(module for part in parts for module in part.place)
    return Delta("mam", place, "own", "fixed", {}, {}, base_of(base), parts)
