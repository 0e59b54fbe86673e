"""Small tokenizers built from token lists, and the arrays that golden files describe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.vocab.tokens import Tokens

ENGLISH = [
    "The children went to the water in the morning, and the old woman gave them bread and fish.",
    "He said that the king and the people of the land would build houses near the river.",
    "When the teacher came, the children were reading the letters that their mothers had written.",
    "In 1994 more than 250 families moved there; nobody knows how many of them stayed after the war.",
    "The king's house is larger than the houses of the people who work in the fields every day.",
] * 6
CHICHEWA = [
    "Ana anapita kumadzi m'mawa, ndipo mayi wokalamba anawapatsa mkate ndi nsomba.",
    "Iye ananena kuti mfumu ndi anthu a m'dzikolo adzamanga nyumba pafupi ndi mtsinje.",
    "Pamene aphunzitsi anabwera, ana anali kuwerenga makalata amene amayi awo analemba.",
    "Mu 1994 mabanja oposa 250 anasamukira kumeneko; palibe amene akudziwa kuti ndi angati anatsala.",
    "Nyumba ya mfumu ndi yaikulu kuposa nyumba za anthu amene amagwira ntchito m'minda tsiku lililonse.",
] * 6
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
def english() -> Tokens:
    """A byte-level BPE tokenizer of 600 tokens with special tokens at both ends."""
    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=599,
        special_tokens=["<pad>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(ENGLISH, trainer)
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokens.wrap(backend, roles={"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<pad>"})


@pytest.fixture(scope="session")
def corpus_of() -> Callable[[list[str]], Corpus]:
    """A corpus of one language from lines."""
    return lambda lines: Corpus.of(Example(str(n), {"nya_Latn": line}) for n, line in enumerate(lines))


@pytest.fixture(scope="session")
def chichewa() -> list[str]:
    return CHICHEWA


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
