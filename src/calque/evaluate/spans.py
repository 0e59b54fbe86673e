"""Labelled spans of words: read from tags, JSON or tagged text, written back, and compared.

A span is `calque.data.example.Span`; here its `start` and `end` count words (end not included).

Schemes of tags, "O" being no span:

- "bio" (IOB2): B-X begins a span, I-X continues one of the same label.
- "iob1": I-X begins or continues; B-X begins one right after another of the same label.
- "iobes" (also written BILOU, BMEWO): B-X I-X ... E-X, or S-X for one word. L and U are read as E and S,
  M as I, W as S.

Illegal tags (I-X without a span of X before it; in "iobes" also a span that is not closed, or E-X without a
beginning) are never passed over in silence: how many there are is counted, and one of three rules holds.

- "repair": an I or E that continues nothing begins a span; a span that is not closed ends where its tags
  end. This is the default of seqeval and of conlleval, hence of most published scores.
- "drop": what is not begun (and, in "iobes", not closed) by the rules is no span. So does seqeval's strict
  mode.
- "refuse": a DataError.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from calque.data.example import Span
from calque.errors import ConfigError, DataError

Scheme = Literal["bio", "iob1", "iobes"]
Rule = Literal["repair", "drop", "refuse"]

_PREFIXES: Mapping[str, Mapping[str, str]] = {
    "bio": {"B": "B", "I": "I"},
    "iob1": {"B": "B", "I": "I"},
    "iobes": {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"},
}
_TAGGED = re.compile(r"<([^<>/]+)>([^<>]*)</\1>")


class Read(NamedTuple):
    """Spans in order, and how many illegal tags (or unusable entries) there were on the way."""

    spans: tuple[Span, ...]
    illegal: int


def from_tags(
    tags: Sequence[str], *, scheme: Scheme = "bio", rule: Rule = "repair", where: str = "tags"
) -> Read:
    """The spans that a row of tags marks.

    Args:
        tags: One for each word.
        scheme: How they are written.
        rule: What becomes of illegal ones; see the module.
        where: What a message begins with.

    Raises:
        DataError: A tag of another scheme; an illegal tag, with rule "refuse".

    Relations: from_tags(to_tags(spans, n, scheme=s), scheme=s) has the same spans and no illegal tag.
    """
    prefixes = _PREFIXES.get(scheme)
    if prefixes is None:
        raise ConfigError(f"no scheme of tags '{scheme}'; there are {', '.join(_PREFIXES)}")
    parts = [_split(tag, prefixes, f"{where}: word {n + 1}") for n, tag in enumerate(tags)]
    spans: list[Span] = []
    faults: list[int] = []
    place = 0
    while place < len(parts):
        if parts[place][0] == "O":
            place += 1
            continue
        end, wrong = _run(parts, place, scheme)
        if not wrong or rule == "repair":
            spans.append(Span(place, end, parts[place][1]))
        faults.extend(wrong)
        place = end
    if faults and rule == "refuse":
        n = faults[0]
        before = tags[n - 1] if n else "the beginning"
        raise DataError(f"{where}: word {n + 1}: illegal tag '{tags[n]}' after {before} ({scheme})")
    return Read(tuple(spans), len(faults))


def _run(parts: Sequence[tuple[str, str]], start: int, scheme: Scheme) -> tuple[int, list[int]]:
    """The end of the span that begins at `start`, and the places of its illegal tags."""
    first, label = parts[start]
    wrong = [start] if first in "IE" and scheme != "iob1" else []
    last, end = first, start + 1
    while last not in "ES" and end < len(parts) and parts[end][0] in "IE" and parts[end][1] == label:
        last, end = parts[end][0], end + 1
    if scheme == "iobes" and last not in "ES":
        wrong.append(end - 1)
    return end, sorted(set(wrong))


def _split(tag: str, prefixes: Mapping[str, str], where: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    prefix, mark, label = tag.partition("-")
    if prefix not in prefixes or not mark or not label:
        raise DataError(f"{where}: '{tag}' is no tag; expected O or one of {', '.join(prefixes)} with -LABEL")
    return prefixes[prefix], label


def to_tags(spans: Iterable[Span], length: int, *, scheme: Scheme = "bio") -> list[str]:
    """The row of tags that marks these spans among `length` words.

    Raises:
        DataError: A span outside the words, an empty one, two that overlap.
    """
    tags = ["O"] * length
    ended: tuple[int, str] | None = None
    for span in disjoint(spans, length):
        size, label = span.end - span.start, span.label
        middle = ["I"] * size
        if scheme == "bio" or (scheme == "iob1" and ended == (span.start, label)):
            middle[0] = "B"
        elif scheme == "iobes":
            middle = ["S"] if size == 1 else ["B", *["I"] * (size - 2), "E"]
        tags[span.start : span.end] = [f"{prefix}-{label}" for prefix in middle]
        ended = (span.end, label)
    return tags


def disjoint(spans: Iterable[Span], length: int, where: str = "spans") -> list[Span]:
    """The spans in order.

    Raises:
        DataError: A span outside the words, an empty one, two that overlap.
    """
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    for span in ordered:
        if not 0 <= span.start < span.end <= length:
            raise DataError(f"{where}: {_name(span)} lies outside the {length} words or is empty")
    for left, right in itertools.pairwise(ordered):
        if right.start < left.end:
            raise DataError(f"{where}: {_name(left)} and {_name(right)} overlap; tags can not say so")
    return ordered


def _name(span: Span) -> str:
    return f"span {span.start}..{span.end} '{span.label}'"


def from_json(value: str | Any, words: Sequence[str], *, where: str = "spans") -> Read:
    """The spans that a JSON answer names.

    Read are lists of {"label": L, "start": i, "end": j}, {"label": L, "text": "..."} and [i, j, L], and the
    mapping {L: ["text", ...]}. A text stands at its first place among the words that no earlier span of
    the answer takes; one that is not among them is left out, and counted.

    Raises:
        DataError: No JSON, another structure, a start or end outside the words.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON ({error.msg} at character {error.pos + 1})") from None
    if isinstance(value, Mapping):
        value = [{"label": label, "text": text} for label, texts in value.items() for text in _texts(texts)]
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: {type(value).__name__}; expected a list of spans or a mapping of labels")
    spans: list[Span] = []
    lost = 0
    for entry in value:
        span = _entry(entry, words, spans, where)
        if span is None:
            lost += 1
        else:
            spans.append(span)
    return Read(tuple(sorted(spans, key=lambda s: (s.start, s.end, s.label))), lost)


