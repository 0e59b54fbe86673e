"""Tagged words: files with a word a line, prompts that ask for a tag a line, answers read tolerantly."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from calque.data.columns import sentences
from calque.data.read import ending, lines
from calque.errors import ConfigError, DataError
from calque.evaluate.benchmark import Answer, Item, Prompt, Row
from calque.evaluate.files import records
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_SPLITS = {"validation": ("dev", "valid", "validation"), "dev": ("dev", "valid", "validation")}


def rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """Sentences of a file, each a mapping with words, tags, and "where".

    Read are CoNLL-U (`.conllu`; the universal tags), JSON lines with words (or tokens) and tags (or labels),
    and columns divided by blanks or tabs, the word first and the tag last, an empty line between sentences.
    In a folder, the file is LANGUAGE/test.txt, test.txt, or LANGUAGE_TREEBANK-ud-test.conllu; of another
    language's folder nothing is taken.

    Raises:
        DataError: No such file, a line with one column, an unusable record, no sentence at all.
    """
    file = _file(path, Language.parse(language), split)
    if ending(file) in (".jsonl", ".json", ".parquet"):
        yield from records(file)
        return
    found = 0
    for place, words, tags in sentences(file, lines(file), universal=ending(file) == ".conllu"):
        found += 1
        yield {"id": str(found), "words": words, "tags": tags, "where": f"{file}:{place}"}
    if not found:
        raise DataError(f"{file}: no sentence in it")


def _file(path: Path, language: Language, split: str) -> Path:
    """The file itself, or the one in a folder whose name says this language and split."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    spelled = _SPLITS.get(split, (split,))
    own = [d for d in sorted(path.iterdir()) if d.is_dir() and _means(d.name, language)]
    found = [f for d in (*own, path) for s in spelled for f in sorted(d.glob(f"{s}.*"))]
    found = found or [
        f
        for s in spelled
        for f in sorted(path.rglob(f"*_*-ud-{s}.conllu"))
        if _means(f.name.partition("_")[0], language)
    ]
    if not found:
        raise DataError(
            f"{path}: no {language.iso}/{spelled[0]}.txt, {spelled[0]}.txt or "
            f"{language.short}_*-ud-{spelled[0]}.conllu in this folder"
        )
    if len(found) > 1 and found[0].parent == found[1].parent:
        raise DataError(f"{found[0]} and {found[1].name} both fit; give the one that is meant")
    return found[0]


def _means(name: str, language: Language) -> bool:
    try:
        return Language.parse(name).iso == language.iso
    except ConfigError:
        return False


def name(row: Row) -> str:
    """The id of a record, or its line."""
    return str(row.get("id") or str(row.get("where", "")).rpartition(":")[2])


def words_and_tags(row: Row) -> tuple[list[str], list[str]]:
    """The words and tags of a record.

    Raises:
        DataError: Not the same number of both, none at all, something that is no text.
    """
    where = row.get("where", "record")
    words, tags = row.get("words", row.get("tokens")), row.get("tags", row.get("labels"))
    for name, listed in (("words", words), ("tags", tags)):
        if not isinstance(listed, list) or not listed or not all(isinstance(x, str) and x for x in listed):
            raise DataError(f"{where}: '{name}' is {listed!r:.60}; expected a list of texts")
    if len(words) != len(tags):
        raise DataError(f"{where}: {len(tags)} tags for {len(words)} words; one tag for each is expected")
    return words, tags


def prompt(item: Item, pack: LanguagePack, shots: Sequence[Item], names: Sequence[str]) -> Prompt:
    """Words to be repeated with a tag each: examples, then the item; one "word TAB tag" a line.

    The grammar copies the words and leaves only the tags to the model.
    """

    def asked(one: Item) -> str:
        return f"{pack['context']} {' '.join(one.fields['words'])}\n{pack['answer']}"

    def told(one: Item) -> str:
        return "".join(f"\n{w}\t{t}" for w, t in zip(one.fields["words"], one.gold, strict=True))

    blocks = [" ".join(names), *(asked(shot) + told(shot) for shot in shots), asked(item)]
    longest = max(len(word.encode()) for word in item.fields["words"])
    return Prompt(
        "\n\n".join(blocks),
        stop=("\n\n",),
        max_tokens=len(item.fields["words"]) * (longest + 8),
        grammar=_grammar(item.fields["words"], names),
    )


