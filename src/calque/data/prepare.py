"""Read, clean and split a text: the first step of most recipes."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Interval

from calque.data.corpus import Corpus


def corpus(
    source: str,
    without: Corpus | None = None,
    *,
    language: str | None = None,
    to: str | None = None,
    only: str | None = None,
    part: Literal["all", "train", "heldout"] = "all",
    heldout: Annotated[float, Interval(gt=0, lt=1)] = 0.05,
    max_bytes: Annotated[int, Ge(1)] | None = None,
    seed: int = 0,
) -> Corpus:
    """Read, clean and split a text or parallel text.

    UTF-8 is checked, Unicode brought into NFC, exact duplicates dropped and counted, the language looked at.
    A split takes whole documents (files, chapters, books): a document is never cut, and a text that stands
    in both parts is dropped from the training part.

    Args:
        source: File, folder, Moses pair "a.en,a.ny", open asset, or hub data set.
        without: Drop every example one side of which stands in this corpus (the held-out one).
        language: Language of the text, of its first side when it is parallel; an asset knows it itself.
        to: Language of the second side of a parallel text.
        only: Keep this one side of a parallel text.
        part: Everything, or one part of the split.
        heldout: Share of the examples in the held-out part.
        max_bytes: Take whole documents, in random order, until they reach this many bytes.
        seed: Decides which documents are held out or taken.

    Returns:
        The corpus; its notes say what reading found and dropped.

    Raises:
        DataError: Text that is missing, empty, binary, not UTF-8, unequally long, or that can not be split.
        ConfigError: An unknown language, side or asset.
    """
    found = Corpus.open(source, language=language, to=to)
    if only:
        found = found.only(only)
    if part != "all":
        train, test = found.split(heldout, seed=seed)
        found = train if part == "train" else test
    if without is not None:
        found = found.without(without)
    return found.sample(max_bytes, seed=seed) if max_bytes else found