def _texts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _entry(entry: Any, words: Sequence[str], taken: Sequence[Span], where: str) -> Span | None:
    if isinstance(entry, list | tuple) and len(entry) == 3:
        entry = dict(zip(("start", "end", "label"), entry, strict=True))
    if not isinstance(entry, Mapping) or not isinstance(entry.get("label"), str):
        raise DataError(
            f"{where}: {entry!r:.60} is no span; expected a label with start and end, or with text"
        )
    start, end, text = entry.get("start"), entry.get("end"), entry.get("text")
    if start is None and isinstance(text, str):
        return find(text.split(), entry["label"], words, taken)
    if type(start) is not int or type(end) is not int:
        raise DataError(f"{where}: {dict(entry)!r:.60}: start and end must be whole numbers")
    if not 0 <= start < end <= len(words):
        raise DataError(f"{where}: {_name(Span(start, end, entry['label']))} outside {len(words)} words")
    return Span(start, end, entry["label"])


def find(part: Sequence[str], label: str, words: Sequence[str], taken: Sequence[Span]) -> Span | None:
    """The first place of these words that no span takes, exactly or else in any case; None if nowhere."""
    size = len(part)
    for fold in (str, str.casefold):
        wanted, given = [fold(word) for word in part], [fold(word) for word in words]
        for start in range(len(words) - size + 1) if size else ():
            free = all(start + size <= span.start or start >= span.end for span in taken)
            if free and given[start : start + size] == wanted:
                return Span(start, start + size, label)
    return None


def to_json(spans: Iterable[Span], words: Sequence[str] | None = None) -> str:
    """The spans as a JSON list of {"label", "start", "end"}, or of {"label", "text"} if words are given."""
    listed: list[dict[str, Any]] = []
    for s in spans:
        text = {"text": " ".join(words[s.start : s.end])} if words is not None else None
        listed.append({"label": s.label, **(text or {"start": s.start, "end": s.end})})
    return json.dumps(listed, ensure_ascii=False)


