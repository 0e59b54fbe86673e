"""The main job: a model, a language and some text in; a checkpoint that speaks the language and a report out.

`adapt` only writes a recipe from a few arguments and runs it. The recipe lies in the run folder: what the
job does can be read there, edited, and run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calque import runner
from calque.errors import ConfigError
from calque.language import Language
from calque.progress import say
from calque.recipe import Recipe

# How much held-out text is scored, per text and system: enough for intervals of a few percent, and what a
# 135M model reads in well under a minute on two cores.
TEST_BYTES = 24_000
# Chosen on held-out books and messages that no reported figure uses; see docs/adapting.md.
REPLAY = 0.1
# With `keep_source`: every old merge stays (no vocabulary has more), and more of the text is rehearsal.
KEEP_REPLAY, KEEP_ALL = 0.25, 10**9
TOKENIZER: dict[str, Any] = {"mode": "words", "keep": 32_000, "new": 14_000}
PIECES: dict[str, Any] = {"pieces": "ends"}
TRANSLATIONS: dict[str, Any] = {**PIECES, "blend": 0.7}
RATES: dict[str, Any] = {
    "lr": 2e-4,
    "lr_embeddings": 2e-3,
    "batch_tokens": 512,
    "length": 256,
    "schedule": "linear",
}
WRITING: dict[str, Any] = {"timed_tokens": 32, "sample_characters": 200}
OLD_LORA: dict[str, Any] = {**RATES, "lr": 1e-3, "lr_embeddings": None}
OLD_FULL: dict[str, Any] = {**RATES, "lr": 2e-4, "lr_embeddings": 2e-4}


def adapt(
    model: str,
    *,
    to: str,
    text: str,
    out: Path,
    parallel: str | None = None,
    source: str = "eng_Latn",
    source_text: str | None = None,
    tests: Mapping[str, str] | None = None,
    minutes: float = 30.0,
    test_bytes: int = TEST_BYTES,
    replay: float | None = None,
    keep_source: bool = False,
    baseline: bool = False,
    seed: int = 0,
    command: str = "",
) -> Path:
    """Carry a causal language model over into a language.

    Args:
        model: Folder, .gguf file, hub id, asset, or PEFT adapter.
        to: The language to reach.
        text: Text in it: file, folder, asset or hub data set. A part is held out, by document.
        out: Folder of the run. A run that was stopped here goes on.
        parallel: Text in both languages, from which new tokens learn what they mean.
        source: The language the model knows.
        source_text: Text in it, to rehearse (see `replay`) and to measure forgetting on; without it, that
            side of `parallel` serves.
        tests: More texts to test on, by name: a reference in the language `to`, or "LANGUAGE=reference".
        minutes: Training time, all stages together.
        test_bytes: How much held-out text is scored, of each text for each system.
        replay: Share of the training text that is in the source language.
        keep_source: Keep every old token and rehearse more, so that the source language loses little.
        baseline: Also train with the original vocabulary, LoRA and full, for as many minutes each.
        seed: Seed of everything that is drawn.
        command: The command line that asked, for the report.

    Returns:
        The path of the report; `out/model` is the checkpoint.

    Raises:
        ConfigError: Arguments that can not be right, or `out` holds something else.
        DataError: Text that can not be used.
        ModelError: A model that can not be used.
    """
    recipe = plan(
        model,
        to=to,
        text=text,
        parallel=parallel,
        source=source,
        source_text=source_text,
        tests=tests,
        minutes=minutes,
        test_bytes=test_bytes,
        replay=replay,
        keep_source=keep_source,
        baseline=baseline,
        seed=seed,
    )
    _refuse_another_job(recipe, out)
    from calque.model.checkpoint import Checkpoint

    Checkpoint.open(model).check()
    runner.run(recipe, out, command=command)
    from calque.report.html import summary, write_report

    say(summary(out))
    return write_report(out, out / "report.html")


def write_recipe(out: Path, **given: Any) -> Path:
    """Write the recipe of the job into `out` without running it; arguments as for `adapt`."""
    recipe = plan(**given)
    _refuse_another_job(recipe, out)
    with runner.alone(out):
        recipe.write(out / "recipe.yaml")
    return out / "recipe.yaml"


def plan(
    model: str,
    *,
    to: str,
    text: str,
    parallel: str | None = None,
    source: str = "eng_Latn",
    source_text: str | None = None,
    tests: Mapping[str, str] | None = None,
    minutes: float = 30.0,
    test_bytes: int = TEST_BYTES,
    replay: float | None = None,
    keep_source: bool = False,
    baseline: bool = False,
    seed: int = 0,
) -> Recipe:
    """The recipe of the job; arguments as for `adapt`."""
    if minutes <= 0:
        raise ConfigError(f"--minutes {minutes:g}: a budget of training time is more than 0")
    if test_bytes < 1_000:
        raise ConfigError(f"--test-bytes {test_bytes}: nothing can be said from less than 1,000")
    target, known = Language.parse(to), Language.parse(source)
    if target == known:
        raise ConfigError(f"--to and --source are both {target.code}: there is nothing to carry over")
    if replay and not (source_text or parallel):
        raise ConfigError("--replay needs text in the source language: give --source-text or --parallel")
    model, text = _fixed(model) or model, _fixed(text) or text
    parallel, source_text = _fixed(parallel), _fixed(source_text)
    rehearsal = source_text or parallel
    if replay is None:
        replay = (KEEP_REPLAY if keep_source else REPLAY) if rehearsal else 0.0
    steps = _texts(target, known, text, parallel, source_text)
    scored = {"heldout": "heldout", **({"source": "source_heldout"} if rehearsal else {})}
    for name, ref in (tests or {}).items():
        language, equals, path = ref.rpartition("=")
        key = f"test_{name}"
        code = Language.parse(language).code if equals else None
        steps[key] = _read(_fixed(path), language=code or target.code)
        scored[name] = key
    steps |= _vocabulary(model, parallel, {**TOKENIZER, "keep": KEEP_ALL} if keep_source else TOKENIZER)
    steps["trained"] = _train("start", "all", minutes, replay, RATES)
    systems = {"base": model, "start": "start", "adapted": "trained"}
    if baseline:
        steps |= _baselines(model, minutes, replay)
        systems |= {"mean start": "mean_start", "random start": "random_start"}
        systems |= {"LoRA, old vocabulary": "old_lora", "full, old vocabulary": "old_full"}
    steps |= _measuring(model, systems, scored, test_bytes)
    return Recipe.parse(
        {
            "title": f"{Path(model).name} carried over into {target.name}",
            "seed": seed,
            "about": {"language": target.code, "source_language": known.code, "model": model},
            "steps": steps,
            "product": "trained",
        },
        "adapt",
    )


def _step(do: str, of: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One step; material and settings that are None are left to their defaults."""
    kept = {name: value for name, value in (settings or {}).items() if value is not None}
    return {"do": do, "of": {n: v for n, v in of.items() if v is not None}, "with": kept}


