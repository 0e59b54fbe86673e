"""A run folder as `calque adapt` leaves it, made on the spot, with hostile text in every place for text."""

import json
import math

import numpy as np
import pytest
import yaml

from calque import disk
from calque.evaluate.table import Table

HOSTILE = "<script>alert('x')</script>"
PERSIAN = "پیراستن <b>آری</b> 123"
SYSTEMS = {
    "base": (4.50, 1.02, 3.99),
    "start": (3.02, 1.31, 3.21),
    "adapted": (2.06, 1.13, 2.31),
    "LoRA, old vocabulary": (3.06, 1.06, 2.98),
    "full, old vocabulary": (2.68, 1.24, 2.71),
    "mean start": (6.45, 2.90, 6.31),
    "zstd": (2.11, None, 2.96),
    "xz": (1.95, None, 2.71),
    "uniform, base": (7.42, 3.58, 7.10),
    "uniform, adapted": (4.61, 3.31, 5.02),
}
TEXTS = (("heldout", "nya_Latn", 8), ("English", "eng_Latn", 8), ("messages", "nya_Latn", 17))
MADE = {"base": "smollm2-135m", "start": "start", "adapted": "trained", "mean start": "mean_start"}
MADE |= {"LoRA, old vocabulary": "old_lora", "full, old vocabulary": "old_full"}
PIECES = {
    "base": "P ach iy amb i| M ul ungu| ad al eng a| k um w amba| ndi| d z iko| l ap ans i .",
    "adapted": "Pa chi yambi| Mulungu| ada lenga| kumwamba| ndi| dziko| lapansi .",
}
STEPS = {
    "heldout": ("data/corpus", 3, 310),
    "text": ("data/corpus", 6, 420),
    "tokenizer": ("vocab/tokenizer", 21, 900),
    "lexicon": ("data/align", 34, 1200),
    "map": ("vocab/transtoken", 9, 800),
    "start": ("merge/transplant", 5, 1100),
    "trained": ("train/lm", 184, 3900),
    "old_lora": ("train/lm", 183, 3300),
    "old_full": ("train/lm", 186, 4700),
    "scores": ("evaluate/lm", 142, 2100),
    "floors": ("evaluate/floors", 31, 700),
    "tokenization": ("evaluate/tokenization", 2, 500),
    "generation": ("evaluate/generation", 48, 1600),
}


def row(system, task, language, item, metric, value, output=None):
    signature = f"{task.split('/')[0]}|text:1a2b3c4d|length:1024|dtype:float32|version:0.1.0"
    return {
        "system": system, "task": task, "language": language, "item": item, "metric": metric,
        "value": value, "signature": signature, "output": output,
    }  # fmt: skip


def score_rows(rng, floors):
    for place, (name, language, count) in enumerate(TEXTS):
        hard = rng.normal(1, 0.06, count)
        for system, levels in SYSTEMS.items():
            is_floor = system.split(",")[0] in ("zstd", "xz", "uniform")
            if levels[place] is None or is_floor != floors:
                continue
            for item in range(count):
                size = 1400.0 + 90 * item
                bits = size * levels[place] * hard[item] * rng.normal(1, 0.015)
                values = {"bits": bits, "bytes": size, "words": size / 6}
                if not floors:
                    values |= {"tokens": size / 2.4, "lossless": 1.0}
                for metric, value in values.items():
                    yield row(system, f"lm/{name}", language, f"BOOK{item} {HOSTILE}", metric, value)


def piece_list(text):
    found = []
    for number, word in enumerate(text.split("|")):
        parts = word.split()
        found += [(" " if number else "") + parts[0], *parts[1:]]
    return found


def tokenization_rows(rng):
    for name, language, count in TEXTS:
        for system in ("base", "adapted"):
            fertile = (
                {"base": 3.9, "adapted": 1.9} if language == "nya_Latn" else {"base": 1.3, "adapted": 1.5}
            )
            for item in range(count):
                words = 220.0 + item
                counts = {
                    "tokens": round(words * fertile[system] * rng.normal(1, 0.03)), "words": words,
                    "bytes": words * 6.1, "characters": words * 6, "unknown": 0,
                    "crumb_bytes": 14 if system == "base" else 3,
                    "split_words": words * (0.8 if system == "base" else 0.4),
                    "covered_characters": words * 5.98,
                }  # fmt: skip
                for metric, value in counts.items():
                    yield row(system, f"tokenization/{name}", language, f"BOOK{item}", metric, value)
            for number in (1, 2):
                pieces = piece_list(PIECES[system])
                if number == 2:
                    pieces = [HOSTILE, " پی", "را", "ستن", "<0xE1><0x88>", "<0xB0>", "\n", " & café"]
                output = json.dumps(pieces, ensure_ascii=False)
                yield row(
                    system,
                    f"tokenization/{name}",
                    language,
                    f"example {number}",
                    "pieces",
                    len(pieces),
                    output,
                )


def generation_rows():
    for name, language, _ in TEXTS[:2]:
        for item in ("MRK", "JON"):
            for system, seconds, sample in (
                ("base", 15.2, "and the people of the people of the people of the city of the people " * 3),
                ("adapted", 5.4, f"ndipo anati kwa iye, Tamverani mawu anga; {HOSTILE} {PERSIAN} " * 2),
            ):
                prompt = f"Ndipo Yesu anati kwa ophunzira ake, {PERSIAN if item == 'JON' else ''}"
                for metric, value, output in (
                    ("characters", 1000.0, None), ("tokens", 420.0 if system == "base" else 216.0, None),
                    ("seconds", seconds, None), ("prompt_characters", float(len(prompt)), prompt),
                    ("sample_characters", float(len(sample)), sample), ("sample_tokens", 90.0, None),
                    ("repetition", 0.61 if system == "base" else 0.07, None),
                ):  # fmt: skip
                    yield row(system, f"generation/{name}", language, item, metric, value, output)


