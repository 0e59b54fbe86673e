"""The recipe runner: one step after another, each whole or not at all, none run twice.

Each step's output is a folder OUT/steps/NAME with a manifest.json (settings, hashes of the inputs, seed,
versions, seconds, peak memory). A step whose manifest agrees with the recipe is not run again. Output
appears by one rename, so a process killed at any moment leaves either a whole step or none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from calque import __version__, disk, registry
from calque.errors import CalqueError, ConfigError, DataError
from calque.machine import follows, machine, peak_memory, processes, reset_peak_memory, versions
from calque.progress import clock, say
from calque.recipe import Recipe, Step, plain, references, seeded

_ASKED = "asked.json"  # in a step's work folder: what the step was begun with


def run(recipe: Recipe, out: Path, *, command: str = "") -> Path:
    """Run a recipe into the folder `out`; finished steps are skipped, a killed one goes on where it can.

    Returns:
        `out`, which holds recipe.yaml, run.json, steps/NAME/ and, if the recipe has a product, model/.

    Raises:
        ConfigError: `out` holds something that is no run, or another process is running there.
        CalqueError: What a step refuses; its message names the step.
    """
    if processes() > 1 and len(recipe.steps) > 1:
        raise ConfigError(
            f"a recipe of {len(recipe.steps)} steps does not run on several processes; launch its training "
            "step by itself: accelerate launch -m calque train ..."
        )
    with alone(out):
        _clear_leftovers(recipe, out)
        recipe.write(out / "recipe.yaml")
        start, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        done: dict[str, str] = {}
        for number, step in enumerate(recipe.steps, 1):
            done[step.name] = _step(recipe, step, out, done, f"[{number}/{len(recipe.steps)}] {step.name}")
        if recipe.product:
            _place_product(out / "steps" / recipe.product, out / "model")
        _describe(recipe, out, command, started, time.monotonic() - start)
    return out


def call(name: str, of: Mapping[str, Any], settings: Mapping[str, Any], out: Path) -> Path:
    """Run one method by itself; its output and manifest.json become the folder `out`."""
    disk.refuse_existing(out)
    step = name.split("/")[-1]
    work = out.with_name(f".{out.name}.run")
    with _as_one_command(name, step, work, out):
        recipe = Recipe.parse({"steps": {step: {"do": name, "of": dict(of), "with": dict(settings)}}}, name)
        if processes() > 1 and (follows() or not registry.contract(registry.method(name).load()).takes_work):
            return _follow(recipe.steps[0], work, out)
        run(recipe, work)
    if out.is_dir():
        out.rmdir()
    os.rename(work / "steps" / step, out)
    shutil.rmtree(work)
    return out


@contextmanager
def _as_one_command(name: str, step: str, work: Path, out: Path) -> Iterator[None]:
    """Errors name neither the step nor the hidden folder that the user never asked for.

    That folder goes where nothing was done in it; what a stopped training has saved stays.
    """
    try:
        yield
    except CalqueError as error:
        _remove_unless_used(work)
        said = str(error).replace(f"step '{step}' ({name}): ", "")
        for hidden in (work / "steps" / f".{step}.part", work / "steps" / step):
            said = said.replace(str(hidden), str(out))
        raise type(error)(said) from error


def _remove_unless_used(work: Path) -> None:
    """Remove the folder of a call in which nothing was done, if no other process is running there."""
    with suppress(CalqueError), alone(work):
        files = {path.name for path in work.rglob("*") if path.is_file()}
        if files <= {".calque", "recipe.yaml", _ASKED}:
            shutil.rmtree(work, ignore_errors=True)


def _follow(step: Step, run: Path, out: Path) -> Path:
    """What the other processes of a launcher do: they compute with the main one and write nothing."""
    says = registry.contract(registry.method(step.do).load())
    if not says.takes_work:
        raise ConfigError(f"{step.do} runs in one process; `accelerate launch` is for training")
    arguments = {m.name: material(step.of[m.name], m.annotation) for m in says.materials if m.name in step.of}
    settings = says.validate(seeded(step.settings, says, 0), step.do)
    says.function(**arguments, work=_work_folder(run, step) / "work", **settings)
    return out


def plan(name: str, of: Mapping[str, Any], settings: Mapping[str, Any], out: Path) -> str:
    """What `call` would do, for a method that returns a rewrite: nothing is written."""
    disk.refuse_existing(out)
    says = registry.contract(registry.method(name).load())
    checked = says.validate(dict(settings), name)
    arguments = {m.name: material(of[m.name], m.annotation) for m in says.materials if m.name in of}
    with tempfile.TemporaryDirectory() as scratch:
        extra = {"work": Path(scratch)} if says.takes_work else {}
        return says.function(**arguments, **extra, **checked).plan(out)


def _step(recipe: Recipe, step: Step, out: Path, done: Mapping[str, str], label: str) -> str:
    """Run one step unless its manifest says that it is done; returns the fingerprint of its output."""
    says = registry.contract(registry.method(step.do).load())
    settings = says.validate(seeded(step.settings, says, recipe.seed), f"step '{step.name}' ({step.do})")
    target = out / "steps" / step.name
    inputs = {ref: done[ref] if ref in done else _outside(ref) for ref in references(step.of)}
    asked = plain({"do": step.do, "of": step.of, "with": settings, "inputs": inputs, "code": __version__})
    key = _digest(asked)
    manifest = _manifest(target)
    if manifest and manifest.get("key") == key:
        say(f"{label}: done before, in {clock(manifest['seconds'])}")
        return manifest["output"]
    say(f"{label}: {registry.method(step.do).act}")
    start = time.monotonic()
    reset_peak_memory()
    staged, spent = _produce(step, says, settings, out, asked)
    output = disk.checksum(staged)
    disk.write_json(
        staged / "manifest.json",
        {
            "step": step.name,
            "do": step.do,
            "of": plain(step.of),
            "with": plain(settings),
            "seed": recipe.seed,
            "inputs": inputs,
            "output": output,
            "key": key,
            "seconds": round(time.monotonic() - start, 2),
            "peak_memory_mb": round(peak_memory() / 1e6),
            "versions": versions(),
            **({"spent": dict(spent)} if spent else {}),
            **_notes(staged),
        },
    )
    _swap(staged, target)
    shutil.rmtree(_work_folder(out, step), ignore_errors=True)
    return output


def _notes(staged: Path) -> dict[str, Any]:
    """What a rewrite says of itself; its account of every tensor stays in rewrite.json."""
    file = staged / "rewrite.json"
    notes = disk.read_json(file) if file.is_file() else {}
    return {"rewrite": {key: value for key, value in notes.items() if key != "tensors"}} if notes else {}


def _produce(
    step: Step, says: registry.Contract, settings: dict[str, Any], out: Path, asked: Mapping[str, Any]
) -> tuple[Path, Mapping[str, Any]]:
    """Call the method and save what it returns into a hidden folder beside the steps.

    Returns:
        The folder, and where a rewrite's seconds went.
    """
    steps = out / "steps"
    steps.mkdir(parents=True, exist_ok=True)
    work = _work_folder(out, step)
    before = disk.read_json(work / _ASKED) if (work / _ASKED).is_file() else None
    if work.exists() and before != asked:
        if before and any(
            work.rglob("state-*")
        ):  # what a training has saved is not thrown away for a slip of the hand
            _refuse_changes(step, work, before, asked)
        shutil.rmtree(work)
    if not work.exists():
        with disk.new_folder(work) as fresh:
            disk.write_json(fresh / _ASKED, asked)
    arguments = {
        m.name: material(step.of[m.name], m.annotation, out) for m in says.materials if m.name in step.of
    }
    scratch = work / "work"
    scratch.mkdir(exist_ok=True)
    extra = {"work": scratch} if says.takes_work else {}
    try:
        result = says.function(**arguments, **extra, **settings)
    except CalqueError as error:
        raise type(error)(f"step '{step.name}' ({step.do}): {error}") from error
    staged = steps / f".{step.name}.part"
    shutil.rmtree(staged, ignore_errors=True)
    with disk.clear_disk_errors(staged):
        save(result, staged, work / "rewrite", _digest(asked))
    return staged, getattr(result, "spent", {})


def _refuse_changes(step: Step, work: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ConfigError: what a stopped training was begun with, and what it is to go on with."""
    pairs = [
        (key, before[part].get(key), now[part].get(key))
        for part in ("with", "of", "inputs")
        for key in sorted({*before[part], *now[part]})
    ]
    changed = [f"{key} was {old!r}, now {new!r}" for key, old, new in pairs if old != new]
    changed += [f"calque was {before['code']}, now {now['code']}"] * (before["code"] != now["code"])
    raise ConfigError(
        f"step '{step.name}' ({step.do}): {work} holds a stopped training with other settings: "
        f"{'; '.join(changed)}; give the old settings to go on, or remove the folder to begin anew"
    )


