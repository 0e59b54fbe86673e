"""How a tokenizer serves a text: how many tokens a word takes, and how much of it falls to crumbs.

Paper: Purkayastha et al. 2023, arXiv:2304.08865, for the share of unknown tokens, fertility and the share of
words that are split; Rust et al. 2021, arXiv:2012.15613, for fertility.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from calque import __version__
from calque.data.corpus import Corpus
from calque.errors import ConfigError
from calque.evaluate.documents import Document, bare, documents, fingerprint, sides, split_words, unspaced
from calque.evaluate.table import Table, signature
from calque.vocab.tokens import Tokens

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SENTENCE_CHARACTERS = (30, 110)  # long enough to show something, short enough for one line of a page


def tokenization(
    tokenizers: Mapping[str, Tokens],
    texts: Mapping[str, Corpus],
    *,
    max_bytes: Annotated[int, Ge(1)] | None = None,
    examples: Annotated[int, Ge(0)] = 2,
) -> Table:
    """Count how each tokenizer cuts up each text.

    Task "tokenization/NAME"; metrics for each document:

    - tokens, words, bytes, characters: tokens / words is the fertility, bytes / tokens the compression.
    - unknown: tokens that stand for "unknown"; unknown / tokens is %UNK.
    - crumb_bytes: bytes in tokens that are no whole characters (byte fallback, parts of a character).
    - split_words: words written with two or more pieces; split_words / words is the continuation share.
    - covered_characters: characters that the vocabulary can write without crumbs or "unknown".

    Args:
        tokenizers: Tokenizers by the name of the system they belong to.
        texts: Texts by name; each of their languages is counted by itself.
        max_bytes: Count at most so many bytes of each text, as `evaluate/lm` does.
        examples: Sentences of each text whose pieces are kept: metric "pieces", item "example N", the pieces
            as a JSON list in `output`.

    Returns:
        The table; `table.measure("tokens/words")` is the fertility.

    Raises:
        ConfigError: No tokenizer.
        DataError: A text without any text.

    Relations: a vocabulary of bytes alone has tokens = bytes; one that knows every word has one token a word.
    """
    if not tokenizers:
        raise ConfigError("no tokenizer to look at; give at least one with a name")
    rows = []
    for name, language, corpus in sides(texts):
        held = documents(corpus, language, max_bytes)
        shown = sentences(corpus, language, examples)
        for system, tokens in tokenizers.items():
            counted = _Counter(tokens, language)
            head = {
                "system": system,
                "task": f"tokenization/{name}",
                "language": language,
                "signature": _signature(tokens, held, language, max_bytes),
            }
            for document in held:
                for metric, value in counted.document(document).items():
                    rows.append({**head, "item": document.item, "metric": metric, "value": value})
            for number, sentence in enumerate(shown, 1):
                pieces = [tokens.show(token) for token in tokens.encode(sentence)]
                made = {"value": len(pieces), "output": json.dumps(pieces, ensure_ascii=False)}
                rows.append({**head, "item": f"example {number}", "metric": "pieces", **made})
    return Table.of(rows)


def sentences(corpus: Corpus, language: str, count: int) -> list[str]:
    """`count` lines of a length that fits on a page, spread over the corpus; the same ones every time."""
    low, high = _SENTENCE_CHARACTERS
    lines = [text.strip() for text in corpus.texts(language)]
    good = [line for line in lines if low <= len(line) <= high and "\n" not in line] or [
        line[:high] for line in lines if line
    ]
    return [good[index * len(good) // count] for index in range(min(count, len(good)))]


class _Counter:
    """Counts for one tokenizer and language; what it finds out about characters and words it remembers."""

    def __init__(self, tokens: Tokens, language: str) -> None:
        self.tokens, self.language = tokens, language
        self.unknown = tokens.special.get("unk")
        self.crumb = [_is_crumb(*pair) for pair in zip(tokens.strings, tokens.surface, strict=True)]
        self.whole: dict[str, bool] = {}
        self.split: dict[str, bool] = {}

    def document(self, document: Document) -> dict[str, float]:
        ids = self.tokens.encode(document.text)
        words = split_words(document.text, self.language)
        self._learn(words, document.text)
        return {
            "tokens": len(ids),
            "words": len(words),
            "bytes": document.nbytes,
            "characters": len(document.text),
            "unknown": sum(token == self.unknown for token in ids),
            "crumb_bytes": sum(len(self.tokens.surface[t] or b"") for t in ids if self.crumb[t]),
            "split_words": sum(self.split[word] for word in words),
            "covered_characters": sum(self.whole[character] for character in document.text),
        }

    def _learn(self, words: Sequence[str], text: str) -> None:
        """Look at each new word (without the marks around it, after a blank) and each new character once."""
        before = "" if unspaced(self.language) else " "
        new = sorted(set(words) - self.split.keys())
        inner = [before + (bare(word) or word) for word in new]
        blank = len(self.tokens.encode(before)) if before else 0
        for word, spoken, ids in zip(new, inner, self.tokens.encode_batch(inner), strict=True):
            alone = blank and not self._joins_blank(spoken, ids)
            self.split[word] = len(ids) - (blank if alone else 0) > 1
        characters = sorted(set(text) - self.whole.keys())
        for character, ids in zip(characters, self.tokens.encode_batch(characters), strict=True):
            self.whole[character] = not any(self.crumb[t] or t == self.unknown for t in ids)

    def _joins_blank(self, spoken: str, ids: Sequence[int]) -> bool:
        """Whether the blank before a word is part of its first piece (or of no piece at all)."""
        surface = self.tokens.surface[ids[0]] if ids else None
        return surface is None or bool(surface.strip())


def _is_crumb(string: str, surface: bytes | None) -> bool:
    """Whether a token is part of a character, or a byte that stands in for one."""
    if surface is None:
        return False
    if _BYTE_TOKEN.fullmatch(string) and surface != string.encode():
        return True
    try:
        surface.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _signature(tokens: Tokens, held: Sequence[Document], language: str, max_bytes: int | None) -> str:
    return signature(
        "tokenization",
        {
            "words": "characters" if unspaced(language) else "blanks",
            "max_bytes": max_bytes or "all",
            "text": fingerprint(held),
            "tokenizer": hashlib.sha256(tokens.backend.to_str().encode()).hexdigest()[:8],
            "version": __version__,
        },
    )
