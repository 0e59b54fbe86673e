r"""Merging beside mergekit 0.1.5: processor time, wall time, memory and precision, one run each in turn.

Llama-shaped bf16 checkpoints with random weights are made first (three of them). Every job is a process of
its own, commands as a user gives them, start-up and the check of the product included; the line "rewriter" is
the part of calque's command that reads, computes and writes, as its manifest tells. mergekit lives in an
environment of its own:

    python -m venv MERGEKIT && MERGEKIT/bin/pip install torch==2.13.0 mergekit==0.1.5
    python benchmarks/merge.py --work SCRATCH --peer-python MERGEKIT/bin/python          # the full size
    python benchmarks/merge.py --work SCRATCH --peer-python MERGEKIT/bin/python --size 50M --sizes 50M

The floors are plain file calls: all inputs read and an output of the same size written in pieces of 1 MB and
brought to the disk; for layer swapping, one copy of the output, brought to the disk. Memory is the peak of
anonymous pages of the process and its children, seen every 10 ms. With --cold the inputs are taken out of
the page cache before each job. The table for 70 billion parameters is a straight line through two measured
sizes: linear merging of three models, and nothing but that.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from calque.disk import read_json, write_json
from calque.machine import machine, versions
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import as_bytes, lay_out

RESULTS = Path(__file__).parent / "results" / "merge.json"
# name -> layers, hidden, inner, vocabulary, heads, key-value heads
SIZES = {
    "50M": (8, 512, 1408, 32_000, 8, 4),
    "250M": (16, 1024, 2816, 32_000, 16, 4),
    "1.1B": (22, 2048, 5632, 32_000, 32, 4),
    "1.5B": (31, 2048, 5632, 32_000, 32, 4),
}
MODELS = 3
WEIGHTS = (0.2, 0.3, 0.5)
LINEAR_70B = 70e9
_PIECE = 1 << 20
_FLOOR = """
import os, sys
*inputs, output, size = sys.argv[1:]
piece = bytearray(1 << 20)
for name in inputs:
    with open(name, "rb", buffering=0) as stream:
        while stream.readinto(piece): pass
with open(output, "wb", buffering=0) as stream:
    for _ in range(int(size) >> 20): stream.write(piece)
    os.fsync(stream.fileno())
"""
_COPY = """
import os, shutil, sys
shutil.copyfile(sys.argv[1], sys.argv[2])
with open(sys.argv[2], "rb+") as stream: os.fsync(stream.fileno())
"""


def shapes(size: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama of this size."""
    layers, hidden, inner, vocabulary, heads, key_heads = SIZES[size]
    small = hidden // heads * key_heads
    block = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (small, hidden),
        "self_attn.v_proj": (small, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    inside = [
        (f"model.layers.{layer}.{name}.weight", shape)
        for layer in range(layers)
        for name, shape in block.items()
    ]
    table = (vocabulary, hidden)
    ends = [("model.norm.weight", (hidden,)), ("lm_head.weight", table)]
    return [("model.embed_tokens.weight", table), *inside, *ends]


def make(folder: Path, size: str, seed: int) -> Path:
    """Write one checkpoint: a common base and a tenth of it as this model's own change."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    layers, hidden, inner, vocabulary, heads, key_heads = SIZES[size]
    named = shapes(size)
    header, _ = lay_out([(name, "BF16", shape) for name, shape in named], folder / "model.safetensors")
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header)
        for place, (name, shape) in enumerate(named):
            common = torch.randn(shape, generator=torch.Generator().manual_seed(place)) * 0.02
            own = (
                torch.randn(shape, generator=torch.Generator().manual_seed(1000 * (seed + 1) + place)) * 0.002
            )
            weight = common + own + (1.0 if "norm" in name else 0.0)
            stream.write(as_bytes(weight.to(torch.bfloat16)))
    pieces = {"<s>": 0, "</s>": 1, **{f"t{number}": number for number in range(2, vocabulary)}}
    backend = Tokenizer(models.WordLevel(pieces, unk_token="t2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, bos_token_id=0, eos_token_id=1,
        dtype="bfloat16", architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def anonymous(pid: int) -> int:
    """Anonymous bytes of a process and its children."""
    total, waiting = 0, [pid]
    while waiting:
        here = waiting.pop()
        try:
            status = Path(f"/proc/{here}/status").read_text()
            waiting += map(int, Path(f"/proc/{here}/task/{here}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")
        )
    return total


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Processor seconds, wall seconds and peak anonymous bytes of one command."""
    peak, start = 0, time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, anonymous(process.pid))

        thread = threading.Thread(target=watch)
        thread.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        done.set()
        thread.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "anonymous": peak}


