"""Word alignment beside eflomal, on the same lines and the same core, in one run.

Each aligner is a program of its own that reads two files of lower-cased words and writes links, so start-up
and reading count; processor seconds are compared, because they do not depend on what else the machine does.
The links of both go through the same symmetrisation, and F1 is the agreement of the two (no gold standard).
`eflomal` (GPL) is only called as a program: pip install eflomal

    python benchmarks/align.py                 # three pairs of languages beside eflomal
    python benchmarks/align.py --models        # position models and agreement, on the smaller texts
    python benchmarks/align.py --scaling       # seconds and memory at 30k, 100k, 300k sentence pairs
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from calque.data.align import words
from calque.data.aligner import Model, Settings
from calque.data.cooccurrence import encode
from calque.data.corpus import Corpus
from calque.data.links import Links, agreement, symmetrize
from calque.disk import read_json, write_json
from calque.machine import machine, peak_memory, versions

RESULTS = Path(__file__).parent / "results" / "align.json"
TEXTS = ("bible-eng|bible-nya", "quran:eng_Latn|deu_Latn", "kolibri:eng_Latn|swh_Latn")
RULE = "grow-diag-final-and"
SCALE = (30_000, 100_000, 300_000)
ROW = "{:28} {:>7,} {:24} {:8.1f} {:8.1f} {:6.1f} {:7.3f} {:7.3f} {:7.0f}"
HEAD = "{:28} {:>7} {:24} {:>8} {:>8} {:>6} {:>7} {:>7} {:>7}"
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def read_words(file: Path) -> list[list[str]]:
    return [line.split() for line in file.read_text(encoding="utf-8").splitlines()]


def write_pairs(ref: str, pairs: int, folder: Path) -> int:
    corpus = Corpus.open(ref)
    kept = 0
    with (folder / "source").open("w") as one, (folder / "target").open("w") as two:
        for source, target in corpus.pairs(*corpus.languages):
            cut = words(source.lower()), words(target.lower())
            if all(cut) and kept < pairs:
                kept += 1
                print(*cut[0], file=one)
                print(*cut[1], file=two)
    return kept


def write_invented(pairs: int, folder: Path) -> None:
    """Words by a Zipf law over two million of them: the vocabulary grows with the text, as real ones do."""
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(1 / (np.arange(2_000_000) + 2.7) ** 1.07)
    lengths = np.clip(rng.lognormal(3.0, 0.45, pairs).astype(int), 1, 120)
    with (folder / "source").open("w") as one, (folder / "target").open("w") as two:
        for length in lengths:
            line = np.searchsorted(cumulative, rng.random(length) * cumulative[-1])
            order = np.argsort(np.arange(length) + rng.normal(0, 1, length))
            other = np.where(rng.random(length) < 0.85, line[order], rng.integers(0, 50, length))
            print(*line, file=one)
            print(*other[rng.random(length) < 0.9], file=two)


def run_child(command: list[str]) -> tuple[float, float]:
    """(processor seconds, wall seconds) of a program and of what it starts."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | ONE_CORE)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return used, time.perf_counter() - start


def child_align(folder: Path) -> None:
    """What the child process does: links of both directions, and its own peak memory."""
    sides = encode(zip(read_words(folder / "source"), read_words(folder / "target"), strict=True))
    model = Model(*sides, Settings(**json.loads((folder / "settings").read_text())))
    model.train()
    for name, links in zip(("forward", "reverse"), model.decode(), strict=True):
        (folder / name).write_text("\n".join(links.lines()))
    notes = {**model.notes(), "peak_memory_mb": peak_memory() / 1e6}
    write_json(folder / "notes.json", notes)


def read_links(file: Path) -> Links:
    lines = file.read_text().split("\n")
    pairs = [[tuple(map(int, link.split("-"))) for link in line.split()] for line in lines]
    return Links.of(pairs)  # type: ignore[arg-type]


def ours(folder: Path, **settings: Any) -> tuple[tuple[Links, Links], dict[str, Any]]:
    (folder / "settings").write_text(json.dumps(settings))
    cpu, wall = run_child([sys.executable, __file__, "--child", str(folder)])
    notes = read_json(folder / "notes.json")
    links = read_links(folder / "forward"), read_links(folder / "reverse")
    return links, {"cpu_s": cpu, "wall_s": wall, **notes}


