"""Tagged sentences in files of columns: one word a line, an empty line between sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from calque.data.example import Span
from calque.errors import DataError

_CONLLU = 10  # columns
_UPOS = 3


class Sentence(NamedTuple):
    """Words with a tag each, and the line of the first."""

    line: int
    words: list[str]
    tags: list[str]


def sentences(name: object, lines: Iterable[tuple[int, str]], *, universal: bool) -> Iterator[Sentence]:
    """The sentences of a file.

    Args:
        name: What the file is called in messages.
        lines: Its lines with their numbers.
        universal: Whether it is CoNLL-U, of which the universal tags are taken; else the first column is the
            word and the last its tag, divided by tabs or blanks.

    Raises:
        DataError: A line with another number of columns; names file and line.
    """
    read = _universal if universal else _columns
    start, words, tags = 0, list[str](), list[str]()
    for number, line in lines:
        line = line.strip()
        if not line and words:
            yield Sentence(start, words, tags)
            words, tags = [], []
        if not line or line.startswith("-DOCSTART-") or (universal and line.startswith("#")):
            continue
        pair = read(f"{name}:{number}", line)
        if pair:
            start = start if words else number
            words.append(pair[0])
            tags.append(pair[1])
    if words:
        yield Sentence(start, words, tags)


def spans(words: Sequence[str], tags: Sequence[str]) -> tuple[Span, ...]:
    """What is tagged, in the text of the words with one blank between them.

    Tags "B-X" and "I-X" (or "E-X") make one span of several words, any other tag but "O" a span of its word.
    """
    found: list[Span] = []
    at = 0
    for word, tag in zip(words, tags, strict=True):
        end = at + len(word)
        mark, dash, label = tag.partition("-")
        if not dash or mark not in ("B", "I", "E", "S"):
            mark, label = "S", tag
        if mark in ("I", "E") and found and found[-1].label == label and found[-1].end == at - 1:
            found[-1] = Span(found[-1].start, end, label)
        elif tag != "O":
            found.append(Span(at, end, label))
        at = end + 1
    return tuple(found)


def _columns(where: str, line: str) -> tuple[str, str]:
    cells = line.split("\t") if "\t" in line else line.split()
    if len(cells) < 2:
        raise DataError(f"{where}: one column, '{line:.40}'; expected a word and its tag")
    return cells[0].strip(), cells[-1].strip()


def _universal(where: str, line: str) -> tuple[str, str] | None:
    """Word and tag; None for a range of words ("1-2") and for a word that is only understood ("8.1")."""
    cells = line.split("\t")
    if len(cells) != _CONLLU:
        raise DataError(f"{where}: {len(cells)} columns; CoNLL-U has {_CONLLU}, divided by tabs")
    return None if not cells[0].isdigit() else (cells[1], cells[_UPOS])
