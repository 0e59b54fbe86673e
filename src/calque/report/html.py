"""The report of a run: one HTML file that opens anywhere, asks nothing of a network and runs no script."""

from __future__ import annotations

from pathlib import Path

from calque.evaluate.view import align
from calque.progress import clock
from calque.report import scores, sections
from calque.report.page import write_page
from calque.report.run import Run
from calque.stats import Estimate

# What the page asks run.json for; an unfinished run has none of it.
_ABOUT = ("started", "seconds", "peak_memory_mb", "machine", "versions", "command", "source_language")
# What a section is called when a run has nothing for it.
_ABSENT = {
    "headline": "before and after (no two systems scored on one text)",
    "scores": "bits per byte (no evaluate/lm step)",
    "curves": "learning curves (no training step with a log)",
    "cut": "how sentences are cut up (no evaluate/tokenization step)",
    "provenance": "where new tokens come from (no vocabulary map)",
    "writing": "samples and writing time (no evaluate/generation step)",
    "forgetting": "what was forgotten (no held-out text in the source language)",
    "cost": "where the time went (no finished step)",
}


def write_report(run: Path, file: Path) -> Path:
    """Write the report of a run folder, finished or not; sections without material are left out and named.

    Args:
        run: The run folder.
        file: The HTML file to write.

    Returns:
        `file`.

    Raises:
        DataError: `run` is no run folder, or one of its files is damaged.
    """
    found = Run.read(run)
    made = sections.everything(found)
    values = {
        "run": found,
        "about": {**dict.fromkeys(_ABOUT), **found.about},
        "title": title(found),
        "lede": lede(found, made["headline"] or []),
        "absent": [name for key, name in _ABSENT.items() if not made[key]],
        "signatures": sections.signatures(found),
        "language": scores.language_name,
        **made,
    }
    filters = {"clock": clock, "number": number, "interval": interval, "percent": percent}
    return write_page(file, "report.html", values, filters)


def summary(run: Path) -> str:
    """The run in a few lines for a terminal: bits per byte of every system on every text, pieces, seconds.

    Raises:
        DataError: As `write_report`.
    """
    found = Run.read(run)
    blocks = [title(found)]
    if scored := scores.scores(found):
        heads = ["bits per byte", *(text.title for text, _, _ in scored.texts)]
        lines = [[name, *(_cell(cell) for cell in cells)] for name, _, cells in scored.rows]
        blocks.append(align([heads, *lines]))
    others = [f for f in scores.headline(found) or [] if f.measure != scores.BITS]
    if others:
        lines = [
            [
                f"{f.measure.name} ({f.title})",
                *(f"{number(e.value)}{f.measure.unit}" for e in (f.before, f.after)),
                f"{number(f.times.value)}x",
            ]
            for f in others
        ]
        blocks.append(align([["", found.base, found.product, ""], *lines]))
    if found.missing:
        blocks.append(f"not finished: {', '.join(found.missing)}")
    return "\n\n".join(blocks)


def _cell(cell: tuple[Estimate, Estimate | None] | None) -> str:
    return cell[0].text(2) if cell else "-"


def title(run: Run) -> str:
    """What the run is called."""
    return str(run.about.get("title") or run.recipe.get("title") or run.folder.resolve().name)


def lede(run: Run, figures: list[scores.Figure]) -> str:
    """The run in one sentence, from the first figure of each kind; empty without figures."""
    first: dict[scores.Measure, scores.Figure] = {}
    for figure in figures:
        first.setdefault(figure.measure, figure)
    parts = []
    if bits := first.get(scores.BITS):
        parts.append(
            f"needs {number(bits.after.value)} bits for a byte of unseen text ({bits.title}) where the "
            f"untouched model needs {number(bits.before.value)}"
        )
    if cut := first.get(scores.PIECES):
        parts.append(
            f"cuts a word into {number(cut.after.value)} pieces instead of {number(cut.before.value)}"
        )
    if write := first.get(scores.SECONDS):
        parts.append(
            f"writes 1,000 characters in {number(write.after.value)} s "
            f"instead of {number(write.before.value)} s"
        )
    if not parts:
        return ""
    said = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"The adapted model {said}."


def number(value: float) -> str:
    """Three figures or so: 0.081, 2.13, 41.5, 1,204."""
    size = abs(value)
    digits = 3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{digits}f}"


def interval(e: Estimate) -> str:
    """The ends of an interval; one document has none."""
    return "one document" if e.low != e.low else f"{number(e.low)}–{number(e.high)}"


def percent(value: float) -> str:
    """A share as percent, small ones not rounded to nothing."""
    shown = 100 * value
    if 0 < shown < 0.1:
        return "< 0.1 %"
    return f"{shown:.0f} %" if shown >= 10 or shown == 0 else f"{shown:.1f} %"
