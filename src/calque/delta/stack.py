"""Deltas on top of each other: what is below stays, what is on top trains.

Paper: Pfeiffer et al. 2020, arXiv:2005.00052 (MAD-X: a task on top of the languages).
"""

from __future__ import annotations

from collections.abc import Sequence

from calque.delta.delta import Delta, base_of
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint


def stack(base: Checkpoint, delta: Sequence[Delta]) -> Delta:
    """Put trained deltas below a new one, which alone trains.

    Below a task: a mixture by language. Then the task is learnt over the delta of the one language, and read
    over that of another.

    Args:
        base: The model they were made for.
        delta: Deltas from the bottom up; the last one trains.

    Returns:
        The delta, with the others as its parts. It can be folded where all of them are sparse.

    Raises:
        ConfigError: Fewer than two deltas.
        ModelError: A delta of another base.

    Paper: Pfeiffer et al. 2020, arXiv:2005.00052.

    Relations:
        It equals its parts attached in that order. Nothing below the top is changed by training.
    """
    if len(delta) < 2:
        raise ConfigError(f"a stack of {len(delta)}; give two deltas at least, the one that trains last")
    for part in delta:
        part.check_base(base)
    place = tuple(dict.fromkeys(module for part in delta for module in part.place))
    return Delta("stack", place, "own", "fixed", {}, {}, base_of(base), tuple(delta))
