"""Paired bootstrap of chrF beside sacreBLEU's: three systems, 1,012 sentences, 1,000 resamples, one core.

Systems are real verses with characters exchanged at random, more of them for each system. Both sides start
from the same lists of sentences and end with a p-value for two systems against the first. Processor seconds
are compared, the best of several rounds taken in turn. Reading (counting n-grams) and resampling are also
shown apart, because only the second grows with the number of resamples.

    python benchmarks/bootstrap.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calque import stats
from calque.data.corpus import Corpus
from calque.disk import write_json
from calque.evaluate.measures import MEASURES
from calque.evaluate.overlap import Overlap
from calque.machine import machine, versions

RESULTS = Path(__file__).parent / "results" / "bootstrap.json"
SENTENCES, SAMPLES = 1012, 1000
NOISE = {"base": 0.08, "better": 0.074, "much better": 0.04}


def sentences(ref: str) -> list[str]:
    """The first lines that are as long as sentences."""
    found = [text for text in Corpus.open(ref).texts() if 60 <= len(text) <= 400 and "\n" not in text]
    if len(found) < SENTENCES:
        raise SystemExit(f"{ref} has {len(found)} sentences of 60 to 400 characters; {SENTENCES} are needed")
    return found[:SENTENCES]


def noisy(text: str, share: float, letters: list[str], rng: np.random.Generator) -> str:
    """The text with this share of its characters exchanged."""
    return "".join(rng.choice(letters) if rng.random() < share else letter for letter in text)


def ours(systems: dict[str, list[str]], references: list[str]) -> dict[str, Any]:
    start = time.process_time()
    overlap = Overlap([[text] for text in references], "chrf")
    counts = {name: overlap.counts(texts) for name, texts in systems.items()}
    read = time.process_time()

    def reduce(sums: np.ndarray) -> np.ndarray:
        return MEASURES["chrf"].reduce(sums, overlap.names)

    base = counts["base"]
    scores = {name: float(reduce(found.sum(axis=0))) for name, found in counts.items()}
    p_values = {
        name: stats.paired_difference(found, base, reduce, samples=SAMPLES).p
        for name, found in counts.items()
        if name != "base"
    }
    end = time.process_time()
    return {"scores": scores, "p": p_values, "read_s": read - start, "resample_s": end - read}


def theirs(systems: dict[str, list[str]], references: list[str]) -> dict[str, Any]:
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.significance import PairedTest

    start = time.process_time()
    for texts in systems.values():
        CHRF()._extract_corpus_statistics(texts, [references])
    read = time.process_time() - start
    start = time.process_time()
    test = PairedTest([*systems.items()], {"chrf": CHRF()}, [references], "bs", SAMPLES)
    _, found = test()
    total = time.process_time() - start
    (lines,) = (value for name, value in found.items() if name != "System")
    scores = dict(zip(systems, (line.score for line in lines), strict=True))
    p_values = dict(zip([*systems][1:], (line.p_value for line in lines[1:]), strict=True))
    return {"scores": scores, "p": p_values, "read_s": read, "resample_s": total - read}


def best(run: Callable[[], dict[str, Any]], other: Callable[[], dict[str, Any]], rounds: int) -> list[dict]:
    """The fastest round of each of two, taken in turn."""
    pairs = [(run(), other()) for _ in range(rounds)]
    return [min(side, key=lambda r: r["read_s"] + r["resample_s"]) for side in zip(*pairs, strict=True)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--text", default="bible-nya", help="where the sentences come from")
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    references = sentences(given.text)
    rng = np.random.default_rng(0)
    letters = sorted(set("".join(references)))
    systems = {
        name: [noisy(text, share, letters, rng) for text in references] for name, share in NOISE.items()
    }
    mine, peer = best(lambda: ours(systems, references), lambda: theirs(systems, references), given.rounds)
    for name, score in mine["scores"].items():
        assert abs(score - peer["scores"][name]) < 1e-9, (name, score, peer["scores"][name])
    times = {
        "whole": (peer["read_s"] + peer["resample_s"]) / (mine["read_s"] + mine["resample_s"]),
        "resampling": peer["resample_s"] / mine["resample_s"],
        "reading": peer["read_s"] / mine["read_s"],
    }
    for name, found in (("calque", mine), ("sacrebleu", peer)):
        print(
            f"{name:10} reading {found['read_s']:.3f} s  resampling {found['resample_s']:.3f} s  {found['p']}"
        )
    print("times faster: " + ", ".join(f"{name} {value:.1f}" for name, value in times.items()))
    setting = {"text": given.text, "sentences": SENTENCES, "samples": SAMPLES, "noise": NOISE}
    found = {"calque": mine, "sacrebleu": peer, "times_faster": times}
    write_json(
        RESULTS, {**setting, "rounds": given.rounds, **found, "machine": machine(), "versions": versions()}
    )


if __name__ == "__main__":
    main()
