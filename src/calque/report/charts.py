"""Charts as inline SVG that takes its colours from the page, so that one drawing serves light and dark.

Matplotlib draws with stand-in colours; each is then replaced by a CSS variable. Text stays text. Every chart
is drawn twice, for wide and for narrow screens: a drawing that is merely scaled down can not be read.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from calque.stats import Estimate

# Stand-in colour -> CSS variable of report.css.
_INK, _SOFT, _LINE, _PAPER = "#010203", "#010204", "#010205", "#010206"
_ROLES = {
    "base": "#010207",
    "product": "#010208",
    "other": "#010209",
    "floor": "#01020a",
    "third": "#01020b",
    "fourth": "#01020c",
}
_VARIABLES = {_INK: "ink", _SOFT: "soft", _LINE: "line", _PAPER: "card"} | {
    colour: role for role, colour in _ROLES.items()
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "calque",
    "font.size": 12.5,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}
_DPI = 72.0  # so that one unit of the drawing is one pixel of the page
FULL, WIDE, NARROW = 1040.0, 760.0, 350.0
_BINS = 60
_FEW_BATCHES = 400  # fewer are shown one by one, more as a band


@dataclass(frozen=True)
class Mark:
    """One line of a forest chart."""

    label: str
    estimate: Estimate
    role: str


@dataclass(frozen=True)
class Panel:
    """One text of a forest chart."""

    title: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Series:
    """One learning curve: bits per byte of batches of so many bytes, at so many minutes."""

    label: str
    role: str
    minutes: np.ndarray
    bits: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Curve:
    """A search: the score of each candidate in turn (1: as the base; lower is better), which was taken."""

    times: tuple[float, ...]
    taken: int
    label: str


def both(draw: Any, content: Any, name: str, description: str, wide: float = WIDE) -> Markup:
    """A chart for wide and for narrow screens; the page shows one of them.

    Args:
        draw: `forest`, `differences`, `curves` or `search`.
        content: What it draws.
        name: Beginning of every id in the drawing; unique on the page.
        description: What a reader who does not see the chart is told.
        wide: Width of the wide drawing in pixels.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():  # pyright: ignore
        # Labels may be in any script; the browser has the letters even where matplotlib's own font has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        parts = [
            _svg(draw(content, width), f"{name}-{kind}", description, kind)
            for kind, width in (("wide", wide), ("narrow", NARROW))
        ]
    return Markup("").join(parts)


