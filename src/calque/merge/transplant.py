"""Vocabulary transplant: the same network under a new vocabulary.

Each new row of the input embedding, and of the output matrix and bias where the model has its own, is a
weighted sum of old rows as a `VocabMap` says; every other tensor is copied bit by bit.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calque.data.corpus import Corpus
from calque.disk import read_json
from calque.errors import ModelError
from calque.merge.rewrite import Rewrite, Row, Source
from calque.model.check import generation_settings
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes
from calque.progress import say
from calque.vocab.map import Side, VocabMap
from calque.vocab.tokens import Tokens

_SAMPLE = 200  # lines of the user's text that go through the finished tokenizer
_ID_LISTS = frozenset({"bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids"})
_CARRIED = ("model_input_names", "model_max_length", "padding_side", "truncation_side")
_SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")


def transplant(base: Checkpoint, map: VocabMap, tokenizer: Tokens, text: Corpus | None = None) -> Rewrite:
    """Put a new vocabulary under a model.

    E'[t] = sum over s of T[t, s] * E[s] for the input embedding E (V_source, D), and likewise with the map's
    output side for an untied output matrix; sums are taken in float32 and rounded once to the base's dtype.
    Rows of E beyond the old tokenizer's vocabulary are padding and reach nothing. A tied matrix stays tied.

    Special ids in config.json and generation_config.json follow their token by its string, else by its role.
    The old tokenizer's length limit, padding side and input names stay, and its chat template unless the new
    one has its own.

    Args:
        base: the model; its tokenizer is the source vocabulary of `map`.
        map: weights (V_target, V_source).
        tokenizer: the new vocabulary, V_target tokens.
        text: the user's text; the finished product must encode some of it and give it back.

    Returns:
        The rewrite; nothing is written before its `write`.

    Raises:
        ModelError: map, tokenizer and model do not belong together, or the model keeps two vocabularies.

    Relations:
        With the base's own tokenizer and an identity map, every tensor keeps its values.
    """
    old = Tokens.of(base.tokenizer())
    _check_sizes(base, map, old, tokenizer)
    dropped = _tied_copies(base)
    mapped: dict[str, Side] = {base.input_embedding: "input"}
    for name in (base.output_embedding, base.output_bias, base.named("embed.output.bias_copy")):
        if name is not None:
            mapped[name] = "output"
    rows = tuple(
        _row(base, name, map, mapped[name]) if name in mapped else Row.copy(base, name)
        for name in base.tensors
        if name not in dropped
    )
    ids = _IdMap(old, tokenizer)
    return Rewrite(
        base=base,
        rows=rows,
        config=_config(base, ids, len(tokenizer)),
        generation=ids.changes(generation_settings(base)),
        tokenizer=tokenizer_files(base, tokenizer),
        notes={"method": "transplant", "rows": map.counts(), "ids": ids.notes, "dropped": sorted(dropped)},
        sample=_sample(text) if text is not None else (),
    )


def _sample(text: Corpus) -> tuple[str, ...]:
    """Lines from all over the text, in every language that it has."""
    lines = [side for language in text.languages for side in text.texts(language)]
    return tuple(lines[:: max(1, len(lines) // _SAMPLE)])


def _check_sizes(base: Checkpoint, map: VocabMap, old: Tokens, new: Tokens) -> None:
    if map.shape != (len(new), len(old)):
        raise ModelError(
            f"the map goes from {map.shape[1]:,} to {map.shape[0]:,} tokens, but the model's tokenizer has "
            f"{len(old):,} and the new one {len(new):,}"
        )
    rows = base.info(base.input_embedding).shape[0]
    if rows < len(old):
        raise ModelError(f"{base.folder}: the tokenizer has {len(old):,} tokens, the embedding {rows:,} rows")


def _tied_copies(base: Checkpoint) -> set[str]:
    """Further copies of the input embedding in the files; the model ties them again when it is loaded.

    Raises:
        ModelError: encoder and decoder have embeddings of their own.
    """
    source = base.info(base.input_embedding)
    copies = {base.stored_output} if base.tied and base.stored_output else set()
    for role in ("encoder.embed", "decoder.embed"):
        name = base.named(role)
        if name is None:
            continue
        if not same_bytes(source, base.info(name)):
            raise ModelError(
                f"{base.folder}: '{name}' differs from '{base.input_embedding}'; a model with two "
                "vocabularies can not be given one new vocabulary"
            )
        copies.add(name)
    return copies


def _row(base: Checkpoint, name: str, map: VocabMap, side: Side) -> Row:
    """The row of an embedding (V, D), or of a bias (V,) or (1, V)."""
    info = base.info(name)
    is_matrix = info.shape[0] != 1 and len(info.shape) == 2
    shape = (map.shape[0], info.shape[1]) if is_matrix else (*info.shape[:-1], map.shape[0])

    def matrix(source: Source) -> Iterator[torch.Tensor]:
        for _, block in map.blocks(_table(source, map.shape[1]), side):
            yield torch.from_numpy(block)

    def bias(source: Source) -> Iterator[torch.Tensor]:
        column = source.read().reshape(-1, 1)[: map.shape[1]].to(_precision(source)).numpy()
        yield torch.from_numpy(dataclasses.replace(map, fallback="mean").apply(column, side))

    return Row(name, info.dtype, shape, (Source(base, name),), matrix if is_matrix else bias)


def _precision(source: Source) -> torch.dtype:
    return torch.float64 if source.info.torch_dtype == torch.float64 else torch.float32


def _table(source: Source, rows: int) -> np.ndarray:
    """The first `rows` rows of an embedding in float32, widened block by block."""
    table = torch.empty((rows, source.info.shape[1]), dtype=_precision(source))
    for first, block in source.info.blocks():
        if first < rows:
            table[first : first + len(block)] = block[: rows - first]
    return table.numpy()


def _config(base: Checkpoint, ids: _IdMap, size: int) -> dict[str, Any]:
    """Changes to config.json: the size, and every special id, also those that only the defaults name."""
    nested = base.text_config is not base.config
    stated = {key: value for key, value in base.loaded_config.to_dict().items() if key.endswith("_token_id")}
    changes = ids.changes({**({} if nested else stated), **base.config})
    inner = ids.changes(base.text_config) | {"vocab_size": size}
    if nested:
        return changes | {"text_config": inner}
    if "decoder_vocab_size" in base.config:
        inner["decoder_vocab_size"] = size
    return changes | inner


class _IdMap:
    """Old special ids -> new ones; remembers what became of each."""

    def __init__(self, old: Tokens, new: Tokens) -> None:
        self.old, self.new = old, new
        self.notes: dict[str, str] = {}

    def changes(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that hold token ids, with the new ids."""
        return {
            key: self._convert(key, value)
            for key, value in settings.items()
            if (key.endswith("_token_id") or key in _ID_LISTS) and value is not None
        }

    def _convert(self, key: str, value: Any) -> Any:
        if isinstance(value, list):
            kept = [new for entry in value if (new := self._convert(key, entry)) not in (None, [])]
            return kept or None
        return self._id(key, value) if isinstance(value, int) else value

    def _id(self, key: str, old: int) -> int | None:
        string = self.old.strings[old] if 0 <= old < len(self.old) else ""
        new = self.new.backend.token_to_id(string) if string else None
        if new is None:
            new = self.new.special.get(key.removesuffix("_token_id"))
        if new is None and key not in self.notes:
            say(f"{key}: the new vocabulary has no '{string or old}'; the setting is dropped")
        self.notes[key] = f"{old} {string!r} -> {new}"
        return new


