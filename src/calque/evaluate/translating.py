"""Translation test sets in parallel files, one sentence a line, scored by counts that add up.

The language of an item is the one that is translated into; the part names the other one behind a colon
("devtest:spa_Latn"), English without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.data.read import lines
from calque.errors import ConfigError, DataError
from calque.evaluate.asking import place, shown
from calque.evaluate.benchmark import Answer, Item, Prompt, Row
from calque.evaluate.files import needed
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_ENGLISH = "eng_Latn"
METRICS = ("bleu", "chrf", "chrf++", "ter")


def source_of(language: str, split: str) -> tuple[str, str]:
    """(part, code of the language translated from).

    Raises:
        ConfigError: Both sides are one language, or the other one is unknown.
    """
    part, _, other = split.partition(":")
    code = Language.parse(other).code if other else _ENGLISH
    if code == language:
        raise ConfigError(f"translation from {code} into itself; name the other language, '{part}:spa_Latn'")
    return part, code


def parallel(source: Path, target: Path, groups: Sequence[str] = ()) -> Iterator[Row]:
    """The sentence pairs of two files with as many lines each.

    Raises:
        DataError: Different numbers of lines, a blank line, a list of documents of another length.
    """
    pairs = [list(lines(path)) for path in (source, target)]
    if len(pairs[0]) != len(pairs[1]):
        raise DataError(
            f"{source} has {len(pairs[0])} lines and {target} {len(pairs[1])}; they must go in pairs"
        )
    if not pairs[0]:
        raise DataError(f"{source}: no line in it")
    if groups and len(groups) != len(pairs[0]):
        raise DataError(f"{source} has {len(pairs[0])} lines, its list of documents {len(groups)}")
    for n, ((number, said), (_, meant)) in enumerate(zip(*pairs, strict=True)):
        for path, text in ((source, said), (target, meant)):
            if not text.strip():
                raise DataError(f"{path}:{number}: a blank line")
        group = groups[n] if groups else ""
        yield {"source": said, "target": meant, "group": group, "where": f"{target}:{number}"}


def item(row: Row, language: str, split: str) -> Item:
    """A sentence to translate."""
    fields = {
        "source": needed(row, "source", str).strip(),
        "from": source_of(language, split)[1],
    }
    return Item(
        place(row), language, fields, (needed(row, "target", str).strip(),), str(row.get("group") or "")
    )


def prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """The sentence, and the word for translating it with the name of the language."""
    into = pack["translate"].format(language=Language.parse(item.language).name)

    def ask(one: Item) -> str:
        return f"{one.fields['source']}\n{into}"

    return Prompt(shown(item, shots, ask, lambda shot: shot.gold[0]), stop=("\n",), max_tokens=256)


def score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    """Counts of BLEU, chrF, chrF++ and TER; BLEU by characters where words stand without blanks."""
    from calque.evaluate.overlap import components

    target = LanguagePack.of(item.language)
    written = " ".join(answer.text.split())
    found = components(written, item.gold, ("bleu",), tokenize=tokenizer(target))
    return found | components(written, item.gold, ("chrf", "chrf++", "ter"))


def tokenizer(pack: LanguagePack) -> str:
    """BLEU's tokenizer for a language."""
    if pack.code.startswith(("zho", "yue", "cmn")):
        return "zh"
    return "char" if pack.unspaced else "13a"


def sample(pairs: Sequence[tuple[str, str]]) -> tuple[Row, ...]:
    """Records of hand-made pairs (source, target)."""
    return tuple({"id": str(n), "source": said, "target": meant} for n, (said, meant) in enumerate(pairs, 1))
