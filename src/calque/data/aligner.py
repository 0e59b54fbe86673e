"""The aligner itself: what both directions believe, and the rounds that teach them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from calque.data.cooccurrence import Batch, Cooccurrence, Side, batches
from calque.data.links import Links, best_links
from calque.data.position import FARTHEST, Diagonal, Jumps, PositionModel, Posterior, Uniform, Weights
from calque.errors import ConfigError, DataError
from calque.progress import Bar, bar

Position = Literal["jumps", "diagonal", "uniform"]
_BLOCK = 1 << 22
_KEEP_BYTES = 1 << 29


@dataclass(frozen=True, eq=False)
class Settings:
    """How to align; `calque.data.align.align` says what each of them means."""

    position: Position = "jumps"
    warmup: int = 2
    iterations: int = 4
    agree: bool = True
    none: float = 0.2
    longest: int = 400
    batch_cells: int = 1 << 17
    table_limit: int = 80_000_000

    def __post_init__(self) -> None:
        if not 0 < self.none < 1:
            raise ConfigError(f"none={self.none}: the share of words made by none lies between 0 and 1")
        if not 1 <= self.longest <= FARTHEST:
            raise ConfigError(f"longest={self.longest}: at least 1 and at most {FARTHEST} words")
        if self.warmup + self.iterations < 1:
            raise ConfigError("warmup=0 and iterations=0: at least one round is needed")


@dataclass(eq=False)
class Direction:
    """What is known about how the given side makes the out side; K word pairs, V_out words.

    Attributes:
        translate: float32 (K + 1,), t(out word | given word) by place in the table; 0 at K, for no pair.
        none: float32 (V_out,), t(out word | none).
        position: where the word that makes the next one lies.
        loglik: natural log likelihood of the out side before each round.
    """

    translate: np.ndarray
    none: np.ndarray
    position: PositionModel = field(default_factory=Uniform)
    loglik: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Counts:
    """Expected counts of one round and both directions: word pairs (K + 1,), words made by none (V_out,)."""

    pairs: tuple[np.ndarray, np.ndarray]
    none: tuple[np.ndarray, np.ndarray]
    events: list[np.ndarray | float] = field(default_factory=lambda: [0.0, 0.0])
    loglik: list[float] = field(default_factory=lambda: [0.0, 0.0])


class Model:
    """Both directions over one table of word pairs: forward (source makes target) and reverse."""

    def __init__(self, source: Side, target: Side, settings: Settings) -> None:
        groups = batches(source, target, settings.batch_cells, settings.longest)
        if not groups:
            raise DataError(
                f"no sentence pair to align: all of {len(source.lengths):,} have an empty side "
                f"or more than {settings.longest} words on one"
            )
        self.table = Cooccurrence(source, target, groups, settings.table_limit, _KEEP_BYTES)
        self.settings = settings
        self.left_out = len(source.lengths) - sum(map(len, groups))
        self.directions = tuple(_unknowing(len(self.table), len(out.words)) for out in (target, source))

    def train(self) -> Counts:
        """All rounds; returns the expected counts of the last one."""
        settings = self.settings
        rounds = settings.warmup + settings.iterations
        starts: dict[str, PositionModel] = {
            "jumps": Jumps.start(),
            "diagonal": Diagonal(),
            "uniform": Uniform(),
        }
        counts = None
        with bar("align", rounds * self.size, "pair") as progress:
            for number in range(rounds):
                if number == settings.warmup:
                    for direction in self.directions:
                        direction.position = starts[settings.position]
                del counts
                counts = self.expect(number >= settings.warmup and settings.agree, progress)
                self.maximise(counts)
        assert counts is not None
        return counts

    @property
    def size(self) -> int:
        """Sentence pairs that take part."""
        return len(self.table.source.lengths) - self.left_out

    def expect(self, agree: bool, progress: Bar) -> Counts:
        """E-step. With `agree` both directions count the product of their posteriors."""
        forward = np.zeros(len(self.table) + 1, np.float32)
        reverse = forward if agree else np.zeros_like(forward)
        counts = Counts(
            (forward, reverse),
            (np.zeros(self.directions[0].none.size), np.zeros(self.directions[1].none.size)),
        )
        for batch, cells in self.table:
            found = self.posteriors(batch, cells)
            for which in (0, 1):
                counts.events[which] += found[which].events
                counts.loglik[which] += found[which].loglik
            ahead, back = found[0].words, found[1].words.transpose(2, 1, 0)
            if agree:
                ahead *= back
                back = ahead
            else:
                np.add.at(reverse, cells.ravel(), np.ascontiguousarray(back).ravel())
            np.add.at(forward, cells.ravel(), ahead.ravel())
            for which, side, linked in ((0, batch.target.T, ahead.sum(2)), (1, batch.source, back.sum(0))):
                real = side >= 0
                alone = np.maximum(1 - linked[real], 0)
                none = counts.none[which]
                none += np.bincount(side[real], alone, len(none))
            progress.update(len(batch.pairs))
        return counts

    def posteriors(self, batch: Batch, cells: np.ndarray) -> tuple[Posterior, Posterior]:
        """Posteriors of both directions: (J, B, I) and (I, B, J)."""
        found = []
        sides = (batch.target.T, batch.source.T)
        for direction, out, reverse in zip(self.directions, sides, (False, True), strict=True):
            share = direction.translate[cells]
            if reverse:
                share = np.ascontiguousarray(share.transpose(2, 1, 0))
            share *= np.float32(1 - self.settings.none)
            none = direction.none[np.maximum(out, 0)] * np.float32(self.settings.none)
            none[out < 0] = 1
            lengths = batch.lengths[::-1] if reverse else batch.lengths
            found.append(direction.position.posterior(Weights(share, none, lengths)))  # pyright: ignore
        return found[0], found[1]

    def maximise(self, counts: Counts) -> None:
        """M-step: relative frequencies, and the position model from its own events."""
        for which, direction in enumerate(self.directions):
            direction.position = direction.position.refit(np.asarray(counts.events[which]))
            direction.loglik.append(counts.loglik[which])
            none = counts.none[which]
            direction.none = (none / max(none.sum(), 1e-30)).astype(np.float32)
            given = self.table.source if which == 0 else self.table.target
            total = np.zeros(len(given.words))
            for block in self._blocks():
                numbers = self.table.words(block)[which]
                total += np.bincount(numbers, counts.pairs[which][block], len(total))
            inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
            for block in self._blocks():
                share = counts.pairs[which][block] * inverse[self.table.words(block)[which]]
                direction.translate[block] = share

    def _blocks(self) -> Iterator[slice]:
        size = len(self.table)
        return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))

    def decode(self) -> tuple[Links, Links]:
        """Links of both directions: each out word with its likeliest given word, unless none is likelier."""
        source, target = self.table.source, self.table.target
        best = (np.full(len(target.flat), -1, np.int16), np.full(len(source.flat), -1, np.int16))
        for batch, cells in self.table:
            for which, found in enumerate(self.posteriors(batch, cells)):
                side, out = (target, batch.target.T) if which == 0 else (source, batch.source.T)
                place = found.words.argmax(2)
                top = np.take_along_axis(found.words, place[:, :, None], 2)[:, :, 0]
                linked = (out >= 0) & (top > 1 - found.words.sum(2))
                step, pair = np.nonzero(linked)
                best[which][side.offsets[batch.pairs[pair]] + step] = place[linked]
        forward = best_links(best[0], target.lengths, of_target=True)
        return forward, best_links(best[1], source.lengths, of_target=False)

    def notes(self) -> dict[str, Any]:
        """What happened, for the manifest of what was made."""
        table, settings = self.table, self.settings
        return {
            "pairs": len(table.source.lengths),
            "left_out": self.left_out,
            "source_words": len(table.source.words),
            "target_words": len(table.target.words),
            "word_pairs": len(table),
            "weak_word_pairs_dropped": table.dropped,
            "position": settings.position,
            "warmup": settings.warmup,
            "iterations": settings.iterations,
            "agree": settings.agree,
            "loglik": {"forward": self.directions[0].loglik, "reverse": self.directions[1].loglik},
        }


def _unknowing(pairs: int, out_words: int) -> Direction:
    """Every out word is as likely as any other."""
    translate = np.full(pairs + 1, 1 / out_words, np.float32)
    translate[pairs] = 0
    return Direction(translate, np.full(out_words, 1 / out_words, np.float32))
