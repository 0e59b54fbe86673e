"""From a new vocabulary to an old one: which old rows a new row is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from calque.disk import clear_disk_errors, read_json, write_json, write_text
from calque.errors import ConfigError, DataError
from calque.progress import say
from calque.vocab.tokens import ROLES, Tokens

Fallback = Literal["normal", "mean", "zero", "unk"]
Side = Literal["input", "output"]
SPECIAL, FALLBACK = "special", "fallback"
_BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class VocabMap:
    """Sparse weights from V_target new tokens to V_source old ones, and what to do without evidence.

    Invariants: the weights have shape (V_target, V_source); rows of uncovered tokens are empty, rows of
    covered ones are not; special tokens known to both sides are identity rows. Rows need not sum to 1.

    Attributes:
        input: Weights of the input embedding, csr (V_target, V_source).
        output: Weights of the output embedding, or None when they are the same as `input`.
        covered: bool (V_target,); False where the fallback fills the row.
        how: uint8 (V_target,); the index in `how_names` of what made each row.
        how_names: Names of the ways; always holds "fallback".
        fallback: "normal" (per-dimension mean and deviation of the old rows), "mean", "zero" or "unk".
        seed: Seed of the normal fallback.
        unk: Old row that the "unk" fallback copies; -1 when the old tokenizer has none.
        source_tokens: V_source strings as a person reads them.
        target_tokens: V_target strings as a person reads them.
        notes: Counts and settings that belong to this map.
    """

    input: csr_matrix
    output: csr_matrix | None
    covered: np.ndarray
    how: np.ndarray
    how_names: tuple[str, ...]
    fallback: Fallback
    seed: int
    unk: int
    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.target_tokens), len(self.source_tokens))
        for name, weights in (("input", self.input), ("output", self.output)):
            if weights is None:
                continue
            if weights.shape != shape:
                raise DataError(f"VocabMap.{name} has shape {weights.shape}; the vocabularies give {shape}")
            if not np.array_equal(np.diff(weights.indptr) > 0, self.covered):
                raise DataError(f"VocabMap.{name}: covered rows and rows with weights differ")
            if not np.isfinite(weights.data).all():
                raise DataError(f"VocabMap.{name} holds weights that are not finite")
        if len(self.how) != shape[0] or (shape[0] and self.how.max() >= len(self.how_names)):
            raise DataError("VocabMap.how does not name one way per target token")
        if self.fallback == "unk" and self.unk < 0 and not self.covered.all():
            raise ConfigError("fallback 'unk': the source tokenizer has no unk, pad or bos token")

    @property
    def shape(self) -> tuple[int, int]:
        """(V_target, V_source)."""
        return len(self.target_tokens), len(self.source_tokens)

    def apply(
        self, matrix_VD: np.ndarray, which: Side = "input", *, block_rows: int = _BLOCK_ROWS
    ) -> np.ndarray:
        """New table from an old one.

        Args:
            matrix_VD: Old table, at least V_source rows; rows beyond V_source are padding and ignored.
            which: The weights to use.
            block_rows: Rows computed at a time; bounds the memory beside table and result.

        Returns:
            float32 (V_target, D); float64 when the old table is float64.
        """
        result: np.ndarray | None = None
        for start, rows in self.blocks(matrix_VD, which, block_rows=block_rows):
            if result is None:
                result = np.empty((self.shape[0], rows.shape[1]), rows.dtype)
            result[start : start + len(rows)] = rows
        if result is None:
            raise DataError("VocabMap.apply: the target vocabulary is empty")
        return result

    def blocks(
        self, matrix_VD: np.ndarray, which: Side = "input", *, block_rows: int = _BLOCK_ROWS
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Like `apply`, as (first row, rows) in order, so that nothing of size V_target x D is held."""
        table = _real_rows(matrix_VD, self.shape[1])
        weights = csr_matrix(self._side(which), dtype=table.dtype)
        fill = _filler(self, table)
        for start in range(0, self.shape[0], block_rows):
            rows = np.asarray(weights[start : start + block_rows] @ table)
            fill(start, rows)
            yield start, rows

    def _side(self, which: Side) -> csr_matrix:
        return self.input if which == "input" or self.output is None else self.output

    def provenance(self, token: int, which: Side = "input") -> list[tuple[str, float]]:
        """Source tokens and weights of one target token, heaviest first; empty for a fallback row."""
        weights = self._side(which)
        begin, end = weights.indptr[token], weights.indptr[token + 1]
        found = zip(weights.indices[begin:end], weights.data[begin:end], strict=True)
        ordered = sorted(found, key=lambda pair: (-pair[1], pair[0]))
        return [(self.source_tokens[source], float(weight)) for source, weight in ordered]

    def counts(self) -> dict[str, int]:
        """Tokens by what made their row."""
        found = np.bincount(self.how, minlength=len(self.how_names))
        return {name: int(found[place]) for place, name in enumerate(self.how_names) if found[place]}

    def save(self, folder: Path) -> None:
        """Write map.npz (no pickle), map.json and provenance.tsv into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"covered": self.covered, "how": self.how}
        for name, weights in (("input", self.input), ("output", self.output)):
            if weights is not None:
                parts = {"data": weights.data, "indices": weights.indices, "indptr": weights.indptr}
                arrays |= {f"{name}_{part}": array for part, array in parts.items()}
        with clear_disk_errors(folder):
            np.savez(folder / "map.npz", **arrays)  # pyright: ignore[reportArgumentType]
        plain = {
            "fallback": self.fallback,
            "how_names": self.how_names,
            "notes": dict(self.notes),
            "seed": self.seed,
            "source_tokens": self.source_tokens,
            "target_tokens": self.target_tokens,
            "unk": self.unk,
        }
        write_json(folder / "map.json", plain)
        write_text(folder / "provenance.tsv", "".join(self._provenance_lines()))

    def _provenance_lines(self) -> Iterator[str]:
        yield "id\ttoken\tmethod\tsource tokens\tweights\n"
        for token, name in enumerate(self.target_tokens):
            found = self.provenance(token)
            sources = " ".join(_visible(source) for source, _ in found)
            weights = " ".join(f"{weight:.6g}" for _, weight in found)
            yield f"{token}\t{_visible(name)}\t{self.how_names[self.how[token]]}\t{sources}\t{weights}\n"

    @classmethod
    def load(cls, folder: Path) -> VocabMap:
        """Read what `save` wrote."""
        plain = read_json(folder / "map.json")
        shape = (len(plain["target_tokens"]), len(plain["source_tokens"]))
        with np.load(folder / "map.npz", allow_pickle=False) as arrays:

            def weights(name: str) -> csr_matrix:
                parts = (arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
                return csr_matrix(tuple(parts), shape=shape)

            return cls(
                input=weights("input"),
                output=weights("output") if "output_data" in arrays else None,
                covered=arrays["covered"],
                how=arrays["how"],
                how_names=tuple(plain["how_names"]),
                fallback=plain["fallback"],
                seed=plain["seed"],
                unk=plain["unk"],
                source_tokens=tuple(plain["source_tokens"]),
                target_tokens=tuple(plain["target_tokens"]),
                notes=plain["notes"],
            )


def special_pairs(source: Tokens, target: Tokens) -> dict[int, int]:
    """Target id -> source id of special tokens known to both sides, by string, else by role."""
    names = {string: token for string, token in source.special.items() if string not in ROLES}
    roles = {role: source.special[role] for role in ROLES if role in source.special}
    pairs: dict[int, int] = {}
    for known in (roles, names):
        pairs |= {token: known[name] for name, token in target.special.items() if name in known}
    for name in names:
        token = target.backend.token_to_id(name)
        if token is not None:
            pairs[token] = names[name]
    return pairs


def stand_in(source: Tokens) -> int:
    """The old row for what is unknown: unk, else pad, else bos; -1 when there is none of them."""
    return next((source.special[role] for role in ("unk", "pad", "bos") if role in source.special), -1)


def build_map(
    source: Tokens,
    target: Tokens,
    weights: csr_matrix,
    how: np.ndarray,
    how_names: tuple[str, ...],
    *,
    fallback: Fallback,
    seed: int = 1234,
    notes: Mapping[str, Any] | None = None,
) -> VocabMap:
    """Complete a method's weights: special tokens become identity rows, the rest without weights fallback.

    Args:
        source: Old vocabulary.
        target: New vocabulary.
        weights: csr (V_target, V_source).
        how: (V_target,) indices into `how_names`, for the rows that have weights.
        how_names: Names of the method's ways of making a row.
        fallback: What fills rows without weights.
        seed: Of the normal fallback.
        notes: Counts and settings to keep.
    """
    names = (FALLBACK, SPECIAL, *how_names)
    pairs = special_pairs(source, target)
    weights = _with_identity_rows(weights, pairs)
    covered = np.diff(weights.indptr) > 0
    ways = np.where(covered, np.asarray(how, np.int64) + 2, 0).astype(np.uint8)
    ways[list(pairs)] = 1
    missing = int((~covered).sum())
    if missing and how_names:
        say(f"{missing:,} of {len(target):,} tokens without evidence: {fallback}")
    return VocabMap(
        input=weights,
        output=None,
        covered=covered,
        how=ways,
        how_names=names,
        fallback=fallback,
        seed=seed,
        unk=stand_in(source),
        source_tokens=tuple(source.show(token) for token in range(len(source))),
        target_tokens=tuple(target.show(token) for token in range(len(target))),
        notes=dict(notes or {}),
    )


def sparse_rows(rows: Mapping[int, Mapping[int, float]], shape: tuple[int, int]) -> csr_matrix:
    """csr of the given shape from row -> column -> weight."""
    row = np.fromiter((token for token, found in rows.items() for _ in found), np.int64)
    col = np.fromiter((place for found in rows.values() for place in found), np.int64)
    data = np.fromiter((weight for found in rows.values() for weight in found.values()), np.float64)
    return csr_matrix(coo_matrix((data, (row, col)), shape=shape))


def _with_identity_rows(weights: csr_matrix, pairs: Mapping[int, int]) -> csr_matrix:
    table = weights.tocoo()
    keep = ~np.isin(table.row, list(pairs)) & (table.data != 0)
    row = np.concatenate([table.row[keep], np.fromiter(pairs, np.int64, len(pairs))])
    col = np.concatenate([table.col[keep], np.fromiter(pairs.values(), np.int64, len(pairs))])
    data = np.concatenate([table.data[keep], np.ones(len(pairs))])
    result = csr_matrix(coo_matrix((data.astype(np.float64), (row, col)), shape=weights.shape))
    result.sum_duplicates()
    return result


def _real_rows(matrix_VD: np.ndarray, rows: int) -> np.ndarray:
    if matrix_VD.ndim != 2 or len(matrix_VD) < rows:
        raise DataError(f"VocabMap.apply: table of shape {matrix_VD.shape} for {rows} source tokens")
    table = matrix_VD[:rows]
    return table if table.dtype == np.float64 else table.astype(np.float32, copy=False)


def _filler(vocab_map: VocabMap, table: np.ndarray) -> Any:
    """The function (first row, rows) that fills in the uncovered rows in place."""
    missing = ~vocab_map.covered
    if not missing.any() or vocab_map.fallback == "zero":
        return lambda start, rows: None
    if vocab_map.fallback == "normal":
        return _normal_filler(vocab_map, table, missing)
    row = table[vocab_map.unk] if vocab_map.fallback == "unk" else table.mean(0, dtype=np.float64)

    def fill(start: int, rows: np.ndarray) -> None:
        rows[missing[start : start + len(rows)]] = row

    return fill


def _normal_filler(vocab_map: VocabMap, table: np.ndarray, missing: np.ndarray) -> Any:
    mean, deviation = moments(table)
    draws = np.random.RandomState(vocab_map.seed)

    def fill(start: int, rows: np.ndarray) -> None:
        # Row t is row t of one draw for the whole table, so that it does not depend on what is covered.
        if not missing[start:].any():
            return
        noise = draws.standard_normal(rows.shape)
        gaps = missing[start : start + len(rows)]
        rows[gaps] = mean + deviation * noise[gaps]

    return fill


def moments(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-dimension mean and population deviation of (V, D) rows, in float64 without a float64 copy."""
    mean = table.mean(0, dtype=np.float64)
    squares = np.zeros(table.shape[1])
    for start in range(0, len(table), _BLOCK_ROWS):
        squares += ((table[start : start + _BLOCK_ROWS] - mean) ** 2).sum(0)
    return mean, np.sqrt(squares / max(1, len(table)))


def _visible(token: str) -> str:
    """A token on one line without blanks, so that the columns of provenance.tsv stay apart."""
    marked = token.replace(" ", "▁")
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in marked) or "∅"
