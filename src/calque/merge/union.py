"""A tokenizer that knows the tokens of several: the first one's with their ids, then what others add."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from calque.errors import ModelError
from calque.merge.match import match_tokens
from calque.vocab.tokens import Tokens


def union(base: Tokens, others: Sequence[Tokens]) -> Tokens:
    """The base's tokenizer with the tokens, and for BPE the merges, that only others have, behind its own.

    Text is cut as the base cuts it, unless a merge of the others joins its pieces further.

    Raises:
        ModelError: the tokenizers are of different kinds, or of one that has a place for each token.
    """
    found = base
    for other in others:
        lacking = np.flatnonzero(match_tokens(other, found) < 0)
        wanted = [int(token) for token in lacking if other.strings[token]]
        if wanted:
            found = _extended(found, other, wanted)
    return found


def _extended(base: Tokens, other: Tokens, wanted: Sequence[int]) -> Tokens:
    spec, theirs = json.loads(base.backend.to_str()), json.loads(other.backend.to_str())
    kinds = [(each["model"]["type"], tokens.kind) for each, tokens in ((spec, base), (theirs, other))]
    if kinds[0] != kinds[1] or kinds[0][0] not in ("BPE", "WordPiece"):
        why = ""
        if "Unigram" in (kinds[0][0], kinds[1][0]):
            why = "; Unigram cuts by probabilities of tokens, and those of two tokenizers do not compare"
        raise ModelError(
            f"the union of two vocabularies needs two BPE or two WordPiece tokenizers of one kind; these are "
            f"{kinds[0][0]} ({kinds[0][1]}) and {kinds[1][0]} ({kinds[1][1]}){why}: use --vocabulary base, "
            "which keeps the base's tokens"
        )
    added = {entry["content"]: entry for entry in theirs["added_tokens"]}
    vocabulary = spec["model"]["vocab"]
    for place, token in enumerate(wanted, len(base)):
        string = other.strings[token]
        if string in added:
            spec["added_tokens"].append({**added[string], "id": place})
        else:
            vocabulary[string] = place
    if kinds[0][0] == "BPE":
        merges = [_pair(merge) for merge in spec["model"]["merges"]]
        known = set(merges)
        more = [
            pair
            for pair in map(_pair, theirs["model"]["merges"])
            if pair not in known and {*pair, "".join(pair)} <= vocabulary.keys()
        ]
        spec["model"]["merges"] = [list(pair) for pair in [*merges, *more]]
    return Tokens.wrap(Tokenizer.from_str(json.dumps(spec)), roles=base.roles, config=base.config)


def _pair(merge: Any) -> tuple[str, str]:
    """A merge, which older files write as one string."""
    first, second = merge if isinstance(merge, list) else merge.split(" ", 1)
    return first, second
