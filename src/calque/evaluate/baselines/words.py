"""Words as small classifiers read them: lower case, numbered by a vocabulary that never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import regex

_LINK = regex.compile(r"(?:https?://|www\.)\S+")
_WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’-][\p{L}\p{M}]+)*")
PAD, UNKNOWN = 0, 1


def words(text: str) -> list[str]:
    """Runs of letters, apostrophes and hyphens inside them included, in lower case; links are left out."""
    return _WORD.findall(_LINK.sub(" ", text).lower())


@dataclass(frozen=True)
class Vocabulary:
    """Words by number: 0 pads, 1 is any unknown word, then the known ones.

    Attributes:
        known: Most frequent first.
    """

    known: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """The `size` most frequent words of the texts; of equally frequent ones those that come first."""
        counted = Counter(word for text in texts for word in words(text))
        return cls(tuple(word for word, _ in counted.most_common(size)))

    @cached_property
    def places(self) -> dict[str, int]:
        """Number of each known word."""
        return {word: number for number, word in enumerate(self.known, 2)}

    def __len__(self) -> int:
        return len(self.known) + 2

    def ids(self, text: str) -> list[int]:
        """Numbers of the words of a text."""
        return [self.places.get(word, UNKNOWN) for word in words(text)]

    def unknown(self, text: str) -> tuple[int, int]:
        """(unknown words, words) of a text."""
        found = self.ids(text)
        return found.count(UNKNOWN), len(found)


def padded(rows: Sequence[Sequence[int]], shortest: int, longest: int) -> list[list[int]]:
    """Rows of equal length, cut to `longest`, filled with the padding number at the end."""
    cut = [list(row[:longest]) for row in rows]
    length = max(shortest, *(len(row) for row in cut))
    return [row + [PAD] * (length - len(row)) for row in cut]
