"""The other sections of a report, as plain data; a section that the run has nothing for is None."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from calque.report import charts
from calque.report.merges import merges
from calque.report.run import Origin, Run, Step, log, origins
from calque.report.scores import Text, forgetting, headline, part, scores, texts
from calque.report.searches import searches

_TOKENS_SHOWN, _SOURCES_SHOWN, _SENTENCES_SHOWN = 14, 4, 4


@dataclass(frozen=True)
class Curves:
    """Learning curves; legend: name, colour role, minutes, steps, bits per byte at the end."""

    chart: Markup
    legend: tuple[tuple[str, str, float, int, float], ...]


def curves(run: Run) -> Curves | None:
    """Bits per byte of the training batches, for each training step that has a log."""
    wanted = run.recipe.get("product")
    called = {made: system for system, made in run.references().items()}
    palette = iter(("other", "third", "fourth", "base", *["other"] * 99))
    series, legend = [], []
    for step in run.by_family("train/"):
        if not (step.folder / "log.jsonl").is_file():
            continue
        lines = [line for line in log(step) if isinstance(line.get("bits_per_byte"), int | float)]
        if not lines:
            continue
        numbers = np.array(
            [[line["minutes"], line["bits_per_byte"], line.get("bytes") or 1] for line in lines]
        )
        minutes, bits, weight = numbers.T
        colour = "product" if step.name == wanted else next(palette)
        name = called.get(step.name, step.name)
        series.append(charts.Series(name, colour, minutes, bits, weight))
        tail = slice(-max(1, len(bits) // 20), None)
        last = float(np.average(bits[tail], weights=weight[tail]))
        legend.append((name, colour, float(minutes[-1]), len(lines), last))
    if not series:
        return None
    told = "Learning curves: " + "; ".join(f"{name} ends at {end:.2f}" for name, _, _, _, end in legend)
    return Curves(charts.both(charts.curves, series, "curves", told), tuple(legend))


@dataclass(frozen=True)
class Cut:
    """How tokenizers serve the texts, and the same sentences cut up by each."""

    rows: tuple[tuple[str, str, Mapping[str, float]], ...]
    examples: tuple[tuple[Text, tuple[tuple[str, list[tuple[str, str]]], ...]], ...]


def cut(run: Run) -> Cut | None:
    """Fertility and its like for each text and tokenizer, and example sentences in pieces."""
    rows, examples = [], []
    for text in texts(run.table, "tokenization"):
        here = part(run.table, "tokenization", text)
        for system in here.values("system"):
            sums = Counter[str]()
            for row in here.where(system=system).rows():
                sums[row["metric"]] += row["value"]
            rows.append((text.title, system, _shares(sums)))
        pieces = here.where(metric="pieces")
        for item in pieces.values("item"):
            lines = pieces.where(item=item).rows()
            shown = tuple((row["system"], list(_pieces(row["output"]))) for row in lines)
            examples.append((item, text.language != run.about.get("language"), text, shown))
    examples.sort(key=lambda example: example[:2])
    return Cut(tuple(rows), tuple(example[2:] for example in examples[:_SENTENCES_SHOWN])) if rows else None


def _shares(sums: Mapping[str, float]) -> dict[str, float]:
    words, nbytes = max(1, sums["words"]), max(1, sums["bytes"])
    return {
        "pieces per word": sums["tokens"] / words,
        "bytes per piece": nbytes / max(1, sums["tokens"]),
        "words split": sums["split_words"] / words,
        "bytes in crumbs": sums["crumb_bytes"] / nbytes,
        "unknown": sums["unknown"] / max(1, sums["tokens"]),
        "characters covered": sums["covered_characters"] / max(1, sums["characters"]),
    }


def _pieces(output: str | None) -> Iterator[tuple[str, str]]:
    """(text, class) of each piece: four colours in turn, crumbs of characters marked."""
    for number, piece in enumerate(json.loads(output or "[]")):
        crumb = piece.startswith("<0x") and piece.endswith(">")
        yield piece, "crumb" if crumb else f"p{number % 4}"


@dataclass(frozen=True)
class Provenance:
    """What the rows of new tokens were made of: counts by method, and examples."""

    step: str
    do: str
    counts: tuple[tuple[str, int, float], ...]
    examples: tuple[Origin, ...]
    shown: int


def provenance(run: Run) -> Provenance | None:
    """The map from old to new vocabulary that the product was made with."""
    step = _map_step(run)
    if step is None:
        return None
    asked = list(dict.fromkeys(_asked(run)))
    found: dict[str, Origin] = {}
    others: list[Origin] = []
    counts = Counter[str]()
    wanted = set(asked)
    for origin in origins(step):
        counts[origin.method] += 1
        if _copied(origin):
            continue
        if origin.token in wanted:
            found[origin.token] = origin
        elif len(others) < _TOKENS_SHOWN and len(origin.sources) > 1 and len(origin.token) > 3:
            others.append(origin)
    total = max(1, counts.total())
    examples = [found[token] for token in asked if token in found]
    return Provenance(
        step.name,
        step.do,
        tuple((method, count, count / total) for method, count in counts.most_common()),
        tuple((examples + others)[:_TOKENS_SHOWN]),
        _SOURCES_SHOWN,
    )


def _copied(origin: Origin) -> bool:
    """Whether a row is one old row as it was, or nothing: not worth a line."""
    return not origin.sources or (len(origin.sources) == 1 and origin.sources[0][0] == origin.token)


def _asked(run: Run) -> Iterator[str]:
    """Pieces of the example sentences in the target language, as provenance.tsv spells them."""
    target = run.about.get("language")
    rows = run.table.where(metric="pieces", system=run.product)
    for row in (rows.where(language=target) if target else rows).rows():
        yield from (piece.replace(" ", "▁") for piece in json.loads(row["output"] or "[]"))


def _map_step(run: Run) -> Step | None:
    """The map among the product's ancestors, else the first one."""
    maps = [step for step in run.steps if (step.folder / "provenance.tsv").is_file()]
    by_name = {step.name: step for step in run.steps}
    seen, queue = set(), [run.recipe.get("product")]
    while queue:
        name = queue.pop()
        if name in by_name and name not in seen:
            seen.add(name)
            queue.extend(str(ref) for ref in (by_name[name].manifest.get("of") or {}).values())
    return next((step for step in maps if step.name in seen), maps[0] if maps else None)


