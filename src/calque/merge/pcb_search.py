"""The scales of a PCB merge, found by evolution on validation texts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Interval

from calque.data.corpus import Corpus
from calque.disk import new_folder, read_json, write_json
from calque.errors import ConfigError, MissingExtra
from calque.merge.execute import write_tensors
from calque.merge.inputs import Inputs, Vocabulary, line_up
from calque.merge.journal import Journal
from calque.merge.linear import linear_row
from calque.merge.pcb import Contest, Inter, sum_of_shares
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.validation import bits_per_byte, score
from calque.model.checkpoint import Checkpoint
from calque.model.files import CONFIG
from calque.progress import say

Proposals = Generator[Sequence[float], float, None]
_SPREAD = 0.25  # first steps of the search, as a share of the range


def pcb_search(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    texts: Mapping[str, Corpus],
    *,
    work: Path,
    evaluations: Annotated[int, Ge(1)] = 40,
    lowest: Annotated[float, Interval(ge=0)] = 0.5,
    highest: Annotated[float, Interval(gt=0)] = 3.0,
    start: Annotated[float, Interval(gt=0)] = 1.0,
    max_bytes: Annotated[int, Ge(1)] | None = 8_000,
    keep: Annotated[float, Interval(gt=0, le=1)] = 0.1,
    clamp: Annotated[float, Interval(ge=0, lt=0.5)] = 1e-4,
    inter: Inter = "tanh",
    seed: Annotated[int, Ge(0)] = 0,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Search one scale per model for a PCB merge, without gradients, on validation texts.

    The score of a set of scales is the mean over the texts of log2(bits per byte / that of the base). Weights
    and clamped changes are computed once and kept as one checkpoint of shares per model; a candidate is then
    base + sum_i scale_i share_i. CMA-ES proposes candidates for several models; for a single one the range is
    narrowed by golden sections.

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge.
        texts: Validation texts by name, one for each thing the merge shall be good at; never those a result
            is reported on.
        work: Folder for the shares, the scores and one candidate at a time.
        evaluations: Candidates tried at most, the start included.
        lowest: Least scale.
        highest: Greatest scale.
        start: Scale of every model in the first candidate.
        max_bytes: Bytes read of each text.
        keep: As in pcb.
        clamp: As in pcb.
        inter: As in pcb.
        seed: Of the search.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite with the best scales found; its notes hold the curve: every candidate and its scores.

    Paper: Du et al. 2024, NeurIPS, arXiv:2410.02396 (there with nevergrad).

    Raises:
        ConfigError: No text, or a start outside the range.
        MissingExtra: cma is not installed and there are several models.

    Relations:
        With evaluations=1 the start is taken: the result is that of pcb with these scales. No candidate of
        the curve has a lower score than the one returned.
    """
    if not texts:
        raise ConfigError("no validation text; give at least one as NAME=REFERENCE")
    if not lowest <= start <= highest:
        raise ConfigError(f"start {start} lies outside the scales from {lowest} to {highest}")
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    contest = Contest(inputs, keep, clamp, inter)
    for one in contest.passes:
        one.run()
    trial = _Trial(inputs, _shares(contest, work / "shares"), texts, work, max_bytes)
    best = minimize(trial.score, [start] * len(tuned), (lowest, highest), evaluations, seed)
    shutil.rmtree(work / "shares")
    notes = {
        "method": "pcb_search", "keep": keep, "clamp": clamp, "inter": inter, "scales": best,
        "limits": contest.found, "search": {"base": trial.floor, "curve": trial.curve},
    }  # fmt: skip
    return inputs.rewrite(contest.rows(lambda parts: sum_of_shares(parts, best)), notes=notes)