def tokenizer_files(base: Checkpoint, tokenizer: Tokens) -> dict[str, str]:
    """Name -> text of the new tokenizer's files, with what they keep from the base's."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        files = {file.name: file.read_text(encoding="utf-8") for file in Path(folder).iterdir()}
    settings = json.loads(files["tokenizer_config.json"])
    file = base.folder / "tokenizer_config.json"
    previous = read_json(file) if file.is_file() else {}
    kept = {key: previous[key] for key in _CARRIED if key in previous}
    for key in _SPECIAL_LISTS:
        if key in previous and key not in settings:
            kept[key] = _known_only(previous[key], tokenizer)
    if "chat_template" in previous and "chat_template.jinja" not in files:
        kept["chat_template"] = previous["chat_template"]
    # The general class reads everything from tokenizer.json, under transformers 4 and 5 alike; cleaning up
    # would take blanks out of the text.
    general = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {**kept, **general}
    files["tokenizer_config.json"] = json.dumps(settings, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    _warn_about_template(base, files, settings, tokenizer)
    return files


def _known_only(tokens: Any, tokenizer: Tokens) -> Any:
    """Special tokens, as a list or a table, that the new vocabulary has."""

    def known(token: Any) -> bool:
        string = token.get("content", "") if isinstance(token, Mapping) else str(token)
        return tokenizer.backend.token_to_id(string) is not None

    if isinstance(tokens, Mapping):
        return {name: token for name, token in tokens.items() if known(token)}
    return [token for token in tokens if known(token)]


def _warn_about_template(
    base: Checkpoint, files: Mapping[str, str], settings: Mapping[str, Any], tokenizer: Tokens
) -> None:
    """Say which special tokens a carried chat template writes that the new vocabulary lacks."""
    file = base.folder / "chat_template.jinja"
    template = files.get("chat_template.jinja") or str(settings.get("chat_template", ""))
    if not template and file.is_file():
        template = file.read_text(encoding="utf-8")
    special = base.tokenizer().get_added_vocab()
    lost = sorted(s for s in special if s in template and tokenizer.backend.token_to_id(s) is None)
    if lost:
        say(f"chat template: it writes {', '.join(lost)}, which the new vocabulary takes apart into pieces")
