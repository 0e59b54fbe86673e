"""An adapted model beside its base, on everything at once: the numbers of the README's section on evaluation.

    make demo                                                    # or another run of calque adapt
    python benchmarks/evaluation.py out/demo --pos POS -o out/evaluation

Bits per byte of held-out text; the right continuation and the right translation among four; sentence
retrieval by hidden states; and, with a folder of tagged sentences (train.conll, and nya/test.txt or
test.conll, as published by MasakhaPOS), part-of-speech tagging by a head tuned for as many steps on either
model. Every step is kept: the same command goes on. Prints each measure with its interval and the paired
difference, and writes results/evaluation.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from calque import Table
from calque.disk import write_json
from calque.machine import machine, versions
from calque.recipe import Recipe
from calque.runner import run

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
BASE = "smollm2-135m"
MEASURES = {"pos": "correct/words", "continuation": "correct", "matching": "correct", "retrieval": "p@1"}


def recipe(given: argparse.Namespace) -> Recipe:
    """What is done, as a recipe."""
    adapted = str(given.run / "model")
    both = {"base": BASE, "adapted": adapted}
    steps: dict[str, Any] = {
        "pairs": {
            "do": "data/corpus",
            "of": {"source": "kolibri:eng_Latn|nya_Latn"},
            "with": {"language": "eng_Latn", "to": "nya_Latn"},
        },
        "texts": {
            "do": "evaluate/lm",
            "of": {"systems": both, "texts": {
                "books": str(given.run / "steps/heldout"), "messages": str(given.run / "steps/test_kolibri"),
                "English": str(given.run / "steps/source_heldout"),
            }},
            "with": {"max_bytes": given.bytes},
        },
        "choices": {
            "do": "evaluate/run",
            "of": {"systems": both, "tasks": {"matching": "pairs"}},
            "with": {"languages": ["nya_Latn", "eng_Latn"], "limit": given.items, "shots": 4,
                     "normalise": "unconditional"},
        },
        "halves": {
            "do": "evaluate/run",
            "of": {"systems": both, "tasks": {"continuation": "pairs"}},
            "with": {"languages": ["nya_Latn", "eng_Latn"], "limit": given.items},
        },
        "vectors": {
            "do": "evaluate/vectors",
            "of": {"systems": both, "pairs": "pairs"},
            "with": {"kind": "retrieval", "layers": given.layers, "items": 2 * given.items},
        },
    }  # fmt: skip
    if given.pos:
        for name, model in both.items():
            steps[f"tagger_{name}"] = {
                "do": "train/tune",
                "of": {"model": model, "data": f"nya_Latn={given.pos / 'train.conll'}"},
                "with": {"objective": "tag", "steps": given.steps, "batch_tokens": 512, "length": 256,
                         "lr": 1e-4},
            }  # fmt: skip
        steps["tags"] = {
            "do": "evaluate/run",
            "of": {"systems": {name: f"tagger_{name}" for name in both}, "tasks": {"pos": str(given.pos)}},
            "with": {"languages": ["nya_Latn"], "limit": given.items, "shots": 0},
        }
    return Recipe.parse({"title": "evaluation", "seed": 0, "steps": steps}, "benchmarks/evaluation.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of an adaptation")
    parser.add_argument("--pos", type=Path, help="folder of tagged sentences")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--bytes", type=int, default=8_000)
    parser.add_argument("--steps", type=int, default=40, help="of each tagger, 512 tokens a step")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 15, 22])
    given = parser.parse_args()
    run(recipe(given), given.out)
    found = []
    for file in sorted(given.out.glob("steps/*/table.parquet")):
        table = Table.load(file)
        for task in table.values("task"):
            part = table.where(task=task)
            measure = MEASURES.get(task.partition("/")[0], "bits/bytes")
            for language in part.values("language"):
                found.append(line(part.where(language=language), task, language, measure))
    for row in found:
        print(f"{row['task']:24} {row['language']:9} {row['measure']:14} " + "  ".join(
            f"{name} {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            for name, value in row.items() if isinstance(value, dict)
        ))  # fmt: skip
    settings = {"items": given.items, "bytes": given.bytes, "steps": given.steps}
    head = {"machine": machine(), "versions": versions(), "settings": settings}
    write_json(RESULTS, {**head, "table": found})


def line(table: Table, task: str, language: str, measure: str) -> dict[str, Any]:
    """Both systems with their intervals, and the paired difference."""
    row: dict[str, Any] = {"task": task, "language": language, "measure": measure}
    for entry in table.measure(measure, by=("system",)):
        row[entry.group["system"]] = interval(entry.estimate)
    (entry,) = table.compare("base", measure, by=("task",), how="difference")
    return row | {"difference": interval(entry.estimate)}


def interval(estimate: Any) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "units": estimate.units}


if __name__ == "__main__":
    main()