def _grammar(words: Sequence[str], names: Sequence[str]) -> str:
    """Lark: every word in its order, each with a tag."""
    lines_ = " ".join(f"{_quoted(chr(10) + word + chr(9))} tag" for word in words)
    return f"start: {lines_}\ntag: {' | '.join(_quoted(name) for name in names)}\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _unmarked(tag: str, names: Mapping[str, str] | Sequence[str]) -> str:
    """The tag as the task knows it: a head that learnt spans says "B-NOUN" where it says "NOUN"."""
    return tag[2:] if tag not in names and tag[:2] in ("B-", "I-") and tag[2:] in names else tag


class Told(NamedTuple):
    """The tags of an answer, one for each word, and how many words it gave none that is known."""

    tags: list[str]
    unparsed: int


def tags_of(item: Item, answer: Answer, names: Mapping[str, str] | Sequence[str], none: str) -> Told:
    """One tag for each word of an item, from a head's tags or from what a language model wrote.

    Written answers may be lines of word and tag (divided by a tab, a colon, a bar, a slash or blanks; words
    left out are skipped), a JSON list of tags or of [word, tag], a JSON mapping of words to tags, or nothing
    but tags. A word without a tag gets `none`, and is counted.

    Args:
        item: Its field `words` are what is tagged.
        answer: `value` is a list of tags, where a head gave one.
        names: The known tags; a mapping says what others stand for.
        none: The tag of a word that got none.

    Raises:
        DataError: A head that gave another number of tags than there are words.
    """
    words = item.fields["words"]
    if isinstance(answer.value, list | tuple):
        if len(answer.value) != len(words):
            raise DataError(
                f"item {item.id}: {len(answer.value)} tags for {len(words)} words; expected one for each"
            )
        return Told([_unmarked(str(tag), names) for tag in answer.value], 0)
    known = {_plain(name): name for name in names}
    found = _aligned(words, _pairs(answer.text, known), known)
    return Told([none if tag is None else tag for tag in found], sum(tag is None for tag in found))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().strip(".,;:\"'`*").casefold()


def _pairs(text: str, known: Mapping[str, str]) -> list[tuple[str | None, str]]:
    """(word or None, tag) in the order of the answer."""
    listed = _json(text)
    if isinstance(listed, dict):
        return [(str(word), str(tag)) for word, tag in listed.items()]
    if isinstance(listed, list):
        return [
            (str(e[0]), str(e[-1])) if isinstance(e, list) and len(e) > 1 else (None, str(e)) for e in listed
        ]
    found: list[tuple[str | None, str]] = []
    for line in text.splitlines():
        dividers = r"\t" if "\t" in line.strip() else r"\||\s/\s|:\s|\s"
        parts = [part.strip() for part in re.split(dividers, line.strip()) if part.strip()]
        if len(parts) > 1 and all(_plain(part) in known for part in parts):
            found += [(None, part) for part in parts]
        elif len(parts) > 1:
            found.append((parts[0], parts[-1]))
        elif parts:
            word, slash, tag = parts[0].rpartition("/")
            found.append((word, tag) if slash and word else (None, parts[0]))
    return found


def _pair(entry: Any) -> tuple[str | None, str]:
    return (
        (str(entry[0]), str(entry[-1])) if isinstance(entry, list) and len(entry) > 1 else (None, str(entry))
    )


def _json(text: str) -> Any:
    match = re.search(r"[\[{].*[\]}]", text, re.DOTALL)
    try:
        return json.loads(match.group()) if match else None
    except json.JSONDecodeError:
        return None


def _aligned(
    words: Sequence[str], told: Sequence[tuple[str | None, str]], known: Mapping[str, str]
) -> list[str | None]:
    """The tag of each word: answers are taken in order, each at the next word that it names."""
    found: list[str | None] = [None] * len(words)
    place = 0
    for word, tag in told:
        name = known.get(_plain(tag))
        if name is None and word is None:
            continue
        spot = place if word is None else _next(words, word, place)
        if spot is not None and spot < len(words):
            found[spot], place = name, spot + 1
    return found


def _next(words: Sequence[str], word: str, place: int) -> int | None:
    same = unicodedata.normalize("NFKC", word).casefold()
    ahead = range(place, len(words))
    return next((n for n in ahead if unicodedata.normalize("NFKC", words[n]).casefold() == same), None)
