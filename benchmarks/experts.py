"""A language expert and a task expert, merged without training: which method keeps what both can do?

    calque assets get smollm2-135m bible-nya bible-eng
    python benchmarks/experts.py out/experts                     # 3 seeds
    python benchmarks/experts.py out/toy --toy                   # the same with a tiny random model, seconds

The base is trained for a few steps on Chichewa text (language expert) and tuned on small questions in English
(task expert: which of two people has 17 goats?). Every merge method gets the same number of candidate
settings; the best is chosen on development data of the two parents' own measures: bits of the answer to
English questions, and bits per byte of Chichewa text. Then everything is measured on test data, among it what
no parent was trained for and nothing was chosen by: the questions in Chichewa. A control swaps the wrong
layers.

Prints a table with intervals (problems of all seeds; passages of text) and writes results/experts.json. They
say nothing of how other experts would do: three seeds are few. Finished seeds are kept in the output folder;
the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calque import Checkpoint, Corpus, Table
from calque.data.encode import Encoder
from calque.data.example import Example
from calque.disk import write_json
from calque.evaluate.choices import Scored, likelihoods
from calque.evaluate.lm import Reader
from calque.evaluate.lm import lm as bits_per_byte
from calque.machine import machine, versions
from calque.merge.dare import dare
from calque.merge.layerswap import by_depth, layerswap
from calque.merge.linear import linear
from calque.merge.pcb import pcb
from calque.merge.rewrite import Rewrite
from calque.merge.task_arithmetic import task_arithmetic
from calque.merge.ties import ties
from calque.merge.widen import widen
from calque.progress import say
from calque.train.lm import lm as train
from calque.train.tune import tune

RESULTS = Path(__file__).parent / "results"
NAMES = ["Anna", "Ben", "David", "Esther", "Maria", "Peter", "Ruth", "Simon"]
PROBLEMS = {
    "eng_Latn": (
        "{a} has {x} {thing}. {b} has {y} {thing}. Who has {z}?",
        ["goats", "sheep", "houses", "books"],
    ),
    "nya_Latn": (
        "{a} ali ndi {thing} {x}. {b} ali ndi {thing} {y}. Ndani ali ndi {z}?",
        ["mbuzi", "nkhosa", "nyumba", "mabuku"],
    ),
}
Settings = dict[str, Any]


def problem(draw: random.Random, language: str) -> tuple[str, str, str]:
    """(question, right answer, wrong answer); the numbers differ in their first digit."""
    text, things = PROBLEMS[language]
    (a, b), (p, q) = draw.sample(NAMES, 2), draw.sample(range(1, 10), 2)
    x, y = 10 * p + draw.randrange(10), 10 * q + draw.randrange(10)
    z, right, wrong = (x, a, b) if draw.random() < 0.5 else (y, b, a)
    return text.format(a=a, b=b, x=x, y=y, z=z, thing=draw.choice(things)), right, wrong


def problems(count: int, language: str, seed: int) -> list[tuple[str, str, str]]:
    draw = random.Random(f"{seed} {language}")
    return [problem(draw, language) for _ in range(count)]


def answers(checkpoint: Checkpoint, asked: Sequence[tuple[str, str, str]]) -> tuple[list[float], list[float]]:
    """For each problem whether the right name is likelier than the wrong, and the bits of the right one."""
    encoder = Encoder(checkpoint.tokenizer(), 256, ("eng_Latn",))  # words it as train/tune does
    examples = (
        Example("", {"eng_Latn": text}, target=name) for text, good, bad in asked for name in (good, bad)
    )
    scored = [
        Scored(tuple(piece.ids[: piece.prompt + 1]), piece.prompt)
        for piece in encoder.pieces("sft", examples)
    ]
    nats = np.array(likelihoods(Reader.open("x", checkpoint, torch.float32), scored)).reshape(-1, 2)
    return (nats[:, 0] > nats[:, 1]).astype(float).tolist(), (-nats[:, 0] / np.log(2)).tolist()


def candidates(layers: int) -> dict[str, list[tuple[Callable[..., Rewrite], Settings]]]:
    """The same number of settings for every method; task expert first, language expert second."""
    b, u = by_depth(layers)
    third = layers // 3
    corners = (
        (b, u),
        (min(2 * b, third), 2 * u),
        (max(1, b // 2), 1),
        (min(2 * b, third), min(5 * u, third)),
    )
    swaps: list[Settings] = [{"choose": "change"}, *({"bottom": x, "top": y} for x, y in corners)]
    trimmed = ((0.2, 1.0), (0.2, 1.5), (0.5, 1.0), (0.5, 1.5), (0.8, 1.2))
    dropped = ((0.5, 1.0), (0.5, 0.6), (0.5, 0.8), (0.2, 0.8), (0.9, 0.8))
    kept = ((0.1, 1.0), (0.1, 1.8), (0.2, 1.4), (0.3, 1.4), (0.3, 1.8))
    ranked = ((1.0, 1.0), (0.5, 1.0), (1.5, 1.0), (1.0, 0.5), (1.0, 2.0))
    return {
        "linear": [(linear, {"weights": [t, 1 - t]}) for t in (0.5, 0.3, 0.4, 0.6, 0.7)],
        "task arithmetic": [(task_arithmetic, {"scale": s}) for s in (1.0, 0.4, 0.6, 0.8, 1.2)],
        "ties": [(ties, {"density": d, "scale": s}) for d, s in trimmed],
        "dare": [(dare, {"density": d, "scale": s}) for d, s in dropped],
        "pcb": [(pcb, {"keep": k, "scale": s}) for k, s in kept],
        "widen": [(widen, {"threshold": t, "score": s}) for t, s in ranked],
        "layer swap": [(layerswap, settings) for settings in swaps],
    }


def passages(text: Corpus, verses: int = 8) -> Corpus:
    """The same text in passages of a few verses: the units that intervals are made over."""
    ordered = sorted(text, key=lambda example: [int(part) for part in example.id.split(".")[1:]])
    return Corpus.of(Example(e.id, e.sides, f"{e.group}-{n // verses}") for n, e in enumerate(ordered))


def merge(
    base: Checkpoint, task: Checkpoint, language: Checkpoint, method: Any, settings: Settings
) -> Rewrite:
    if method is layerswap:
        return layerswap(base, task, language, **settings)
    return method(base, [task, language], **settings)


class Study:
    """One seed: its experts, its data, and the scores of whatever is merged."""

    def __init__(self, base: Checkpoint, seed: int, out: Path, given: argparse.Namespace) -> None:
        """Texts: Mark to test on, Ruth to choose by, the rest to learn from."""
        self.base, self.seed, self.out, self.given = base, seed, out / f"seed-{seed}", given
        self.scratch = self.out / "merged"
        chichewa, english = Corpus.open("bible-nya"), Corpus.open("bible-eng")
        held = ["MRK", "RUT"]
        self.train_text, _ = chichewa.split(held, seed=0)
        self.dev_text = passages(chichewa.filter(lambda example: example.group == "RUT"))
        self.test_text = passages(chichewa.filter(lambda example: example.group == "MRK"))
        self.english_text = passages(english.filter(lambda example: example.group == "MRK"))

    def experts(self) -> dict[str, Checkpoint]:
        """Train both, unless they are there."""
        count = 64 if self.given.toy else 20_000
        asked = Corpus.of(
            Example(str(n), {"eng_Latn": text}, str(n), target=right)
            for n, (text, right, _) in enumerate(problems(count, "eng_Latn", self.seed))
        )
        shared: dict[str, Any] = {"seed": self.seed, "length": 256, "batch_tokens": 512}
        return {
            "task": tune(
                self.base, asked, objective="sft", work=self.out / "task", lr=self.given.task_lr,
                steps=self.given.task_steps, **shared,
            ),
            "language": train(
                self.base, self.train_text, work=self.out / "language", lr=self.given.language_lr,
                steps=self.given.steps, **shared,
            ),
        }  # fmt: skip

    def development(self, checkpoint: Checkpoint) -> tuple[float, float]:
        """(bits of an English answer, bits per byte of Chichewa) on development data."""
        _, bits = answers(checkpoint, problems(self.given.items // 2, "eng_Latn", 10_000 + self.seed))
        table = bits_per_byte(
            {"x": checkpoint}, {"dev": self.dev_text}, max_bytes=self.given.bytes // 2, length=512
        )
        (entry,) = table.measure("bits/bytes", by=("task",))
        return float(np.mean(bits)), entry.estimate.value

    def test(self, name: str, checkpoint: Checkpoint) -> Table:
        """All measures of one system, item by item."""
        rows = []
        for language in PROBLEMS:
            right, bits = answers(checkpoint, problems(self.given.items, language, 20_000 + self.seed))
            for number, (good, cost) in enumerate(zip(right, bits, strict=True)):
                values = {"correct": good, "answer_bits": cost, "one": 1.0}
                head = {
                    "system": name,
                    "task": f"skill/{language}",
                    "language": language,
                    "signature": "experts",
                }
                rows += [
                    {**head, "item": f"{self.seed}:{number}", "metric": m, "value": v}
                    for m, v in values.items()
                ]
        texts = {"nya": self.test_text, "eng": self.english_text}
        scored = bits_per_byte({name: checkpoint}, texts, max_bytes=self.given.bytes, length=512)
        rows += [{**row, "item": f"{self.seed}:{row['item']}"} for row in scored.rows()]
        return Table.of(rows)

    def written(self, rewrite: Rewrite) -> Checkpoint:
        """The one merged model that is on disk."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        return rewrite.write(self.scratch)

    def best(
        self, experts: Mapping[str, Checkpoint], tried: Any, floor: tuple[float, float]
    ) -> dict[str, Any]:
        """The candidate with the least mean log ratio to the base on both development measures."""
        curve, parents = [], (experts["task"], experts["language"])
        for method, settings in tried[: self.given.candidates]:
            rewrite = merge(self.base, *parents, method, settings)
            found = self.development(self.written(rewrite))
            score = float(np.mean(np.log2(np.array(found) / np.array(floor))))
            curve.append({"settings": settings, "development": found, "score": score})
            say(f"seed {self.seed}: {method.__name__} {settings}: {score:+.4f}")
        return {"chosen": min(curve, key=lambda one: one["score"])["settings"], "curve": curve}

    def run(self) -> tuple[Table, dict[str, Any]]:
        """Everything of this seed, or what was found before."""
        table_file, notes_file = self.out / "table.parquet", self.out / "notes.json"
        if table_file.is_file() and notes_file.is_file():
            return Table.load(table_file), json.loads(notes_file.read_text())
        began = time.monotonic()
        experts = self.experts()
        found = [self.test(n, c) for n, c in (("base", self.base), ("task expert", experts["task"]),
                                              ("language expert", experts["language"]))]  # fmt: skip
        floor, notes = self.development(self.base), {}
        parents = (experts["task"], experts["language"])
        layers = int(self.base.config["num_hidden_layers"])
        for name, tried in candidates(layers).items():
            notes[name] = self.best(experts, tried, floor)
            rewrite = merge(self.base, *parents, tried[0][0], notes[name]["chosen"])
            found.append(self.test(name, self.written(rewrite)))
        wrong = merge(self.base, *parents[::-1], layerswap, notes["layer swap"]["chosen"])
        found.append(self.test("layer swap, reversed", self.written(wrong)))
        shutil.rmtree(self.scratch, ignore_errors=True)
        table = found[0].join(*found[1:])
        notes["minutes"] = round((time.monotonic() - began) / 60, 1)
        table.save(table_file)
        write_json(notes_file, notes)
        return table, notes