@dataclass(frozen=True)
class Writing:
    """What the systems wrote, and how long that takes: samples side by side."""

    speed: tuple[tuple[str, str, float, float, float], ...]
    samples: tuple[tuple[Text, str, tuple[tuple[str, str, float], ...]], ...]


def writing(run: Run) -> Writing | None:
    """Tokens and seconds for 1,000 characters; samples after each prompt."""
    speed, samples = [], []
    for text in texts(run.table, "generation"):
        here = part(run.table, "generation", text)
        per_character = here.where(metric=("tokens", "seconds", "characters"))
        tokens = {
            a.group["system"]: a.estimate.value
            for a in per_character.measure("tokens/characters", ("system",))
        }
        seconds = {
            a.group["system"]: a.estimate.value
            for a in per_character.measure("seconds/characters", ("system",))
        }
        speed += [
            (text.title, s, 1000 * tokens[s], 1000 * seconds[s], 1000 * seconds[s] / tokens[s])
            for s in tokens
        ]
        for item in here.values("item"):
            rows = list(here.where(item=item).rows())
            prompts = [row["output"] for row in rows if row["metric"] == "prompt_characters"]
            repeated = {row["system"]: row["value"] for row in rows if row["metric"] == "repetition"}
            made = [row for row in rows if row["metric"] == "sample_characters"]
            if made:
                lines = tuple((row["system"], row["output"], repeated[row["system"]]) for row in made)
                samples.append((text, prompts[0], lines))
    return Writing(tuple(speed), tuple(samples)) if speed else None


@dataclass(frozen=True)
class Cost:
    """Where the time went: name, method, seconds, share of all, peak memory in MB."""

    steps: tuple[tuple[str, str, float, float, float | None], ...]
    seconds: float


def cost(run: Run) -> Cost | None:
    """Seconds and peak memory of each finished step."""
    timed = [step for step in run.steps if isinstance(step.manifest.get("seconds"), int | float)]
    total = sum(step.manifest["seconds"] for step in timed)
    if not timed:
        return None
    most = max(total, 1e-9)
    return Cost(
        tuple(
            (
                s.name,
                s.do,
                s.manifest["seconds"],
                s.manifest["seconds"] / most,
                s.manifest.get("peak_memory_mb"),
            )
            for s in timed
        ),
        total,
    )


def signatures(run: Run) -> list[tuple[str, Sequence[str]]]:
    """Every signature, with the tasks it belongs to."""
    found: dict[str, dict[str, None]] = {}
    for row in run.table.rows():
        found.setdefault(row["signature"], {})[f"{row['system']} on {row['task']}"] = None
    return [(made_by, list(tasks)) for made_by, tasks in found.items()]


def everything(run: Run) -> dict[str, Any]:
    """All sections by name."""
    return {
        "headline": headline(run),
        "scores": scores(run),
        "curves": curves(run),
        "cut": cut(run),
        "provenance": provenance(run),
        "writing": writing(run),
        "forgetting": forgetting(run),
        "searches": searches(run),
        "merges": merges(run),
        "cost": cost(run),
    }
