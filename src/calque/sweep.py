"""Sweeps: one recipe with several values of some of its settings, run side by side, scores in one table."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calque.disk import read_json
from calque.errors import ConfigError, MissingExtra
from calque.machine import threads
from calque.progress import say
from calque.recipe import Recipe

if TYPE_CHECKING:
    from calque.evaluate.table import Table

TABLE = "table.parquet"
Outcome = tuple[int, str]
"""Exit code and last words of one run."""


def points(over: Sequence[str]) -> dict[str, list[str]]:
    """Every combination of the values; name of the combination -> its changes to the recipe.

    Args:
        over: "PATH=VALUE,VALUE,..." each, such as "steps.trained.with.lr=1e-4,3e-4"; values are YAML.

    Raises:
        ConfigError: an axis without values or given twice.
    """
    import yaml

    axes: dict[str, list[Any]] = {}
    for axis in over:
        path, equals, values = axis.partition("=")
        try:
            listed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError as error:
            raise ConfigError(f"--over {axis}: not a list of YAML values: {error}") from None
        if not equals or not listed or path in axes:
            raise ConfigError(f"--over {axis}: write it once, as steps.NAME.with.SETTING=VALUE,VALUE")
        axes[path] = listed
    short = {path: path.rpartition(".")[2] for path in axes}
    if len(set(short.values())) < len(short):
        short = {path: path.replace(".with.", ".").removeprefix("steps.") for path in axes}
    found = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = ",".join(f"{short[path]}={value}" for path, value in chosen.items())
        found[name.replace("/", "_")] = [f"{path}={json.dumps(value)}" for path, value in chosen.items()]
    return found


def sweep(
    recipe: Path,
    over: Sequence[str],
    out: Path,
    *,
    changes: Sequence[str] = (),
    jobs: int = 1,
    ray: str | None = None,
) -> Table:
    """Run a recipe with every combination of values; finished runs are not run again, killed ones go on.

    Args:
        recipe: the recipe.
        over: the axes, as in `points`.
        out: folder of the sweep; each run is OUT/runs/NAME, the scores of all OUT/table.parquet.
        changes: further changes, the same for all runs.
        jobs: runs at once.
        ray: address of a Ray cluster whose machines see the same files, or "local" to start one here; the
            runs are its tasks then.

    Returns:
        The rows of every table of every run, and the last loss of every training; the system's name is
        followed by the combination.

    Raises:
        ConfigError: values that the recipe does not take (found before any run), or runs that failed.
        MissingExtra: Ray is asked for and not installed.
    """
    found = points(over)
    for name, own in found.items():
        say(f"{name}: {len(Recipe.read(recipe, [*changes, *own]).steps)} steps")  # refuses what is wrong
    run = partial(_run, recipe.absolute(), share=max(1, threads() // max(1, jobs)))
    calls = {
        name: partial(run, [*changes, *own], (out / "runs" / name).absolute()) for name, own in found.items()
    }
    outcomes = _on_ray(calls, jobs, ray) if ray else _here(calls, jobs)
    failed = []
    for name, (code, words) in outcomes:
        say(f"{name}: {'done' if code == 0 else words}")
        failed += [name] if code else []
    if len(failed) == len(calls):
        raise ConfigError(f"all {len(failed)} runs of the sweep failed; see above")
    table = gather({name: out / "runs" / name for name in calls if name not in failed})
    table.save(out / TABLE)
    if failed:
        raise ConfigError(
            f"{len(failed)} of {len(calls)} runs failed ({'; '.join(failed)}); the scores of the others are "
            f"in {out / TABLE}; the same command goes on"
        )
    return table


def gather(runs: Mapping[str, Path]) -> Table:
    """All scores of some runs in one table."""
    from calque.evaluate.table import Table

    def rows() -> Iterator[Mapping[str, Any]]:
        for name, folder in runs.items():
            for file in sorted(folder.glob("steps/*/table.parquet")):
                for row in Table.load(file).rows():
                    yield {**row, "system": f"{row['system']} [{name}]"}
            for file in sorted(folder.glob("steps/*/training.json")):
                yield from _losses(name, file)

    return Table.of(rows())


def to_text(table: Table) -> str:
    """The aggregates of a sweep: bits per byte where there are bits, the mean of every other metric."""
    metrics, by = table.values("metric"), ("system", "task")
    shown = []
    if {"bits", "bytes"} <= set(metrics):
        shown.append(f"bits per byte\n{table.measure('bits/bytes', by).to_text()}")
    for metric in metrics:
        if metric not in ("bits", "bytes", "tokens", "words", "lossless"):
            shown.append(f"{metric}\n{table.measure(metric, by).to_text()}")
    return "\n\n".join(shown)


def _losses(name: str, file: Path) -> Iterator[dict[str, Any]]:
    """The last loss, and the best held-out score, of a training."""
    last = [note for key, note in read_json(file).items() if key.startswith("stage ")][-1]
    for metric, value in (("loss", last.get("loss")), ("held_out", last.get("best"))):
        if isinstance(value, int | float) and value == value:
            yield {
                "system": name, "task": f"train/{file.parent.name}", "language": "", "item": "last",
                "metric": metric, "value": value, "signature": "training.json",
            }  # fmt: skip


def _run(recipe: Path, changes: Sequence[str], out: Path, *, share: int) -> Outcome:
    """One run in a process of its own."""
    sets = [word for change in changes for word in ("--set", change)]
    bound = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(share)}
    done = subprocess.run(
        [sys.executable, "-m", "calque", "-q", "run", str(recipe), *sets, "-o", str(out)],
        env={**os.environ, **bound}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, "\n".join(done.stderr.strip().splitlines()[-3:])


def _here(calls: Mapping[str, Callable[[], Outcome]], jobs: int) -> Iterator[tuple[str, Outcome]]:
    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(calls, pool.map(lambda call: call(), calls.values()), strict=True)


def _on_ray(
    calls: Mapping[str, Callable[[], Outcome]], jobs: int, address: str
) -> Iterator[tuple[str, Outcome]]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise MissingExtra("ray", "ray", "a sweep on a Ray cluster") from None
    here: dict[str, Any] = (
        {"num_cpus": jobs, "include_dashboard": False} if address == "local" else {"address": address}
    )
    ray.init(log_to_driver=False, **here)
    try:
        task = ray.remote(lambda call: call())
        waiting = {name: task.remote(call) for name, call in calls.items()}
        yield from ((name, ray.get(result)) for name, result in waiting.items())
    finally:
        ray.shutdown()
