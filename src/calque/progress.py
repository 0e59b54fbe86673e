"""What a long piece of work says while it runs: a bar with ETA in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_quiet = False
_PLAIN_SECONDS = 10.0


def set_quiet(quiet: bool) -> None:
    """Silence (or not) everything that goes through this module."""
    global _quiet
    _quiet = quiet


def say(message: str) -> None:
    """One line for the user, on standard error, so that standard output stays clean for results."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


class Bar:
    """Counts work done; `update(n)` may be called as often as one likes."""

    def __init__(self, name: str, total: float | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self.note, self._start = 0.0, "", time.monotonic()
        self._said = self._start
        self._bar = None
        if sys.stderr.isatty() and not _quiet:
            from tqdm import tqdm

            scale = unit in ("B", "bytes")
            self._bar = tqdm(total=total, desc=name, unit=unit, unit_scale=scale, leave=False, delay=2)

    def update(self, amount: float = 1.0, note: str = "") -> None:
        """Add to the work done; `note` (loss, speed, ...) stands at the end of the line."""
        self.done += amount
        self.note = note or self.note
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._said >= _PLAIN_SECONDS:
            self._said = time.monotonic()
            say(self._line())

    def _line(self) -> str:
        seconds = time.monotonic() - self._start
        parts = [f"{self.name}: {_amount(self.done, self.unit)}"]
        if self.total:
            parts[0] += f" of {_amount(self.total, self.unit)}"
            if self.done > 0.01 * self.total:  # earlier, the rate says nothing
                parts.append(f"{clock(seconds * (self.total / self.done - 1))} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def bar(name: str, total: float | None = None, unit: str = "item") -> Iterator[Bar]:
    """A progress bar for one piece of work: `with bar("read", size, "B") as b: b.update(n)`."""
    shown = Bar(name, total, unit)
    try:
        yield shown
    finally:
        shown.close()


def clock(seconds: float) -> str:
    """Seconds as a person says them: 7 s, 3:05 min, 2:10 h."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


def _amount(value: float, unit: str) -> str:
    if unit in ("B", "bytes"):
        return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"
    if unit == "s":
        return clock(value)
    return f"{value:,.0f} {unit}"