MEASURES = {
    "skill, Chichewa (accuracy)": ("skill/nya_Latn", "correct", "one"),
    "skill, English (accuracy)": ("skill/eng_Latn", "correct", "one"),
    "skill, Chichewa (bits of answer)": ("skill/nya_Latn", "answer_bits", "one"),
    "Chichewa text (bits/byte)": ("lm/nya", "bits", "bytes"),
    "English text (bits/byte)": ("lm/eng", "bits", "bytes"),
}


def _whole(item: str) -> str:
    return item


def _passage(item: str) -> str:
    """The passage without the seed: the same text is read with every seed."""
    return item.partition(":")[2]


def summary(table: Table) -> dict[str, dict[str, Any]]:
    """System -> measure -> value and interval over the items of all seeds."""
    found: dict[str, dict[str, Any]] = {}
    for label, (task, above, below) in MEASURES.items():
        unit = _whole if task.startswith("skill") else _passage
        for entry in table.where(task=task).measure(f"{above}/{below}", by=("system",), cluster=unit):
            e = entry.estimate
            found.setdefault(entry.group["system"], {})[label] = {
                "value": e.value,
                "low": e.low,
                "high": e.high,
            }
    return found


def verdicts(table: Table) -> dict[str, str]:
    """What the papers say of the target-language skill, and what is seen here (paired over items)."""
    part = table.where(task="skill/nya_Latn")
    claims = {
        "layer swap is better than the task expert": ("layer swap", "task expert"),
        "layer swap is better than averaging": ("layer swap", "linear"),
        "layer swap is better than the reversed swap": ("layer swap", "layer swap, reversed"),
        "PCB is better than TIES": ("pcb", "ties"),
        "PCB is better than task arithmetic": ("pcb", "task arithmetic"),
        "WIDEN is better than task arithmetic": ("widen", "task arithmetic"),
        "DARE is as good as task arithmetic": ("dare", "task arithmetic"),
    }
    found = {}
    for claim, (better, worse) in claims.items():
        view = part.where(system=[better, worse]).compare(worse, "answer_bits/one", how="difference")
        (entry,) = view
        e = entry.estimate
        holds = "yes" if e.high < 0 else "no, the opposite" if e.low > 0 else "not seen: no difference"
        found[claim] = f"{holds} ({e.value:+.3f} bits of the answer [{e.low:+.3f}, {e.high:+.3f}])"
    return found


