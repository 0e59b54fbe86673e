"""A corpus: examples that can be read again and again, and what reading them found.

A corpus never holds its text in memory unless it was made from a list: it is a way to read the examples
plus one byte for each of them that says whether it is kept.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calque.data.example import Example
from calque.disk import new_folder, read_json, write_json
from calque.errors import ConfigError, DataError
from calque.language import Language


@dataclass(frozen=True, eq=False)
class Corpus:
    """Re-iterable examples.

    Attributes:
        source: reads all examples from the start, in the same order each time.
        keep: one byte for each example of `source`, 1 when it belongs to the corpus.
        languages: codes of the sides, the first one is the one `texts` gives when not told otherwise.
        notes: what reading did: sources, lines, empty lines, duplicates dropped, language identification.
    """

    source: Callable[[], Iterator[Example]]
    keep: bytes
    languages: tuple[str, ...]
    notes: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        ref: str | Path,
        *,
        language: str | Language | None = None,
        to: str | Language | None = None,
        nfc: bool = True,
        dedupe: bool = True,
    ) -> Corpus:
        """Read text from wherever it is.

        Args:
            ref: a file (.txt .jsonl .tsv .csv .parquet .tmx, or one of these with .gz or .zst), a Moses
                pair "a.en,a.ny", a folder of files, a saved corpus, an open asset ("bible-nya",
                "kolibri:nya_Latn", "kolibri:eng_Latn|nya_Latn", "bible-eng|bible-nya"), or the id of a hub
                data set ("owner/name" or "owner/name:config").
            language: language of the text, of the first side where there are two. May be left out where
                `ref` says it (assets, saved corpora).
            to: language of the second side; given, the text must be parallel.
            nfc: bring the text into Unicode normal form C.
            dedupe: drop exact duplicates (all sides equal), keep the first.

        Raises:
            DataError: text that is missing, empty, one line only, binary, not UTF-8, or of unequal length.
            ConfigError: unknown language or asset.
        """
        from calque.data.sources import open_corpus

        return open_corpus(ref, language=language, to=to, nfc=nfc, dedupe=dedupe)

    @classmethod
    def of(cls, examples: Iterable[Example], notes: Mapping[str, Any] | None = None) -> Corpus:
        """A corpus held in memory; languages in order of first appearance.

        Raises:
            DataError: two examples have the same id.
        """
        held = tuple(examples)
        if len({example.id for example in held}) < len(held):
            seen: set[str] = set()
            twice = next(e.id for e in held if e.id in seen or seen.add(e.id))
            raise DataError(f"two examples have the id {twice!r}; ids must be unique in a corpus")
        languages = tuple(dict.fromkeys(language for example in held for language in example.sides))
        return cls(lambda: iter(held), b"\1" * len(held), languages, dict(notes or {}))

    def __iter__(self) -> Iterator[Example]:
        return itertools.compress(self.source(), self.keep)

    def __len__(self) -> int:
        return self.keep.count(1)

    def side(self, language: str | Language | None = None) -> str:
        """Code of the side that is meant; None means the only one.

        Raises:
            ConfigError: the corpus has no such side, or has several and none was named.
        """
        sides = ", ".join(self.languages) or "none"
        if language is None:
            if len(self.languages) != 1:
                raise ConfigError(f"this corpus has the sides {sides}; say which one is meant")
            return self.languages[0]
        code = language if language in self.languages else Language.parse(language).code
        if code not in self.languages:
            raise ConfigError(f"this corpus has no side {code}; its sides are {sides}")
        return str(code)

    def texts(self, language: str | Language | None = None) -> Iterator[str]:
        """The text of each example that has this side, in order."""
        code = self.side(language)
        return (example.sides[code] for example in self if code in example.sides)

    def documents(self, language: str | Language | None = None) -> Iterator[tuple[str, str]]:
        r"""(group, its texts joined by "\n") for each run of examples of one group, in order."""
        code = self.side(language)
        here = (example for example in self if code in example.sides)
        for group, run in itertools.groupby(here, key=lambda example: example.group):
            yield group, "\n".join(example.sides[code] for example in run)

    def passages(self, language: str | Language | None = None, size: int = 1 << 20) -> Iterator[str]:
        r"""The documents, those longer than `size` characters in parts that end with a line.

        So a document of any length is read with little memory.
        """
        code = self.side(language)
        group, held, length = None, [], 0
        for example in self:
            if code not in example.sides:
                continue
            if held and (example.group != group or length >= size):
                yield "\n".join(held)
                held, length = [], 0
            group = example.group
            held.append(example.sides[code])
            length += len(held[-1])
        if held:
            yield "\n".join(held)

    def pairs(self, source: str | Language, target: str | Language) -> Iterator[tuple[str, str]]:
        """(source text, target text) of each example that has both sides."""
        first, second = self.side(source), self.side(target)
        return ((e.sides[first], e.sides[second]) for e in self if first in e.sides and second in e.sides)

    def groups(self) -> dict[str, int]:
        """Group -> how many examples it has, in order of first appearance."""
        counts: dict[str, int] = {}
        for example in self:
            counts[example.group] = counts.get(example.group, 0) + 1
        return counts

    def only(self, language: str | Language) -> Corpus:
        """The corpus with this one side; examples without it are left out."""
        code = self.side(language)

        def source() -> Iterator[Example]:
            for example in self.source():
                spans = {k: v for k, v in example.spans.items() if k == code}
                side = {code: example.sides[code]} if code in example.sides else {}
                yield replace(example, sides=side, spans=spans)

        keep = self._mask(lambda example: code in example.sides)
        return Corpus(source, keep, (code,), {**self.notes, "kept": keep.count(1)})

    def filter(self, wanted: Callable[[Example], bool], **notes: Any) -> Corpus:
        """The examples for which `wanted` is true; `notes` are added to the notes."""
        keep = self._mask(wanted)
        return replace(self, keep=keep, notes={**self.notes, "kept": keep.count(1), **notes})

    def split(self, heldout: float | int | Sequence[str], *, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Training part and held-out part; no group is cut, no text stands in both.

        Args:
            heldout: share of the examples (0 < share < 1), number of groups (an int), or the names of the
                groups. A share is filled with randomly chosen groups without going over it (at least one).
            seed: decides which groups are chosen.

        Returns:
            (training, held-out). Training examples of which one side also stands in the held-out part are
            dropped; notes["across_split"] counts them.

        Raises:
            DataError: fewer than two groups, or nothing left to train on.
            ConfigError: a share or number outside its range, or an unknown group.
        """
        counts = self.groups()
        if len(counts) < 2:
            raise DataError(
                f"can not split a text of {len(counts)} document; separate documents by an empty line, "
                "or give a folder with one file for each"
            )
        chosen = _choose(counts, heldout, seed)
        test = self.filter(lambda example: example.group in chosen, groups=len(chosen))
        rest = self.filter(lambda example: example.group not in chosen, groups=len(counts) - len(chosen))
        return rest.without(test), test

    def without(self, other: Corpus) -> Corpus:
        """The examples of which no side stands in `other`; notes["across_split"] counts what is dropped.

        Raises:
            DataError: nothing is left.
        """
        held = {_digest(side) for example in other for side in example.sides.items()}
        left = self.filter(lambda e: not any(_digest(side) in held for side in e.sides.items()))
        dropped = len(self) - len(left)
        if not len(left):
            raise DataError(f"nothing left to train on: {dropped} examples also stand in the held-out part")
        return replace(left, notes={**left.notes, "across_split": dropped})

    def sample(self, n_bytes: int, *, seed: int = 0) -> Corpus:
        """Whole groups in random order until their sides together reach `n_bytes` of UTF-8."""
        if n_bytes <= 0:
            raise ConfigError(f"sample of {n_bytes} bytes; give at least 1")
        sizes: dict[str, int] = {}
        for example in self:
            size = sum(len(text.encode()) for text in example.sides.values())
            sizes[example.group] = sizes.get(example.group, 0) + size
        order = list(sizes)
        random.Random(seed).shuffle(order)
        before = itertools.accumulate((sizes[group] for group in order), initial=0)
        chosen = {group for group, total in zip(order, before, strict=False) if total < n_bytes}
        return self.filter(lambda example: example.group in chosen, groups=len(chosen))

    def save(self, folder: Path) -> None:
        """Write `examples.jsonl` and `corpus.json` to a new folder."""
        with new_folder(folder) as part:
            with (part / "examples.jsonl").open("w", encoding="utf-8") as stream:
                for example in self:
                    stream.write(json.dumps(example.record(), ensure_ascii=False) + "\n")
            head = {"languages": list(self.languages), "examples": len(self), "notes": dict(self.notes)}
            write_json(part / "corpus.json", head)

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Read what `save` wrote.

        Raises:
            DataError: the folder is no saved corpus, or its files disagree.
        """
        file = folder / "examples.jsonl"
        if not file.is_file() or not (folder / "corpus.json").is_file():
            raise DataError(f"{folder}: no saved corpus (needs examples.jsonl and corpus.json)")
        head = read_json(folder / "corpus.json")
        with file.open("rb") as stream:
            count = sum(1 for _ in stream)
        if count != head["examples"]:
            raise DataError(f"{file}: {count} examples, corpus.json says {head['examples']}")
        return cls(lambda: _read_saved(file), b"\1" * count, tuple(head["languages"]), head["notes"])

    def _mask(self, wanted: Callable[[Example], bool]) -> bytes:
        """`keep` with 0 also where `wanted` is false."""
        tested = (wanted(example) for example in self)
        return bytes(kept and next(tested) for kept in self.keep)


def _read_saved(file: Path) -> Iterator[Example]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield Example.of_record(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}:{number}: not a saved example ({error})") from None


def _choose(counts: Mapping[str, int], heldout: float | int | Sequence[str], seed: int) -> frozenset[str]:
    """Names of the groups that are held out."""
    order = list(counts)
    random.Random(seed).shuffle(order)
    if isinstance(heldout, int):
        if not 0 < heldout < len(counts):
            raise ConfigError(f"{heldout} groups held out of {len(counts)}; give 1 to {len(counts) - 1}")
        return frozenset(order[:heldout])
    if isinstance(heldout, float):
        if not 0 < heldout < 1:
            raise ConfigError(f"held-out share {heldout}; give a share between 0 and 1, e.g. 0.1")
        room, chosen = heldout * sum(counts.values()), []
        for group in order:
            if counts[group] <= room:
                chosen.append(group)
                room -= counts[group]
        return frozenset(chosen or [min(order, key=lambda group: counts[group])])
    names = [heldout] if isinstance(heldout, str) else list(heldout)
    missing = [group for group in names if group not in counts]
    if missing or not names or len(set(names)) == len(counts):
        raise ConfigError(f"groups to hold out {names}: unknown {missing}; there are {', '.join(order[:20])}")
    return frozenset(names)


def _digest(side: tuple[str, str]) -> bytes:
    """Eight bytes that stand for a text in a language."""
    return hashlib.blake2b("\0".join(side).encode(), digest_size=8).digest()