def log_lines(rng, first, last, seconds, steps=150):
    for step in range(steps):
        share = (step + 1) / steps
        bits = last + (first - last) * math.exp(-5 * share) + rng.normal(0, 0.09)
        yield json.dumps({
            "step": step + 1, "stage": int(share > 0.15), "part": "all", "bytes": 5000, "bits_per_byte": bits,
            "seconds": seconds * (share if share <= 0.15 else share - 0.15), "loss": 3.0,
        })  # fmt: skip


PROVENANCE = """id\ttoken\tmethod\tsource tokens\tweights
0\t<|endoftext|>\tspecial\t<|endoftext|>\t1
1\t▁ndi\toverlap\t▁ndi\t1
2\t▁Mulungu\taligned\t▁God ▁Lord G od ▁god ▁divine\t0.71 0.12 0.06 0.05 0.04 0.02
3\t▁kumwamba\taligned\t▁heaven ▁heavens ▁sky ▁above\t0.58 0.24 0.1 0.08
4\t▁dziko\taligned\t▁land ▁world ▁earth ▁country\t0.4 0.31 0.2 0.09
5\t▁lapansi\taligned\t▁earth ▁world\t0.66 0.34
6\t▁ada\tsubword\t▁ad a\t0.5 0.5
7\tlenga\tsubword\tl eng a\t0.333333 0.333333 0.333333
8\t<b>x</b>\tsubword\t<b> x </b>\t0.4 0.3 0.3
9\tzzz\tfallback\t\t
"""


def make_run(folder, steps=tuple(STEPS)):
    rng = np.random.default_rng(0)
    recipe_steps = {
        name: {"do": do, "of": references(name), "with": {"seed": 0}} for name, (do, _, _) in STEPS.items()
    }
    title = f"SmolLM2-135M carried over into Chichewa {HOSTILE if folder.name == 'hostile' else ''}".strip()
    about = {"language": "nya_Latn", "source_language": "eng_Latn", "model": "smollm2-135m"}
    recipe = {"title": title, "seed": 0, "about": about, "steps": recipe_steps, "product": "trained"}
    disk.write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    for name in steps:
        do, seconds, memory = STEPS[name]
        where = folder / "steps" / name
        where.mkdir(parents=True)
        manifest = {
            "step": name,
            "do": do,
            "of": references(name),
            "seconds": seconds,
            "peak_memory_mb": memory,
        }
        disk.write_json(where / "manifest.json", manifest)
        if do == "train/lm":
            ends = {"trained": (3.1, 1.95), "old_lora": (4.4, 2.8), "old_full": (4.3, 2.35)}[name]
            disk.write_text(where / "log.jsonl", "\n".join(log_lines(rng, *ends, seconds)) + "\n")
    tables = {
        "scores": lambda: score_rows(rng, False), "floors": lambda: score_rows(rng, True),
        "tokenization": lambda: tokenization_rows(rng), "generation": generation_rows,
    }  # fmt: skip
    for name, rows in tables.items():
        if name in steps:
            Table.of(rows()).save(folder / "steps" / name / "table.parquet")
    if "map" in steps:
        (folder / "steps/map/provenance.tsv").write_text(PROVENANCE)
    disk.write_json(
        folder / "run.json",
        {
            "title": title, **about,
            "command": "calque adapt smollm2-135m --to nya --text bible-nya --minutes 3 -o out/ "
            f"--parallel 'bible-eng|bible-nya' {HOSTILE if folder.name == 'hostile' else ''}",
            "started": "2026-11-21T09:15:25+0000", "seconds": 754.0, "peak_memory_mb": 4700,
            "versions": {"python": "3.11.2", "calque": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "machine": {"processor": "Intel(R) Xeon(R) Processor @ 2.50GHz", "cores": 2, "memory_gb": 25.3},
        },
    )  # fmt: skip
    return folder


def references(name):
    return {
        "map": {"source": "smollm2-135m", "target": "tokenizer", "evidence": "lexicon"},
        "start": {"base": "smollm2-135m", "map": "map", "tokenizer": "tokenizer"},
        "trained": {"model": "start", "text": "text"},
        "scores": {"systems": MADE, "texts": {"heldout": "heldout"}},
        "tokenization": {"tokenizers": {"base": "smollm2-135m", "adapted": "tokenizer"}},
        "generation": {"systems": {"base": "smollm2-135m", "adapted": "trained"}},
    }.get(name, {})


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "hostile")


def answers(system, shift, language="nya_Latn", count=40):
    """Right and wrong answers of a system that is right in so many of ten items more."""
    return [
        {
            "system": system, "task": f"quiz {HOSTILE}", "language": language, "item": str(i),
            "metric": "correct", "value": float((i * 7) % 10 < 4 + shift), "signature": f"quiz:1|{HOSTILE}",
        }
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def quizzes():
    """Two systems, one of them better in one language and worse in the other."""
    listed = answers("base", 0) + answers(f"new {HOSTILE}", 4) + answers("base", 0, "eng_Latn")
    return Table.of(listed + answers(f"new {HOSTILE}", -3, "eng_Latn"))
