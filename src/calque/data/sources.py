"""Whatever names a text becomes a corpus: a file, a Moses pair, a folder, an asset, a data set of the hub.

The text is read once to check it, count and find duplicates. A small one stays in memory; a larger one leaves
one byte for each example and is read again whenever the corpus is iterated. So memory does not grow with the
text, but for the hashes of the lines during the first reading (about 100 bytes for each different line) and
for joined assets.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from calque import assets
from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.data.identify import Sample, identify
from calque.data.read import READERS, Record, ending, lines, of_row, records
from calque.errors import ConfigError, DataError, MissingExtra
from calque.language import Language
from calque.progress import bar, say

BLOCK_LINES = 50
"""Lines of a document where a text does not say where its documents end."""
_HELD = 32 << 20
"""Bytes of text up to which a corpus stays in memory."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*(:[\w.\-]+)?")


@dataclass(frozen=True)
class _Source:
    """A way to read raw examples again and again.

    Attributes:
        name: what the messages call it.
        read: yields the examples from the start; a side may be missing or blank.
        languages: codes of the sides that are wanted.
        files: what is read, for the notes and the progress.
        pinned: an asset, whose language is known to be right.
        notes: what is to be said of the source itself.
    """

    name: str
    read: Callable[[], Iterator[Example]]
    languages: tuple[str, ...]
    files: tuple[Path, ...] = ()
    pinned: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


def open_corpus(
    ref: str | Path, *, language: str | Language | None, to: str | Language | None, nfc: bool, dedupe: bool
) -> Corpus:
    """`Corpus.open`, which says what the arguments mean."""
    path = Path(ref).expanduser()
    if to is not None and language is None:
        raise ConfigError(f"the second language of {ref} is {to}; say the first one too")
    asked = tuple(Language.parse(one).code for one in (language, to) if one is not None)
    if len(asked) == 2 and asked[0] == asked[1]:
        raise ConfigError(f"both sides of {ref} are said to be {asked[0]}; a pair needs two languages")
    if (path / "corpus.json").is_file():
        return _saved(path, asked)
    return _scan(_find(str(ref), path, asked), nfc=nfc, dedupe=dedupe)


def _find(ref: str, path: Path, asked: tuple[str, ...]) -> _Source:
    if not path.exists() and (sides := assets.parse_ref(_with(ref, asked))):
        return _asset(ref, sides, asked)
    if not asked:
        raise ConfigError(f"say the language of {ref}, for instance nya or Chichewa")
    if path.is_dir():
        return _folder(path, asked)
    if path.is_file():
        stamp = _stamp(path)
        return _Source(ref, lambda: _examples(path, asked, path.name, False, stamp), asked, (path,))
    if "," in ref:
        return _moses(ref, asked)
    if _HUB_ID.fullmatch(ref) and not path.parent.exists() and ending(path) not in READERS:
        return _hub(ref, asked)
    texts = ", ".join(asset.name for asset in assets.list_assets() if asset.kind == "text")
    raise DataError(f"no text at {ref}: neither a file or folder, nor an asset ({texts}), nor a hub data set")


def _with(ref: str, asked: tuple[str, ...]) -> str:
    """The name of an asset in several languages, with those that are asked for."""
    several = any(asset.name == ref and len(asset.languages) > 1 for asset in assets.list_assets())
    return f"{ref}:{'|'.join(asked)}" if several and asked else ref


def _saved(folder: Path, asked: tuple[str, ...]) -> Corpus:
    """A saved corpus, with the one side that is asked for when it has two."""
    corpus = Corpus.load(folder)
    for code in asked:
        corpus.side(code)
    return corpus.only(asked[0]) if len(asked) == 1 and len(corpus.languages) > 1 else corpus


