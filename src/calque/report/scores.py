"""The scores in a report: headline figures, every system on every text, and what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from calque.errors import ConfigError
from calque.evaluate.table import Table
from calque.language import Language
from calque.report import charts
from calque.report.run import Run
from calque.stats import Estimate


@dataclass(frozen=True)
class Text:
    """A scored text in one language: what it is called, and where its rows are."""

    name: str
    language: str

    @property
    def title(self) -> str:
        """As the page names it: "Chichewa, heldout"; the language alone where the text has no other name."""
        language, name = language_name(self.language), self.name.replace("_", " ")
        return language if name.lower() == language.lower() else f"{language}, {name}"


@dataclass(frozen=True)
class Measure:
    """A ratio of two metrics of one kind of rows, as the page calls it."""

    kind: str
    above: str
    below: str
    name: str
    unit: str = ""
    scale: float = 1.0


BITS = Measure("lm", "bits", "bytes", "bits per byte")
PIECES = Measure("tokenization", "tokens", "words", "pieces per word")
SECONDS = Measure("generation", "seconds", "characters", "to write 1,000 characters", "s", 1000.0)


@dataclass(frozen=True)
class Figure:
    """A headline figure: before, after, and how many times the one the other is."""

    title: str
    measure: Measure
    before: Estimate
    after: Estimate
    times: Estimate

    @property
    def verdict(self) -> str:
        """Better, worse, or neither; every headline figure is better when it is lower."""
        if np.isnan(self.times.low):
            return "better" if self.times.value < 1 else "worse" if self.times.value > 1 else "same"
        if self.times.high < 1:
            return "better"
        return "worse" if self.times.low > 1 else "same"


def language_name(code: str) -> str:
    """Name of a language code; the code itself where it is none."""
    try:
        return Language(code).name
    except ConfigError:
        return code


def texts(table: Table, kind: str) -> list[Text]:
    """The texts that have rows of one kind ("lm", "tokenization", "generation"), in order."""
    pairs = ((row["task"], row["language"]) for row in table.rows() if row["task"].startswith(f"{kind}/"))
    return [Text(task.partition("/")[2], language) for task, language in dict.fromkeys(pairs)]


def part(table: Table, kind: str, text: Text) -> Table:
    """The rows of one text."""
    return table.where(task=f"{kind}/{text.name}", language=text.language)


def headline(run: Run) -> list[Figure] | None:
    """Bits per byte of every text, the target language first; then pieces per word and writing time."""
    base, product, target = run.base, run.product, run.about.get("language")
    if not base or not product:
        return None
    scored = sorted(texts(run.table, "lm"), key=lambda text: text.language != target)
    figures = [_figure(run, text, base, product, BITS) for text in scored]
    for measure in (PIECES, SECONDS):
        known = texts(run.table, measure.kind)
        wanted = [text for text in known if text.language == target] or known
        figures += [_figure(run, text, base, product, measure) for text in wanted[:1]]
    return [figure for figure in figures if figure] or None


def _figure(run: Run, text: Text, base: str, product: str, measure: Measure) -> Figure | None:
    above, below = measure.above, measure.below
    rows = part(run.table, measure.kind, text).where(metric=(above, below), system=(base, product))
    if len(rows.values("system")) < 2:
        return None
    found = {
        a.group["system"]: _scaled(a.estimate, measure.scale)
        for a in rows.measure(f"{above}/{below}", ("system",))
    }
    times = next(iter(rows.compare(base, f"{above}/{below}", ()))).estimate
    return Figure(text.title, measure, found[base], found[product], times)


def _scaled(e: Estimate, scale: float) -> Estimate:
    return Estimate(e.value * scale, e.low * scale, e.high * scale, e.units, e.p)


@dataclass(frozen=True)
class Scores:
    """Bits per byte of every system on every text: a chart, and the same numbers as a table."""

    chart: Markup
    texts: tuple[tuple[Text, int, float], ...]
    rows: tuple[tuple[str, str, tuple[tuple[Estimate, Estimate | None] | None, ...]], ...]


def scores(run: Run) -> Scores | None:
    """All systems and floors on all texts."""
    known = texts(run.table, "lm")
    if not known:
        return None
    cells: dict[str, dict[Text, tuple[Estimate, Estimate | None]]] = {}
    sizes, base = [], run.base
    for text in known:
        rows = part(run.table, "lm", text).where(metric=("bits", "bytes"))
        times = {}
        if base in rows.values("system"):
            times = {a.group["system"]: a.estimate for a in rows.compare(base, "bits/bytes", ())}
        for entry in rows.measure("bits/bytes", ("system",)):
            system = entry.group["system"]
            cells.setdefault(system, {})[text] = (entry.estimate, times.get(system))
        one = rows.where(system=rows.values("system")[0], metric="bytes")
        sizes.append((text, len(one), sum(row["value"] for row in one.rows()) / 1000))
    panels = [
        charts.Panel(
            text.title,
            tuple(charts.Mark(s, line[text][0], role(run, s)) for s, line in cells.items() if text in line),
        )
        for text in known
    ]
    told = "Bits per byte with 95 % intervals; the numbers are in the table below."
    chart = charts.both(charts.forest, panels, "scores", told, charts.FULL)
    rows = tuple((s, role(run, s), tuple(line.get(text) for text in known)) for s, line in cells.items())
    return Scores(chart, tuple(sizes), rows)


def role(run: Run, system: str) -> str:
    """How a system is drawn."""
    if system not in run.systems:
        return "floor"
    return {run.base: "base", run.product: "product"}.get(system, "other")


def forgetting(run: Run) -> list[tuple[Text, str, Estimate, Estimate | None]] | None:
    """Bits per byte in the source language, and how many times the untouched base's they are."""
    source, base = run.about.get("source_language"), run.base
    rows = []
    for text in texts(run.table, "lm"):
        if text.language != source:
            continue
        here = part(run.table, "lm", text).where(system=run.systems, metric=("bits", "bytes"))
        times: dict[str, Estimate] = {}
        if base in here.values("system"):
            times = {a.group["system"]: a.estimate for a in here.compare(base, "bits/bytes", ())}
        for entry in here.measure("bits/bytes", ("system",)):
            system = entry.group["system"]
            rows.append((text, system, entry.estimate, times.get(system)))
    return rows or None
