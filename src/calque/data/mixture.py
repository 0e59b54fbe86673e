"""A mixture: which piece of which text comes next, as a function of what has come so far.

Nothing is random but the order of the pieces within an epoch, and that follows from the seed; so a stream
goes on exactly where it stopped when it is told how many pieces of each source it has given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calque.data.pack import Batch, Pieces
from calque.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """How far a mixture has been read.

    Attributes:
        pieces: pieces drawn from each source.
        tokens: tokens drawn from each source.
    """

    pieces: tuple[int, ...]
    tokens: tuple[int, ...]

    def record(self) -> dict[str, list[int]]:
        """As JSON."""
        return {"pieces": list(self.pieces), "tokens": list(self.tokens)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Place:
        """Inverse of `record`."""
        return cls(tuple(record["pieces"]), tuple(record["tokens"]))


@dataclass(frozen=True, eq=False)
class Mixture:
    """An endless stream of pieces from several sources.

    The next piece always comes from the source that is furthest behind its share of the tokens, so shares
    hold at every moment to within one piece. A source that runs dry begins its next epoch in a new order.

    Attributes:
        sources: the texts.
        rates: share of the tokens for each source; any positive scale.
        seed: decides the order within the epochs.
    """

    sources: tuple[Pieces, ...]
    rates: tuple[float, ...]
    seed: int = 0
    _orders: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.rates):
            raise ConfigError(
                f"a mixture of {len(self.sources)} sources needs as many rates, not {self.rates}"
            )
        if not all(np.isfinite(rate) and rate > 0 for rate in self.rates):
            raise ConfigError(f"mixture rates {self.rates}: each must be a positive number")

    def start(self) -> Place:
        """The place before the first piece."""
        nothing = (0,) * len(self.sources)
        return Place(nothing, nothing)

    def batch(self, place: Place, tokens: int) -> tuple[Batch, Place]:
        """The next pieces, as many as fit into `tokens` but at least one; and the place after them."""
        pieces, counts = list(place.pieces), list(place.tokens)
        chosen: list[np.ndarray] = []
        origins: list[int] = []
        room, nbytes = tokens, 0
        while True:
            source = self._behind(counts)
            piece = self._piece(source, pieces[source])
            size = self.sources[source].size(piece)
            if chosen and size > room:
                break
            chosen.append(self.sources[source].piece(piece))
            origins.append(source)
            nbytes += int(self.sources[source].nbytes[piece])
            room -= size
            pieces[source] += 1
            counts[source] += size
        drawn = tuple(after - before for after, before in zip(counts, place.tokens, strict=True))
        ids = np.concatenate(chosen).astype(np.int64)
        after = Place(tuple(pieces), tuple(counts))
        return Batch(ids, tuple(map(len, chosen)), nbytes, drawn, tuple(origins)), after

    def epochs(self, place: Place) -> tuple[float, ...]:
        """How often each source has been read."""
        return tuple(n / len(source) for n, source in zip(place.pieces, self.sources, strict=True))

    def _behind(self, counts: list[int]) -> int:
        """The source whose tokens are fewest for its rate."""
        return min(range(len(counts)), key=lambda source: counts[source] / self.rates[source])

    def _piece(self, source: int, drawn: int) -> int:
        """The piece that follows `drawn` earlier ones of a source."""
        size = len(self.sources[source])
        epoch, index = divmod(drawn, size)
        if source not in self._orders or self._orders[source][0] != epoch:
            generator = np.random.default_rng([self.seed, source, epoch])
            self._orders[source] = (epoch, generator.permutation(size))
        return int(self._orders[source][1][index])