def from_tagged(
    text: str, names: Mapping[str, str], *, keep_punctuation: bool = False
) -> list[tuple[str, str]]:
    """(label, words) of each "<Name>words</Name>" in a text, in order; of nested ones the inner one.

    Args:
        text: What a model wrote. What is not closed by its own name is not read.
        names: name within the marks -> label; other names are not read.
        keep_punctuation: Whether marks of punctuation stay part of the words.
    """
    found: list[tuple[str, str]] = []
    for name, inside in _TAGGED.findall(text):
        kept = inside if keep_punctuation else re.sub(r"[!-/:-@\[-`{-~]", "", inside)
        if name in names and kept.split():
            found.append((names[name], " ".join(kept.split())))
    return found


def counts(
    gold: Sequence[Span],
    predicted: Sequence[Span],
    *,
    prefix: str = "",
    labels: bool = True,
    each: bool = False,
) -> dict[str, float]:
    """True positives, false positives and false negatives of exact spans, as metrics that can be summed.

    Args:
        gold: The true spans; repeated ones count once.
        predicted: The spans to judge.
        prefix: What stands before "tp", "fp" and "fn": "argument.".
        labels: Whether the label must be right too (classification) or not (identification).
        each: Whether tp.LABEL, fp.LABEL and fn.LABEL are given besides, for macro averages.

    Relations: F1 = 2 tp / (2 tp + fp + fn) over summed items is seqeval's micro F1.
    """
    true, made = ({_key(span, labels) for span in side} for side in (gold, predicted))
    result = _three(true, made, prefix, "")
    if each and labels:
        for label in sorted({key[2] for key in true | made}):
            of_it = [{key for key in side if key[2] == label} for side in (true, made)]
            result |= _three(of_it[0], of_it[1], prefix, f".{label}")
    return result


def _key(span: Span, labels: bool) -> tuple[int, int, str]:
    return (span.start, span.end, span.label if labels else "")


def _three(true: set, made: set, prefix: str, suffix: str) -> dict[str, float]:
    sizes = {"tp": len(true & made), "fp": len(made - true), "fn": len(true - made)}
    return {f"{prefix}{name}{suffix}": float(size) for name, size in sizes.items()}


def partial_counts(
    gold: Sequence[Span], predicted: Sequence[Span], *, prefix: str = "partial."
) -> dict[str, float]:
    """As `counts`, where a predicted span is right that shares a word with a gold span of its label.

    Each span is matched at most once, and as many as possible are.
    """
    rows = [[j for j, p in enumerate(predicted) if _touch(g, p)] for g in gold]
    matched = len(pairs(rows))
    sizes = {"tp": matched, "fp": len(predicted) - matched, "fn": len(gold) - matched}
    return {f"{prefix}{name}": float(size) for name, size in sizes.items()}


def _touch(a: Span, b: Span) -> bool:
    return a.label == b.label and a.start < b.end and b.start < a.end


def pairs(rows: Sequence[Sequence[int]]) -> dict[int, int]:
    """A largest matching of a bipartite graph, column -> row; `rows` lists the columns each row may take."""
    owner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column in rows[row]:
            if column in seen:
                continue
            seen.add(column)
            if column not in owner or place(owner[column], seen):
                owner[column] = row
                return True
        return False

    for row in range(len(rows)):
        place(row, set())
    return owner


def word_counts(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Scores of a row of plain tags, word by word: correct, words, and tp.TAG, fp.TAG, fn.TAG of each tag.

    Raises:
        DataError: Rows of different lengths.
    """
    if len(gold) != len(predicted):
        raise DataError(f"{len(predicted)} tags for {len(gold)} words; one tag for each word is expected")
    result: dict[str, float] = {"correct": 0.0, "words": float(len(gold))}
    for true, made in zip(gold, predicted, strict=True):
        result["correct"] += true == made
        names = (f"tp.{true}",) if true == made else (f"fn.{true}", f"fp.{made}")
        for name in names:
            result[name] = result.get(name, 0.0) + 1
    return result


def f1(sums: Mapping[str, float], prefix: str = "", suffix: str = "") -> dict[str, float]:
    """Precision, recall and F1 of summed counts; 0 where nothing was predicted, or nothing was there."""
    tp, fp, fn = (sums.get(f"{prefix}{name}{suffix}", 0.0) for name in ("tp", "fp", "fn"))
    precision, recall = (tp / (tp + other) if tp else 0.0 for other in (fp, fn))
    return {"precision": precision, "recall": recall, "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0}
