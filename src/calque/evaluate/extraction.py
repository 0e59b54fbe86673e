"""Open information extraction: tuples from answers, and the three published ways to score them.

A tuple is a relation with its arguments, the subject first. All scores of one sentence are sums (see the
functions); a curve over confidences needs all sentences at once (`lexical_curve`, `carb_curve`).

Papers: Stanovsky & Dagan 2016 and Ro et al. 2020, arXiv:2009.08128 (Re-OIE2016, lexical match); Bhardwaj
et al. 2019 (CaRB); Gashteovski et al. 2022, arXiv:2109.06850 (BenchIE, fact synsets).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from calque.errors import DataError
from calque.evaluate.spans import pairs

LEXICAL = 0.5  # a gold tuple is found where more than this share of its words is
_BE = frozenset(["be", "is", "am", "are", "was", "were", "been", "being"])
_ARGUMENTS = ("subject", "object", "arg0", "arg1", "arg2", "arg3", "arg4", "arg5")


@dataclass(frozen=True)
class Extraction:
    """A relation with its arguments, the subject first, and how sure a system is of it."""

    relation: str
    arguments: tuple[str, ...]
    confidence: float = 1.0

    @property
    def words(self) -> list[str]:
        """All its words, relation first."""
        return " ".join((self.relation, *self.arguments)).split()


class Parsed(NamedTuple):
    """The tuples of an answer, and how many entries of it are none."""

    extractions: tuple[Extraction, ...]
    unparsed: int


def of_row(row: Any, where: str = "tuple") -> Extraction:
    """A tuple from a mapping: relation (or pred) with arguments, or with subject and object.

    The published files call these arg0, arg1 and so on; a list is subject, relation, object.

    Raises:
        DataError: No relation, no argument, a confidence that is no number.
    """
    if isinstance(row, list | tuple) and len(row) >= 2 and all(isinstance(part, str) for part in row):
        row = {"relation": row[1], "arguments": [row[0], *row[2:]]}
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {row!r:.60}; expected relation and arguments")
    relation = row.get("relation", row.get("pred"))
    arguments = row.get("arguments")
    if arguments is None:
        arguments = [row[name] for name in _ARGUMENTS if row.get(name)]
    good = isinstance(arguments, list) and all(isinstance(part, str) for part in arguments)
    if not isinstance(relation, str) or not relation.strip() or not good or not any(arguments):
        raise DataError(f"{where}: {dict(row)!r:.80}; expected a relation and arguments, each a text")
    sure = row.get("confidence", 1.0)
    if isinstance(sure, bool) or not isinstance(sure, int | float):
        raise DataError(f"{where}: confidence is {sure!r}, expected a number")
    return Extraction(relation, tuple(arguments), float(sure))


def parse(text: str) -> Parsed:
    """The tuples that an answer in words gives.

    Read are a JSON list of what `of_row` takes, and lines of parts divided by tabs, semicolons or bars, the
    subject first, in round brackets or not. Entries that are neither are counted.
    """
    begin, end = text.find("["), text.rfind("]")
    try:
        listed: Any = json.loads(text[begin : end + 1]) if 0 <= begin < end else None
    except json.JSONDecodeError:
        listed = None
    if listed is None:
        lines = [line.strip().strip("()").strip() for line in text.splitlines() if line.strip()]
        listed = [[part.strip() for part in re.split(r"[\t;|]", line) if part.strip()] for line in lines]
    found: list[Extraction] = []
    for entry in listed:
        try:
            found.append(of_row(entry))
        except DataError:
            continue
    return Parsed(tuple(found), len(listed) - len(found))


def lexical_counts(gold: Sequence[Extraction], made: Sequence[Extraction]) -> dict[str, float]:
    """Gold tuples of which more than half of the words are in a tuple of the answer, each used once.

    "lexical.*" pairs as many as possible and counts no word twice. "lexical/published.*" is what the
    published scorer gives: the first tuple that matches is taken, a word that is repeated counts once for
    each pair of it, and a sentence with n gold tuples and no answer loses n * n.
    """
    rows = [[j for j, m in enumerate(made) if _covered(g, m) > LEXICAL] for g in gold]
    loose = [[j for j, m in enumerate(made) if _covered_by_pairs(g, m) > LEXICAL] for g in gold]
    taken: set[int] = set()
    for row in loose:
        taken |= set([j for j in row if j not in taken][:1])
    missed = len(gold) - len(taken) if made else len(gold) ** 2
    best = len(pairs(rows))
    return {
        "lexical.tp": float(best),
        "lexical.fp": float(len(made) - best),
        "lexical.fn": float(len(gold) - best),
        "lexical/published.tp": float(len(taken)),
        "lexical/published.fp": float(len(made) - len(taken)),
        "lexical/published.fn": float(missed),
    }


def _covered(gold: Extraction, made: Extraction) -> float:
    words = gold.words
    return sum((Counter(words) & Counter(made.words)).values()) / len(words)


def _covered_by_pairs(gold: Extraction, made: Extraction) -> float:
    words, others = gold.words, Counter(made.words)
    return sum(others[word] for word in words) / len(words)


def tuple_scores(gold: Extraction, made: Extraction, *, english: bool = False) -> tuple[float, float]:
    """Precision and recall of the words of one tuple against one gold tuple, part by part.

    The second and later arguments are one part. Tuples whose relations share no word, and tuples with
    fewer parts than two arguments where the gold one has them, score nothing.

    Args:
        gold: The true tuple.
        made: The one to judge.
        english: Whether "be" in the answer's relation also matches one form of it in the gold relation.
    """
    theirs, ours = gold.relation.split(), made.relation.split()
    rest = Counter(ours) - Counter(theirs)
    shared = _shared(theirs, ours)
    if english and rest["be"] and _BE & set(theirs):
        shared += 1
    if not shared:
        return 0.0, 0.0
    right, given, expected = shared, len(ours), len(theirs)
    parts = _two(made.arguments)
    for place, part in enumerate(_two(gold.arguments)):
        if place >= len(parts):
            return 0.0, 0.0
        theirs, ours = part.split(), parts[place].split()
        right, given, expected = right + _shared(theirs, ours), given + len(ours), expected + len(theirs)
    return right / given, right / expected


def _two(arguments: Sequence[str]) -> list[str]:
    return [arguments[0], " ".join(arguments[1:])] if len(arguments) > 1 else list(arguments)


def _shared(one: Iterable[str], other: Iterable[str]) -> int:
    return sum((Counter(one) & Counter(other)).values())


def carb_counts(
    gold: Sequence[Extraction], made: Sequence[Extraction], *, english: bool = False
) -> dict[str, float]:
    """Sums of tuple precision over the answer's tuples and of tuple recall over the gold ones.

    Precision: a one-to-one matching; "carb.precise" takes the best one, "carb/published.precise" the
    published greedy one (largest precision first). Recall: each gold tuple takes its best answer.
    Precision is carb.precise / carb.made, recall is carb.recalled / carb.gold.
    """
    scores_GMS = np.array([[tuple_scores(g, m, english=english) for m in made] for g in gold]).reshape(
        len(gold), len(made), 2
    )
    return _carb(scores_GMS) | {"carb.made": float(len(made)), "carb.gold": float(len(gold))}


def _carb(scores_GMS: np.ndarray) -> dict[str, float]:
    from scipy.optimize import linear_sum_assignment

    precision_GM, recall_GM = scores_GMS[..., 0], scores_GMS[..., 1]
    best = precision_GM[linear_sum_assignment(precision_GM, maximize=True)].sum()
    recalled = recall_GM.max(axis=1).sum() if recall_GM.size else 0.0
    left, greedy = precision_GM.copy(), 0.0
    for _ in range(min(left.shape)):
        row, column = np.unravel_index(left.argmax(), left.shape)
        greedy += left[row, column]
        left[row, :] = left[:, column] = -1.0
    return {
        "carb.precise": float(best),
        "carb/published.precise": float(greedy),
        "carb.recalled": float(recalled),
    }


def fact_counts(facts: Sequence[Sequence[Extraction]], made: Sequence[Extraction]) -> dict[str, float]:
    """BenchIE: facts that a tuple states, in one of the wordings listed for the fact.

    fact.tp counts facts (two tuples that state one fact count once), fact.fn facts that none states, and
    fact.fp tuples that state none. A tuple without subject, relation and object is left out. Words within
    [brackets] of a wording may be there or not.
    """
    stated: set[int] = set()
    wrong = 0
    wordings = [[_wording(wording) for wording in fact] for fact in facts]
    for one in made:
        slots = _slots(one)
        if not all(slots):
            continue
        texts = [" " + " ".join(slot.split()) for slot in slots]
        hit = next(
            (n for n, fact in enumerate(wordings) if any(_states(texts, wording) for wording in fact)), None
        )
        wrong += hit is None
        stated |= set() if hit is None else {hit}
    return {
        "fact.tp": float(len(stated)),
        "fact.fp": float(wrong),
        "fact.fn": float(len(facts) - len(stated)),
    }


def _slots(one: Extraction) -> tuple[str, str, str]:
    first, second = (*one.arguments, "", "")[:2]
    return first.strip(), one.relation.strip(), second.strip()


def _wording(wording: Extraction) -> list[re.Pattern[str]]:
    return [re.compile(_pattern(slot)) for slot in _slots(wording)]


def _pattern(slot: str) -> str:
    """A regular expression over words with a blank before each; [bracketed] ones are optional."""
    made = ""
    for optional, word in re.findall(r"\[([^\[\]]*)\]|([^\s\[\]]+)", slot):
        words = "".join(re.escape(f" {part}") for part in (optional or word).split())
        made += f"(?:{words})?" if optional else words
    return made


def _states(texts: Sequence[str], wording: Sequence[re.Pattern[str]]) -> bool:
    return all(p.fullmatch(text) for text, p in zip(texts, wording, strict=True))


@dataclass(frozen=True)
class Curve:
    """Precision and recall with all tuples of at least a confidence, the largest confidence first.

    Attributes:
        confidence: Every distinct one. Shape [C].
        precision: Shape [C].
        recall: Shape [C].
        best: Precision, recall and F1 where F1 is largest.
        area: Under the line through the points and (recall 0, precision 1), by the trapezoid rule. The
            published scripts keep one precision for each recall, so that theirs may differ where two
            confidences have the same recall.
    """

    confidence: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    best: tuple[float, float, float]
    area: float


Sentences = Sequence[tuple[Sequence[Extraction], Sequence[Extraction]]]


def carb_curve(sentences: Sentences, *, english: bool = False) -> Curve:
    """The published curve of CaRB over (gold, answer) of all sentences, greedy matching included."""
    return _curve(sentences, lambda gold, made: _carb_point(carb_counts(gold, made, english=english)))


def lexical_curve(sentences: Sentences) -> Curve:
    """The curve of the lexical match over (gold, answer) of all sentences, as many pairs as possible."""
    return _curve(sentences, lambda gold, made: _lexical_point(lexical_counts(gold, made)))


def _carb_point(found: Mapping[str, float]) -> tuple[float, float, float, float]:
    return found["carb/published.precise"], found["carb.made"], found["carb.recalled"], found["carb.gold"]


def _lexical_point(found: Mapping[str, float]) -> tuple[float, float, float, float]:
    tp = found["lexical.tp"]
    return tp, tp + found["lexical.fp"], tp, tp + found["lexical.fn"]


def _curve(sentences: Sentences, point: Any) -> Curve:
    levels = sorted({made.confidence for _, answer in sentences for made in answer}, reverse=True)
    points = np.zeros((len(levels), 4))
    for gold, answer in sentences:
        before = point(gold, [])
        for row, level in enumerate(levels):
            if any(made.confidence == level for made in answer):
                before = point(gold, [made for made in answer if made.confidence >= level])
            points[row] += before
    precision = np.divide(points[:, 0], points[:, 1], out=np.zeros(len(levels)), where=points[:, 1] > 0)
    recall = np.divide(points[:, 2], points[:, 3], out=np.zeros(len(levels)), where=points[:, 3] > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(len(levels)), where=both > 0)
    top = int(f1.argmax()) if levels else 0
    best = (float(precision[top]), float(recall[top]), float(f1[top])) if levels else (0.0, 0.0, 0.0)
    line_r, line_p = np.r_[0.0, recall], np.r_[1.0, precision]
    order = np.argsort(line_r, kind="stable")
    area = float(np.trapezoid(line_p[order], line_r[order])) if levels else 0.0
    return Curve(np.array(levels), precision, recall, best, area)
