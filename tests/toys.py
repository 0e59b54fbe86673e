"""Three tiny methods for the tests of registry, recipes and runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from calque import registry

CALLS: list[str] = []


@dataclass(frozen=True)
class Note:
    """A noun that is a line of text."""

    text: str

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "note.txt").write_text(self.text)

    @classmethod
    def load(cls, folder: Path) -> Note:
        return cls((folder / "note.txt").read_text())


def make(source: str, *, times: Annotated[int, Interval(ge=1, le=9)] = 1, seed: int = 0) -> Note:
    """Write a word several times.

    Args:
        source: The word.
        times: How often.
        seed: Unused but for its value.
    """
    CALLS.append("make")
    return Note(f"{source * times}{seed}")


def join(
    notes: Sequence[Note], extra: Note | None = None, *, how: Literal["plain", "dash"] = "plain"
) -> Note:
    """Put notes together."""
    CALLS.append("join")
    parts = [n.text for n in notes] + ([extra.text] if extra else [])
    return Note(("-" if how == "dash" else "").join(parts))


def slow(note: Note, named: Mapping[str, Note] | None = None, *, work: Path, limit: int = 3) -> Note:
    """Count to a limit, one call at a time, as a killed method would."""
    CALLS.append("slow")
    state = work / "count"
    count = int(state.read_text()) if state.exists() else 0
    state.write_text(str(count + 1))
    if count + 1 < limit:
        raise KeyboardInterrupt
    return Note(f"{note.text}:{count + 1}:{','.join(named or {})}")


METHODS = {
    name: registry.Method(name, f"{__name__}:{name.split('/')[1]}", "toy")
    for name in ("toy/make", "toy/join", "toy/slow")
}
