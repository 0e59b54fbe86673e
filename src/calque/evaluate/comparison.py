"""What comparing systems gave: a line for each system, task and language, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from calque import disk
from calque.errors import DataError
from calque.evaluate.view import align
from calque.stats import Estimate


@dataclass(frozen=True)
class Line:
    """One system against the baseline on one group of items that both have.

    Attributes:
        system: Which system.
        group: The columns it is grouped by with their values: task, language, ...
        measure: What is compared.
        better: Whether more or less of it is better.
        value: Of the system, on the common items.
        base: Of the baseline, on the same items.
        difference: value - base, with its interval and the p-value of "no difference".
        test: Which test the p-value is from.
        p_bonferroni: Adjusted over the languages and systems of its task and measure.
        p_holm: The same by Holm's method, which is never larger.
        detectable: The smallest true difference that would be found four times in five on these items.
        items: How many items both have.
        left_out: How many only one of them has.
    """

    system: str
    group: Mapping[str, str]
    measure: str
    better: Literal["higher", "lower"]
    value: float
    base: float
    difference: Estimate
    test: str
    p_bonferroni: float
    p_holm: float
    detectable: float
    items: int
    left_out: int

    @property
    def gain(self) -> float:
        """The difference, positive where the system is better."""
        return self.difference.value if self.better == "higher" else -self.difference.value

    def verdict(self, alpha: float) -> str:
        """better, worse, or unclear where the adjusted p-value (Holm) is not below alpha."""
        if self.p_holm >= alpha or self.gain == 0:
            return "unclear"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Macro:
    """One system against the baseline over the languages that all systems ran, each counting the same.

    Attributes:
        system: Which system.
        task: The task.
        measure: What is compared.
        better: Whether more or less of it is better.
        languages: Codes of those languages.
        value: Mean over the languages, of the system.
        base: Mean over the languages, of the baseline.
        difference: Between the two; items that languages share are drawn together.
        ahead: In how many of all languages it ran it is better than the baseline, by any margin.
        of: How many languages those are.
        clearly_ahead: In how many it is better by the adjusted test.
        clearly_behind: In how many it is worse by the adjusted test.
    """

    system: str
    task: str
    measure: str
    better: Literal["higher", "lower"]
    languages: tuple[str, ...]
    value: float
    base: float
    difference: Estimate | None
    ahead: int
    of: int
    clearly_ahead: int
    clearly_behind: int


@dataclass(frozen=True)
class Comparison:
    """All lines, all means over languages, and what has to be said about them.

    Attributes:
        baseline: The system that the others are compared with.
        alpha: Level of the tests, after adjustment.
        lines: In the order of tasks, languages and systems.
        macros: Means over languages, where there is more than one.
        notes: Items and languages left out, and what the systems were asked in different ways.
        signatures: Of everything that was compared.
    """

    baseline: str
    alpha: float
    lines: tuple[Line, ...]
    macros: tuple[Macro, ...]
    notes: tuple[str, ...]
    signatures: tuple[str, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines as flat records, for export."""
        for line in self.lines:
            e = line.difference
            yield {
                "system": line.system, "baseline": self.baseline, **line.group, "measure": line.measure,
                "value": line.value, "base": line.base, "difference": e.value, "low": e.low, "high": e.high,
                "p": e.p, "p_holm": line.p_holm, "p_bonferroni": line.p_bonferroni, "test": line.test,
                "verdict": line.verdict(self.alpha), "detectable": line.detectable, "items": line.items,
                "units": e.units, "left_out": line.left_out,
            }  # fmt: skip

    def systems(self) -> list[str]:
        """The systems that were compared with the baseline, in order of first appearance."""
        return list(dict.fromkeys(line.system for line in self.lines))

    def to_text(self) -> str:
        """For a terminal: one line for each system and group, the means over languages, the notes."""
        by = list(self.lines[0].group)
        heads = [*by, "system", "measure", "value", self.baseline, "difference", "p (Holm)", "", "detectable"]
        body = [
            [
                *line.group.values(), line.system, line.measure, f"{line.value:.3f}", f"{line.base:.3f}",
                line.difference.text(), _p(line.p_holm), line.verdict(self.alpha), f"{line.detectable:.3f}",
            ]
            for line in self.lines
        ]  # fmt: skip
        blocks = [align([heads, *body])]
        blocks += [macro_text(macro, self.baseline) for macro in self.macros]
        return "\n".join(["\n".join(blocks[:1]), "", *blocks[1:], *self.notes]).rstrip()

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it; what is not a number is null."""
        return _plain(asdict(self))

    def save(self, folder: Path) -> None:
        """Write `comparison.json` into a new folder."""
        with disk.new_folder(folder) as fresh:
            disk.write_json(fresh / "comparison.json", self.plain())

    @classmethod
    def load(cls, folder: Path) -> Comparison:
        """Read what `save` wrote.

        Raises:
            DataError: No comparison there, or a damaged one.
        """
        file = folder / "comparison.json"
        if not file.is_file():
            raise DataError(f"{folder} holds no comparison.json")
        read = disk.read_json(file)
        try:
            lines = tuple(
                Line(**{**entry, "difference": _estimate(entry["difference"])}) for entry in read["lines"]
            )
            macros = tuple(
                Macro(
                    **{
                        **entry,
                        "languages": tuple(entry["languages"]),
                        "difference": _estimate(entry["difference"]),
                    }
                )
                for entry in read["macros"]
            )
            notes, signatures = tuple(read["notes"]), tuple(read["signatures"])
            baseline, alpha = str(read["baseline"]), float(read["alpha"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}: not a comparison ({error})") from None
        return cls(baseline, alpha, lines, macros, notes, signatures)


def macro_text(macro: Macro, baseline: str) -> str:
    """The mean over languages and the count of languages in one sentence."""
    said = (
        f"{macro.task}, {macro.measure}: {macro.system} is better than {baseline} in {macro.ahead} of "
        f"{macro.of} languages (by the adjusted test better in {macro.clearly_ahead}, worse in "
        f"{macro.clearly_behind})"
    )
    if macro.difference is None:
        return f"{said}; no mean: there are no two languages that all systems ran"
    e = macro.difference
    mean = f"{macro.value:.3f} against {macro.base:.3f}, difference {e.text()}, p {_p(e.p)}"
    return f"{said}; mean over the {len(macro.languages)} languages that all systems ran: {mean}"


def _p(p: float | None) -> str:
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _estimate(read: Mapping[str, Any] | None) -> Any:
    if read is None:
        return None
    value, low, high = (math.nan if read[name] is None else read[name] for name in ("value", "low", "high"))
    return Estimate(value, low, high, read["units"], read["p"])
