"""A mixture: which piece of which text comes next, as a function of what has come so far.

Nothing is random but the order of the pieces within an epoch, and that follows from the seed; so a stream
goes on exactly where it stopped when it is told how many pieces of each source it has given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calque.data.pack import Batch, Pieces
from calque.errors import ConfigError

Rates = Callable[[int], Sequence[float]]
"""Share of the tokens for each source in a step; any positive scale."""


def by_size(sizes: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Rates p_s ~ n_s^(1/T): T = 1 in proportion to the sizes, towards equal ones as T grows.

    Raises:
        ConfigError: a size or temperature that is not positive.
    """
    if temperature <= 0 or not sizes or min(sizes) <= 0:
        raise ConfigError(
            f"sampling temperature {temperature} over sizes {list(sizes)}: all must be positive"
        )
    logs = np.log(np.asarray(sizes, dtype=np.float64)) / temperature
    rates = np.exp(logs - logs.max())
    return tuple(float(rate) for rate in rates / rates.sum())


def linear(first: Sequence[float], last: Sequence[float], steps: int) -> Rates:
    """Rates that go from `first` to `last` in a straight line over `steps` steps, and stay there."""
    begin, end = _normal(first), _normal(last)

    def rates(step: int) -> tuple[float, ...]:
        done = min(1.0, step / max(1, steps))
        return tuple(a + (b - a) * done for a, b in zip(begin, end, strict=True))

    return rates


def staged(stages: Sequence[tuple[int, Sequence[float]]]) -> Rates:
    """Rates that hold from a step on until the next stage begins; the first stage begins at step 0.

    Raises:
        ConfigError: stages that do not begin at 0, or are not in order.
    """
    begins = [begin for begin, _ in stages]
    if not begins or begins[0] != 0 or begins != sorted(set(begins)):
        raise ConfigError(f"stages of a mixture begin at steps {begins}; needed are 0 and then rising ones")
    return lambda step: [rates for begin, rates in stages if begin <= step][-1]


@dataclass(frozen=True)
class Place:
    """How far a mixture has been read.

    Attributes:
        pieces: pieces drawn from each source.
        tokens: tokens drawn from each source.
        due: tokens that were due from each source by the rates so far.
    """

    pieces: tuple[int, ...]
    tokens: tuple[int, ...]
    due: tuple[float, ...]

    def record(self) -> dict[str, list[int] | list[float]]:
        """As JSON."""
        return {"pieces": list(self.pieces), "tokens": list(self.tokens), "due": list(self.due)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Place:
        """Inverse of `record`."""
        return cls(tuple(record["pieces"]), tuple(record["tokens"]), tuple(record["due"]))


@dataclass(frozen=True, eq=False)
class Mixture:
    """A stream of pieces from several sources.

    The next piece always comes from the source that is furthest behind the tokens due from it, so shares hold
    at every moment to within one piece, also while the rates change. A source that runs dry begins its
    next epoch in a new order; only the first one may be limited.

    Attributes:
        sources: the texts.
        rates: share of the tokens for each source, any positive scale; or that as a function of the step.
        seed: decides the order within the epochs.
        epochs: how often the first source may be read; then the stream ends. None: without end.
    """

    sources: tuple[Pieces, ...]
    rates: tuple[float, ...] | Rates
    seed: int = 0
    epochs: float | None = None
    _orders: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.rates) and not all(rate > 0 for rate in self.rates):
            raise ConfigError(f"mixture rates {self.rates}: each must be a positive number")
        self.shares(0)

    def shares(self, step: int) -> tuple[float, ...]:
        """Share of each source in a step; they sum to 1.

        Raises:
            ConfigError: not one rate for each source, negative ones, or none above 0.
        """
        rates = tuple(self.rates(step) if callable(self.rates) else self.rates)
        if not self.sources or len(self.sources) != len(rates):
            raise ConfigError(f"a mixture of {len(self.sources)} sources needs as many rates, not {rates}")
        return _normal(rates)

    def start(self) -> Place:
        """The place before the first piece."""
        nothing = (0,) * len(self.sources)
        return Place(nothing, nothing, (0.0,) * len(self.sources))

    def batch(self, place: Place, tokens: int, step: int = 0) -> tuple[Batch, Place] | None:
        """The next pieces, as many as fit into `tokens` but at least one, and the place after them.

        None when the stream has ended.
        """
        shares = self.shares(step)
        pieces, counts, due = list(place.pieces), list(place.tokens), list(place.due)
        chosen: list[tuple[int, int, int]] = []
        room = tokens
        while True:
            behind = [(due[n] - counts[n], share) for n, share in enumerate(shares)]
            source = behind.index(max(behind))
            if source == 0 and self._dry(pieces[0]):
                break
            piece = self._piece(source, pieces[source])
            size = self.sources[source].size(piece)
            if chosen and size > room:
                break
            chosen.append((source, piece, pieces[source]))
            room -= size
            pieces[source] += 1
            counts[source] += size
            due = [amount + share * size for amount, share in zip(due, shares, strict=True)]
        if not chosen:
            return None
        drawn = tuple(after - before for after, before in zip(counts, place.tokens, strict=True))
        return self._laid(chosen, drawn), Place(tuple(pieces), tuple(counts), tuple(due))

    def epoch_tokens(self) -> float:
        """Tokens drawn from all while the first source is read once, by the rates of the first step."""
        return len(self.sources[0].ids) / self.shares(0)[0]

    def epochs_read(self, place: Place) -> tuple[float, ...]:
        """How often each source has been read."""
        return tuple(n / len(source) for n, source in zip(place.pieces, self.sources, strict=True))

    def _laid(self, chosen: Sequence[tuple[int, int, int]], drawn: tuple[int, ...]) -> Batch:
        """The batch of pieces given as (source, piece, how many of its source came before)."""
        kept = [(self.sources[source], piece) for source, piece, _ in chosen]
        ids = [source.piece(piece) for source, piece in kept]
        plain = all(source.prompts is None and source.answers is None for source in self.sources)
        weighed = any(source.weights is not None for source in self.sources)
        return Batch(
            ids=np.concatenate(ids).astype(np.int64),
            lengths=tuple(map(len, ids)),
            nbytes=sum(int(source.nbytes[piece]) for source, piece in kept),
            tokens=drawn,
            sources=tuple(source for source, _, _ in chosen),
            prompts=() if plain else tuple(source.prompt(piece) for source, piece in kept),
            answers=() if plain else tuple(source.answer(piece) for source, piece in kept),
            weights=tuple(source.weight(piece) for source, piece in kept) if weighed else (),
            draws=tuple(before for _, _, before in chosen),
        )

    def _dry(self, drawn: int) -> bool:
        return self.epochs is not None and drawn >= self.epochs * len(self.sources[0])

    def _piece(self, source: int, drawn: int) -> int:
        """The piece that follows `drawn` earlier ones of a source."""
        size = len(self.sources[source])
        epoch, index = divmod(drawn, size)
        if source not in self._orders or self._orders[source][0] != epoch:
            generator = np.random.default_rng([self.seed, source, epoch])
            self._orders[source] = (epoch, generator.permutation(size))
        return int(self._orders[source][1][index])


def _normal(rates: Sequence[float]) -> tuple[float, ...]:
    total = float(sum(rates))
    if not np.isfinite(total) or total <= 0 or min(rates) < 0:
        raise ConfigError(f"mixture rates {tuple(rates)}: none may be negative, and one must be above 0")
    return tuple(rate / total for rate in rates)
