"""Rankings: average precision, nDCG, reciprocal rank, recall and precision of each query, as in trec_eval.

Documents stand in the order of their scores, highest first; of equal scores (in single precision) the one
whose name is later in the alphabet comes first, whatever rank a file states. A query that was judged and
not answered has 0; one for which nothing is relevant has 0 too. Grades above 0 are relevant; nDCG takes the
grade as gain and log2(rank + 1) as discount.

Paper: Buckley and Voorhees 2000, SIGIR, for average precision as trec_eval computes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calque import __version__
from calque.data.read import ending, lines
from calque.disk import checksum
from calque.errors import ConfigError, DataError, MissingExtra, did_you_mean
from calque.evaluate.files import needed, records
from calque.evaluate.table import Table, signature
from calque.language import Language
from calque.progress import say

Grades = Mapping[str, int]
_NAME = re.compile(r"(ap|ndcg|rr|recall|p)(?:@(\d+))?")
MEASURES = ("ap", "ndcg@10", "rr", "rr@10", "recall@100", "p@5")


def ranking(
    runs: Mapping[str, Path],
    judgements: Path,
    *,
    language: str,
    measures: Sequence[str] = MEASURES,
) -> Table:
    """Score rankings of documents against judgements of relevance, query by query.

    Task "ranking"; items are the judged queries. Besides the measures asked for: relevant, retrieved (how
    many documents), missing (1: no ranking for this query), and "ap/published" and found, for a mean over
    the queries that found something of the precision at the relevant documents found, as some papers have
    it (measure "map_published").

    Args:
        runs: Rankings by system: TREC files "query Q0 document rank score tag", or JSON lines with `query`
            and `ranking`, a list of documents best first or {document: score}.
        judgements: TREC qrels "query 0 document grade", the same with three columns and a first line, or
            JSON lines with `query` and `relevant`, a list of documents or {document: grade}.
        language: Code of the language of the queries.
        measures: ap, rr, ndcg, recall, p, each with "@K" or (but p) without; or the name of any measure of
            ir-measures, such as "ERR@20", with the extra `retrieve`.

    Raises:
        ConfigError: No run, an unknown measure.
        DataError: A damaged line, a document twice in a query, a run without any judged query; with file
            and line.
        MissingExtra: A measure of ir-measures without the library.

    Relations: a ranking by grade has ndcg 1; recall at the length of a ranking is retrieved relevant ones
    over relevant ones. Equal to trec_eval, ties included.
    """
    if not runs:
        raise ConfigError("no ranking to score; give at least one file with a name")
    code = Language.parse(language).code
    judged = read_judgements(judgements)
    said = {"judgements": checksum(judgements)[:8], "version": __version__}
    rows = []
    for system, path in runs.items():
        ranked = read_run(path)
        common = judged.keys() & ranked.keys()
        if not common:
            raise DataError(
                f"{path}: none of its {len(ranked)} queries is among the {len(judged)} judged ones"
            )
        if unknown := ranked.keys() - judged.keys():
            say(f"{system}: {len(unknown)} queries without judgements left out, such as '{min(unknown)}'")
        if unanswered := judged.keys() - ranked.keys():
            say(f"{system}: {len(unanswered)} judged queries have no ranking; they count 0")
        made_by = signature("ranking", {"run": checksum(path)[:8], **said})
        head = {"system": system, "task": "ranking", "language": code, "signature": made_by}
        for query, values in score_run(ranked, judged, measures).items():
            values["missing"] = float(query not in ranked)
            rows.extend({**head, "item": query, "metric": m, "value": v} for m, v in values.items())
    return Table.of(rows)


def score_run(
    ranked: Mapping[str, Mapping[str, float]], judged: Mapping[str, Grades], measures: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Metrics of every judged query; those of ir-measures are asked for together."""
    own = [name for name in measures if _NAME.fullmatch(name)]
    found = {}
    for query, grades in judged.items():
        found[query] = score_query(best_first(ranked.get(query, {})), grades, own)
    if barren := sum(not any(g > 0 for g in grades.values()) for grades in judged.values()):
        say(f"{barren} of {len(judged)} judged queries have no relevant document; they count 0")
    foreign = [name for name in measures if name not in own]
    for query, name, value in _foreign(ranked, judged, foreign) if foreign else ():
        found[query][name] = value
    return found


def score_query(ranking: Sequence[str], grades: Grades, measures: Sequence[str]) -> dict[str, float]:
    """Metrics of one ranking, best document first.

    Raises:
        ConfigError: A measure of another name.
    """
    gains = np.array([max(0, grades.get(document, 0)) for document in ranking], float)
    ideal = np.sort([grade for grade in grades.values() if grade > 0])[::-1].astype(float)
    hits = gains > 0
    precision = np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)
    counts = {"found": float(hits.any()), "relevant": float(len(ideal)), "retrieved": float(len(ranking))}
    values = {"ap/published": float(precision.mean()) if hits.any() else 0.0, **counts}
    for name in measures:
        parts = _NAME.fullmatch(name)
        if parts is None or name == "p":
            raise ConfigError(
                f"no measure '{name}'{did_you_mean(name, MEASURES)}; there are {', '.join(MEASURES)}"
            )
        values[name] = _FORMULAS[parts[1]](gains, ideal, int(parts[2]) if parts[2] else None)
    return values


def best_first(scores: Mapping[str, float]) -> list[str]:
    """Documents by score in single precision, of equal ones the alphabetically last first."""
    return sorted(scores, key=lambda document: (np.float32(scores[document]), document), reverse=True)


def _ap(gains: np.ndarray, ideal: np.ndarray, cut: int | None) -> float:
    hits = gains[:cut] > 0
    return float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).sum() / max(1, len(ideal)))


