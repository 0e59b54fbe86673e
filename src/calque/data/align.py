"""Word alignment of parallel text by expectation-maximisation, and the lexicon that follows from it.

Papers: Brown et al. 1993 (model 1); Dyer et al. 2013 (diagonal); Vogel, Ney and Tillmann 1996 (jumps);
Liang, Taskar and Klein 2006, "Alignment by Agreement".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import regex
from annotated_types import Ge, Gt, Interval

from calque.data import links
from calque.data.aligner import Model, Position, Settings
from calque.data.cooccurrence import encode
from calque.data.corpus import Corpus
from calque.data.lexicon import Lexicon
from calque.data.links import Links
from calque.data.position import FARTHEST
from calque.errors import ConfigError, DataError
from calque.progress import say

Sentences = tuple[Sequence[str], Sequence[str]]
_WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’ʼ][\p{L}\p{M}]+)*|\p{N}+|\S")


def words(text: str) -> list[str]:
    """Runs of letters and marks (apostrophes inside belong to them), runs of digits, single other signs."""
    return _WORD.findall(text)


def align(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    *,
    symmetrize: links.Symmetrize = "grow-diag-final-and",
    position: Position = "jumps",
    warmup: Annotated[int, Ge(0)] = 2,
    iterations: Annotated[int, Ge(0)] = 4,
    agree: bool = True,
    none: Annotated[float, Interval(gt=0, lt=1)] = 0.2,
    longest: Annotated[int, Interval(ge=1, le=FARTHEST)] = 400,
    batch_cells: Annotated[int, Interval(ge=1, le=1 << 18)] = 1 << 17,
    table_limit: Annotated[int, Gt(0)] = 80_000_000,
) -> Links:
    """Link the words of sentence pairs that translate each other.

    Args:
        source: Words of each source sentence.
        target: Words of each target sentence, as many sentences.
        symmetrize: How the links of both directions become one set.
        position: Jump from the link of the word before (HMM), closeness to the diagonal, or uniform.
        warmup: Rounds of IBM model 1 before.
        iterations: Rounds of expectation-maximisation with the position model.
        agree: Both directions count the product of their posteriors, so they learn from what they agree on.
        none: Share of words expected to be made by no word of the other side.
        longest: Pairs with more words than this on a side are left without links, and counted.
        batch_cells: Cells (source words x target words) worked on at once; memory, not result.
        table_limit: Word pairs remembered (about 32 bytes each); the weakest are dropped beyond.

    Returns:
        Links of each pair, in order; pairs with an empty side have none.

    Raises:
        DataError: unequal numbers of sentences, or no pair that can be aligned.

    Example:
        >>> align([["the", "cat"], ["the", "dog"]], [["die", "Katze"], ["die", "Hund"]])[1][1].tolist()
        [0, 1]
    """
    if len(source) != len(target):
        raise DataError(
            f"{len(source):,} source and {len(target):,} target sentences: parallel text has as many of both"
        )
    settings = Settings(position, warmup, iterations, agree, none, longest, batch_cells, table_limit)
    model = _model(zip(source, target, strict=True), settings)
    model.train()
    return links.symmetrize(*model.decode(), symmetrize)


def lexicon(
    corpus: Corpus,
    *,
    source: str | None = None,
    target: str | None = None,
    units: Literal["words", "blanks"] = "words",
    lowercase: bool = False,
    min_count: Annotated[float, Gt(0)] = 0.1,
    position: Position = "jumps",
    warmup: Annotated[int, Ge(0)] = 2,
    iterations: Annotated[int, Ge(0)] = 4,
    agree: bool = True,
    none: Annotated[float, Interval(gt=0, lt=1)] = 0.2,
) -> Lexicon:
    """Word translations from parallel text.

    Args:
        corpus: Parallel text.
        source: Language of the words that are translated; default the first side.
        target: Language they are translated into; default the second side.
        units: "words" (letters; digits; single signs) or what stands between "blanks".
        lowercase: Treat "The" and "the" as one word.
        min_count: Word pairs with a smaller expected count are dropped.
        position: Jump from the link of the word before (HMM), closeness to the diagonal, or uniform.
        warmup: Rounds of IBM model 1 before.
        iterations: Rounds of expectation-maximisation with the position model.
        agree: Both directions count the product of their posteriors, so they learn from what they agree on.
        none: Share of words expected to be made by no word of the other side.

    Returns:
        Entries (source word, target word, expected count, probability); words made by none are no entries.

    Raises:
        ConfigError: the corpus has no such side, or no second side.
        DataError: no pair that can be aligned.

    Relations:
        With source and target exchanged, agree=True gives the same counts.
        Papers: Dyer et al. 2013 (the aligner of the trans-tokenization paper); Liang et al. 2006.
    """
    first, second = _sides(corpus, source, target)
    cut = words if units == "words" else str.split

    def pairs() -> Iterator[Sentences]:
        for one, two in corpus.pairs(first, second):
            yield cut(one.lower() if lowercase else one), cut(two.lower() if lowercase else two)

    settings = Settings(position, warmup, iterations, agree, none)
    found = translations(pairs(), min_count=min_count, settings=settings)
    told = {"source": first, "target": second, "units": units, "lowercase": lowercase}
    return replace(found, notes={**told, **found.notes})


def translations(
    pairs: Iterable[Sentences], *, min_count: float = 0.1, settings: Settings | None = None
) -> Lexicon:
    """The lexicon of sentences cut into units in any way one likes.

    The count of an entry is the sum of the posteriors of its links in the last round.

    Args:
        pairs: Units of the source and of the target sentence; read once and not kept as text.
        min_count: Unit pairs with a smaller expected count are dropped.
        settings: How to align.

    Raises:
        DataError: no pair that can be aligned.
    """
    model = _model(pairs, settings or Settings())
    counts = model.train().pairs[0][:-1]
    kept = np.flatnonzero(counts >= min_count)
    kept = kept[np.argsort(-counts[kept], kind="stable")]
    source, target = np.divmod(model.table.codes[kept], len(model.table.target.words))
    notes = {**model.notes(), "min_count": min_count, "dropped": int(np.count_nonzero(counts)) - len(kept)}
    return Lexicon(
        tuple(model.table.source.words[k] for k in source.tolist()),
        tuple(model.table.target.words[k] for k in target.tolist()),
        counts[kept].astype(np.float64),
        model.directions[0].translate[kept].astype(np.float64),
        notes,
    )


def _model(pairs: Iterable[Sentences], settings: Settings) -> Model:
    model = Model(*encode(pairs), settings)
    if model.left_out:
        say(f"align: {model.left_out:,} pairs left out, empty or over {settings.longest} words on a side")
    return model


def _sides(corpus: Corpus, source: str | None, target: str | None) -> tuple[str, str]:
    """Codes of both sides; those not named are taken in the order of the corpus."""
    named = [corpus.side(code) for code in (source, target) if code is not None]
    rest = [code for code in corpus.languages if code not in named]
    first = corpus.side(source) if source is not None else next(iter(rest), None)
    second = corpus.side(target) if target is not None else next((c for c in rest if c != first), None)
    if first is None or second is None or first == second:
        raise ConfigError(
            f"alignment needs text in two languages; this corpus has {', '.join(corpus.languages) or 'none'}"
        )
    return first, second
