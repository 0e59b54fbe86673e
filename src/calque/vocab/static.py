"""Static word vectors: read from a file, or trained on a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import regex
from annotated_types import Ge

from calque.data.corpus import Corpus
from calque.data.lexicon import Lexicon
from calque.disk import clear_disk_errors, write_text
from calque.errors import DataError, MissingExtra, ModelError
from calque.progress import say

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’-][\p{L}\p{M}\p{N}]+)*")


@dataclass(frozen=True, eq=False)
class Vectors:
    """N words with a vector of M numbers each.

    Attributes:
        words: N distinct strings, most frequent first where the source says so.
        matrix: (N, M) vectors.
        counts: (N,) occurrences; estimated from the rank where the file does not tell.
        subword: A fastText model that makes vectors for unknown words from their character n-grams.
    """

    words: tuple[str, ...]
    matrix: np.ndarray
    counts: np.ndarray
    subword: Any = None

    def __post_init__(self) -> None:
        if (
            self.matrix.ndim != 2
            or len(self.words) != len(self.matrix)
            or len(self.counts) != len(self.words)
        ):
            raise DataError(
                f"{len(self.words)} words, {len(self.counts)} counts, vectors of shape {self.matrix.shape}"
            )

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Row of each word."""
        return {word: place for place, word in enumerate(self.words)}

    @property
    def dimension(self) -> int:
        """M."""
        return self.matrix.shape[1]

    def look_up(self, word: str) -> np.ndarray | None:
        """The vector of a word, from its n-grams if it is unknown; None when there is nothing to go by."""
        place = self.places.get(word)
        if place is not None:
            return self.matrix[place]
        if self.subword is None or not word:
            return None
        try:
            return self.subword[word]
        except KeyError:
            return None

    @classmethod
    def open(cls, path: str | Path) -> Vectors:
        """Read .vec or word2vec text ("N M" and then "word numbers"), or a fastText .bin with gensim.

        Raises:
            DataError: A missing file, or a line with the wrong number of values.
            MissingExtra: A .bin file without gensim.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no word vectors at {path}")
        return _read_binary(path) if path.suffix == ".bin" else _read_text(path)

    def save(self, path: Path) -> None:
        """Write word2vec text; n-gram vectors and counts are not part of the format."""
        with clear_disk_errors(path), path.open("w", encoding="utf-8") as stream:
            stream.write(f"{len(self.words)} {self.dimension}\n")
            for word, row in zip(self.words, self.matrix, strict=True):
                stream.write(f"{word} {' '.join(f'{value:.6g}' for value in row)}\n")


@dataclass(frozen=True, eq=False)
class WordSpaces:
    """Word vectors of two languages, and word pairs between them.

    Attributes:
        source: Vectors of the source language.
        target: Vectors of the target language.
        pairs: (source word, target word).
    """

    source: Vectors
    target: Vectors
    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def open(cls, folder: str | Path) -> WordSpaces:
        """Read source.vec, target.vec (or .bin) and dictionary.tsv from a folder.

        Raises:
            DataError: One of them is missing.
        """
        folder = Path(folder)
        sides = []
        for side in ("source", "target"):
            files = [folder / f"{side}{ending}" for ending in (".vec", ".bin", ".txt")]
            sides.append(Vectors.open(next((file for file in files if file.is_file()), files[0])))
        return cls(sides[0], sides[1], read_dictionary(folder / "dictionary.tsv"))

    def save(self, folder: Path) -> None:
        """Write what `open` reads; n-gram vectors are lost."""
        folder.mkdir(parents=True, exist_ok=True)
        self.source.save(folder / "source.vec")
        self.target.save(folder / "target.vec")
        write_text(folder / "dictionary.tsv", "".join(f"{one}\t{two}\n" for one, two in self.pairs))


def word_spaces(
    source_text: Corpus,
    target_text: Corpus,
    lexicon: Lexicon,
    *,
    dimension: Annotated[int, Ge(1)] = 100,
    epochs: Annotated[int, Ge(1)] = 20,
    min_count: Annotated[int, Ge(1)] = 2,
    seed: Annotated[int, Ge(0)] = 0,
) -> WordSpaces:
    """Train word vectors on a text of each language, paired by an induced dictionary.

    Args:
        source_text: Text in the source language.
        target_text: Text in the target language.
        lexicon: Word translations from parallel text.
        dimension: Numbers per vector.
        epochs: Passes over each text.
        min_count: Words that occur less often get no vector of their own.
        seed: Of the training.

    Raises:
        MissingExtra: gensim is not installed.
    """
    sides = [
        train_vectors(
            (_WORD.findall(line) for line in text.texts()),
            dimension=dimension,
            epochs=epochs,
            min_count=min_count,
            seed=seed,
        )
        for text in (source_text, target_text)
    ]
    return WordSpaces(sides[0], sides[1], tuple(lexicon.dictionary()))


def read_dictionary(path: Path) -> tuple[tuple[str, str], ...]:
    """Word pairs, one per line, parted by a tab or else by a blank; other lines are skipped and counted.

    Raises:
        DataError: A missing file, or one without any pair.
    """
    if not path.is_file():
        raise DataError(f"no dictionary at {path}")
    pairs, skipped = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.strip().split("\t") if "\t" in line else line.split()
        if len(parts) >= 2 and parts[0] and parts[1] and ("\t" in line or len(parts) == 2):
            pairs.append((parts[0].strip(), parts[1].strip()))
        elif line.strip():
            skipped += 1
    if skipped:
        say(f"{path.name}: {skipped:,} lines are no word pair and were skipped")
    if not pairs:
        raise DataError(f"{path}: no word pairs; expected 'source<TAB>target' on each line")
    return tuple(pairs)


def train_vectors(
    sentences: Iterable[Sequence[str]],
    *,
    dimension: Annotated[int, Ge(1)] = 100,
    epochs: Annotated[int, Ge(1)] = 20,
    min_count: Annotated[int, Ge(1)] = 2,
    ngrams: bool = True,
    seed: Annotated[int, Ge(0)] = 0,
) -> Vectors:
    """Train fastText vectors: CBOW, 10 negatives, character n-grams of length 5, on one thread.

    Args:
        sentences: Lists of words.
        dimension: M.
        epochs: Passes over the text.
        min_count: Words that occur less often get no vector of their own.
        ngrams: Learn n-gram vectors as well, so that unknown words have one.
        seed: Of the start values; results repeat under one seed.

    Raises:
        MissingExtra: gensim is not installed.
        DataError: No word occurs `min_count` times.
    """
    try:
        from gensim.models import FastText, Word2Vec
    except ImportError:
        raise MissingExtra("gensim", "static", "training word vectors") from None
    lines = [list(sentence) for sentence in sentences]
    settings: dict[str, Any] = {
        "vector_size": dimension,
        "epochs": epochs,
        "min_count": min_count,
        "negative": 10,
        "sg": 0,
        "seed": seed,
        "workers": 1,
    }
    try:
        if ngrams:
            model: Any = FastText(lines, min_n=5, max_n=5, bucket=200_000, **settings)
        else:
            model = Word2Vec(lines, **settings)
    except RuntimeError:
        raise DataError(f"word vectors: no word occurs {min_count} times in {len(lines)} lines") from None
    return _of_gensim(model.wv, ngrams)


def _of_gensim(table: Any, ngrams: bool) -> Vectors:
    counts = np.array([table.get_vecattr(word, "count") for word in table.index_to_key], np.int64)
    return Vectors(tuple(table.index_to_key), np.asarray(table.vectors), counts, table if ngrams else None)


def _read_binary(path: Path) -> Vectors:
    try:
        from gensim.models.fasttext import load_facebook_vectors
    except ImportError:
        raise MissingExtra("gensim", "static", f"reading {path.name}") from None
    try:
        return _of_gensim(load_facebook_vectors(str(path)), True)
    except (ValueError, NotImplementedError, EOFError) as error:
        raise ModelError(f"{path} is no fastText model: {error}") from None


def _read_text(path: Path) -> Vectors:
    words: dict[str, None] = {}
    rows: list[np.ndarray] = []
    with path.open(encoding="utf-8", errors="replace") as stream:
        first = stream.readline().split()
        if len(first) != 2 or not all(part.isdigit() for part in first):
            raise DataError(f"{path}:1: expected 'number_of_words dimension', found {' '.join(first)[:60]!r}")
        dimension = int(first[1])
        for number, line in enumerate(stream, 2):
            parts = line.rstrip().rsplit(" ", dimension)
            try:
                row = np.array(parts[1:], np.float32)
            except ValueError:
                raise DataError(f"{path}:{number}: not {dimension} numbers after a word") from None
            if len(row) != dimension:
                raise DataError(f"{path}:{number}: {len(row)} numbers, the first line says {dimension}")
            if parts[0] not in words:
                words[parts[0]] = None
                rows.append(row)
    if not rows:
        raise DataError(f"{path}: no vectors")
    # Files are sorted by frequency and do not state it; Zipf's law is the usual stand-in.
    counts = np.maximum(1, len(rows) // np.arange(1, len(rows) + 1))
    return Vectors(tuple(words), np.stack(rows), counts)
