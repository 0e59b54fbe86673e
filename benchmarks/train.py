"""Training speed: `train/lm` beside `transformers.Trainer`, in one run, taking turns.

Same model, text, trainable parameters, optimizer, learning rate, schedule, clipping, length and real tokens
for each step; matrix products in bfloat16 where the processor has it. The Trainer gets the two usual ways to
make batches: documents padded to the longest of the batch, and blocks of concatenated documents (which attend
across documents, as `train/lm` never does). Tokens are those of the text: padding is not counted, for nobody
learns from it.

    python benchmarks/train.py --steps 4 --rounds 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.disk import write_json
from calque.machine import has_bf16, machine, versions
from calque.model.checkpoint import Checkpoint
from calque.train.lm import lm

RESULTS = Path(__file__).parent / "results" / "train.json"
RATE, RANK = 1e-4, 16


class Rows(Dataset):
    """Lists of token ids."""

    def __init__(self, rows: list[list[int]]) -> None:
        """Hold the rows."""
        self.rows = rows

    def __len__(self) -> int:  # noqa: D105
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:  # noqa: D105
        return {"ids": self.rows[index]}


class Clock(TrainerCallback):
    """Wall and processor seconds at the end of each step."""

    def __init__(self) -> None:
        """Begin empty."""
        self.at: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **more) -> None:
        """Note the time."""
        self.at.append((time.perf_counter(), time.process_time()))


def padded(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(f["ids"]) for f in features)
    ids = torch.zeros(len(features), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, feature in enumerate(features):
        ids[row, : len(feature["ids"])] = torch.tensor(feature["ids"])
        mask[row, : len(feature["ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def documents(model: Checkpoint, corpus: Corpus, length: int) -> list[list[int]]:
    tokenizer = model.tokenizer()
    found = []
    for _, text in corpus.documents():
        ids = [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
        found += [
            [tokenizer.bos_token_id, *ids[at : at + length - 1]] for at in range(0, len(ids), length - 1)
        ]
    return found


def blocks(rows: list[list[int]], length: int) -> list[list[int]]:
    flat = list(itertools.chain.from_iterable(rows))
    return [flat[at : at + length] for at in range(0, len(flat) - length, length)]


def trainer(
    model: Checkpoint, rows: list[list[int]], lora: bool, options: argparse.Namespace
) -> dict[str, float]:
    """Tokens per second of the Trainer over its steps after the first."""
    per_step = max(1, round(options.batch_tokens / statistics.mean(len(row) for row in rows)))
    order = np.random.default_rng(options.seed).permutation(len(rows))[: per_step * (options.steps + 1)]
    chosen = [rows[index] for index in order]
    loaded = model.model(torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        loaded = get_peft_model(loaded, config)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps + 1,
            per_device_train_batch_size=per_step,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=options.precision == "bfloat16",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        run = Trainer(
            model=loaded, args=settings, train_dataset=Rows(chosen), data_collator=padded, callbacks=[clock]
        )
        run.train()
    # The Trainer draws in an order of its own; all steps less an average one stand for the measured.
    tokens = sum(map(len, chosen)) * options.steps / (options.steps + 1)
    (wall, used), (end_wall, end_used) = clock.at[0], clock.at[-1]
    return {"tokens": tokens, "seconds": end_wall - wall, "cpu_seconds": end_used - used}


def calque(model: Checkpoint, corpus: Corpus, lora: bool, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of `train/lm` over its steps after the first."""
    work = Path(tempfile.mkdtemp())
    from calque.train import steps

    shown, at = steps._show, []

    def show(*arguments) -> None:
        at.append((time.perf_counter(), time.process_time()))
        shown(*arguments)

    steps._show = show
    try:
        lm(
            model,
            corpus,
            work=work,
            part="lora" if lora else "all",
            rank=RANK,
            alpha=2 * RANK,
            steps=options.steps + 1,
            batch_tokens=options.batch_tokens,
            length=options.length,
            lr=RATE,
            warmup=0.0,
            rows="all",
            precision=options.precision,
            save_seconds=0,
            seed=options.seed,
        )
        lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    finally:
        steps._show = shown
        shutil.rmtree(work)
    tokens = sum(line["batch_tokens"] for line in lines[1:])
    return {"tokens": tokens, "seconds": at[-1][0] - at[0][0], "cpu_seconds": at[-1][1] - at[0][1]}


def texts(ref: str, language: str) -> dict[str, Corpus]:
    """The text with one line as a document, and with its own documents."""
    whole = Corpus.open(ref, language=language)
    lines = Corpus.of(Example(e.id, e.sides, group=e.id) for e in whole)
    return {"lines": lines, "documents": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="bible-nya")
    parser.add_argument("--language", default="nya_Latn")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each turn; one more warms up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    hardware = "bfloat16" if has_bf16() else "float32"
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default=hardware)
    parser.add_argument("--only", choices=["lines", "documents"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = Checkpoint.open(options.model)
    measured: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for name, corpus in texts(options.text, options.language).items():
        if options.only not in (None, name):
            continue
        rows = documents(model, corpus, options.length)
        together = blocks(rows, options.length)
        for _, lora in itertools.product(range(options.rounds), (False, True)):
            trains = "lora" if lora else "all"
            turns = {
                "calque": lambda lora=lora, corpus=corpus: calque(model, corpus, lora, options),
                "trainer padded": lambda lora=lora, rows=rows: trainer(model, rows, lora, options),
                "trainer blocks": lambda lora=lora, rows=together: trainer(model, rows, lora, options),
            }
            for system, turn in turns.items():
                found = turn()
                measured.setdefault((name, trains, system), []).append(found)
                print(
                    name, trains, system, {key: round(value, 1) for key, value in found.items()}, flush=True
                )
    table = summary(measured)
    for line in table:
        print(" ".join(f"{value:>16}" for value in line.values()))
    settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
    options.out.parent.mkdir(exist_ok=True)
    head = {"machine": machine(), "versions": versions(), "threads": torch.get_num_threads()}
    write_json(options.out, {**head, "settings": settings, "table": table})


def summary(measured: dict[tuple[str, str, str], list[dict[str, float]]]) -> list[dict[str, object]]:
    """Median over the rounds, and each one's speed as a multiple of the Trainer's."""
    speed = {
        key: {
            unit: statistics.median(turn["tokens"] / turn[unit] for turn in turns)
            for unit in ("seconds", "cpu_seconds")
        }
        for key, turns in measured.items()
    }
    return [
        {
            "text": text,
            "trains": trains,
            "system": system,
            "tokens/s": round(found["seconds"], 1),
            "tokens/cpu-s": round(found["cpu_seconds"], 1),
            "calque is x": round(speed[text, trains, "calque"]["seconds"] / found["seconds"], 2),
            "by cpu": round(speed[text, trains, "calque"]["cpu_seconds"] / found["cpu_seconds"], 2),
        }
        for (text, trains, system), found in speed.items()
    ]


if __name__ == "__main__":
    main()
