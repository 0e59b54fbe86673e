"""Items a second in scoring choices by log-likelihood, beside lm-eval: same model, same items, equal answers.

Items are "continuation" (the right second half of a sentence among four) of a Bible book in Chichewa, written
for lm-eval by `calque evaluate export`. lm-eval runs in an interpreter of its own, put there with

    python -m venv PEER && PEER/bin/pip install 'lm-eval[hf]==0.4.13'
    OMP_NUM_THREADS=1 python benchmarks/choices.py --peer PEER/bin/python
    OMP_NUM_THREADS=1 python benchmarks/choices.py --peer PEER/bin/python --shots 3 --batches 8 \
        --out benchmarks/results/choices_3_shots.json

Loading models and libraries is timed on neither side; lm-eval gets the best of the batch sizes given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from calque import assets
from calque.data.corpus import Corpus
from calque.disk import write_json
from calque.evaluate.benchmark import Prompt
from calque.evaluate.choices import choose
from calque.evaluate.harness import Export, export
from calque.evaluate.lm import Reader
from calque.evaluate.run import run
from calque.evaluate.source import Source
from calque.machine import machine, versions
from calque.model.checkpoint import Checkpoint

RESULTS = Path(__file__).parent / "results" / "choices.json"
LANGUAGE = "nya_Latn"
TASK = f"calque_continuation_{LANGUAGE}"
EQUAL_NATS = 1e-2


def clocked(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def ours(model: str, source: Source, items: int, shots: int) -> dict[str, Any]:
    """The whole evaluator; what loading the model takes is measured by itself and taken off."""
    checkpoint = Checkpoint.open(model)
    loading = clocked(lambda: Reader.open("m", checkpoint, torch.float32))[1]
    table, whole = clocked(
        lambda: run(
            {"m": checkpoint}, {"continuation": source}, languages=[LANGUAGE], limit=items, shots=shots,
            start=False, dtype="float32",
        )
    )  # fmt: skip
    spent = {"wall_s": whole[0] - loading[0], "cpu_s": whole[1] - loading[1]}
    right = {row["item"]: row["value"] for row in table.where(metric="correct").rows()}
    return {**spent, "correct": right, "threads": torch.get_num_threads()}


def theirs(python: Path, model: str, folder: Path, batch: int) -> dict[str, Any]:
    out = folder / f"peer-{batch}.json"
    script = Path(__file__).with_name("choices_peer.py").resolve()
    command = [python, script, assets.get(model), TASK, folder, str(batch), out]
    subprocess.run([str(part) for part in command], check=True)
    return {**json.loads(out.read_text(encoding="utf-8")), "batch": batch}


def likelihoods(model: str, exported: Export) -> dict[str, list[float]]:
    """Ours, of the very prompts that were exported."""
    reader = Reader.open("m", Checkpoint.open(model), torch.float32)
    rows = exported.tasks[TASK][1]
    prompts = [Prompt(row["prompt"], tuple(row["choices"])) for row in rows]
    with torch.inference_mode():
        answers = choose(reader, prompts, normalise="none", start=False)
    return {row["id"]: list(answer.scores) for row, answer in zip(rows, answers, strict=True)}


def best(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--peer", type=Path, required=True, help="interpreter that has lm-eval")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="bible-nya")
    parser.add_argument("--book", default="GEN", help="group of the text that the items are made from")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--shots", type=int, default=0, help="examples before each item")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="batch sizes of lm-eval")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Corpus.open(given.text).split((given.book,))[1].save(folder / "book")
        source = Source.open(folder / "book")
        exported = export(
            {"continuation": source}, languages=[LANGUAGE], limit=given.items, shots=given.shots
        )
        exported.save(folder / "tasks")
        mine = ours(given.model, source, given.items, given.shots)
        peers = [theirs(given.peer, given.model, folder / "tasks", batch) for batch in given.batches]
    peer = min(peers, key=lambda row: row["wall_s"])
    likely = likelihoods(given.model, exported)
    pairs = [(scores, peer["likely"][item]) for item, scores in likely.items()]
    worst = max(abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True))
    same = sum(best(one) == best(two) for one, two in pairs)
    count = len(mine["correct"])
    speed = count / mine["wall_s"]
    result = {
        "items": count,
        "shots": given.shots,
        "model": given.model,
        "calque": {**{k: mine[k] for k in ("wall_s", "cpu_s", "threads")}, "items_per_s": speed},
        "lm_eval": [
            {**{k: row[k] for k in ("batch", "wall_s", "cpu_s", "threads", "version")},
             "items_per_s": count / row["wall_s"]}
            for row in peers
        ],
        "ratio_wall": peer["wall_s"] / mine["wall_s"],
        "ratio_cpu": min(row["cpu_s"] for row in peers) / mine["cpu_s"],
        "same_answers": same,
        "largest_difference_nats": worst,
        "accuracy": sum(mine["correct"].values()) / count,
        "machine": machine(),
        "versions": versions(),
    }  # fmt: skip
    print(
        f"{count} items: calque {speed:.2f} a second, lm-eval "
        f"{count / peer['wall_s']:.2f} (batch {peer['batch']}); {result['ratio_wall']:.2f}x by the clock, "
        f"{result['ratio_cpu']:.2f}x in CPU; {same} of {count} answers equal, within {worst:.1e} nats"
    )
    if same < count or worst > EQUAL_NATS:
        raise SystemExit("the two do not agree; the figures say nothing")
    write_json(given.out, result)


if __name__ == "__main__":
    main()
