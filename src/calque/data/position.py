"""Where the translation of the next word lies: the position models of word alignment and their posteriors.

In each, every word of one side ("out") is made by one word of the other side ("given") or by none. A model
gets the lexical weights of a batch and gives the posterior of each cell, and learns from the expected
counts of its own events. Shape letters: B pairs, O out words, G given words (both padded), M jumps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FARTHEST = 512
_TINY = np.float32(1e-30)
_FLUSH = np.float32(1e-7)


@dataclass(frozen=True, eq=False)
class Weights:
    """Lexical weights of a batch, including the share of words made by none.

    Attributes:
        words: float32 (O, B, G), (1 - p0) * t(out word | given word), 0 in padding; scratch, may be changed.
        none: float32 (O, B), p0 * t(out word | none), 1 in padding.
        lengths: words of the given sentences (B,) and of the out sentences (B,).
    """

    words: np.ndarray
    none: np.ndarray
    lengths: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Posterior:
    """What a model believes about a batch.

    Attributes:
        words: float32 (O, B, G), probability that this given word made this out word.
        loglik: natural log of the probability of all out words.
        events: float64, expected counts of the model's own events.
    """

    words: np.ndarray
    loglik: float
    events: np.ndarray


@dataclass(frozen=True)
class Uniform:
    """IBM model 1: every position is equally likely.

    Paper: Brown et al. 1993, "The Mathematics of Statistical Machine Translation".
    """

    def posterior(self, weights: Weights) -> Posterior:
        """Posteriors of a batch; this model has no events."""
        given = weights.lengths[0].astype(np.float32)
        return _normalised(weights.words / given[:, None], weights, np.zeros(0))

    def refit(self, events: np.ndarray) -> Uniform:
        """Nothing to learn."""
        return self


@dataclass(frozen=True)
class Diagonal:
    """IBM model 2 with one parameter: p(i | j) ~ exp(-tension * |i / G - j / O|).

    Paper: Dyer et al. 2013, "A Simple, Fast, and Effective Reparameterization of IBM Model 2".
    """

    tension: float = 4.0

    def posterior(self, weights: Weights) -> Posterior:
        """Posteriors of a batch; events: words linked, and their distance as seen, as expected, squared."""
        given, out = weights.lengths
        steps, _, width = weights.words.shape
        here = (np.arange(1, steps + 1)[:, None] / out).astype(np.float32)
        there = (np.arange(1, width + 1) / given[:, None]).astype(np.float32)
        distance = np.abs(here[:, :, None] - there)
        prior = np.exp(np.float32(-self.tension) * distance)
        prior *= np.arange(width) < given[:, None]
        prior /= prior.sum(2, keepdims=True) + _TINY
        found = _normalised(prior * weights.words, weights, np.zeros(0))
        linked = found.words.sum(2)
        mean = (prior * distance).sum(2)
        square = (prior * distance * distance).sum(2)
        sums = linked, (found.words * distance).sum(2), linked * mean, linked * (square - mean * mean)
        return replace(found, events=np.array([part.sum(dtype=np.float64) for part in sums]))

    def refit(self, events: np.ndarray) -> Diagonal:
        """One Newton step towards the tension whose expected distance is the one seen."""
        linked, seen, expected, spread = events
        if linked <= 0 or spread <= 0:
            return self
        wanted = self.tension + (expected - seen) / spread
        return Diagonal(float(np.clip(wanted, max(self.tension / 2, 0.1), min(self.tension * 2, 30.0))))


@dataclass(frozen=True, eq=False)
class Jumps:
    """Hidden Markov model: the place of a word depends on how far it lies from that of the word before.

    Words made by none keep the place for the next one. Paper: Vogel, Ney and Tillmann 1996, "HMM-Based
    Word Alignment in Statistical Translation"; none as in Och and Ney 2003.

    Attributes:
        jump: float32 (2M + 1,), weight of each jump -M..M, scaled to each sentence.
        first: float32 (M,), weight of each place of the first word.
    """

    jump: np.ndarray
    first: np.ndarray

    @classmethod
    def start(cls) -> Jumps:
        """Jumps of about one word ahead."""
        reach = np.arange(-FARTHEST, FARTHEST + 1)
        return cls((np.exp(-np.abs(reach - 1) / 2) + 1e-3).astype(np.float32), np.ones(FARTHEST, np.float32))

    def posterior(self, weights: Weights) -> Posterior:
        """Posteriors of a batch by forward-backward; events: jumps, then places of the first word."""
        emission, none, loglik = _scaled(weights)
        steps, size, width = emission.shape
        place = np.arange(width)
        moves = place - place[:, None] + FARTHEST
        table = self.jump[moves]
        inside = (place < weights.lengths[0][:, None]).astype(np.float32)
        scale = inside / np.maximum(inside @ table.T, _TINY)
        start = inside * self.first[:width]
        start /= start.sum(1, keepdims=True)

        left = np.zeros((steps, size, width), np.float32)
        arrived = np.empty_like(emission)
        norm = np.empty((steps, size), np.float32)
        arrived[0] = start
        state = start * (emission[0] + none[0][:, None])
        for step in range(steps):
            if step:
                np.multiply(state, scale, out=left[step - 1])
                np.matmul(left[step - 1], table, out=arrived[step])
                state *= none[step][:, None]
                state += arrived[step] * emission[step]
            norm[step] = 1 / np.maximum(state.sum(1), _TINY)
            state *= norm[step][:, None]

        ahead, back = inside.copy(), np.ascontiguousarray(table.T)
        for step in range(steps - 1, -1, -1):
            ending = emission[step]
            ending *= ahead
            ending *= norm[step][:, None]
            if step:
                ahead *= (none[step] * norm[step])[:, None]
                ahead += (ending @ back) * scale
        loglik -= float(np.log(norm).sum(dtype=np.float64))
        seen = (left[:-1].reshape(-1, width).T @ emission[1:].reshape(-1, width)) * table
        arrived *= emission
        events = np.zeros(3 * FARTHEST + 1)
        events[: 2 * FARTHEST + 1] = np.bincount(moves.ravel(), seen.ravel(), 2 * FARTHEST + 1)
        events[2 * FARTHEST + 1 :][:width] = arrived[0].sum(0)
        return Posterior(arrived, loglik, events)

    def refit(self, events: np.ndarray) -> Jumps:
        """The expected counts, with a little for what was not seen."""
        jump = events[: 2 * FARTHEST + 1] + 0.1
        first = events[2 * FARTHEST + 1 :] + 1.0
        return Jumps((jump / jump.sum() + 1e-6).astype(np.float32), (first / first.sum()).astype(np.float32))


PositionModel = Uniform | Diagonal | Jumps


def _normalised(joint: np.ndarray, weights: Weights, events: np.ndarray) -> Posterior:
    """Divide by the sum over all given words and none; right where words do not depend on each other."""
    total = joint.sum(2) + weights.none
    np.maximum(total, _TINY, out=total)
    joint /= total[:, :, None]
    return Posterior(joint, float(np.log(total).sum(dtype=np.float64)), events)


def _scaled(weights: Weights) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights scaled to a largest of 1 per out word, without those that could only cause denormals."""
    largest = np.maximum(weights.words.max(2, initial=0), weights.none)
    np.maximum(largest, _TINY, out=largest)
    words = weights.words
    words /= largest[:, :, None]
    words[words < _FLUSH] = 0
    return words, weights.none / largest, float(np.log(largest).sum(dtype=np.float64))
