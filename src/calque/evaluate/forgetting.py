"""What a classifier carries over into a related language, and what it forgets there.

    train on A -> test on A and B -> train on with B -> test on B and A

    forgetting = 100 (right on A before - right on A after) / right on A before,   less than 0 is possible
    gain       = accuracy on B after - accuracy on B before

Vocabulary, alphabet and class numbers are made once, from A's training texts and the names of both label
sets, and stay the same objects throughout: rebuilding any of them on B would shuffle what was learnt.

Paper: Thangaraj et al. 2024, arXiv:2409.10965.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from annotated_types import Ge, Interval

from calque import __version__
from calque.disk import checksum
from calque.errors import ConfigError, DataError
from calque.evaluate.labelled import Labelled, class_counts, label_names, train_and_test, without
from calque.evaluate.table import Table, signature
from calque.language import Language
from calque.progress import bar, say
from calque.vocab.static import Vectors

Model = Literal["bayes", "bigru", "cnn", "char_cnn"]
_FEWEST = 10  # training texts below which nothing can be said


class Classifier(Protocol):
    """What each of the small classifiers can do."""

    def fit(self, texts: Sequence[str], labels_N: np.ndarray, *, seed: int) -> None:
        """Train on from what was learnt before."""

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """[N] class of each text."""
        ...


def forgetting(
    source: Path,
    target: Path,
    vectors: Vectors | None = None,
    *,
    source_language: str,
    target_language: str,
    model: Model = "bigru",
    replay: Annotated[float, Interval(ge=0, le=1)] = 0.0,
    held_out: Annotated[float, Interval(gt=0, lt=1)] = 0.2,
    epochs: Annotated[int, Ge(1)] | None = None,
    characters: Annotated[int, Ge(123)] = 1500,
    seeds: Sequence[int] = (0, 1, 2),
) -> Table:
    """Train on one language, tune on another, and test both before and after.

    Task "classify"; the systems are "MODEL A" (trained on A, so its B rows are zero-shot), "MODEL A, B" (then
    on B), "MODEL B" (on B alone, with vocabulary and all of its own) and "majority" (A's or B's most frequent
    class). Split "test, seed S" for each seed. Metrics of each test text: correct, and tp, fp, fn of its
    classes; for "MODEL A, B" also correct.before, the same text's before tuning; for models of words also
    words and unknown, by the vocabulary of the training.

    Args:
        source: Labelled texts of language A: a folder with train.* and test.*, or one file.
        target: Labelled texts of language B.
        vectors: Word vectors of A that the embeddings of bigru and cnn begin with.
        source_language: Code of A.
        target_language: Code of B.
        model: bayes (naive Bayes on weighted words), bigru, cnn (words), char_cnn (characters).
        replay: Share of A's training texts that is mixed in when training on B.
        held_out: Share of a file that becomes its test part, by group.
        epochs: Of each training, at most; the published number by default.
        characters: Of a text that char_cnn reads.
        seeds: Of initial weights, order of texts and dropout; every one is a run of its own.

    Returns:
        The table; `table.measure("forgetting")` and `table.measure("gain")` for the rows of "MODEL A, B".

    Raises:
        ConfigError: No seed; vectors or characters for a model that has none.
        DataError: A record without label or text, fewer than two classes, too few texts.

    Relations: with A's own file as B, zero-shot is the accuracy on A. bayes does not depend on the seed.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {list(seeds)}: give one or more, each once")
    if vectors is not None and model not in ("bigru", "cnn"):
        raise ConfigError(f"model '{model}' has no word embeddings to begin with vectors")
    a, b = (Language.parse(code).code for code in (source_language, target_language))
    parts = _parts(source, target, held_out)
    stated = {
        "replay": replay, "epochs": epochs or "published", "vectors": "given" if vectors else "none",
        "characters": characters if model == "char_cnn" else "all", "source": checksum(source)[:8],
        "target": checksum(target)[:8], "held_out": held_out, "version": __version__,
    }  # fmt: skip
    build = _builder(model, len(parts.labels), vectors, epochs, characters)
    trial = _Trial(parts, (a, b), build, model, replay, signature(f"forgetting:{model}", stated))
    rows = trial.majority(seeds)
    with bar(f"forgetting: {model}", len(seeds), "seed") as shown:
        for seed in seeds:
            rows += trial.run(seed)
            shown.update(1)
    return Table.of(rows)


@dataclass(frozen=True)
class _Parts:
    """Training and test texts of both languages, and the names of all classes."""

    train: tuple[list[Labelled], list[Labelled]]
    test: tuple[list[Labelled], list[Labelled]]
    labels: tuple[str, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)

    def y(self, texts: Sequence[Labelled]) -> np.ndarray:
        return np.array([self.numbers[entry.label] for entry in texts], np.int64)


