"""Where the data of a benchmark is: the user's files, the hub, or the few items that ship with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from calque.errors import ConfigError, DataError, MissingExtra
from calque.evaluate.benchmark import Benchmark, Item, Row

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The data of one benchmark.

    Attributes:
        kind: "sample", "hub" or "files".
        path: The file or folder, where the kind is "files".
    """

    kind: str
    path: Path = Path()

    @classmethod
    def open(cls, ref: str | Path) -> Source:
        """ "sample", "hub", or a file or folder in the benchmark's own published format.

        Raises:
            DataError: No such file or folder.
        """
        if str(ref) in ("sample", "hub"):
            return cls(str(ref))
        if not Path(ref).exists():
            raise DataError(f"no file or folder {ref}; give one, 'sample' or 'hub'")
        return cls("files", Path(ref))

    def items(self, benchmark: Benchmark, language: str, split: str) -> list[Item]:
        """The items in one language.

        Raises:
            ConfigError: No data of this kind for the benchmark or language.
            DataError: A record that is none, an id given twice, no items at all.
        """
        found = [benchmark.item(row, language, split) for row in self._rows(benchmark, language, split)]
        if not found:
            raise DataError(f"{benchmark.name}: no item in {language}, split '{split}'")
        seen: set[str] = set()
        for item in found:
            if item.id in seen:
                raise DataError(f"{benchmark.name}, {language}: two items are named '{item.id}'")
            seen.add(item.id)
        return found

    def examples(
        self, benchmark: Benchmark, language: str, split: str, scored: str
    ) -> tuple[list[Item], str]:
        """The items of a part to show as examples, or none and why there are none."""
        if self.kind == "sample":
            return [], "a sample is one part only"
        if split == scored:
            return [], f"'{split}' is what is scored"
        try:
            return self.items(benchmark, language, split), ""
        except (ConfigError, DataError) as error:
            return [], str(error)

    def languages(self, benchmark: Benchmark) -> tuple[str, ...]:
        """The languages to take where none are named."""
        return tuple(benchmark.sample) if self.kind == "sample" else benchmark.languages

    def _rows(self, benchmark: Benchmark, language: str, split: str) -> Iterator[Row]:
        if self.kind == "files":
            yield from benchmark.rows(self.path, language, split)
        elif self.kind == "hub":
            yield from _hub(benchmark, language, split)
        elif language not in benchmark.sample:
            known = ", ".join(benchmark.sample) or "no language"
            raise ConfigError(f"{benchmark.name}: its sample is in {known}, not in {language}")
        else:
            for number, row in enumerate(benchmark.sample[language], 1):
                yield {"where": f"sample of {benchmark.name}:{number}", **row}


def spread(listed: Sequence[T], count: int | None) -> Sequence[T]:
    """At most so many of a list, evenly spread over it, so that none of its passages is left out."""
    if count is None or len(listed) <= count:
        return listed
    return [listed[index * len(listed) // count] for index in range(count)]


def _hub(benchmark: Benchmark, language: str, split: str) -> Iterator[Row]:
    if not benchmark.hub:
        raise ConfigError(f"{benchmark.name} is not on the hub; give the path of its files")
    try:
        import datasets  # pyright: ignore
    except ImportError:
        raise MissingExtra("datasets", "hub", f"the data of {benchmark.name}") from None
    config = benchmark.config(language)
    try:
        rows: Any = datasets.load_dataset(benchmark.hub, config, split=split)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"the hub did not give {benchmark.hub}, configuration {config}, split {split} ({reason}); "
            "check the network and the split, or give the path of the files"
        ) from None
    for number, row in enumerate(rows, 1):
        yield {"where": f"{benchmark.hub}:{config}:{split}:{number}", **row}
