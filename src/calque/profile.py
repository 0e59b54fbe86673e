"""How a model serves a language before anything is done: what it costs, what would help, what to run next."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from calque.language import Language, distance

# Read from each text: enough for two digits, and under a minute for a small model on two cores.
PROFILE_BYTES = 12_000


@dataclass(frozen=True)
class Served:
    """How a model serves one language.

    Attributes:
        language: Code.
        tokens_per_word: Fertility of its tokenizer.
        bytes_per_token: Bytes of text in one token.
        crumbs: Share of bytes in tokens that are no whole characters.
        unknown: Share of tokens that stand for "unknown".
        split_words: Share of words written with two or more tokens.
        covered: Share of characters that the vocabulary can write whole.
        bits_per_byte: What the model needs for a byte of this text; lower is better.
    """

    language: str
    tokens_per_word: float
    bytes_per_token: float
    crumbs: float
    unknown: float
    split_words: float
    covered: float
    bits_per_byte: float


@dataclass(frozen=True)
class Profile:
    """What `calque profile` found.

    Attributes:
        model: As it was asked for.
        served: The language in question first, then the source language if there was text in it.
        near: The nearest languages with their distance (0 same, 1 nothing in common).
        expectations: Sentences for a person.
        command: What to run next.
    """

    model: str
    served: tuple[Served, ...]
    near: tuple[tuple[str, str, float], ...]
    expectations: tuple[str, ...]
    command: str

    def plain(self) -> dict[str, Any]:
        """The same as what JSON knows."""
        return asdict(self)

    def to_text(self) -> str:
        """The same for a terminal."""
        rows = [("", *(s.language for s in self.served))]
        rows += [
            (label, *(form.format(getattr(s, name)) for s in self.served)) for name, label, form in _MEASURES
        ]
        width = max(len(row[0]) for row in rows)
        table = "\n".join("  ".join([row[0].ljust(width), *(c.rjust(10) for c in row[1:])]) for row in rows)
        near = ", ".join(f"{name} ({code}, {far:.2f})" for code, name, far in self.near)
        said = "\n".join(f"- {line}" for line in self.expectations)
        return f"{table}\n\nnear languages: {near}\n\n{said}\n\nnext:  {self.command}"


_MEASURES = (
    ("bits_per_byte", "bits per byte (lower is better)", "{:.2f}"),
    ("tokens_per_word", "tokens per word", "{:.2f}"),
    ("bytes_per_token", "bytes per token", "{:.2f}"),
    ("split_words", "words cut into pieces", "{:.0%}"),
    ("crumbs", "bytes in parts of characters", "{:.1%}"),
    ("unknown", "unknown tokens", "{:.1%}"),
    ("covered", "characters written whole", "{:.1%}"),
)


def profile(
    model: str, *, to: str, text: str, source: str = "eng_Latn", source_text: str | None = None
) -> Profile:
    """Look at a model and a language.

    Args:
        model: Folder, .gguf file, hub id, asset, or PEFT adapter.
        to: The language in question.
        text: Text in it.
        source: The language to compare with.
        source_text: Text in it; without it, there is no comparison.

    Raises:
        ConfigError: Unknown language or model.
        DataError: Text that can not be used.
        ModelError: A model that can not be used.
    """
    from calque.data.corpus import Corpus
    from calque.evaluate.lm import lm
    from calque.evaluate.tokenization import tokenization
    from calque.model.checkpoint import Checkpoint
    from calque.vocab.tokens import Tokens

    target, known = Language.parse(to), Language.parse(source)
    texts = {"target": Corpus.open(text, language=target).only(target)}
    if source_text:
        texts["source"] = Corpus.open(source_text, language=known).only(known)
    checkpoint = Checkpoint.open(model)
    tokens = Tokens.of(checkpoint.tokenizer())
    counted = tokenization({"model": tokens}, texts, max_bytes=PROFILE_BYTES * 10, examples=0)
    scored = lm({"model": checkpoint}, texts, max_bytes=PROFILE_BYTES)
    served = tuple(_served(counted, scored, name, corpus.languages[0]) for name, corpus in texts.items())
    near = tuple((o.code, o.name, round(distance(target, o), 2)) for o in target.near(5))
    settings = {"--to": target.code, "--text": text, "--source": known.code}
    settings |= {"--source-text": source_text} if source_text else {}
    words = [model, *(part for pair in settings.items() for part in pair), "-o", "out/"]
    command = shlex.join(["calque", "adapt", *words])
    return Profile(model, served, near, tuple(_expectations(served, target)), command)


def _served(counted: Any, scored: Any, name: str, language: str) -> Served:
    def share(above: str, below: str) -> float:
        view = counted.where(task=f"tokenization/{name}").measure(f"{above}/{below}")
        return next(iter(view)).estimate.value

    return Served(
        language,
        share("tokens", "words"),
        share("bytes", "tokens"),
        share("crumb_bytes", "bytes"),
        share("unknown", "tokens"),
        share("split_words", "words"),
        share("covered_characters", "characters"),
        next(iter(scored.where(task=f"lm/{name}").measure("bits/bytes"))).estimate.value,
    )


def _expectations(served: tuple[Served, ...], target: Language) -> list[str]:
    """What the figures mean, in sentences."""
    here = served[0]
    said = []
    if len(served) > 1:
        more = here.tokens_per_word / served[1].tokens_per_word
        said.append(
            f"A word of {target.name} costs {more:.1f} times the tokens of a word of {served[1].language}: "
            "generation is that much slower, and that much less text fits into the context."
        )
    if here.crumbs > 0.05 or here.covered < 0.95:
        said.append(
            f"{1 - here.covered:.0%} of the characters are not in the vocabulary as such: the script is "
            "served by parts of characters, and a new vocabulary will help most of all."
        )
    elif here.tokens_per_word > 2:
        said.append(
            f"Words fall into {here.tokens_per_word:.1f} pieces: a vocabulary extended for {target.name} "
            "will make text shorter, training and generation faster."
        )
    else:
        said.append("The tokenizer serves the language well: expect most from continued training.")
    floor = "near what a model that knows nothing of the language reaches"
    knows = "the model already knows something of the language"
    said.append(f"{here.bits_per_byte:.2f} bits per byte: {floor if here.bits_per_byte > 2.5 else knows}.")
    said.append("Parallel text (--parallel) lets new tokens start from their translations.")
    return said
