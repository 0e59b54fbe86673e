"""The held-out documents that a text is scored on, equal for every system and every method."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex

from calque.data.corpus import Corpus
from calque.errors import DataError

# Scripts that write no blanks between words: there a word is counted for each character (grapheme cluster).
UNSPACED = frozenset(
    (
        "Bopo",
        "Hani",
        "Hans",
        "Hant",
        "Hira",
        "Jpan",
        "Kana",
        "Khmr",
        "Lana",
        "Laoo",
        "Mymr",
        "Talu",
        "Thai",
        "Tibt",
    )
)
PASSAGE_BYTES = 1_000
_FEW = 8  # documents that an interval needs at least, where there are so many
_EDGES = regex.compile(r"^\W+|\W+$")
_LEAST_BYTES = 2000
_CLUSTER = regex.compile(r"\X")


@dataclass(frozen=True)
class Document:
    """A document, or the beginning of one; `item` is its group (book, chapter, file) in the corpus."""

    item: str
    text: str

    @property
    def nbytes(self) -> int:
        """Length in bytes of UTF-8."""
        return len(self.text.encode())


def documents(corpus: Corpus, language: str, max_bytes: int | None = None) -> list[Document]:
    """Documents of one side of a corpus; with `max_bytes`, the beginnings of them, as even as they allow.

    A budget is shared out over the documents (short ones whole, long ones cut to one length at a blank)
    instead of spent on the first few: an interval rests on how many documents there are. Of very many
    documents only so many are taken, evenly spread, that each has `PASSAGE_BYTES` on average: the first
    bytes of a document are the dearest, and a budget spent on beginnings alone would say little.

    Raises:
        DataError: No text in this language.
    """
    joined: dict[str, list[str]] = {}
    for example in corpus:
        if language in example.sides:
            joined.setdefault(example.group or example.id, []).append(example.sides[language])
    whole = [Document(item, "\n".join(lines)) for item, lines in joined.items()]
    whole = [document for document in whole if document.text.strip()]
    if not whole:
        raise DataError(f"no text in {language} to score; the corpus has {', '.join(corpus.languages)}")
    total = sum(document.nbytes for document in whole)
    if max_bytes is None or total <= max_bytes:
        return whole
    usual = min(PASSAGE_BYTES, max(1, total // len(whole)))
    whole = pick(whole, max(_FEW, max_bytes // usual))
    chosen = _affordable(whole, max_bytes)
    length = _fair_length([document.nbytes for document in chosen], max_bytes)
    return [Document(document.item, _beginning(document.text, length)) for document in chosen]


def pick(found: Sequence[Document], count: int) -> list[Document]:
    """`count` documents evenly spread over the corpus, always the same ones."""
    count = min(count, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def words(text: str, language: str) -> int:
    """Words: runs without blanks; characters in scripts that write no blanks between words."""
    return len(split_words(text, language))


def split_words(text: str, language: str) -> list[str]:
    """The words that `words` counts, in order."""
    runs = text.split()
    if unspaced(language):
        return [cluster for run in runs for cluster in _CLUSTER.findall(run)]
    return runs


def bare(word: str) -> str:
    """A word without the punctuation around it."""
    return _EDGES.sub("", word)


def repetition(words: Sequence[str]) -> float:
    """Share of pairs of neighbouring words that stand earlier in the text already, marks and case aside."""
    said = [bare(word).casefold() for word in words]
    pairs = list(itertools.pairwise(said))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def unspaced(language: str) -> bool:
    """Whether the language's script writes no blanks between words."""
    return language.partition("_")[2] in UNSPACED


def fingerprint(found: Sequence[Document]) -> str:
    """Eight hexadecimal digits that stand for exactly these texts; part of every signature."""
    digest = hashlib.sha256()
    for document in found:
        digest.update(f"{document.item}\0{document.text}\0".encode())
    return digest.hexdigest()[:8]


def sides(texts: Mapping[str, Corpus]) -> list[tuple[str, str, Corpus]]:
    """(name of the text, language, corpus) for every side of every text; a parallel text has two.

    Raises:
        DataError: No text at all.
    """
    found = [(name, language, corpus) for name, corpus in texts.items() for language in corpus.languages]
    if not found:
        raise DataError("no text to score; give at least one held-out corpus")
    return found


def _affordable(whole: Sequence[Document], budget: int) -> list[Document]:
    """As many documents as can each have the least length, at least one; in the order of the corpus."""
    left, chosen = budget, set[str]()
    for document in sorted(whole, key=lambda d: hashlib.sha256(d.item.encode()).digest()):
        if chosen and left < min(document.nbytes, _LEAST_BYTES // 2):
            break
        left -= min(document.nbytes, _LEAST_BYTES)
        chosen.add(document.item)
    return [document for document in whole if document.item in chosen]


def _fair_length(sizes: Sequence[int], budget: int) -> int:
    """The length L for which the sum of min(size, L) comes nearest to the budget from below."""
    left = budget
    for rank, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - rank)
        if size > share:
            return max(1, share)
        left -= size
    return max(sizes)


def _beginning(text: str, nbytes: int) -> str:
    """At most `nbytes` of a text, cut at the last blank of its second half, else between two characters."""
    encoded = text.encode()
    if len(encoded) <= nbytes:
        return text
    cut = encoded[:nbytes].decode(errors="ignore") or text[:1]
    blank = max((cut.rfind(mark) for mark in (" ", "\n")), default=-1)
    return cut[:blank] if blank > len(cut) // 2 else cut