def save(result: Any, folder: Path, work: Path, key: str) -> None:
    """Put what a method returned into a new folder, each noun in its own way.

    Args:
        result: what the method returned.
        folder: the new folder.
        work: for what is written piece by piece, and goes on after a kill.
        key: pins the method, its settings and its material.
    """
    kind = type(result).__name__
    if kind == "Checkpoint":
        os.rename(result.folder, folder)
    elif kind == "Rewrite":
        result.write(folder, work=work, key=key)
    elif kind == "Table":
        folder.mkdir()
        result.save(folder / "table.parquet")
    else:
        result.save(folder)


def material(ref: Any, annotation: Any, out: Path | None = None) -> Any:
    """Turn a reference into the noun that a parameter's annotation asks for.

    A name of a step in `out` is that step's output; anything else is a path, an asset or a hub id.
    """
    if isinstance(ref, Mapping):
        inner = typing.get_args(_bare(annotation))[-1]
        return {name: material(value, inner, out) for name, value in ref.items()}
    if isinstance(ref, list | tuple):
        inner = typing.get_args(_bare(annotation))[0]
        return [material(value, inner, out) for value in ref]
    kind = _bare(annotation)
    if ref is None or kind is str:
        return ref
    folder = out / "steps" / str(ref) if out else None
    path = folder if folder and folder.is_dir() else ref
    if kind is Path:
        return Path(path)
    if kind.__name__ == "Corpus":
        return _corpus(path)
    if kind.__name__ == "Table":
        return kind.load(Path(path) / "table.parquet" if Path(path).is_dir() else Path(path))
    return kind.open(path) if hasattr(kind, "open") else kind.load(_existing(Path(path), kind.__name__))