def eflomal(folder: Path) -> tuple[tuple[Links, Links], dict[str, Any]]:
    program = shutil.which("eflomal-align", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        raise SystemExit("eflomal-align is not installed: pip install eflomal")
    files = {"-s": "source", "-t": "target", "-f": "forward", "-r": "reverse"}
    options = [part for flag, name in files.items() for part in (flag, str(folder / name))]
    cpu, wall = run_child([sys.executable, program, "--overwrite", *options])
    text = [(folder / name).read_text() for name in ("forward", "reverse")]
    for name, lines in zip(("forward", "reverse"), text, strict=True):
        (folder / name).write_text(lines.removesuffix("\n"))
    return (read_links(folder / "forward"), read_links(folder / "reverse")), {"cpu_s": cpu, "wall_s": wall}


def beside_eflomal(ref: str, pairs: int, models: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"text": ref, "pairs": write_pairs(ref, pairs, folder)}
        theirs, found["eflomal"] = eflomal(folder)
        again, _ = eflomal(folder) if models else (None, None)
        if again is not None:
            found["eflomal_with_itself_f1"] = agreement(symmetrize(*again), symmetrize(*theirs))
        variants: dict[str, dict[str, Any]] = {"jumps": {}}
        if models:
            variants["jumps, no agreement"] = {"agree": False}
            variants["diagonal"] = {"position": "diagonal"}
            variants["diagonal, no agreement"] = {"position": "diagonal", "agree": False}
            variants["model 1"] = {"position": "uniform", "agree": False}
        found["calque"] = {}
        for label, settings in variants.items():
            mine, row = ours(folder, **settings)
            row["f1"] = {
                rule: agreement(symmetrize(*mine, rule), symmetrize(*theirs, rule))
                for rule in ("intersection", RULE)
            }
            row["ratio_cpu"] = found["eflomal"]["cpu_s"] / row["cpu_s"]
            found["calque"][label] = row
            cells = (ref, found["pairs"], label, row["cpu_s"], found["eflomal"]["cpu_s"], row["ratio_cpu"])
            print(ROW.format(*cells, *row["f1"].values(), row["peak_memory_mb"]), flush=True)
    return found


def scaling(sizes: tuple[int, ...]) -> dict[str, Any]:
    rows = []
    for pairs in sizes:
        with tempfile.TemporaryDirectory() as name:
            write_invented(pairs, Path(name))
            (Path(name) / "settings").write_text("{}")
            cpu, wall = run_child([sys.executable, __file__, "--child", name])
            notes = read_json(Path(name) / "notes.json")
        row = {"pairs": pairs, "cpu_s": cpu, "wall_s": wall}
        row |= {key: notes[key] for key in ("peak_memory_mb", "word_pairs", "weak_word_pairs_dropped")}
        rows.append(row)
        size, table = f"{row['peak_memory_mb']:8.0f} MB", f"{row['word_pairs']:>12,} word pairs"
        print(f"{pairs:>8,} pairs {cpu:8.1f} s {size} {table}", flush=True)
    logs = np.log([[row[key] for key in ("pairs", "cpu_s", "peak_memory_mb", "word_pairs")] for row in rows])
    slopes = {
        name: float(np.polyfit(logs[:, 0], logs[:, place], 1)[0])
        for place, name in enumerate(("cpu_s", "peak_memory_mb", "word_pairs"), 1)
    }
    print("exponents: " + ", ".join(f"{name} ~ pairs^{slope:.2f}" for name, slope in slopes.items()))
    return {"rows": rows, "exponents": slopes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--texts", nargs="*", default=TEXTS)
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--scaling", nargs="*", type=int, metavar="PAIRS", help=f"default {SCALE}")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child_align(options.child)
        return
    record = read_json(RESULTS) if RESULTS.exists() else {}
    if options.scaling is not None:
        record["scaling"] = scaling(tuple(options.scaling) or SCALE)
    else:
        print(
            HEAD.format("text", "pairs", "model", "calque s", "eflomal", "ratio", "F1 cap", "F1 gdfa", "MB")
        )
        key = "models" if options.models else "beside_eflomal"
        record[key] = [beside_eflomal(ref, options.pairs, options.models) for ref in options.texts]
    record |= {"machine": machine(), "versions": versions()}
    write_json(RESULTS, record)


if __name__ == "__main__":
    main()
