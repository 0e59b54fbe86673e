"""New rows drawn at random: the floor that every other method has to beat."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge
from scipy.sparse import csr_matrix

from calque.vocab.map import VocabMap, build_map
from calque.vocab.tokens import Tokens


def random(
    source: Tokens, target: Tokens, evidence: None = None, *, seed: Annotated[int, Ge(0)] = 1234
) -> VocabMap:
    """Draw every row from Normal(mean, std) of the old rows; copy special tokens.

    new[t] ~ Normal(mean_D, std_D), per dimension over the V_source old rows.

    Args:
        source: Old vocabulary.
        target: New vocabulary.
        evidence: None; the method needs nothing.
        seed: Of the draw; row t depends on the seed and t alone.

    Returns:
        A map without weights except identity rows of special tokens.

    Relations:
        Two calls with one seed give equal tables.
    """
    weights = csr_matrix((len(target), len(source)))
    how = np.zeros(len(target), np.int64)
    return build_map(source, target, weights, how, (), fallback="normal", seed=seed)
