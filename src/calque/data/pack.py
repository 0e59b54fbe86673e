"""Text as token pieces for training: documents are cut to a length, never padded, never joined.

A batch is a run of pieces laid back to back. What may attend to what is told by their lengths, so a short
document costs its own tokens and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from calque.disk import clear_disk_errors
from calque.errors import ConfigError, DataError

_DOCUMENTS_AT_ONCE = 256
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Pieces:
    """Tokenized documents, cut to pieces.

    Attributes:
        ids: token ids of all pieces back to back, mapped from a file; shape (N,).
        starts: where each piece begins in `ids`, and the end of the last; shape (P + 1,).
        nbytes: bytes of UTF-8 that the tokens of each piece stand for; shape (P,).
        sha256: of ids and starts: tells two texts, tokenizers or lengths apart.
    """

    ids: np.ndarray
    starts: np.ndarray
    nbytes: np.ndarray
    sha256: str

    def __len__(self) -> int:
        return len(self.nbytes)

    def size(self, piece: int) -> int:
        """Tokens of one piece."""
        return int(self.starts[piece + 1] - self.starts[piece])

    def piece(self, piece: int) -> np.ndarray:
        """Token ids of one piece."""
        return self.ids[self.starts[piece] : self.starts[piece + 1]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces laid back to back.

    Attributes:
        ids: shape (T,), int64.
        lengths: tokens of each piece; they sum to T.
        nbytes: bytes of text the predicted tokens stand for.
        tokens: tokens drawn from each source of the mixture.
        sources: number of the source of each piece.
    """

    ids: np.ndarray
    lengths: tuple[int, ...]
    nbytes: int
    tokens: tuple[int, ...]
    sources: tuple[int, ...]

    def labels(self) -> np.ndarray:
        """The token that follows each one inside its piece; IGNORED at the end of a piece."""
        following = np.roll(self.ids, -1)
        following[np.cumsum(self.lengths) - 1] = IGNORED
        return following

    def positions(self) -> np.ndarray:
        """Position of each token in its piece, from 0."""
        return np.concatenate([np.arange(length) for length in self.lengths])

    def targets(self) -> int:
        """How many tokens are predicted: all but the first of each piece."""
        return sum(self.lengths) - len(self.lengths)


def pack(
    documents: Iterable[str],
    encode: Callable[[Sequence[str]], Iterable[Sequence[int]]],
    *,
    file: Path,
    length: int,
    begin: int | None,
    end: int | None,
    token_bytes: np.ndarray,
) -> Pieces:
    """Tokenize documents into a file and cut them to pieces.

    A piece is `begin`, at most `length - 1` tokens of one document, and `end` after the document's last, so
    that each token of a document is predicted exactly once. Where `begin` is None a piece begins with the
    last token of the piece before it.

    Args:
        documents: the texts.
        encode: texts to token ids, without special tokens.
        file: where the ids are kept, 4 bytes each; overwritten.
        length: tokens of a piece at most, `begin` and `end` included.
        begin: id that a piece begins with.
        end: id that a document ends with.
        token_bytes: bytes of UTF-8 that each token of the vocabulary stands for; shape (V,).

    Raises:
        ConfigError: `length` below 2.
        DataError: no document has a token to predict.
    """
    if length < 2:
        raise ConfigError(f"length {length} leaves no token to predict; give at least 2")
    sizes: list[int] = []
    nbytes: list[int] = []
    digest = hashlib.sha256()
    with clear_disk_errors(file), file.open("wb") as stream:
        texts_left = iter(documents)
        while texts := list(islice(texts_left, _DOCUMENTS_AT_ONCE)):
            for ids in encode(texts):
                for piece in _cut(ids, length, begin, end):
                    raw = piece.astype("<u4").tobytes()
                    stream.write(raw)
                    digest.update(raw)
                    sizes.append(len(piece))
                    nbytes.append(int(token_bytes[piece[1:]].sum()))
    if not sizes:
        raise DataError("the text has no document of at least one token; nothing to train on")
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    digest.update(starts.tobytes())
    ids_N = np.memmap(file, dtype="<u4", mode="r", shape=(int(starts[-1]),))
    return Pieces(ids_N, starts, np.asarray(nbytes, dtype=np.int64), digest.hexdigest())


def _cut(ids: Sequence[int], length: int, begin: int | None, end: int | None) -> Iterator[np.ndarray]:
    """The pieces of one document."""
    if not len(ids):
        return
    body = np.asarray([*ids, *([] if end is None else [end])], dtype=np.int64)
    if begin is None:
        for start in range(0, len(body) - 1, length - 1):
            yield body[start : start + length]
        return
    for start in range(0, len(body), length - 1):
        yield np.concatenate([[begin], body[start : start + length - 1]])
