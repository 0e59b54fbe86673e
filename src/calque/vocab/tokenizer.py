"""Train a tokenizer on a text: a new one, or an old one extended, or pruned and extended."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval
from tokenizers import Tokenizer

from calque.data.corpus import Corpus
from calque.errors import ConfigError, DataError
from calque.progress import say
from calque.vocab.bpe import Pair, count_words, learn, replay
from calque.vocab.tokens import Tokens, byte_alphabet
from calque.vocab.words import whole_words, with_variants

Mode = Literal["words", "replace", "extend", "prune_extend"]


@dataclass(frozen=True)
class _Kept:
    """What of the old tokenizer stays: its merges in their order, and further whole tokens."""

    merges: list[Pair]
    tokens: set[str]


def train_tokenizer(
    base: Tokens,
    text: Corpus,
    replay_text: Corpus | None = None,
    *,
    mode: Mode = "words",
    size: Annotated[int, Ge(1)] | None = None,
    new: Annotated[int, Ge(0)] | None = None,
    keep: Annotated[int, Ge(0)] = 32_000,
    need: Annotated[int, Ge(1)] | None = None,
    min_count: Annotated[int, Ge(1)] = 3,
    variants: Annotated[float, Interval(ge=0, le=1)] = 0.3,
) -> Tokens:
    """Byte-level BPE on a text, beside or instead of what the old tokenizer knows.

    Kept merges come first in the list and new ones follow, so a word whose old cut used kept merges only
    is cut as before unless a new merge joins its pieces further.

    Args:
        base: The old tokenizer; its pre-tokenizer, special tokens and chat template are carried over.
        text: Text in the target language.
        replay_text: Text in the source language; only consulted for the old tokens that it needs.
        mode: "replace" drops all old tokens, "extend" keeps all of them with their ids, "prune_extend"
            keeps the first `keep` merges and what the texts need; all three then learn merges. "words" keeps
            as "prune_extend" does and adds whole words instead, so that all else is cut as before.
        size: Tokens of the result.
        new: Tokens to learn, instead of `size`.
        keep: Old merges kept in "words" and "prune_extend", in their order.
        need: Keep also old tokens beyond `keep` that occur this often in the two texts; None: none.
        min_count: A pair or word that occurs less often is not taken; with neither `size` nor `new` given
            this alone ends the learning.
        variants: In "words", what a word's capitalised form counts, as a share of the word.

    Returns:
        The tokenizer; special tokens keep their order, and their ids unless tokens below them go.

    Raises:
        ConfigError: Both `size` and `new`; a size too small for what is kept; "words", "extend" or
            "prune_extend" of a tokenizer that is not byte-level BPE.
        DataError: The text holds no words.
    """
    if size is not None and new is not None:
        raise ConfigError("train_tokenizer: give size or new, not both")
    spec = json.loads(base.backend.to_str())
    if base.kind != "bytelevel" or spec["model"]["type"] != "BPE":
        return _replace_other(base, text, mode, size)
    if mode == "replace":
        _split_digits(spec)
    backend = Tokenizer.from_str(json.dumps(spec))
    words = count_words(backend, text.texts())
    if not words:
        raise DataError("train_tokenizer: the text holds no words")
    more = count_words(backend, replay_text.texts()) if replay_text is not None else Counter()
    kept = _keep(base, spec, mode, keep, need, words + more)
    order = _kept_order(base, kept.tokens, mode)
    limit = _limit(size, new, len(order))
    _assemble(spec, order, kept.merges)
    merges: list[Pair] = []
    if mode == "words":
        spec["model"]["ignore_merges"] = True
        found = whole_words(_cut(spec, with_variants(words, variants)), limit, min_count)
        fresh = dict.fromkeys(word for word in found if word not in order)
    else:
        merges = learn(_cut(spec, words), order, limit=limit, min_count=min_count)
        fresh = dict.fromkeys(a + b for a, b in merges if a + b not in order)
    _assemble(spec, [*order, *fresh], kept.merges + merges)
    trained = Tokens.wrap(Tokenizer.from_str(json.dumps(spec)), roles=base.roles, config=base.config)
    stayed = len(order.keys() & set(base.strings))
    say(f"tokenizer: {stayed:,} of {len(base):,} old tokens kept, {len(trained) - stayed:,} new")
    return trained


def _limit(size: int | None, new: int | None, kept: int) -> int | None:
    if new is not None or size is None:
        return new
    if size < kept:
        raise ConfigError(f"train_tokenizer: size {size:,} is less than the {kept:,} tokens that are kept")
    return size - kept


def _merges(spec: Mapping[str, Any]) -> list[Pair]:
    """The merges of a tokenizer.json, whose older form writes a pair as one string."""
    return [
        (pair[0], pair[1]) if isinstance(pair, list) else tuple(pair.split(" ", 1))  # pyright: ignore
        for pair in spec["model"]["merges"]
    ]


def _keep(
    base: Tokens, spec: Mapping[str, Any], mode: Mode, keep: int, need: int | None, words: Counter[str]
) -> _Kept:
    if mode == "replace":
        return _Kept([], set())
    merges = _merges(spec)
    if mode == "extend":
        return _Kept(merges, set(base.strings))
    stay = set(range(min(keep, len(merges))))
    whole: set[str] = set()
    if need is not None:
        stay |= _needed(merges, _cut(spec, words), need)
        if spec["model"].get("ignore_merges"):
            whole = {
                word for word, count in words.items() if count >= need and word in spec["model"]["vocab"]
            }
    kept, made = [], set(byte_alphabet()) | {string for string in base.strings if len(string) == 1}
    for rank, (first, second) in enumerate(merges):
        if rank in stay and first in made and second in made:
            kept.append((first, second))
            made.add(first + second)
    return _Kept(kept, whole | made)


def _needed(merges: Sequence[Pair], cut: Mapping[tuple[str, ...], int], need: int) -> set[int]:
    """Ranks of all merges on the way to tokens that occur at least `need` times in the words.

    A token's own way is closed: cutting the token by just these merges gives the token again.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    occurs: Counter[str] = Counter()
    for symbols, count in cut.items():
        for symbol in symbols:
            occurs[symbol] += count
    return {
        rank
        for token, count in occurs.items()
        if count >= need and len(token) > 1
        for rank in replay(token, ranks)[1]
    }