def _ndcg(gains: np.ndarray, ideal: np.ndarray, cut: int | None) -> float:
    best = _discounted(ideal[:cut])
    return _discounted(gains[:cut]) / best if best else 0.0


def _discounted(gains: np.ndarray) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def _rr(gains: np.ndarray, ideal: np.ndarray, cut: int | None) -> float:
    places = np.flatnonzero(gains[:cut] > 0)
    return 1 / float(places[0] + 1) if len(places) else 0.0


def _recall(gains: np.ndarray, ideal: np.ndarray, cut: int | None) -> float:
    return float((gains[:cut] > 0).sum() / max(1, len(ideal)))


def _precision(gains: np.ndarray, ideal: np.ndarray, cut: int | None) -> float:
    return float((gains[:cut] > 0).sum() / (cut or 1))


_FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, int | None], float]] = {
    "ap": _ap, "ndcg": _ndcg, "rr": _rr, "recall": _recall, "p": _precision,
}  # fmt: skip


def _foreign(
    ranked: Mapping[str, Mapping[str, float]], judged: Mapping[str, Grades], names: Sequence[str]
) -> Iterator[tuple[str, str, float]]:
    try:
        import ir_measures  # pyright: ignore
    except ImportError:
        raise MissingExtra("ir-measures", "retrieve", f"the measure '{names[0]}'") from None
    wanted: dict[Any, str] = {}
    for name in names:
        try:
            wanted[ir_measures.parse_measure(name)] = name
        except (NameError, ValueError, SyntaxError) as error:
            raise ConfigError(
                f"no measure '{name}'{did_you_mean(name, MEASURES)} ({error}); there are "
                f"{', '.join(MEASURES)} and those of ir-measures"
            ) from None
    grades = {query: dict(found) for query, found in judged.items()}
    scores = {query: dict(found) for query, found in ranked.items() if query in judged}
    for metric in ir_measures.iter_calc(list(wanted), grades, scores):
        yield metric.query_id, wanted[metric.measure], float(metric.value)


def read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Query -> document -> grade.

    Raises:
        DataError: A damaged line, a document judged twice for a query, no judgement; with file and line.
    """
    found: dict[str, dict[str, int]] = {}
    for where, query, document, grade in _judged_lines(path):
        if document in found.setdefault(query, {}):
            raise DataError(f"{where}: document '{document}' is judged twice for query '{query}'")
        try:
            found[query][document] = int(grade)
        except (TypeError, ValueError):
            raise DataError(f"{where}: grade {grade!r}; expected a whole number") from None
    if not found:
        raise DataError(f"{path}: no judgement in it")
    return found


def _judged_lines(path: Path) -> Iterator[tuple[str, str, str, Any]]:
    if ending(path) == ".jsonl":
        for row in records(path):
            for document, grade in grades_of(row).items():
                yield row["where"], query_of(row), document, grade
        return
    for number, line in lines(path):
        cells = line.split()
        where = f"{path}:{number}"
        if not cells or (number == 1 and len(cells) == 3 and not cells[2].lstrip("-").isdigit()):
            continue  # an empty line, or the names of three columns
        if len(cells) not in (3, 4):
            raise DataError(f"{where}: {len(cells)} columns; qrels have query, 0, document, grade")
        yield where, cells[0], cells[-2], cells[-1]


def query_of(row: Mapping[str, Any]) -> str:
    """The query's name, under `query` or `id`."""
    name = "query" if "query" in row else "id"
    return str(row[name]) if isinstance(row.get(name), int) else needed(row, name, str)


def grades_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Grades of a record's `relevant`: a list of documents, each 1, or {document: grade}."""
    value = row.get("relevant")
    if isinstance(value, list):
        return {str(document): 1 for document in value}
    if isinstance(value, Mapping):
        return {str(document): grade for document, grade in value.items()}
    raise DataError(
        f"{row.get('where', 'record')}: no 'relevant', a list of documents or {{document: grade}}"
    )


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """Query -> document -> score.

    Raises:
        DataError: A damaged line, a document twice for a query, no line; with file and line.
    """
    found: dict[str, dict[str, float]] = {}
    for where, query, document, score in _run_lines(path):
        if document in found.setdefault(query, {}):
            raise DataError(f"{where}: document '{document}' stands twice in the ranking of query '{query}'")
        try:
            found[query][document] = float(score)
        except (TypeError, ValueError):
            raise DataError(f"{where}: score {score!r}; expected a number") from None
        if not np.isfinite(found[query][document]):
            raise DataError(f"{where}: score {score!r}; expected a finite number")
    if not found:
        raise DataError(f"{path}: no ranking in it")
    return found


def _run_lines(path: Path) -> Iterator[tuple[str, str, str, Any]]:
    if ending(path) == ".jsonl":
        for row in records(path):
            for document, score in scores_of(row.get("ranking"), row["where"]):
                yield row["where"], query_of(row), document, score
        return
    for number, line in lines(path):
        if cells := line.split():
            if len(cells) not in (5, 6):
                raise DataError(
                    f"{path}:{number}: {len(cells)} columns; a run has query, Q0, document, rank, score, tag"
                )
            yield f"{path}:{number}", cells[0], cells[2], cells[4]


def scores_of(value: Any, where: str) -> list[tuple[str, float]]:
    """(document, score) of a ranking: a list best first, or {document: score}."""
    if isinstance(value, Mapping):
        return [(str(document), score) for document, score in value.items()]
    if isinstance(value, list | tuple):
        return [(str(document), float(-place)) for place, document in enumerate(value)]
    raise DataError(f"{where}: ranking {value!r:.40}; expected a list of documents or {{document: score}}")