def configurations(models: list[Path], layers: int) -> dict[str, str]:
    """The jobs as mergekit's YAML, all in bf16 as its documentation writes them."""
    listed = "".join(
        f"  - model: {model}\n    parameters: {{weight: {weight}}}\n"
        for model, weight in zip(models, WEIGHTS, strict=True)
    )
    tuned = "".join(
        f"  - model: {model}\n    parameters: {{weight: 1.0, density: 0.5}}\n" for model in models[1:]
    )
    cut = (layers // 4, layers - layers // 4)
    slices = "".join(
        f"  - sources: [{{model: {model}, layer_range: [{first}, {last}]}}]\n"
        for model, first, last in (
            (models[2], 0, cut[0]), (models[1], cut[0], cut[1]), (models[2], cut[1], layers)
        )
    )  # fmt: skip
    return {
        "linear": f"merge_method: linear\nmodels:\n{listed}dtype: bfloat16\n",
        "slerp": f"merge_method: slerp\nbase_model: {models[0]}\nslices:\n  - sources:\n"
        f"    - {{model: {models[0]}, layer_range: [0, {layers}]}}\n"
        f"    - {{model: {models[1]}, layer_range: [0, {layers}]}}\n"
        "parameters: {t: 0.3}\ndtype: bfloat16\n",
        "ties": f"merge_method: ties\nbase_model: {models[0]}\nmodels:\n{tuned}"
        "parameters: {normalize: true}\ndtype: bfloat16\n",
        "layerswap": f"merge_method: passthrough\nslices:\n{slices}dtype: bfloat16\n",
    }


def commands(models: list[Path], layers: int, out: Path) -> dict[str, list[str]]:
    """The same jobs as calque's commands."""
    first, second, third = map(str, models)
    call = [sys.executable, "-m", "calque", "merge"]
    linear = [first, "--tuned", second, "--tuned", third, "--base-weight", str(WEIGHTS[0])]
    linear += ["--weights", str(WEIGHTS[1]), "--weights", str(WEIGHTS[2])]
    swap = ["--bottom", str(layers // 4), "--top", str(layers // 4), "--transition-bottom", "0"]
    return {
        "linear": [*call, "linear", *linear, "-o", str(out)],
        "slerp": [*call, "slerp", first, second, "--t", "0.3", "-o", str(out)],
        "ties": [
            *call,
            "ties",
            first,
            "--tuned",
            second,
            "--tuned",
            third,
            "--density",
            "0.5",
            "-o",
            str(out),
        ],
        "layerswap": [
            *call,
            "layerswap",
            first,
            second,
            third,
            *swap,
            "--transition-top",
            "0",
            "-o",
            str(out),
        ],
    }


INPUTS = {"linear": 3, "slerp": 2, "ties": 3, "layerswap": 0}


def floors(models: list[Path], out: Path) -> dict[str, list[str]]:
    """The least that each job could take, as plain file calls."""
    weights = [str(model / "model.safetensors") for model in models]
    size = str((models[0] / "model.safetensors").stat().st_size)
    target = str(out / "floor.bin")
    plain = {
        job: [sys.executable, "-c", _FLOOR, *weights[:number], target, size]
        for job, number in INPUTS.items()
        if number
    }
    return {**plain, "layerswap": [sys.executable, "-c", _COPY, weights[0], target]}


def forget(models: list[Path]) -> None:
    """Take the inputs out of the page cache."""
    for model in models:
        with (model / "model.safetensors").open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def precision(models: list[Path], product: Path) -> float:
    """Share of the numbers of a linear merge that equal the exact sum, rounded once to bf16."""
    inputs, made = [Checkpoint.at(model) for model in models], Checkpoint.at(product)
    right = seen = 0
    for name, info in made.tensors.items():
        for first, block in info.blocks(4 << 20):
            part = slice(first, first + len(block))
            exact = sum(w * one.read(name, part).double() for w, one in zip(WEIGHTS, inputs, strict=True))
            right += int((rounded(exact) == block).sum())  # pyright: ignore
            seen += block.numel()
    return right / seen


def rounded(exact: torch.Tensor) -> torch.Tensor:
    """float64 to bf16 in one step: through float32 rounded to odd, so that nothing is rounded twice."""
    single = exact.to(torch.float32)
    error = exact - single.double()
    bits = single.view(torch.int32)
    inexact = error != 0
    toward_zero = (error * exact.sign()) < 0  # single went away from zero: step back first
    bits = torch.where(toward_zero, bits - 1, bits)
    return torch.where(inexact, bits | 1, bits).view(torch.float32).to(torch.bfloat16)


def compare(
    models: list[Path], layers: int, peer: str, work: Path, repeat: int, cold: bool, jobs: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every job by all three in turn, `repeat` times; medians."""
    yamls = configurations(models, layers)
    for job in jobs:
        runs: dict[str, list[dict[str, float]]] = {}
        shares: dict[str, float] = {}
        for _ in range(repeat):
            for who in ("floor", "calque", *(["mergekit"] if peer else [])):
                out = work / "out"
                shutil.rmtree(out, ignore_errors=True)
                if who == "floor":
                    out.mkdir()
                    command = floors(models, out)[job]
                elif who == "calque":
                    command = commands(models, layers, out)[job]
                else:
                    (work / "config.yml").write_text(yamls[job])
                    command = [str(Path(peer).parent / "mergekit-yaml"), str(work / "config.yml"), str(out)]
                if cold:
                    forget(models)
                found = measured(command, work / "log.txt")
                parts = {who: found, **({"rewriter": rewriter(out, found)} if who == "calque" else {})}
                for name, part in parts.items():
                    runs.setdefault(name, []).append(part)
                    print(f"{job:10} {name:9} {part['cpu']:7.1f} s cpu {part['wall']:7.1f} s wall "
                          f"{part['anonymous'] / 1e9:6.2f} GB", flush=True)  # fmt: skip
                if job == "linear" and who != "floor" and who not in shares:
                    shares[who] = precision(models, out)
        shutil.rmtree(work / "out", ignore_errors=True)
        yield job, {**{who: medians(found) for who, found in runs.items()}, "exactly rounded": shares}


def rewriter(out: Path, whole: dict[str, float]) -> dict[str, float]:
    """The seconds of passes and rows alone, without start-up, checksums and the check of the product."""
    spent = read_json(out / "manifest.json")["spent"]
    cpu, wall = (spent["passes"][kind] + spent["rows"][kind] for kind in ("processor", "wall"))
    return {**whole, "cpu": cpu, "wall": wall}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each measure."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def by_size(job: str, sizes: list[str], work: Path, repeat: int) -> dict[str, dict[str, float]]:
    """One of calque's merges of three models at several sizes."""
    found = {}
    for size in sizes:
        models = [make(work / f"{size}-{seed}", size, seed) for seed in range(MODELS)]
        runs = []
        for _ in range(repeat):
            shutil.rmtree(work / "out", ignore_errors=True)
            command = commands(models, SIZES[size][0], work / "out")[job]
            runs.append(measured(command, work / "log.txt"))
        parameters = sum(math.prod(shape) for _, shape in shapes(size))
        found[size] = {"parameters": parameters, "gigabytes": 2 * parameters / 1e9, **medians(runs)}
        print(f"{job} {size}: {found[size]}", flush=True)
        shutil.rmtree(work / "out", ignore_errors=True)
    return found


def to_70b(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """A straight line through the smallest and the largest measured size, at 70 billion parameters."""
    if len(found) < 2:
        return {}
    small, large = (pick(found.values(), key=lambda one: one["parameters"]) for pick in (min, max))
    steps = (LINEAR_70B - small["parameters"]) / (large["parameters"] - small["parameters"])

    def line(key: str) -> float:
        return small[key] + (large[key] - small[key]) * steps

    return {"gigabytes": 140.0, "read": 420.0} | {key: line(key) for key in ("cpu", "wall")}


def table(found: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| job | who | cpu s | wall s | peak anonymous GB | cpu / mergekit | wall / floor |",
        "|" + "---|" * 7,
    ]
    for job, rows in found.items():
        for who in ("floor", "calque", "rewriter", "mergekit"):
            if row := rows.get(who):
                peer, floor = rows.get("mergekit"), rows["floor"]
                ratio = f"{row['cpu'] / peer['cpu']:.2f}" if peer else ""
                lines.append(
                    f"| {job} | {who} | {row['cpu']:.1f} | {row['wall']:.1f} | "
                    f"{row['anonymous'] / 1e9:.2f} | {ratio} | {row['wall'] / floor['wall']:.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="scratch folder for checkpoints; may be kept"
    )
    parser.add_argument("--peer-python", default="", help="python of the environment with mergekit 0.1.5")
    parser.add_argument("--size", choices=SIZES, default="1.1B")
    parser.add_argument("--sizes", default="50M,250M,1.1B,1.5B", help="sizes for memory and the 70B table")
    parser.add_argument("--jobs", default="linear,slerp,ties,layerswap")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="inputs out of the page cache before each job")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    models = [make(given.work / f"{given.size}-{seed}", given.size, seed) for seed in range(MODELS)]
    peer, jobs = given.peer_python, given.jobs.split(",")
    layers = SIZES[given.size][0]
    found = dict(compare(models, layers, peer, given.work, given.repeat, given.cold, jobs))
    print(table(found))
    print({job: rows["exactly rounded"] for job, rows in found.items() if rows["exactly rounded"]})
    names = list(filter(None, given.sizes.split(",")))
    sizes = {job: by_size(job, names, given.work, given.repeat) for job in ("linear", "ties")}
    whole = to_70b(sizes["linear"])
    print(f"70B, from a straight line: {whole}")
    write_json(
        given.out,
        {"size": given.size, "repeat": given.repeat, "cold": given.cold, "jobs": found,
         "by size": sizes, "linear at 70B": whole, "machine": machine(), "versions": versions()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