def minimize(
    function: Callable[[Sequence[float]], float],
    start: Sequence[float],
    limits: tuple[float, float],
    evaluations: int,
    seed: int,
) -> list[float]:
    """The best of at most `evaluations` points tried, the start first; all coordinates between the limits.

    Raises:
        MissingExtra: cma is not installed, and there are several coordinates.
    """
    tried: list[tuple[float, list[float]]] = []

    def value(point: Sequence[float]) -> float:
        found = [float(np.clip(x, *limits)) for x in point]
        tried.append((function(found), found))
        return tried[-1][0]

    value(start)
    proposals = _evolution(start, limits, seed) if len(start) > 1 else _sections(limits)
    point = next(proposals) if evaluations > 1 else start
    while len(tried) < evaluations:
        point = proposals.send(value(point))
    return min(tried)[1]


def _evolution(start: Sequence[float], limits: tuple[float, float], seed: int) -> Proposals:
    """Points of CMA-ES; each wants its value sent back."""
    try:
        import cma
    except ImportError:
        raise MissingExtra("cma", "search", "searching several scales") from None
    draws = np.random.default_rng(seed)
    settings = {
        "bounds": list(limits), "verbose": -9, "seed": float("nan"),
        "randn": lambda *shape: draws.standard_normal(shape),
    }  # fmt: skip
    strategy: Any = cma.CMAEvolutionStrategy(list(start), _SPREAD * (limits[1] - limits[0]), settings)
    while True:
        points = strategy.ask()
        values = []
        for point in points:
            values.append((yield point))
        strategy.tell(points, values)


def _sections(limits: tuple[float, float]) -> Proposals:
    """Golden sections of the range; each point wants its value sent back."""
    ratio = (math.sqrt(5) - 1) / 2
    low, high = limits
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = (yield [left]), (yield [right])
    while True:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = yield [left]
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = yield [right]


def _shares(contest: Contest, work: Path) -> list[Checkpoint]:
    """Each model's share of the merged task vector as a float32 checkpoint; a killed call's are made anew."""
    shutil.rmtree(work, ignore_errors=True)
    made = []
    for model in range(len(contest.inputs.tuned)):
        folder = work / str(model)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as part:
            rows = contest.share_rows(model)
            write_tensors(rows, Journal(part, None, {}), f"share of model {model + 1}", counts={}, tables={})
            shutil.copyfile(contest.inputs.base.folder / CONFIG, part / CONFIG)
        made.append(Checkpoint.at(folder))
    return made


class _Trial:
    """Writes a candidate, scores it, removes it; what was scored before a kill is not scored again."""

    def __init__(
        self,
        inputs: Inputs,
        shares: Sequence[Checkpoint],
        texts: Mapping[str, Corpus],
        work: Path,
        max_bytes: int | None,
    ) -> None:
        self.inputs, self.shares, self.texts = inputs, shares, texts
        self.work, self.max_bytes = work, max_bytes
        file = work / "scores.json"
        self.known: dict[str, dict[str, float]] = read_json(file) if file.is_file() else {}
        self.curve: list[dict[str, Any]] = []
        self.floor = self._bits("base", lambda: inputs.base)

    def score(self, scales: Sequence[float]) -> float:
        found = self._bits(repr(list(scales)), lambda: self._candidate(scales))
        value = score(found, self.floor)
        self.curve.append({"scales": list(scales), "score": value, "bits_per_byte": found})
        tried = f"candidate {len(self.curve)}: scales {', '.join(f'{s:.3f}' for s in scales)}"
        say(f"{tried}: {2**value:.4f} times the base's bits per byte")
        return value

    def _bits(self, key: str, make: Callable[[], Checkpoint]) -> dict[str, float]:
        if key not in self.known:
            self.known[key] = bits_per_byte(make(), self.texts, self.max_bytes)
            write_json(self.work / "scores.json", self.known)
        shutil.rmtree(self.work / "candidate", ignore_errors=True)
        return self.known[key]

    def _candidate(self, scales: Sequence[float]) -> Checkpoint:
        return self.inputs.rewrite([self._row(name, scales) for name in self.inputs.names]).write(
            self.work / "candidate"
        )

    def _row(self, name: str, scales: Sequence[float]) -> Row:
        base = self.inputs.sources(name)[0]
        sources = (base, *(Source(share, name) for share in self.shares))
        return linear_row(name, base.info.dtype, sources, [1.0, *scales])