def _parts(source: Path, target: Path, held_out: float) -> _Parts:
    (train_a, test_a), (train_b, test_b) = (train_and_test(path, held_out) for path in (source, target))
    train = tuple(without(part, test_a, test_b) for part in (train_a, train_b))
    if dropped := len(train_a) + len(train_b) - len(train[0]) - len(train[1]):
        say(f"{dropped} training texts also stand in a test part; they are left out")
    for path, kept, held in ((source, train[0], test_a), (target, train[1], test_b)):
        classes = label_names(kept)
        if len(kept) < _FEWEST or not held:
            raise DataError(
                f"{path}: {len(kept)} texts to train on and {len(held)} to test; {_FEWEST} and 1 are needed"
            )
        if len(classes) < 2:
            raise DataError(f"{path}: all training texts have the label '{kept[0].label}'; nothing to learn")
    labels = label_names(train_a, test_a, train_b, test_b)
    for path, found in ((source, label_names(train_a)), (target, label_names(train_b))):
        if absent := [label for label in labels if label not in found]:
            say(f"{path}: no training text of {len(absent)} classes of {len(labels)}: {', '.join(absent)}")
    numbers = {label: number for number, label in enumerate(labels)}
    return _Parts((train[0], train[1]), (test_a, test_b), labels, numbers)


def _builder(
    model: Model, classes: int, vectors: Vectors | None, epochs: int | None, characters: int
) -> Callable[[Sequence[str], int], tuple[Classifier, Any]]:
    """(training texts, seed) -> (untrained classifier, its vocabulary or None)."""
    given = dict(zip(vectors.words, vectors.matrix, strict=True)) if vectors else {}
    limit = {} if epochs is None else {"epochs": epochs}

    def build(texts: Sequence[str], seed: int) -> tuple[Classifier, Any]:
        if model == "bayes":
            from calque.evaluate.baselines.bayes import Bayes

            made = Bayes(texts, classes)
            return made, made.vocabulary
        if model == "char_cnn":
            from calque.evaluate.baselines.char_cnn import char_cnn

            return char_cnn(texts, classes, seed=seed, characters=characters, **limit), None
        if model == "cnn":
            from calque.evaluate.baselines.cnn import cnn

            return cnn(texts, classes, given, seed=seed, **limit)
        from calque.evaluate.baselines.bigru import bigru

        return bigru(texts, classes, given, seed=seed, **limit)

    return build


@dataclass(frozen=True)
class _Trial:
    """One protocol, run for several seeds."""

    parts: _Parts
    languages: tuple[str, str]
    build: Callable[[Sequence[str], int], tuple[Classifier, Any]]
    model: str
    replay: float
    signature: str

    def run(self, seed: int) -> list[dict[str, Any]]:
        """Train on A, test, train on with B, test; and B alone."""
        train_a, train_b = self.parts.train
        classifier, vocabulary = self.build([entry.text for entry in train_a], seed)
        self._fit(classifier, train_a, seed)
        before = self._predict(classifier)
        again = random.Random(seed).sample(train_a, round(self.replay * len(train_a)))
        self._fit(classifier, [*train_b, *again], seed)
        after = self._predict(classifier)
        alone, own = self.build([entry.text for entry in train_b], seed)
        self._fit(alone, train_b, seed)
        name = f"{self.model} A, B" + (f" and {self.replay:.0%} of A" if self.replay else "")
        return [
            *self._rows(f"{self.model} A", seed, before, vocabulary),
            *self._rows(name, seed, after, vocabulary, before),
            *self._rows(f"{self.model} B", seed, self._predict(alone), own),
        ]

    def majority(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The most frequent class of each language's training texts, for everything."""
        guesses = []
        for train, test in zip(self.parts.train, self.parts.test, strict=True):
            ((label, _),) = Counter(entry.label for entry in train).most_common(1)
            guesses.append(np.full(len(test), self.parts.numbers[label]))
        found = (guesses[0], guesses[1])
        return [row for seed in seeds for row in self._rows("majority", seed, found, None)]

    def _fit(self, classifier: Classifier, texts: Sequence[Labelled], seed: int) -> None:
        classifier.fit([entry.text for entry in texts], self.parts.y(texts), seed=seed)

    def _predict(self, classifier: Classifier) -> tuple[np.ndarray, np.ndarray]:
        first, second = ([entry.text for entry in part] for part in self.parts.test)
        return classifier.predict(first), classifier.predict(second)

    def _rows(
        self,
        system: str,
        seed: int,
        predicted: tuple[np.ndarray, np.ndarray],
        vocabulary: Any,
        before: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Iterator[dict[str, Any]]:
        names = self.parts.labels
        for side, language in enumerate(self.languages):
            head = {"system": system, "task": "classify", "language": language, "signature": self.signature}
            head |= {"split": f"test, seed {seed}"}
            for number, entry in enumerate(self.parts.test[side]):
                values = class_counts(entry.label, names[predicted[side][number]])
                if before is not None:
                    values["correct.before"] = float(names[before[side][number]] == entry.label)
                if vocabulary is not None:
                    unknown, said = vocabulary.unknown(entry.text)
                    values |= {"unknown": float(unknown), "words": float(said)}
                for metric, value in values.items():
                    yield {**head, "item": entry.id, "group": entry.group, "metric": metric, "value": value}
