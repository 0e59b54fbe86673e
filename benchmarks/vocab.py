r"""Processor seconds of two vocabulary methods beside the packages that published them, in one run.

(a) WECHSEL: one embedding table for 50k target tokens, beside `wechsel` (its own class, vectors and tables
    equal on both sides). (b) Trans-tokenization: rows for tokens without translations, beside the smoothing
    step of `trans-tokenizers`.

The peers are imported from a folder of their own, where they were put with

    pip install --no-deps --target PEERS wechsel trans-tokenizers scikit-learn joblib threadpoolctl \
        narwhals cloudpickle
    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python benchmarks/vocab.py --peer-path PEERS

Libraries that the measured functions of the peers import but do not use are replaced by empty modules.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from calque.data.corpus import Corpus
from calque.disk import read_json, write_json
from calque.machine import machine, versions
from calque.vocab.static import Vectors, WordSpaces
from calque.vocab.tokenizer import train_tokenizer
from calque.vocab.tokens import Tokens
from calque.vocab.translation import row_stochastic, smooth
from calque.vocab.wechsel import wechsel

RESULTS = Path(__file__).parent / "results" / "vocab.json"


class Static:
    """Word vectors as the peer asks for them: a vector for every word, zeros for an unknown one."""

    def __init__(self, vectors: Vectors) -> None:
        """Take the vectors."""
        self.vectors = vectors

    def get_words(self, **_: Any) -> tuple[list[str], np.ndarray]:
        """All words and their counts."""
        return list(self.vectors.words), self.vectors.counts

    def get_dimension(self) -> int:
        """Numbers per vector."""
        return self.vectors.dimension

    def get_word_vector(self, word: str) -> np.ndarray:
        """One vector."""
        found = self.vectors.look_up(word)
        return np.zeros(self.vectors.dimension) if found is None else found


def stand_ins() -> None:
    """Empty modules for what the peers import but the measured functions never call."""
    for name in ("fasttext", "fasttext.util", "datasets", "nltk", "langcodes"):
        sys.modules.setdefault(name, types.ModuleType(name))
    fasttext: Any = sys.modules["fasttext"]
    fasttext.FastText = types.SimpleNamespace(_FastText=Static)
    fasttext.util = sys.modules["fasttext.util"]
    for name, entry in (("datasets", "load_dataset"), ("langcodes", "Language")):
        setattr(sys.modules[name], entry, None)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def vocabularies(source: str, text: str, size: int) -> tuple[Tokens, Tokens]:
    old = Tokens.open(source)
    new = train_tokenizer(old, Corpus.open(text), mode="replace", size=size, min_count=1)
    return old, new


def token_vectors(tokens: Tokens, dimension: int, seed: int) -> Vectors:
    """A random vector for the text of every token that is text; many tokens differ only by their blank."""
    words = dict.fromkeys(tokens.show(t).strip() for t, s in enumerate(tokens.surface) if s)
    words.pop("", None)
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((len(words), dimension)).astype(np.float32)
    return Vectors(tuple(words), matrix, np.ones(len(words), np.int64))


def compare_wechsel(old: Tokens, new: Tokens, width: int, dimension: int) -> dict[str, Any]:
    import wechsel as peer

    spaces = WordSpaces(token_vectors(old, dimension, 1), token_vectors(new, dimension, 2), ())
    table = np.random.default_rng(3).standard_normal((len(old), width)).astype(np.float32)
    options: dict[str, Any] = {"mode": "subword", "align": False}

    ours, our_seconds = timed(lambda: wechsel(old, new, spaces, **options).apply(table))

    method = peer.WECHSEL(Static(spaces.source), Static(spaces.target), align_strategy=None)
    hf = [tokens.hf() for tokens in (old, new)]
    (theirs, info), their_seconds = timed(lambda: method.apply(hf[0], hf[1], table))
    same = np.abs(ours - theirs).max(1) < 1e-4
    return {
        "target_tokens": len(new),
        "source_tokens": len(old),
        "width": width,
        "dimension": dimension,
        "rows_equal": float(same.mean()),
        "not_found": len(info.not_found),
        "calque_cpu_s": our_seconds,
        "peer_cpu_s": their_seconds,
        "ratio": their_seconds / our_seconds,
    }


def compare_smoothing(old: Tokens, new: Tokens, unmapped: int) -> dict[str, Any]:
    from transtokenizers import transtokenizers as peer

    rng = np.random.default_rng(4)
    free = np.flatnonzero([surface is not None for surface in new.surface])
    open_tokens = rng.choice(free, min(unmapped, len(free) // 2), replace=False)
    mapped = np.setdiff1d(np.arange(len(new)), open_tokens)
    rows = np.repeat(mapped, 3)
    columns = rng.integers(0, len(old), len(rows))
    counts = csr_matrix((rng.integers(1, 100, len(rows)).astype(float), (rows, columns)))
    counts.resize(len(new), len(old))
    _, our_seconds = timed(lambda: row_stochastic(smooth(counts, old, new)[0]))
    dictionary: dict[str, dict[str, int]] = {}
    for row, column, value in zip(*counts.tocoo().coords, counts.tocoo().data, strict=True):
        dictionary.setdefault(new.strings[row], {})[old.strings[column]] = int(value)
    with tempfile.TemporaryDirectory() as folder:
        new.save(Path(folder))
        _, their_seconds = timed(lambda: peer.smooth_mapping(folder, dictionary))
    return {
        "target_tokens": len(new),
        "unmapped": len(open_tokens),
        "calque_cpu_s": our_seconds,
        "peer_cpu_s": their_seconds,
        "ratio": their_seconds / our_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--peer-path", type=Path, required=True, help="folder with the two peers")
    parser.add_argument("--source", default="smollm2-135m", help="model whose tokenizer is the old one")
    parser.add_argument("--text", default="bible-nya", help="text of the new tokenizer")
    parser.add_argument("--size", type=int, default=50_000, help="tokens of the new tokenizer")
    parser.add_argument("--width", type=int, default=2048, help="numbers per embedding row")
    parser.add_argument("--dimension", type=int, default=100, help="numbers per static vector")
    parser.add_argument("--unmapped", type=int, default=10_000, help="tokens without translations")
    parser.add_argument("--only", choices=["wechsel", "smoothing"], help="one of the two; the other stays")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.path.append(str(given.peer_path))
    stand_ins()
    old, new = vocabularies(given.source, given.text, given.size)
    results = read_json(given.out) if given.only and given.out.exists() else {}
    if given.only != "smoothing":
        results["wechsel"] = compare_wechsel(old, new, given.width, given.dimension)
    if given.only != "wechsel":
        results["smoothing"] = compare_smoothing(old, new, given.unmapped)
    results |= {"machine": machine(), "versions": versions()}
    for name in ("wechsel", "smoothing"):
        if row := results.get(name):
            print(
                f"{name:10} calque {row['calque_cpu_s']:8.2f} s  peer {row['peer_cpu_s']:8.2f} s  "
                f"{row['ratio']:7.1f} times less CPU"
            )
    write_json(given.out, results)


if __name__ == "__main__":
    main()