def _corpus(ref: str | Path) -> Any:
    """A saved corpus folder, an asset with its language, or LANGUAGE=REFERENCE (LANG+LANG for pairs)."""
    from calque.data.corpus import Corpus

    if (Path(ref) / "corpus.json").is_file():
        return Corpus.load(Path(ref))
    languages, equals, rest = str(ref).partition("=")
    if not equals:
        return Corpus.open(str(ref))
    first, _, second = languages.partition("+")
    return Corpus.open(rest, language=first, to=second or None)


def _existing(path: Path, kind: str) -> Path:
    if not path.exists():
        raise ConfigError(f"no {kind} at {path}, and no step of that name")
    return path


def _bare(annotation: Any) -> Any:
    """Strip Annotated[...] and `| None`."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _bare(next(a for a in typing.get_args(annotation) if a is not type(None)))
    return annotation


def _outside(ref: str) -> str:
    """What pins material that is no step: the bytes of a path, or the pinned hash of an asset."""
    path = ref.partition("=")[2] or ref
    parts = [Path(part) for part in path.split(",")]  # a Moses pair is two files
    if all(part.exists() for part in parts):
        return ",".join(disk.checksum(part) for part in parts)
    from calque import assets

    model, plus, delta = path.rpartition("+")
    if plus and Path(delta).exists():
        return f"{_outside(model)}+{disk.checksum(Path(delta))}"
    pinned = assets.pinned(path)
    return pinned if pinned else f"reference:{ref}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished step; a damaged one counts as none, so that the step is run again."""
    try:
        return disk.read_json(folder / "manifest.json")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DataError as error:
        say(f"{error}; the step is run again")
        return None


def _work_folder(out: Path, step: Step) -> Path:
    return out / "steps" / f".{step.name}.work"


def _swap(staged: Path, target: Path) -> None:
    """Put a finished folder in place of an older one, which stays whole until the new one stands."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(staged, target)
    shutil.rmtree(old, ignore_errors=True)


def _place_product(step: Path, model: Path) -> None:
    """The product is the step's folder under a second name: hard links where the disk allows, else copies."""
    part = model.with_name(f".{model.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    skip = shutil.ignore_patterns("manifest.json", "log.jsonl", ".*")

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    with disk.clear_disk_errors(model):
        shutil.copytree(step, part, copy_function=link, ignore=skip)
        _swap(part, model)


def _clear_leftovers(recipe: Recipe, out: Path) -> None:
    """What a killed process left half-made; scratch folders of steps of this recipe stay, to resume from."""
    keep = {_work_folder(out, step).name for step in recipe.steps}
    for path in (out / "steps").glob(".*"):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the run folder against other processes; refuse a folder that holds something else."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / ".calque").exists()):
        raise ConfigError(f"output {out} exists and is no calque run; give another -o, or remove it first")
    with disk.clear_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".calque").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is running in {out}; wait for it") from None
            yield


def _describe(recipe: Recipe, out: Path, command: str, started: str, seconds: float) -> None:
    manifests = [_manifest(out / "steps" / s.name) or {} for s in recipe.steps]
    disk.write_json(
        out / "run.json",
        {
            "title": recipe.title,
            **plain(recipe.about),
            "command": command or shlex.join(["calque", *sys.argv[1:]]),
            "started": started,
            "seconds": round(sum(m.get("seconds", 0) for m in manifests), 1),
            "last_call_seconds": round(seconds, 1),
            "peak_memory_mb": max(m.get("peak_memory_mb", 0) for m in manifests),
            "versions": versions(),
            "machine": machine(),
        },
    )