def _kept_order(base: Tokens, tokens: set[str], mode: Mode) -> dict[str, None]:
    """The tokens that stay, by old id: special and added ones, single bytes, and what the merges need."""
    if mode == "extend":
        # A hole in the old ids is filled, so that every later token keeps its id.
        ordered = [string or f"<unused_{place}>" for place, string in enumerate(base.strings)]
        return dict.fromkeys([*ordered, *byte_alphabet()])
    added = {entry.content for entry in base.backend.get_added_tokens_decoder().values()}
    stay = added | set(byte_alphabet()) | tokens
    ordered = [string for string in base.strings if string in stay]
    return dict.fromkeys([*ordered, *byte_alphabet()])


def _cut(spec: Mapping[str, Any], words: Mapping[str, int]) -> Counter[tuple[str, ...]]:
    """Count of each word as the symbols into which a tokenizer.json cuts it."""
    model = Tokenizer.from_str(json.dumps(spec)).model
    cut: Counter[tuple[str, ...]] = Counter()
    for word, count in words.items():
        cut[tuple(piece.value for piece in model.tokenize(word))] += count
    return cut


def _assemble(spec: dict[str, Any], tokens: Iterable[str], merges: Iterable[Pair]) -> None:
    """Put tokens in id order and their merges into a tokenizer.json, and every id in it up to date."""
    vocabulary = {token: place for place, token in enumerate(tokens)}
    spec["model"]["vocab"] = vocabulary
    spec["model"]["merges"] = [list(pair) for pair in dict.fromkeys(merges)]
    spec["added_tokens"] = [{**entry, "id": vocabulary[entry["content"]]} for entry in spec["added_tokens"]]
    spec["added_tokens"].sort(key=lambda entry: entry["id"])
    if spec.get("post_processor"):
        spec["post_processor"] = _renumber(spec["post_processor"], vocabulary)


def _renumber(part: Any, vocabulary: Mapping[str, int]) -> Any:
    """A post-processor whose special tokens carry their new ids."""
    part = copy.deepcopy(part)
    for entry in (part.get("special_tokens") or {}).values():
        entry["ids"] = [vocabulary[name] for name in entry["tokens"]]
    for role in ("sep", "cls"):
        if role in part:
            part[role] = [part[role][0], vocabulary[part[role][0]]]
    if "processors" in part:
        part["processors"] = [_renumber(inner, vocabulary) for inner in part["processors"]]
    return part


def _split_digits(spec: dict[str, Any]) -> None:
    """Cut numbers into digits before anything else, unless the tokenizer does so already."""
    splitter = spec["pre_tokenizer"]
    parts = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    if not any(part["type"] == "Digits" for part in parts):
        digits = {"type": "Digits", "individual_digits": True}
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, *parts]}


def _replace_other(base: Tokens, text: Corpus, mode: Mode, size: int | None) -> Tokens:
    """A new tokenizer of the same kind, for bases that are not byte-level BPE."""
    if mode != "replace":
        kind = json.loads(base.backend.to_str())["model"]["type"]
        raise ConfigError(
            f"train_tokenizer: mode '{mode}' needs a byte-level BPE tokenizer; this one is {kind} "
            f"({base.kind}); use mode 'replace'"
        )
    trainer: Any = base.hf()
    return Tokens.of(trainer.train_new_from_iterator(text.texts(), vocab_size=size or 8_000))
