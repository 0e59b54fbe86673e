"""The main job beside plain continued training: equal minutes, equal text, the original vocabulary.

    calque adapt smollm2-135m --to nya ... --minutes 3 -o out/demo
    python benchmarks/adapt.py out/demo

Baselines are trained by `transformers.Trainer` (and `peft` for LoRA) on the run's own training text, for as
many minutes. Every one of them stands in the table; compared is with the one that is best on the very text,
which favours the baselines. Both sides compute in bfloat16 where the hardware does. Prints bits per byte with
paired intervals and writes results/adapt.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model

from calque import Checkpoint, Corpus, Table
from calque.evaluate.lm import lm
from calque.machine import machine, versions
from calque.progress import say
from calque.train.result import fast_dtype

BASELINES = (("full", 1e-4), ("full", 3e-4), ("LoRA r16", 1e-3))
LENGTH, ROWS = 256, 2
RESULTS = Path(__file__).parent / "results" / "adapt.json"


def train(base: Checkpoint, text: Corpus, kind: str, lr: float, minutes: float, folder: Path) -> dict:
    """Train with the Trainer for so many minutes; the schedule is laid out for as many steps as they hold."""
    tokenizer, model = base.tokenizer(), base.model()
    ids = [i for _, body in text.documents() for i in [*tokenizer(body)["input_ids"], tokenizer.eos_token_id]]
    rows = [
        {"input_ids": ids[n : n + LENGTH], "labels": ids[n : n + LENGTH]} for n in range(0, len(ids), LENGTH)
    ]
    if kind.startswith("LoRA"):
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))

    def trainer(steps: int) -> transformers.Trainer:
        arguments = transformers.TrainingArguments(
            output_dir=str(folder / "scratch"),
            per_device_train_batch_size=ROWS,
            max_steps=steps,
            learning_rate=lr,
            lr_scheduler_type="linear",
            warmup_steps=max(1, steps // 20),
            weight_decay=0.0,
            adam_beta2=0.95,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=fast_dtype() == torch.bfloat16,  # what `train/lm` does here, too
            disable_tqdm=True,
            logging_strategy="no",
            seed=0,
        )
        return transformers.Trainer(model=model, args=arguments, train_dataset=rows[:-1])

    state = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(1).train()
    began = time.monotonic()
    trainer(3).train()
    seconds = (time.monotonic() - began) / 3
    model.load_state_dict(state)
    steps = max(4, math.floor(minutes * 60 / seconds))
    began = time.monotonic()
    trainer(steps).train()
    spent = time.monotonic() - began
    plain = model.merge_and_unload() if kind.startswith("LoRA") else model
    plain.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {"steps": steps, "tokens": steps * ROWS * LENGTH, "seconds": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of `calque adapt`")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--work", type=Path, default=Path("out/bench-adapt"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    steps = given.run / "steps"
    about = json.loads((given.run / "run.json").read_text())
    base, text = Checkpoint.open(about["model"]), Corpus.load(steps / "text")
    manifest = json.loads((steps / "scores/manifest.json").read_text())
    texts = {name: Corpus.load(steps / ref) for name, ref in manifest["of"]["texts"].items()}
    table, notes = Table.load(steps / "scores/table.parquet"), {}
    for kind, lr in BASELINES:
        name, folder = f"{kind}, lr {lr:g}", given.work / f"{kind}-{lr:g}".replace(" ", "-")
        if not (folder / "model").exists():
            notes[name] = train(base, text, kind, lr, given.minutes, folder)
            say(f"{name}: {notes[name]}")
        table = table.join(lm({name: Checkpoint.at(folder / "model")}, texts, **manifest["with"]))
    view = table.measure("bits/bytes")
    print(view.to_text())
    result: dict = {"machine": machine(), "versions": versions(), "notes": notes, "minutes": given.minutes}
    result["bits per byte"] = {_key(entry.group): _numbers(entry.estimate) for entry in view}
    result["against the best baseline"] = {}
    names = [f"{kind}, lr {lr:g}" for kind, lr in BASELINES]
    for task, column in _columns(view).items():
        best = min(names, key=lambda name: column[name])
        for entry in table.where(task=task).compare(best, "bits/bytes"):
            if entry.group["system"] not in names:
                result["against the best baseline"][f"{_key(entry.group)} / {best}"] = _numbers(
                    entry.estimate
                )
    print("\ntimes the bits per byte of the best baseline on the same text")
    for key, numbers in result["against the best baseline"].items():
        print(f"{key:70} {numbers[0]:.3f} [{numbers[1]:.3f}, {numbers[2]:.3f}]")
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


def _key(group) -> str:
    return f"{group['system']} / {group['task']}"


def _numbers(estimate) -> list[float]:
    return [round(value, 4) for value in (estimate.value, estimate.low, estimate.high)]


def _columns(view) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for entry in view:
        found.setdefault(entry.group["task"], {})[entry.group["system"]] = entry.estimate.value
    return found


if __name__ == "__main__":
    main()
