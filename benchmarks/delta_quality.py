"""What deltas and looped layers are worth: small trainings of equal length.

    shards   LoRA of rank e, Mixture of Shards of budget e (as many numbers), LoRA of rank 8 e; Chichewa
    mam      a prefix, scaled parallel networks, and both together (MAM), with LoRA, of equal counts
    loops    SmolLM2 tied into half as many layers, with residuals of rank 0 to 128 and two starts of the
             shared layers, before and after training
    across   parts of speech learnt in English and read in Chichewa: a task adapter alone, and over language
             adapters trained on text

    calque assets get smollm2-135m bible-nya bible-eng
    python benchmarks/delta_quality.py out/quality shards mam loops
    python benchmarks/delta_quality.py out/quality across --pos masakhane-pos/nya --ud en_ewt-ud-dev.conllu \
        --ud-test en_ewt-ud-test.conllu

Every training reads the same text in the same number of steps; scores are bits per byte, or accuracy of tags.
Intervals are over passages or sentences of all seeds. Finished trainings are kept in the output folder; the
same command goes on. What the papers train for hours is here trained for minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from calque import Checkpoint, Corpus, Table
from calque.data.example import Example
from calque.delta.bottleneck import bottleneck
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.delta.mam import mam
from calque.delta.mixture import mixture
from calque.delta.prefix import prefix
from calque.delta.shards import shards
from calque.delta.stack import stack
from calque.disk import read_json, write_json
from calque.evaluate.lm import lm as bits_per_byte
from calque.evaluate.run import run as answers
from calque.evaluate.source import Source
from calque.machine import machine, versions
from calque.merge.recurse import recurse
from calque.progress import say
from calque.train.lm import lm as train
from calque.train.tune import tune

RESULTS = Path(__file__).parent / "results" / "delta_quality.json"
TEST, VALIDATION = "MRK", "JHN"
Systems = Mapping[str, Callable[[int], Delta]]


def passages(text: Corpus, verses: int = 8) -> Corpus:
    """The same text in passages of a few verses: the units that intervals are made over."""
    ordered = sorted(text, key=lambda example: [int(part) for part in example.id.split(".")[1:]])
    return Corpus.of(Example(e.id, e.sides, f"{e.group}-{n // verses}") for n, e in enumerate(ordered))


class Study:
    """Where the trainings are, how long they are, and what they read."""

    def __init__(self, given: argparse.Namespace) -> None:
        """Take what the command line says."""
        self.given, self.out = given, Path(given.out)
        self.base = Checkpoint.open(given.model)
        self.length: dict[str, Any] = {
            "length": given.length,
            "batch_tokens": given.batch_tokens,
            "steps": given.steps,
        }

    def texts(self, asset: str) -> tuple[Corpus, Corpus]:
        """(to learn from, to test on): the Gospel of Mark, in passages, is never learnt."""
        learnt, held = Corpus.open(asset).split((TEST,), seed=0)
        return learnt, passages(held)

    def scored(self, folder: Path, make: Callable[[], Checkpoint], text: Corpus, system: str) -> Table:
        """Bits and bytes of a system on a text, unless they are there."""
        file = folder.with_name(f"{folder.name}.parquet")
        if not file.exists():
            found = bits_per_byte(
                {system: make()}, {"test": text}, max_bytes=self.given.bytes, length=self.given.length
            )
            found.save(file)
        return Table.load(file)

    def deltas(self, study: str, systems: Systems) -> dict[str, Any]:
        """Train every delta with every seed on Chichewa text; bits per byte and differences to the first.

        Each delta's rate is the one of `--rates` that is best on a book of its own, with the first seed.
        """
        learnt, test = self.texts("bible-nya")
        learnt, validation = learnt.split((VALIDATION,), seed=0)
        validation = passages(validation)
        tables = [self.scored(self.out / "base", lambda: self.base, test, "base")]
        counts, rates = {}, {}
        for name, make in systems.items():
            delta = make(0)
            counts[name], tried = delta.count(), {}
            for rate in self.given.rates if len(self.given.rates) > 1 else ():
                made = self.trained(study, name, delta, learnt, rate, 0)
                folder = self.folder(study, name, rate, 0)
                tried[rate] = value(self.scored(folder.with_name(f"{folder.name}-v"), made, validation, name))
                say(f"{study}: {name} with rate {rate:g}: {tried[rate]:.3f}")
            rates[name] = min(tried, key=lambda rate: tried[rate]) if tried else self.given.rates[0]
        for seed in range(self.given.seeds):
            for name, make in systems.items():
                made = self.trained(study, name, make(seed), learnt, rates[name], seed)
                folder = self.folder(study, name, rates[name], seed)
                tables.append(per_seed(self.scored(folder, made, test, name), seed))
                say(f"{study}, seed {seed}: {name}: {bits(tables[-1])}")
        return {**summary(tables, next(iter(systems))), "trainable": counts, "rates": rates}

    def folder(self, study: str, name: str, rate: float, seed: int) -> Path:
        """Where one training is."""
        return self.out / study / f"{name.replace(' ', '-')}-{rate:g}-{seed}"

    def trained(
        self, study: str, name: str, delta: Delta, learnt: Corpus, rate: float, seed: int
    ) -> Callable[[], Checkpoint]:
        """What trains a delta when it is called; a prefix at ten times the rate."""
        work = self.folder(study, name, rate, seed)
        work.parent.mkdir(parents=True, exist_ok=True)
        rate *= 10 if name == "prefix" else 1
        return partial(train, self.base, learnt, delta=delta, work=work, lr=rate, seed=seed, **self.length)

    def loops(self, ranks: tuple[int, ...] = (0, 8, 32, 128)) -> dict[str, Any]:
        """Tie the layers, train what comes out on English text, and the original as long."""
        learnt, test = self.texts("bible-eng")
        tables = [self.scored(self.out / "base-eng", lambda: self.base, test, "original")]
        counts = {"original": numbers(self.base)}
        folder = self.out / "loops"
        folder.mkdir(parents=True, exist_ok=True)
        made = {"original": self.base}
        for init, rank in product(("stepwise", "average"), ranks):
            name, tied = f"{init}, rank {rank}", folder / f"{init}-{rank}"
            if not tied.exists():
                recurse(self.base, loops=2, init=init, rank=rank).write(tied)
            made[name] = Checkpoint.at(tied)
            counts[name] = numbers(made[name])
            untrained = partial(Checkpoint.at, tied)
            tables.append(self.scored(folder / f"{init}-{rank}-untrained", untrained, test, name))
        for name, checkpoint in made.items():
            work = folder / f"trained-{name.replace(', rank ', '-')}"
            tuned = partial(train, checkpoint, learnt, work=work, lr=self.given.loop_lr, **self.length)
            label = f"{name}, trained"
            tables.append(self.scored(work, tuned, test, label))
            counts[label] = counts[name]
            say(f"loops: {label}: {bits(tables[-1])}")
        return {**summary([per_seed(table, 0) for table in tables], "original, trained"), "numbers": counts}

    def across(self) -> dict[str, Any]:
        """A task learnt in English with one adapter, and over adapters of the languages; read in Chichewa."""
        folder = self.out / "across"
        folder.mkdir(parents=True, exist_ok=True)
        data = Corpus.open(str(self.given.ud), language="eng_Latn")
        languages = {}
        for language, asset in (("eng", "bible-eng"), ("nya", "bible-nya")):
            made = train(self.base, self.texts(asset)[0], delta=self.adapter(0), work=folder / language,
                         lr=self.given.lr, **self.length)  # fmt: skip
            languages[language] = Delta.load(made.folder / "delta")
        below = mixture(self.base, languages, router="language")
        same = {"eng": languages["eng"], "nya": languages["eng"]}
        english_only = mixture(self.base, same, router="language")
        tables = []
        for seed in range(self.given.seeds):
            systems = {
                "task adapter": self.adapter(seed),
                "over both languages": stack(self.base, [below, self.adapter(seed)]),
                "over English alone": stack(self.base, [english_only, self.adapter(seed)]),
            }
            for name, delta in systems.items():
                work = folder / f"{name.replace(' ', '-')}-{seed}"
                tuned = tune(
                    self.base, data, delta=delta, work=work, objective="tag", lr=self.given.tag_lr,
                    seed=seed, **self.length,
                )  # fmt: skip
                tables += [per_seed(table, seed) for table in self.tagged(work, tuned, name)]
                say(f"across, seed {seed}: {name}")
        return {
            language: summary([t.where(language=language) for t in tables], "task adapter", "correct/words")
            for language in ("eng_Latn", "nya_Latn")
        }

    def adapter(self, seed: int) -> Delta:
        """A bottleneck of the same size for languages and tasks."""
        return bottleneck(self.base, width=48, placement="pfeiffer", seed=seed)

    def tagged(self, work: Path, tuned: Checkpoint, system: str) -> list[Table]:
        """Answers in both languages."""
        asked = {"nya_Latn": self.given.pos, "eng_Latn": self.given.ud_test}
        found = []
        for language, data in asked.items():
            file = work.with_name(f"{work.name}-{language}.parquet")
            if not file.exists():
                source = {"pos": Source.open(str(data))}
                answers({system: tuned}, source, languages=[language], limit=self.given.items).save(file)
            found.append(Table.load(file))
        return found


def shards_study(study: Study) -> dict[str, Any]:
    e, base = study.given.budget, study.base
    return study.deltas(
        "shards",
        {
            f"LoRA {e}": lambda seed: lora(base, rank=e, alpha=2.0 * e, seed=seed),
            f"shards {e}": lambda seed: shards(base, budget=e, rank=4 * e, alpha=8.0 * e, seed=seed),
            f"LoRA {8 * e}": lambda seed: lora(base, rank=8 * e, alpha=16.0 * e, seed=seed),
        },
    )


def mam_study(study: Study) -> dict[str, Any]:
    """About 49,000 numbers in a layer of SmolLM2-135M each."""
    base = study.base

    def network(seed: int) -> Delta:
        return bottleneck(base, width=42, placement="parallel", scale=4.0, seed=seed)

    return study.deltas(
        "mam",
        {
            "mam": lambda seed: mam(base, length=30, width=32, seed=seed),
            "prefix": lambda seed: prefix(base, length=126, seed=seed),
            "scaled parallel": network,
            "lora": lambda seed: lora(base, rank=5, alpha=10.0, seed=seed),
        },
    )


def numbers(checkpoint: Checkpoint) -> int:
    """Numbers in a checkpoint's folder."""
    total = 0
    for info in checkpoint.tensors.values():
        count = 1
        for width in info.shape:
            count *= width
        total += count
    return total


