"""Items in words: marks beside texts, examples before a question, choices by letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, Item, Prompt
from calque.evaluate.files import needed
from calque.evaluate.pack import LanguagePack

_WIDE = "：、。，！？"  # marks that bring their own blank


def beside(mark: str, text: str) -> str:
    """A mark and the text behind it; a full-width mark needs no blank."""
    return f"{mark}{text}" if mark.endswith(tuple(_WIDE)) else f"{mark} {text}"


def shown(
    item: Item,
    shots: Sequence[Item],
    ask: Callable[[Item], str],
    answer: Callable[[Item], str],
    head: str = "",
) -> str:
    """A prompt of blocks: the heading, each example with its answer, and the item up to where it begins."""
    blocks = [beside(ask(shot), answer(shot)) for shot in shots]
    return "\n\n".join([*([head] if head else []), *blocks, ask(item)])


def place(row: Any) -> str:
    """Where a record stands, as the name of an item that has no other: "12" of "file.tsv:12"."""
    return str(row.get("id") or str(row.get("where", "")).rpartition(":")[2])


def lettered_fields(row: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The choices of a record, by the names of their columns."""
    return tuple(needed(row, name, str).strip() for name in names)


def gold_choice(row: Any, name: str, labels: Sequence[str]) -> int:
    """The index of the right choice.

    Raises:
        DataError: A label that is none of the choices.
    """
    value = str(row.get(name)).strip().removesuffix(".0")
    if value not in labels:
        where = row.get("where", "record")
        raise DataError(f"{where}: '{name}' is {row.get(name)!r}, expected one of {', '.join(labels)}")
    return list(labels).index(value)


def lettered(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """Context, question and lettered choices; the letters are what is chosen from."""
    letters = pack.letters[: len(item.fields["choices"])]

    def ask(one: Item) -> str:
        listed = [f"{letter}. {text}" for letter, text in zip(letters, one.fields["choices"], strict=True)]
        context = [beside(pack["context"], one.fields["context"])] if one.fields.get("context") else []
        question = beside(pack["question"], one.fields["question"])
        return "\n".join([*context, question, *listed, pack["answer"]])

    text = shown(item, shots, ask, lambda shot: letters[shot.gold], pack["choose"])
    blank = "" if pack["answer"].endswith(tuple(_WIDE)) else " "
    return Prompt(text, tuple(blank + letter for letter in letters))


def chosen(item: Item, answer: Answer, pack: LanguagePack) -> int | None:
    """The index of the choice that an answer takes: its own, else the letter or the choice that it writes.

    Raises:
        DataError: An index that is none of the item's choices.
    """
    choices = item.fields["choices"]
    if answer.choice is not None:
        if not 0 <= answer.choice < len(choices):
            raise DataError(
                f"item {item.id}: choice {answer.choice}; its choices are 0 to {len(choices) - 1}"
            )
        return answer.choice
    written = answer.text.strip()
    for known in (pack.letters, choices):
        for index, one in enumerate(known[: len(choices)]):
            if written == one or (known is pack.letters and written.rstrip(".):") == one):
                return index
    return None


def correct(item: Item, answer: Answer, pack: LanguagePack) -> dict[str, float]:
    """1 for the right choice; an answer that takes none is wrong, and `unparsed` too."""
    index = chosen(item, answer, pack)
    return {"correct": float(index == item.gold), "unparsed": float(index is None)}
