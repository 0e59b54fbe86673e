"""The logits processor behind `calque.evaluate.grammar`: the mask of a grammar, row by row."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from calque.errors import ConfigError, MissingExtra
from calque.vocab.tokens import Tokens

_TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@lru_cache(maxsize=4)
def _vocabulary(tokens: Tokens, ends: tuple[int, ...]) -> Any:
    """The tokenizer as llguidance sees it: the bytes of every token."""
    import llguidance

    inner = _Bytes(tokens, ends[0])
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(inner), n_vocab=len(tokens), eos_token=list(ends)
    )


class _Bytes:
    """The surfaces of a vocabulary, under the names that llguidance asks for."""

    def __init__(self, tokens: Tokens, end: int) -> None:
        self.eos_token_id, self.bos_token_id = end, None
        blank = {n for n, surface in enumerate(tokens.surface) if not surface}
        self.tokens = [b"\xff" + string.encode() if n in blank else tokens.surface[n] or b""
                       for n, string in enumerate(tokens.strings)]  # fmt: skip
        self.special_token_ids = sorted(blank | tokens.special_ids | {end})
        self._encode = tokens.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode("utf-8", "ignore") if isinstance(text, bytes) else text)


@lru_cache(maxsize=64)
def matcher(tokens: Tokens, grammar: str, ends: tuple[int, ...]) -> Any:
    """The state at the beginning of a grammar.

    Raises:
        ConfigError: A grammar that is none.
        MissingExtra: llguidance is not installed.
    """
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise MissingExtra("llguidance", "constrain", "an answer within a grammar") from None
    if grammar.lstrip().startswith("{"):
        try:
            rules = LLMatcher.grammar_from_json_schema(grammar, overrides=_TIGHT)  # pyright: ignore
        except ValueError as error:
            raise ConfigError(f"the schema of an answer is not valid JSON: {error}") from None
    else:
        rules = LLMatcher.grammar_from_lark(grammar)
    found = LLMatcher(_vocabulary(tokens, ends), rules, log_level=0)
    if found.is_error():
        raise ConfigError(f"no grammar of answers: {found.get_error().strip().splitlines()[0]}")
    return found


class Constraint(LogitsProcessor):
    """Sets the logits of tokens that the grammar forbids to minus infinity; each row by its own state."""

    def __init__(self, matcher: Any, size: int, begin: int) -> None:
        """Hold a matcher at the beginning of the grammar; rows get copies of it."""
        self.fresh, self.size, self.begin = matcher, size, begin
        self.rows: list[tuple[list[int], Any]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        """Scores [B, V] of the next token, forbidden ones at minus infinity."""
        written = input_ids[:, self.begin :].tolist()
        self.rows = self.rows or [([], self.fresh.deep_copy()) for _ in written]
        allowed_BV = np.zeros((len(written), scores.shape[-1]), dtype=bool)
        for row, ids in enumerate(written):
            matcher = self._state(row, ids)
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            width = min(self.size, scores.shape[-1])
            allowed_BV[row, :width] = bits[:width]
            if not allowed_BV[row].any():
                allowed_BV[row] = True  # a row that has ended; whatever is put there is padding
        return scores.masked_fill(torch.from_numpy(~allowed_BV).to(scores.device), float("-inf"))

    def _state(self, row: int, ids: list[int]) -> Any:
        """The state of a row after its tokens; a row that is not the one before it is read anew."""
        known, matcher = self.rows[row]
        if ids[: len(known)] != known:
            known, matcher = [], self.fresh.deep_copy()
        for token in ids[len(known) :]:
            if matcher.is_stopped() or not matcher.consume_token(token):
                break
        self.rows[row] = (ids, matcher)
        return matcher
