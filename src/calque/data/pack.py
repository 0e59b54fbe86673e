"""Token pieces for training: documents cut to a length, or examples; never padded, never joined.

A batch is a run of pieces laid back to back. What may attend to what is told by their lengths, so a short
document costs its own tokens and nothing else.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calque.disk import clear_disk_errors, read_json, write_json
from calque.errors import ConfigError, DataError

_DOCUMENTS_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 20
IGNORED = -100


class Piece(NamedTuple):
    """One piece to be stored.

    Attributes:
        ids: its tokens.
        nbytes: bytes of UTF-8 that its predicted tokens stand for.
        prompt: how many tokens at its begin are given; the rest is to be predicted.
        answer: integers it is to give: a class, a label for each token, places. Its objective says which.
        weight: how much it counts.
    """

    ids: Sequence[int] | np.ndarray
    nbytes: int
    prompt: int = 0
    answer: Sequence[int] = ()
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Pieces:
    """Tokenized documents cut to pieces, or examples.

    Attributes:
        ids: token ids of all pieces back to back, mapped from a file; shape (N,).
        starts: where each piece begins in `ids`, and the end of the last; shape (P + 1,).
        nbytes: bytes of UTF-8 that the tokens of each piece stand for; shape (P,).
        sha256: of all that is here: tells two texts, tokenizers or lengths apart.
        prompts: tokens given at the begin of each piece; shape (P,). None: 0.
        answers: what the pieces are to give, back to back; shape (A,). None: nothing but their tokens.
        answer_starts: where the answer of each piece begins, and the end of the last; shape (P + 1,).
        weights: how much each piece counts; shape (P,). None: 1.
    """

    ids: np.ndarray
    starts: np.ndarray
    nbytes: np.ndarray
    sha256: str
    prompts: np.ndarray | None = None
    answers: np.ndarray | None = None
    answer_starts: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.nbytes)

    def size(self, piece: int) -> int:
        """Tokens of one piece."""
        return int(self.starts[piece + 1] - self.starts[piece])

    def piece(self, piece: int) -> np.ndarray:
        """Token ids of one piece."""
        return self.ids[self.starts[piece] : self.starts[piece + 1]]

    def prompt(self, piece: int) -> int:
        """Tokens of one piece that are given."""
        return 0 if self.prompts is None else int(self.prompts[piece])

    def answer(self, piece: int) -> np.ndarray:
        """What one piece is to give besides its tokens."""
        if self.answers is None or self.answer_starts is None:
            return _NOTHING
        return self.answers[self.answer_starts[piece] : self.answer_starts[piece + 1]]

    def weight(self, piece: int) -> float:
        """How much one piece counts."""
        return 1.0 if self.weights is None else float(self.weights[piece])

    @classmethod
    def load(cls, file: Path) -> Pieces:
        """Map what `store` wrote."""
        with np.load(_index(file), allow_pickle=False) as kept:
            columns = {name: kept[name] for name in kept.files}
        ids_N = np.memmap(file, dtype="<u4", mode="r", shape=(int(columns["starts"][-1]),))
        return cls(ids=ids_N, sha256=read_json(_digest_file(file)), **columns)


_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces laid back to back.

    Attributes:
        ids: shape (T,), int64.
        lengths: tokens of each piece; they sum to T.
        nbytes: bytes of text the predicted tokens stand for.
        tokens: tokens drawn from each source of the mixture.
        sources: number of the source of each piece.
        prompts: tokens given at the begin of each piece; empty: 0 each.
        answers: what each piece is to give besides its tokens; empty: nothing.
        weights: how much each piece counts; empty: 1 each.
        draws: how many pieces of its source came before each; with the source it names the piece and epoch.
    """

    ids: np.ndarray
    lengths: tuple[int, ...]
    nbytes: int
    tokens: tuple[int, ...]
    sources: tuple[int, ...]
    prompts: tuple[int, ...] = ()
    answers: tuple[np.ndarray, ...] = ()
    weights: tuple[float, ...] = ()
    draws: tuple[int, ...] = ()

    def labels(self) -> np.ndarray:
        """The token that follows each one inside its piece; IGNORED at the end of a piece and in a prompt."""
        following = np.roll(self.ids, -1)
        ends = np.cumsum(self.lengths)
        following[ends - 1] = IGNORED
        for end, length, prompt in zip(ends, self.lengths, self.prompts, strict=False):
            following[end - length : end - length + max(0, prompt - 1)] = IGNORED
        return following

    def positions(self) -> np.ndarray:
        """Position of each token in its piece, from 0."""
        return np.concatenate([np.arange(length) for length in self.lengths])

    def targets(self) -> int:
        """How many tokens are predicted: all but the first of each piece, and but its prompt."""
        prompts = self.prompts or (0,) * len(self.lengths)
        return sum(max(0, n - max(1, prompt)) for n, prompt in zip(self.lengths, prompts, strict=True))

    def split(self) -> list[np.ndarray]:
        """The tokens of each piece."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1])

    def take(self, chosen: Sequence[int]) -> Batch:
        """Some of its pieces; what is counted for the whole batch stays."""
        parts = self.split()

        def of(column: tuple) -> tuple:
            return tuple(column[n] for n in chosen) if column else ()

        return replace(
            self,
            ids=np.concatenate([parts[n] for n in chosen]),
            lengths=of(self.lengths),
            sources=of(self.sources),
            prompts=of(self.prompts),
            answers=of(self.answers),
            weights=of(self.weights),
            draws=of(self.draws),
        )

    def take_parts(self, part: Callable[[np.ndarray, int], np.ndarray]) -> Batch:
        """The same pieces with `part(tokens, prompt)` of the tokens of each, none of them a prompt."""
        prompts = self.prompts or (0,) * len(self.lengths)
        ids = [part(ids, prompt) for ids, prompt in zip(self.split(), prompts, strict=True)]
        return replace(self, ids=np.concatenate(ids), lengths=tuple(map(len, ids)), prompts=())

    def share(self, rank: int, ranks: int) -> Batch | None:
        """What one of several processes gets, each about as many tokens; None when nothing is left for it."""
        if ranks == 1:
            return self
        loads, chosen = [0] * ranks, []
        for piece in sorted(range(len(self.lengths)), key=lambda n: -self.lengths[n]):
            least = loads.index(min(loads))
            loads[least] += self.lengths[piece]
            if least == rank:
                chosen.append(piece)
        return self.take(sorted(chosen)) if chosen else None


def store(pieces: Iterable[Piece], file: Path) -> Pieces:
    """Write pieces to a file, one after another; only an index of them is held in memory.

    Args:
        pieces: what to write.
        file: where the ids are kept, 4 bytes each; overwritten.

    Raises:
        DataError: there is no piece.
    """
    sizes, nbytes, prompts, answers, answer_sizes = (array("q") for _ in range(5))
    weights = array("d")
    digest = hashlib.sha256()
    with clear_disk_errors(file), file.open("wb") as stream:
        for piece in pieces:
            raw = np.asarray(piece.ids, dtype="<u4").tobytes()
            stream.write(raw)
            digest.update(raw)
            sizes.append(len(piece.ids))
            nbytes.append(piece.nbytes)
            prompts.append(piece.prompt)
            answers.extend(piece.answer)
            answer_sizes.append(len(piece.answer))
            weights.append(piece.weight)
    if not sizes:
        raise DataError("the text has no document of at least one token; nothing to train on")
    columns = {"starts": _starts(sizes), "nbytes": np.frombuffer(nbytes, np.int64)}
    optional = {"prompts": (prompts, 0), "weights": (weights, 1.0)}
    columns |= {
        name: np.asarray(values) for name, (values, plain) in optional.items() if set(values) != {plain}
    }
    if answers:
        columns |= {"answers": np.asarray(answers), "answer_starts": _starts(answer_sizes)}
    for name in sorted(columns.keys() - {"nbytes"}):
        digest.update(columns[name].tobytes())
    with clear_disk_errors(file), _index(file).open("wb") as stream:
        np.savez(stream, **columns)
    write_json(_digest_file(file), digest.hexdigest())
    return Pieces.load(file)


def _starts(sizes: array[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _index(file: Path) -> Path:
    return file.with_name(f"{file.name}.npz")


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


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
    return store(_pack(documents, encode, length, begin, end, token_bytes), file)


def _pack(
    documents: Iterable[str],
    encode: Callable[[Sequence[str]], Iterable[Sequence[int]]],
    length: int,
    begin: int | None,
    end: int | None,
    token_bytes: np.ndarray,
) -> Iterator[Piece]:
    for texts in _some(documents):
        for ids in encode(texts):
            for piece in _cut(ids, length, begin, end):
                yield Piece(piece, int(token_bytes[piece[1:]].sum()))


def _some(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups that are small, in number and in bytes."""
    held: list[str] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= _BYTES_AT_ONCE or len(held) == _DOCUMENTS_AT_ONCE:
            yield held
            held, size = [], 0
    if held:
        yield held


def _cut(ids: Sequence[int], length: int, begin: int | None, end: int | None) -> Iterator[np.ndarray]:
    """The pieces of one document."""
    if not len(ids):
        return
    body = np.asarray(ids, dtype=np.int64)
    if end is not None:
        body = np.append(body, end)
    if begin is None:
        for start in range(0, len(body) - 1, length - 1):
            yield body[start : start + length]
        return
    for start in range(0, len(body), length - 1):
        yield np.concatenate([[begin], body[start : start + length - 1]])
