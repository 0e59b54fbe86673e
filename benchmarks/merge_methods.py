"""PCB and WIDEN against the published formulas in plain torch, on the same checkpoints.

    python benchmarks/merge_methods.py --out benchmarks/results/merge_methods.json [--width 1024 --layers 8]

Both sides begin with checkpoint folders and end with a checkpoint folder. "plain" loads whole models and
follows the authors' code step by step: for PCB one flat vector per model and full sorts, for WIDEN one matrix
at a time. Each run is a process of its own; CPU seconds are those of the process, memory is its peak of
anonymous pages above that after the imports. The two results are compared number by number; WIDEN's also with
the plain steps in float64, because ranks of changes computed in float32 are partly noise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SIZES = dict(
    hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
    num_key_value_heads=4, vocab_size=32_000, max_position_embeddings=256, tie_word_embeddings=False,
)  # fmt: skip
STEPS = (0.002, 0.01)


def make(folder: Path, layers: int, width: int) -> None:
    """A Llama-shaped bfloat16 base with random weights, and two models that differ from it by noise."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    sizes = {**SIZES, "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": width * 8 // 3}
    sizes |= {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 256)}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    backend = Tokenizer(models.WordLevel({f"w{n}": n for n in range(sizes["vocab_size"])}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0").save_pretrained(
        folder / "base"
    )
    tensors = load_file(folder / "base/model.safetensors")
    for number, step in enumerate(STEPS):
        shutil.copytree(folder / "base", folder / f"tuned{number}")
        generator = torch.Generator().manual_seed(number + 1)
        moved = {
            name: (tensor.float() + step * torch.randn(tensor.shape, generator=generator)).bfloat16()
            for name, tensor in tensors.items()
        }
        save_file(moved, folder / f"tuned{number}/model.safetensors", metadata={"format": "pt"})


def plain_pcb(models, keep=0.1, clamp=1e-4):
    """The authors' steps on flat float32 vectors."""
    import torch

    base, *tuned = [torch.cat([t.float().reshape(-1) for t in m.values()]) for m in models]
    vectors = torch.stack(tuned) - base

    def clamped(rows, low, high):
        ordered = rows.sort(dim=1).values
        size = rows.shape[1]
        first, last = ordered[:, int(size * low)], ordered[:, int(size * (1 - high) - 1)]
        return torch.clamp(rows, first[:, None], last[:, None])

    def minmax(rows):
        low, high = rows.min(1, keepdim=True).values, rows.max(1, keepdim=True).values
        return (rows - low) / (high - low)

    magnitudes = clamped(vectors.abs(), clamp, clamp)
    importance = torch.exp(len(tuned) * minmax(magnitudes) ** 2)
    agreement = torch.tanh(vectors * vectors.sum(0))
    weights = minmax(clamped(importance * agreement, 1 - keep, 0))
    merged = base + (weights * vectors.sign() * magnitudes).sum(0) / weights.sum(0).clamp(min=1e-12)
    return _unflattened(merged, models[0])


def _unflattened(vector, like):
    parts = vector.split([t.numel() for t in like.values()])
    return {
        name: part.reshape(t.shape).to(t.dtype) for (name, t), part in zip(like.items(), parts, strict=True)
    }


def plain_widen(models, dtype):
    """The authors' steps, one matrix at a time."""
    base, *tuned = models
    result = {}
    for name, before in base.items():
        merged = _plain_widen(before.to(dtype), [t[name].to(dtype) for t in tuned], name)
        result[name] = merged.to(before.dtype)
    return result


def _plain_widen(before, after, name):
    import torch

    deltas = torch.stack([a - before for a in after])
    if before.dim() == 1:
        weights = torch.softmax(deltas.abs(), 0)
        weights[deltas.abs() > deltas.abs().mean(1, keepdim=True)] = 1.0
        return before + (weights * deltas).sum(0)
    if "embed_tokens" in name:
        return _plain_widen(before.T, [a.T for a in after], "").T.contiguous()

    def parts(matrix):
        length = matrix.norm(dim=0)
        return length, matrix / length

    length, direction = parts(before)
    found = [parts(a) for a in after]
    changes = (
        torch.stack([(m - length).abs() for m, _ in found]),
        torch.stack([1 - torch.cosine_similarity(d, direction, dim=0) for _, d in found]),
    )
    weights = sum(_plain_scores(change) for change in changes) / 2
    return before + (weights[:, None, :] * deltas).sum(0)


def _plain_scores(change):
    import torch

    columns = change.shape[1]
    order = change.sort(dim=1, stable=True).indices
    ranks = torch.empty_like(change).scatter_(
        1, order, (torch.arange(columns, dtype=change.dtype) / columns).expand_as(change).contiguous()
    )
    shares = torch.softmax(ranks, 0)
    shares[ranks > ranks.mean(1, keepdim=True)] = 1.0
    return shares


def run_plain(method: str, folder: Path, out: Path, dtype: str = "float32") -> None:
    import torch
    from safetensors.torch import load_file, save_file

    names = ["base", *(f"tuned{n}" for n in range(len(STEPS)))]
    models = [load_file(folder / name / "model.safetensors") for name in names]
    merged = plain_pcb(models) if method == "pcb" else plain_widen(models, getattr(torch, dtype))
    shutil.copytree(folder / "base", out, ignore=shutil.ignore_patterns("model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, out / "model.safetensors")


def run_streamed(method: str, folder: Path, out: Path) -> None:
    from calque import registry
    from calque.model.checkpoint import Checkpoint

    tuned = [Checkpoint.open(folder / f"tuned{n}") for n in range(len(STEPS))]
    registry.method(f"merge/{method}").load()(Checkpoint.open(folder / "base"), tuned).write(out)


def measured(side: str, method: str, folder: Path, out: Path) -> None:
    """In a process of its own: run one side, print CPU seconds, wall seconds, and peak anonymous memory."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  (both sides begin with what they import)

    import calque.merge.pcb
    import calque.merge.widen  # noqa: F401

    torch.set_num_threads(1)
    start_memory, peak, done = _anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    (run_plain if side == "plain" else run_streamed)(method, folder, out)
    after = resource.getrusage(resource.RUSAGE_SELF)
    done.set()
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    print(json.dumps({
        "cpu_s": round(cpu, 2), "wall_s": round(time.perf_counter() - start, 2),
        "memory_mb": round((peak[0] - start_memory) / 1e6, 1),
    }))  # fmt: skip


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _run(side: str, method: str, folder: Path, out: Path) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--method",
        method,
        "--models",
        str(folder),
        "--to",
        str(out),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def _equal(one: Path, other: Path) -> float:
    """Share of numbers that both sides agree in."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    same = sum(int((a[name] == b[name]).sum()) for name in a)
    return same / sum(tensor.numel() for tensor in a.values())


def compare(folder: Path, methods: list[str], repeats: int) -> dict[str, dict[str, object]]:
    result: dict[str, dict[str, object]] = {}
    for method in methods:
        runs: dict[str, list[dict[str, float]]] = {"plain": [], "streamed": []}
        for _ in range(repeats):
            for side, found in runs.items():
                found.append(_run(side, method, folder, folder / side))
        middle = {
            side: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for side, found in runs.items()
        }
        ratio = {key: round(middle["streamed"][key] / middle["plain"][key], 3) for key in middle["plain"]}
        result[method] = {
            "medians": middle, "ratio": ratio, "runs": runs,
            "equal": round(_equal(folder / "plain", folder / "streamed"), 6),
        }  # fmt: skip
        if method == "widen":
            run_plain(method, folder, folder / "exact", "float64")
            result[method]["equal to float64"] = round(_equal(folder / "exact", folder / "streamed"), 6)
            result[method]["plain equal to float64"] = round(_equal(folder / "exact", folder / "plain"), 6)
        print(f"{method}: {middle} ratio {ratio} equal {result[method]['equal']}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--layers", type=int, default=SIZES["num_hidden_layers"])
    parser.add_argument("--width", type=int, default=SIZES["hidden_size"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=("pcb", "widen"))
    parser.add_argument("--side", choices=("plain", "streamed"), help=argparse.SUPPRESS)
    for name in ("--method", "--models", "--to"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        measured(given.side, given.method, Path(given.models), Path(given.to))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.layers, given.width)
        size = (Path(folder) / "base/model.safetensors").stat().st_size
        print(f"{size / 2e6:.0f} million parameters", flush=True)
        result = {
            "parameters": size // 2,
            "models": 1 + len(STEPS),
            "numpy": np.__version__,
            **compare(Path(folder), given.only or ["pcb", "widen"], given.repeats),
        }
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