def toy(folder: Path) -> Checkpoint:
    """A random model of four layers with the real tokenizer."""
    if not folder.exists():
        from transformers import LlamaConfig, LlamaForCausalLM

        source = Checkpoint.open("smollm2-135m")
        torch.manual_seed(0)
        config = LlamaConfig(**{
            **source.config, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8,
            "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        })  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        source.tokenizer().save_pretrained(folder)
    return Checkpoint.open(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="training on the language, 512 tokens a step")
    parser.add_argument("--task-steps", type=int, default=20, help="tuning on the task, 512 tokens a step")
    parser.add_argument("--candidates", type=int, default=5, help="settings tried for each method")
    parser.add_argument("--items", type=int, default=100, help="problems of a test")
    parser.add_argument("--bytes", type=int, default=5_000, help="text of a test")
    parser.add_argument("--task-lr", type=float, default=2e-4)
    parser.add_argument("--language-lr", type=float, default=2e-4)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    if given.toy:
        given.items, given.bytes, given.candidates, given.seeds = 6, 400, 1, 1
        given.steps = given.task_steps = 2
    given.out.mkdir(parents=True, exist_ok=True)
    base = toy(given.out / "base") if given.toy else Checkpoint.open("smollm2-135m")
    tables, notes = zip(
        *(Study(base, seed, given.out, given).run() for seed in range(given.seeds)), strict=True
    )
    table = tables[0].join(*tables[1:])
    scores, claims = summary(table), verdicts(table)
    for label in MEASURES:
        print(f"\n{label}")
        for system, found in scores.items():
            s = found[label]
            print(f"  {system:22} {s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]")
    print("\nclaims, on the skill in the language that no parent was trained on it in:")
    for claim, seen in claims.items():
        print(f"  {claim}: {seen}")
    record = {
        "settings": {k: v for k, v in vars(given).items() if k != "out"}, "scores": scores, "claims": claims,
        "seeds": list(notes), "machine": machine(), "versions": versions(),
    }  # fmt: skip
    write_json(RESULTS / "experts.json" if not given.toy else given.out / "experts.json", record)


if __name__ == "__main__":
    main()