def _folder(folder: Path, languages: tuple[str, ...]) -> _Source:
    """Every file of a known format below a folder, in the order of names; each file is one document."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    stamps = {file: _stamp(file) for file in files if ending(file) in READERS}
    if not stamps:
        raise DataError(f"{folder}: no text file in it ({len(files)} others); known are {' '.join(READERS)}")
    others = [file.name for file in files if file not in stamps]
    if others:
        say(f"{folder}: {len(others)} files that are no text left out ({', '.join(others[:3])}, ...)")

    def read() -> Iterator[Example]:
        for file, stamp in stamps.items():
            yield from _examples(file, languages, file.relative_to(folder).as_posix(), True, stamp)

    return _Source(str(folder), read, languages, tuple(stamps), notes={"other_files": len(others)})


def _examples(
    file: Path, languages: tuple[str, ...], name: str, whole: bool, stamp: tuple[int, int]
) -> Iterator[Example]:
    """The records of a file, with ids by place and groups.

    A group is the document that the record names; else the file itself when it is one document (`whole`);
    else, in a .txt, what stands between empty lines; else a block of lines.
    """
    if _stamp(file) != stamp:
        raise DataError(f"{file}: was changed after it was first read; run the command again")
    divided = not whole and ending(file) == ".txt" and _has_documents(text for _, text in lines(file))
    document = 1
    for record in records(file, languages):
        document += divided and _blank(record)
        if whole:
            group = f"{name}/{record.group}" if record.group else name
        else:
            group = record.group or (f"document {document}" if divided else _block(record.line))
        yield _example(f"{name}:{record.line}", record, group)


def _example(name: str, record: Record, group: str) -> Example:
    try:
        return Example(name, record.sides, group, **record.marks)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _moses(ref: str, languages: tuple[str, ...]) -> _Source:
    """Two files whose lines belong together."""
    first, second = (Path(piece.strip()).expanduser() for piece in [*ref.split(","), "", ""][:2])
    if ref.count(",") != 1 or len(languages) != 2:
        raise ConfigError(
            f"{ref}: a pair is two files 'a.en,a.ny' and two languages, the second one with `to`"
        )
    stamps = [_stamp(file) for file in (first, second)]

    def read() -> Iterator[Example]:
        if [_stamp(file) for file in (first, second)] != stamps:
            raise DataError(f"{ref}: was changed after it was first read; run the command again")
        numbered = itertools.zip_longest(lines(first), lines(second))
        for count, (one, two) in enumerate(numbered, start=1):
            if one is None or two is None:
                more = count + sum(1 for _ in numbered)
                counts = (count - 1, more) if one is None else (more, count - 1)
                raise DataError(
                    f"{first} has {counts[0]} lines and {second} has {counts[1]}; the lines of a pair must "
                    "belong together one by one"
                )
            sides = dict(zip(languages, (one[1], two[1]), strict=True))
            yield Example(f"{first.name}:{count}", sides, _block(count))

    return _Source(ref, read, languages, (first, second))


def _asset(ref: str, sides: tuple[tuple[str, str], ...], asked: tuple[str, ...]) -> _Source:
    """One or several sides of assets, joined by the ids of their verses or messages."""
    languages = tuple(code for _, code in sides)
    if len(set(languages)) < len(languages):
        raise ConfigError(f"{ref}: names {', '.join(languages)}; the sides must be of different languages")
    if not set(asked) <= set(languages):
        raise ConfigError(f"{ref} is in {', '.join(languages)}, not in {', '.join(asked)}")
    files = tuple(assets.get(name) / f"{code}.jsonl" for name, code in sides)

    def read() -> Iterator[Example]:
        others = [{e.id: e.sides for e in _stored(file)} for file in files[1:]]
        for example in _stored(files[0]):
            if all(example.id in other for other in others):
                joined = dict(example.sides)
                for other in others:
                    joined |= other[example.id]
                yield Example(example.id, joined, example.group)

    pins = {name: assets.find(name).sha256 for name, _ in sides}
    return _Source(ref, read, languages, files, pinned=True, notes={"sha256": pins})


def _stored(file: Path) -> Iterator[Example]:
    return (Example.of_record(json.loads(line)) for _, line in lines(file))


def _hub(ref: str, languages: tuple[str, ...]) -> _Source:
    """A data set of the hub, streamed: "owner/name" or "owner/name:config"; its `train` or its only part."""
    try:
        import datasets  # pyright: ignore
    except ImportError:
        raise MissingExtra("datasets", "hub", f"the hub data set {ref}") from None
    name, _, config = ref.partition(":")
    try:
        parts: Any = datasets.load_dataset(name, config or None, streaming=True)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{ref} is no file, folder or asset, and the hub did not give it ({reason}); check the spelling, "
            "the configuration (owner/name:config) and the network"
        ) from None
    part = "train" if "train" in parts else next(iter(parts))

    def read() -> Iterator[Example]:
        for number, row in enumerate(parts[part], start=1):
            record = of_row(f"{ref}: row {number}", number, row, languages)
            yield _example(f"{name}:{number}", record, record.group or _block(number))

    return _Source(ref, read, languages, notes={"part": part})


def _scan(source: _Source, *, nfc: bool, dedupe: bool) -> Corpus:
    """Read everything once: check it, decide what is kept, and note what was found."""
    keep = bytearray()
    held: list[Example] = []
    room = _HELD
    seen: set[bytes] = set()
    samples = {code: Sample() for code in source.languages}
    count = Counter[str]()
    packed = any(file.suffix.lower() in (".gz", ".zst", ".parquet") for file in source.files)
    total = None if packed or not source.files else sum(file.stat().st_size for file in source.files)
    with bar(f"read {source.name}", total, "B" if total else "line") as shown:
        for raw in source.read():
            example = _clean(raw, nfc)
            texts = [example.sides.get(code, "") for code in source.languages]
            said = [example.question, repr(example.target), repr(example.spans)] if _marked(example) else []
            digest = hashlib.blake2b("\0".join([*texts, *said]).encode(), digest_size=16).digest()
            fate = _fate(texts, dedupe and digest in seen)
            count[fate] += 1
            count["nfc_changed"] += nfc and any(raw.sides[c].strip() != t for c, t in example.sides.items())
            keep.append(fate == "kept")
            if fate == "kept":
                seen.add(digest)
                for code in () if source.pinned else source.languages:
                    samples[code].add(example.sides[code])
            nbytes = sum(len(text.encode()) + 1 for text in texts)
            room -= nbytes
            held.append(example)
            if room < 0:
                held.clear()
            shown.update(nbytes if total else 1)
    found = {key: count[key] for key in ("kept", "empty", "one_sided", "duplicates", "nfc_changed")}
    notes = {"sources": [str(file) for file in source.files] or [source.name], "read": len(keep), **found}
    _refuse_too_little(source, notes)
    if not source.pinned:
        notes["looks"] = {code: _look(source, code, samples[code]) for code in source.languages}
    _tell(source, notes)

    def examples() -> Iterator[Example]:
        return iter(held) if room >= 0 else (_clean(raw, nfc) for raw in source.read())

    notes |= {**source.notes, "nfc": nfc, "dedupe": dedupe}
    return Corpus(examples, bytes(keep), source.languages, notes)


def _clean(example: Example, nfc: bool) -> Example:
    """Blanks at the ends removed, and Unicode normal form C; a side with spans stays as it is."""
    form = partial(unicodedata.normalize, "NFC") if nfc else str
    kept = example.spans
    sides = {c: text if c in kept else form(text.strip()) for c, text in example.sides.items()}
    return replace(example, sides=sides)


def _marked(example: Example) -> bool:
    return bool(example.question or example.spans or example.target is not None)


def _fate(texts: Sequence[str], twice: bool) -> str:
    if not any(texts):
        return "empty"
    if not all(texts):
        return "one_sided"
    return "duplicates" if twice else "kept"


def _refuse_too_little(source: _Source, notes: Mapping[str, Any]) -> None:
    if notes["kept"] > 1:
        return
    dropped = f"{notes['empty']} empty, {notes['one_sided']} with one side only, {notes['duplicates']} twice"
    if not notes["kept"]:
        raise DataError(f"{source.name}: no text in it ({notes['read']} lines read: {dropped})")
    raise DataError(
        f"{source.name}: only one line of text ({notes['read']} read: {dropped}); put one sentence or "
        "paragraph on each line, an empty line between documents"
    )


def _look(source: _Source, code: str, sample: Sample) -> dict[str, Any]:
    found = identify(sample.lines, Language(code))
    if found["warning"]:
        name = Language(code).name
        say(f"warning: {source.name} should be {code} ({name}), but {found['warning']}; check the text")
    return found


def _tell(source: _Source, notes: Mapping[str, Any]) -> None:
    """Say what was dropped, if anything was."""
    names = {"empty": "empty", "one_sided": "with one side only", "duplicates": "exact duplicates"}
    dropped = [f"{notes[key]:,} {what}" for key, what in names.items() if notes[key]]
    if dropped:
        kept = f"{notes['kept']:,} of {notes['read']:,} lines kept"
        say(f"{source.name}: {kept}; dropped: {', '.join(dropped)}")


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of change, to notice a file that changes between two readings."""
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{file}: {(error.strerror or 'can not be read').lower()}") from None
    return found.st_size, found.st_mtime_ns


def _has_documents(texts: Iterable[str]) -> bool:
    """Whether an empty line stands between two lines of text."""
    begun = ended = False
    for text in texts:
        if text.strip():
            if ended:
                return True
            begun = True
        else:
            ended = begun
    return False


def _blank(record: Record) -> bool:
    return not any(text.strip() for text in record.sides.values())


def _block(line: int) -> str:
    """The block of lines a line belongs to, for a text that does not say where its documents end."""
    first = (line - 1) // BLOCK_LINES * BLOCK_LINES + 1
    return f"lines {first}-{first + BLOCK_LINES - 1}"