def forest(panels: Sequence[Panel], width: float) -> Figure:
    """Dots with intervals: a row for each system, a panel for each text; side by side where there is room."""
    narrow = width == NARROW
    labels = list(dict.fromkeys(mark.label for panel in panels for mark in panel.marks))
    columns = 1 if narrow else 2 if len(panels) == 4 else min(len(panels), 3)
    lines = -(-len(panels) // columns)
    row, head, foot = (38.0, 34.0, 34.0) if narrow else (27.0, 34.0, 34.0)
    height = lines * (head + row * len(labels) + foot)
    margin = 0.0 if narrow else min(220.0, 24.0 + 7.2 * max(map(len, labels)))
    figure = _figure(width, height)
    low, high = _range(panels)
    for index, panel in enumerate(panels):
        line, column = divmod(index, columns)
        room = (width - margin) / columns
        left = margin + column * room
        top = height - line * (head + row * len(labels) + foot) - head
        beside = 52.0 if narrow else 76.0
        box = (left, top - row * len(labels), room - beside, row * len(labels))
        axes: Any = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        axes.set_xlim(low, high)
        _panel(axes, panel, labels, narrow, column == 0)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return figure


def _panel(axes: Any, panel: Panel, labels: Sequence[str], narrow: bool, first: bool) -> None:
    axes.set_title(panel.title, loc="left", fontsize=13, fontweight="bold", pad=12)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="both", length=0, labelsize=11.5)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(labels)), labels if first and not narrow else [""] * len(labels))
    main = {mark.label for mark in panel.marks if mark.role == "product"}
    for text in axes.get_yticklabels():
        text.set_color(_INK)
        text.set_fontweight("bold" if text.get_text() in main else "normal")
        text.set_fontsize(12.5)
        text.set_horizontalalignment("right")
    for mark in panel.marks:
        place = labels.index(mark.label)
        colour, filled = _ROLES[mark.role], mark.role != "floor"
        e = mark.estimate
        edge = axes.get_xlim()[1]
        if np.isfinite(e.low) and e.value <= edge:
            axes.plot([e.low, e.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        face, shape = (colour if filled else _PAPER), ("o" if e.value <= edge else ">")
        axes.plot(
            [min(e.value, edge)],
            [place],
            shape,
            markersize=7.5,
            color=colour,
            mfc=face,
            mew=1.8,
            clip_on=False,
        )
        bold = "bold" if mark.role == "product" else "normal"
        axes.annotate(
            f"{e.value:.2f}", (1, place), (48, 0), xycoords=("axes fraction", "data"), fontweight=bold,
            textcoords="offset points", ha="right", va="center", annotation_clip=False,
        )  # fmt: skip
        if narrow:
            axes.annotate(
                mark.label, (0, place), (0, 13), xycoords=("axes fraction", "data"), color=_INK,
                textcoords="offset points", ha="left", va="center", annotation_clip=False, fontweight=bold,
            )  # fmt: skip


def _range(panels: Sequence[Panel]) -> tuple[float, float]:
    """One axis for all panels, as far as the base and the product go; what lies far out gets an arrow."""
    marks = [mark for panel in panels for mark in panel.marks]
    ends = [mark.estimate.value for mark in marks if mark.role in ("base", "product")]
    values = [mark.estimate.value for mark in marks]
    low, high = min(values), min(max(values), 1.2 * max(ends or values))
    room = 0.08 * (high - low) or 0.5
    return max(0.0, low - room), high + room


def differences(panels: Sequence[Panel], width: float) -> Figure:
    """Differences with intervals around a line at zero: a row for each mark, a panel below the other."""
    narrow = width == NARROW
    row, head, foot = (36.0, 36.0, 32.0) if narrow else (25.0, 36.0, 32.0)
    counts = [len(panel.marks) for panel in panels]
    height = sum(head + row * count + foot for count in counts)
    longest = max(len(mark.label) for panel in panels for mark in panel.marks)
    margin = 4.0 if narrow else min(300.0, 24.0 + 7.2 * longest)
    figure, top = _figure(width, height), height
    for panel, count in zip(panels, counts, strict=True):
        box = (margin, top - head - row * count, width - margin - 76.0, row * count)
        top -= head + row * count + foot
        axes: Any = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        ends = [v for m in panel.marks for v in (m.estimate.low, m.estimate.value, m.estimate.high)]
        far = 1.08 * max((abs(v) for v in ends if np.isfinite(v)), default=1.0) or 1.0
        axes.set_xlim(-far, far)
        axes.set_title(panel.title, loc="left", fontsize=13, fontweight="bold", pad=12)
        axes.set_ylim(count - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="both", length=0, labelsize=11.5)
        axes.grid(axis="x", color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.axvline(0, color=_SOFT, linewidth=1.2)
        axes.set_yticks(range(count), [""] * count if narrow else [mark.label for mark in panel.marks])
        for place, mark in enumerate(panel.marks):
            _difference(axes, mark, place, narrow)
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
    return figure


def _difference(axes: Any, mark: Mark, place: int, narrow: bool) -> None:
    e, colour = mark.estimate, _ROLES[mark.role]
    if np.isfinite(e.low):
        axes.plot([e.low, e.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
    face = _PAPER if mark.role == "base" else colour
    axes.plot([e.value], [place], "o", markersize=7.5, color=colour, mfc=face, mew=1.8, clip_on=False)
    axes.annotate(
        f"{e.value:+.3f}", (1, place), (66, 0), xycoords=("axes fraction", "data"), color=_INK,
        textcoords="offset points", ha="right", va="center", annotation_clip=False,
    )  # fmt: skip
    if narrow:
        axes.annotate(
            mark.label, (0, place), (0, 13), xycoords=("axes fraction", "data"), color=_INK,
            textcoords="offset points", ha="left", va="center", annotation_clip=False,
        )  # fmt: skip


def curves(series: Sequence[Series], width: float) -> Figure:
    """Bits per byte of the training batches against minutes: means over stretches, and their spread."""
    height = 320.0 if width > NARROW else 270.0
    figure = _figure(width, height)
    axes: Any = figure.add_axes((44 / width, 46 / height, 1 - 60 / width, 1 - 62 / height))
    for number, line in enumerate(series):
        minutes, middle, low, high = _binned(line)
        colour = _ROLES[line.role]
        if len(line.minutes) < _FEW_BATCHES:
            axes.plot(line.minutes, line.bits, "o", color=colour, alpha=0.35, markersize=4.5, mew=0)
        else:
            axes.fill_between(minutes, low, high, color=colour, alpha=0.16, linewidth=0)
        dashes = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)))[number % 4]
        axes.plot(minutes, middle, color=colour, linewidth=2.2, linestyle=dashes)
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("bits per byte of the training text", labelpad=8)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelsize=11.5)
    axes.xaxis.set_major_locator(MaxNLocator(8 if width > NARROW else 5))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure


def _binned(line: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Minutes, mean bits per byte and the 10th and 90th percentile in stretches of equal time."""
    count = min(_BINS, max(4, len(line.minutes) // 4))
    edges = np.linspace(0, float(line.minutes.max()) + 1e-9, count + 1)
    stretch = np.digitize(line.minutes, edges) - 1
    found = [
        (
            np.average(line.minutes[here], weights=line.weight[here]),
            np.average(line.bits[here], weights=line.weight[here]),
            *np.quantile(line.bits[here], [0.1, 0.9]),
        )
        for here in (np.flatnonzero(stretch == index) for index in range(len(edges) - 1))
        if len(here)
    ]
    minutes, middle, low, high = np.array(found).T
    return minutes, middle, low, high


def search(curve: Curve, width: float) -> Figure:
    """The candidates of a search as dots, the best so far as a line, the one that was taken in a ring."""
    height = 320.0 if width > NARROW else 280.0
    figure = _figure(width, height)
    axes: Any = figure.add_axes((52 / width, 46 / height, 1 - 68 / width, 1 - 62 / height))
    times = np.array(curve.times)
    place = np.arange(1, len(times) + 1)
    low, high = _band(times)
    shown, far = np.minimum(times, high), times > high
    axes.step(place, np.minimum.accumulate(shown), where="post", color=_ROLES["product"], linewidth=2.2)
    axes.plot(place[~far], shown[~far], "o", color=_ROLES["other"], markersize=6, mew=0)
    axes.plot(place[far], shown[far], "^", color=_ROLES["other"], markersize=7, mew=0, clip_on=False)
    if low <= 1 <= high:
        axes.axhline(1, color=_ROLES["base"], linewidth=1.4, linestyle=(0, (5, 3)))
    taken = (curve.taken + 1, shown[curve.taken])
    axes.plot(*taken, "o", color=_ROLES["product"], markersize=13, mfc="none", mew=2.2)
    right = curve.taken >= len(times) / 2
    axes.annotate(
        curve.label, taken, (-12 if right else 12, -15), textcoords="offset points", fontweight="bold",
        ha="right" if right else "left", va="center", annotation_clip=False,
    )  # fmt: skip
    axes.set_xlim(0.5, len(times) + 0.5)
    axes.set_ylim(low, high)
    axes.set_xlabel("candidate")
    axes.set_ylabel("bits per byte, times the base's", labelpad=8)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelsize=11.5)
    axes.xaxis.set_major_locator(MaxNLocator(12 if width > NARROW else 6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure


def _band(times: np.ndarray) -> tuple[float, float]:
    """Which scores to show: the base's, unless the candidates lie far from it; ruined ones get an arrow."""
    low, high = float(times.min()), float(np.quantile(times, 0.75))
    high = max(high, min(float(times.max()), low + 3 * (high - low)))
    if abs(1 - low) < 5 * max(high - low, 1e-3):
        low, high = min(low, 1.0), max(high, 1.0)
    room = 0.14 * (high - low) or 0.01
    return low - room, high + room


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)


def _svg(figure: Figure, name: str, description: str, kind: str) -> Markup:
    """The figure as an SVG element with its own ids, the page's font and the page's colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1inherit", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    head = re.match(r"<svg[^>]*>", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    if head is None or box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    opened = (
        f'<svg class="chart {kind}" viewBox="{box[1]}" role="img" aria-label="{escape(description)}" '
        'preserveAspectRatio="xMinYMin meet" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(opened + text[head.end() :])