def _read(source: str | None, *, without: str | None = None, **settings: Any) -> dict[str, Any]:
    return _step("data/corpus", {"source": source, "without": without}, settings)


def _texts(
    target: Language, known: Language, text: str | None, parallel: str | None, source_text: str | None
) -> dict[str, Any]:
    """Training and held-out text of both languages; nothing held out is in what anything learns from."""
    heldout = {"language": target.code, "part": "heldout"}
    steps = {
        "heldout": _read(text, **heldout),
        "text": _read(text, without="heldout", language=target.code, part="train"),
    }
    if parallel:
        steps["parallel"] = _read(parallel, without="heldout", language=known.code, to=target.code)
    if source_text or parallel:
        side = {"language": known.code} if source_text else {"language": known.code, "to": target.code}
        side |= {} if source_text else {"only": known.code}
        rehearsal = source_text or parallel
        steps["source_heldout"] = _read(rehearsal, **side, part="heldout")
        steps["replay"] = _read(rehearsal, **side, part="train")
    return steps


def _vocabulary(model: str, parallel: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The new tokenizer, the map from its tokens to the old ones, and the model with it, untrained."""
    steps = {"tokenizer": _step("vocab/tokenizer", {"base": model, "text": "text"}, settings)}
    if parallel:
        steps["lexicon"] = _step("data/align", {"corpus": "parallel"})
        of = {"source": model, "target": "tokenizer", "evidence": "lexicon"}
        steps["map"] = _step("vocab/transtoken", of, TRANSLATIONS)
    else:
        say("no parallel text: new tokens start from the pieces the old tokenizer cuts them into")
        steps["map"] = _step("vocab/subword", {"source": model, "target": "tokenizer"}, PIECES)
    steps["transplanted"] = _transplant(model, "map")
    of = {"base": "transplanted", "map": "map", "text": "text"}
    return {**steps, "start": _step("merge/calibrate", of)}


def _transplant(model: str, name: str) -> dict[str, Any]:
    return _step("merge/transplant", {"base": model, "map": name, "tokenizer": "tokenizer", "text": "text"})


def _train(
    model: str, part: str, minutes: float, replay: float, rates: Mapping[str, Any], text: str = "text"
) -> dict[str, Any]:
    of = {"model": model, "text": text, "replay": "replay" if replay else None}
    return _step("train/lm", of, {"part": part, "minutes": minutes, "replay_share": replay or None, **rates})


def _baselines(model: str, minutes: float, replay: float) -> dict[str, Any]:
    """What the same minutes give without a new vocabulary, and what other starts give without training."""
    steps = {
        "old_lora": _train(model, "lora", minutes, replay, OLD_LORA),
        "old_full": _train(model, "all", minutes, replay, OLD_FULL),
    }
    for name in ("mean", "random"):
        steps[f"{name}_map"] = _step(f"vocab/{name}", {"source": model, "target": "tokenizer"})
        steps[f"{name}_start"] = _transplant(model, f"{name}_map")
    return steps


def _measuring(
    model: str, systems: Mapping[str, str], scored: Mapping[str, str], test_bytes: int
) -> dict[str, Any]:
    """Bits per byte, floors, tokenization, and samples with the time they take."""
    budget = {"max_bytes": test_bytes}
    both = {"base": model, "adapted": "tokenizer"}
    held = {"heldout": "heldout"}
    return {
        "scores": _step("evaluate/lm", {"systems": systems, "texts": scored}, budget),
        "floors": _step(
            "evaluate/floors",
            {"texts": scored, "training": "text", "tokenizers": both},
            {**budget, "compressors": ["zstd"]},  # xz compresses the whole text anew for each document
        ),
        "tokenization": _step("evaluate/tokenization", {"tokenizers": both, "texts": scored}, budget),
        "generation": _step(
            "evaluate/generation", {"systems": {n: systems[n] for n in both}, "texts": held}, WRITING
        ),
    }


def _fixed(ref: str | None) -> str | None:
    """A reference that means the same from any folder: paths made absolute, each of a Moses pair."""
    if ref is None:
        return None
    parts = ref.split(",")
    if all(Path(part).exists() for part in parts):
        return ",".join(str(Path(part).resolve()) for part in parts)
    return ref


def _refuse_another_job(recipe: Recipe, out: Path) -> None:
    """A folder that holds the run of another job is left as it is; the same job goes on there."""
    file = out / "recipe.yaml"
    if not file.exists():
        return
    old, new = Recipe.read(file).plain(), recipe.plain()
    if old != new:
        changed = ", ".join(_differences(old, new)) or "order of steps"
        raise ConfigError(
            f"{out} holds another run (differs in {changed}); give another -o, or run its edited recipe "
            f"with: calque run {file}"
        )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Paths at which two plain recipes differ, at most five."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        found = [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}".lstrip("."))]
        return found[:5]
    return [] if old == new else [path]
