"""Speed of training deltas, side by side in one run: calque beside `peft` and a bare loop of torch.

Every turn trains the same model on the same pieces of text, packed into one row for calque and in a row each
for the bare loops, with fused AdamW on one thread, matrix products in bfloat16 where the processor has them;
counted are the processor seconds for a token from one step of the optimizer to the next, medians of the
steps after the first.

    lora      train/lm with a LoRA delta                     against peft and the bare loop
    shards    train/lm with Mixture of Shards of that rank   against train/lm with LoRA
    rows      train/lm, embeddings alone                     against peft's trainable_token_indices, the whole
                                                             embedding, and all weights, each in the bare loop

    python benchmarks/delta.py --steps 4 --rounds 3
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, TrainableTokensConfig, get_peft_model
from torch.optim.optimizer import register_optimizer_step_post_hook

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.delta.lora import lora
from calque.delta.shards import shards
from calque.disk import write_json
from calque.machine import has_bf16, machine, versions
from calque.model.checkpoint import Checkpoint
from calque.train.lm import lm

RESULTS = Path(__file__).parent / "results" / "delta.json"
RATE, RANK = 1e-4, 16


def pieces(model: Checkpoint, text: Corpus, length: int) -> list[list[int]]:
    """All documents cut to exactly `length` tokens, so that no system pads and all see as many."""
    tokenizer = model.tokenizer()
    texts = (text for _, text in text.documents())
    ids = [i for t in texts for i in tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"]]
    return [ids[at : at + length] for at in range(0, len(ids) - length, length)]


def bare(
    model: Checkpoint, rows: list[list[int]], options: argparse.Namespace, wrap: Callable
) -> list[float]:
    """A plain loop: forward with labels, backward, clip, AdamW; processor seconds for a token, by step."""
    loaded = wrap(model.model(torch.float32)).train()
    chosen = [p for p in loaded.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    size = options.batch_tokens // options.length
    with clock() as ticks:
        for step in range(options.steps + 1):
            ids = torch.tensor(rows[step * size : (step + 1) * size])
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
                loss = loaded(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(chosen, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return between(ticks, options)


@contextmanager
def clock() -> Iterator[list[float]]:
    """The processor seconds at every step of an optimizer."""
    ticks: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ticks.append(time.process_time()))
    try:
        yield ticks
    finally:
        hook.remove()


def between(ticks: list[float], options: argparse.Namespace) -> list[float]:
    assert len(ticks) == options.steps + 1, f"{len(ticks)} steps of the optimizer"
    return [(after - before) / options.batch_tokens for before, after in pairwise(ticks)]


def calque(model: Checkpoint, text: Corpus, options: argparse.Namespace, **settings) -> list[float]:
    """`train/lm`; processor seconds for a token of each step."""
    work = Path(tempfile.mkdtemp())
    try:
        with clock() as ticks:
            lm(
                model,
                text,
                work=work,
                steps=options.steps + 1,
                batch_tokens=options.batch_tokens,
                length=options.length,
                lr=RATE,
                precision=options.precision,
                save_seconds=0,
                **settings,
            )
    finally:
        shutil.rmtree(work)
    return between(ticks, options)


def whole_embedding(loaded: torch.nn.Module) -> torch.nn.Module:
    loaded.requires_grad_(False)
    loaded.get_input_embeddings().requires_grad_()
    return loaded


def in_peft(config: PeftConfig) -> Callable:
    def wrap(loaded: torch.nn.Module) -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(loaded, config)

    return wrap


def turns(
    model: Checkpoint, text: Corpus, rows: list[list[int]], options: argparse.Namespace
) -> dict[str, Callable[[], list[float]]]:
    """Name -> what gives the seconds for a token in each step."""
    pairs = lora(model, rank=RANK, alpha=2 * RANK)
    mixture = shards(model, budget=2, rank=RANK, private=1, pieces=4, alpha=2 * RANK)
    ends = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    in_pairs = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=ends, task_type="CAUSAL_LM")
    new = sorted({token for row in rows for token in row})[-options.new_tokens :]
    in_rows = TrainableTokensConfig(token_indices=new, task_type="CAUSAL_LM")
    return {
        "calque lora": lambda: calque(model, text, options, delta=pairs),
        "peft lora": lambda: bare(model, rows, options, in_peft(in_pairs)),
        "calque shards": lambda: calque(model, text, options, delta=mixture),
        "calque rows": lambda: calque(model, text, options, part="embeddings"),
        "peft token indices": lambda: bare(model, rows, options, in_peft(in_rows)),
        "whole embedding": lambda: bare(model, rows, options, whole_embedding),
        "all weights": lambda: bare(model, rows, options, lambda loaded: loaded),
    }


def ratios(seconds: dict[str, list[float]]) -> list[dict[str, object]]:
    """Medians of the rounds' medians, and what the targets are about."""
    at = {name: statistics.median(found) for name, found in seconds.items()}
    pairs = [
        ("calque lora", "peft lora", 1.05), ("calque shards", "calque lora", 1.1),
        ("calque rows", "all weights", 0.65), ("peft token indices", "all weights", None),
        ("whole embedding", "all weights", None), ("calque rows", "peft token indices", 1.0),
        ("calque rows", "whole embedding", 1.0),
    ]  # fmt: skip
    return [
        {"step of": name, "against": other, "ratio": round(at[name] / at[other], 3), "at most": bar,
         "ms for a token": round(1e3 * at[name], 3)}
        for name, other, bar in pairs if name in at and other in at
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="bible-nya")
    parser.add_argument("--language", default="nya_Latn")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each turn; one more warms up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=4096)
    hardware = "bfloat16" if has_bf16() else "float32"
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default=hardware)
    parser.add_argument("--only", nargs="*", help="some of the turns, by name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other burn processor time too
    model = Checkpoint.open(options.model)
    size = options.batch_tokens // options.length * (options.steps + 1)
    whole = Corpus.open(options.text, language=options.language)
    rows = pieces(model, whole, options.length)[:size]
    texts = model.tokenizer().batch_decode([row[:-8] for row in rows])  # room for begin and end
    text = Corpus.of(Example(str(n), {options.language: t}, group=str(n)) for n, t in enumerate(texts))
    measured: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, turn in turns(model, text, rows, options).items():
            if options.only and name not in options.only:
                continue
            measured.setdefault(name, []).append(statistics.median(turn()))
            print(f"{name:<20} {1e3 * measured[name][-1]:8.3f} ms for a token", flush=True)
    table = ratios(measured)
    for line in table:
        print(" ".join(f"{value!s:>20}" for value in line.values()))
    settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
    options.out.parent.mkdir(exist_ok=True)
    head = {"machine": machine(), "versions": versions(), "threads": torch.get_num_threads()}
    write_json(options.out, {**head, "settings": settings, "seconds": measured, "table": table})


if __name__ == "__main__":
    main()
