"""Small tokenizers built from token lists, and the arrays that golden files describe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from calque.vocab.tokens import Tokens

GOLDEN = Path(__file__).parents[1] / "golden"


def build(spec: dict[str, Any]) -> Tokens:
    """A BPE tokenizer from `tokens_in_id_order`, `merges`, `kind` and `special` roles."""
    tokens = spec["tokens_in_id_order"]
    merges = [tuple(line.split(" ")) for line in spec["merges"]]
    backend = Tokenizer(
        models.BPE(
            vocab={token: place for place, token in enumerate(tokens)}, merges=merges, unk_token="<unk>"
        )
    )
    if "Metaspace" in spec["kind"]:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    roles = {name.removesuffix("_token"): string for name, string in spec["special"].items()}
    backend.add_special_tokens([AddedToken(string, special=True) for string in roles.values()])
    return Tokens.wrap(backend, roles=roles)


def array(value: Any) -> np.ndarray:
    """A golden input: written out, or a numpy draw."""
    if not isinstance(value, dict):
        return np.asarray(value, np.float64)
    draw = value["$rng"]
    rng = np.random.default_rng(draw["seed"])
    found = getattr(rng, draw["dist"])(draw["shape"]) * draw["scale"] + draw["shift"]
    np.testing.assert_allclose(found.ravel()[: len(value["head"])], value["head"], atol=1e-9)
    return found


@pytest.fixture(scope="session")
def tokens_of() -> Callable[[dict[str, Any]], Tokens]:
    return build


@pytest.fixture(scope="session")
def array_of() -> Callable[[Any], np.ndarray]:
    return array


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], dict[str, Any]]:
    """One case of a golden file."""

    def case(name: str, which: str) -> dict[str, Any]:
        cases = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["cases"]
        return next(found for found in cases if found["name"] == which)

    return case