def per_seed(table: Table, seed: int) -> Table:
    """The same rows with the seed in their ids; what is drawn as one stays the passage or the sentence."""
    return Table.of(
        {**row, "item": f"{seed}:{row['item']}", "group": row["group"] or row["item"]} for row in table.rows()
    )


def bits(table: Table) -> str:
    (entry,) = table.measure("bits/bytes", by=("system",))
    return entry.estimate.text(3)


def value(table: Table) -> float:
    (entry,) = table.measure("bits/bytes", by=("system",))
    return entry.estimate.value


def summary(tables: list[Table], baseline: str, measure: str = "bits/bytes") -> dict[str, Any]:
    """Every system's value, and its difference to the baseline, paired over passages or sentences."""
    whole = tables[0].join(*tables[1:])
    found: dict[str, Any] = {}
    for entry in whole.measure(measure, by=("system",)):
        found[entry.group["system"]] = {"value": estimate(entry)}
    for entry in whole.compare(baseline, measure, by=(), how="difference"):
        found[entry.group["system"]][f"against {baseline}"] = estimate(entry)
    return {"measure": measure, "systems": found}


def estimate(entry: Any) -> list[float]:
    e = entry.estimate
    return [round(number, 4) for number in (e.value, e.low, e.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    studies = {"shards": shards_study, "mam": mam_study, "loops": Study.loops, "across": Study.across}
    parser.add_argument("out", type=Path)
    parser.add_argument("studies", nargs="+", choices=list(studies))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--bytes", type=int, default=10_000, help="text of a test")
    parser.add_argument("--budget", type=int, default=2, help="rank e that shards and LoRA share")
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-3, 1.2e-2], help="to choose from")
    parser.add_argument("--lr", type=float, default=2e-3, help="of language adapters in 'across'")
    parser.add_argument("--loop-lr", type=float, default=5e-4)
    parser.add_argument("--tag-lr", type=float, default=1e-3)
    parser.add_argument("--pos", type=Path, help="MasakhaPOS folder, with Chichewa")
    parser.add_argument("--ud", type=Path, help="English sentences to learn from, CoNLL-U")
    parser.add_argument("--ud-test", type=Path, help="English sentences to test on, CoNLL-U")
    parser.add_argument("--items", type=int, default=200, help="sentences of a test")
    given = parser.parse_args()
    if "across" in given.studies and None in (given.pos, given.ud, given.ud_test):
        parser.error("'across' needs --pos, --ud and --ud-test")
    study = Study(given)
    for name in given.studies:
        settings = {
            key: value.name if isinstance(value, Path) else str(value)
            for key, value in vars(given).items()
            if key not in ("out", "studies")
        }
        done = {**studies[name](study), "settings": settings}
        before = read_json(RESULTS) if RESULTS.exists() else {}  # another process may do another study
        write_json(RESULTS, {**before, name: done, "machine": machine(), "versions": versions()})
        print(name, *done.get("systems", done).items(), sep="\n  ")


if __name__ == "__main__":
    main()
