"""Checkpoints that go into one merge, lined up parameter by parameter and token by token."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from calque.errors import ModelError
from calque.merge.diagnose import SHARE, diagnosis
from calque.merge.match import Ids, line_up_rows, match_tokens
from calque.merge.rewrite import Pass, Rewrite, Row, Source
from calque.model.checkpoint import Checkpoint
from calque.model.slots import Slot
from calque.model.tensors import DTYPES, same_bytes
from calque.progress import say
from calque.vocab.tokens import Tokens

Vocabulary = Literal["base", "union"] | None

_BUFFERS = frozenset({"attention.rotary", "attention.mask", "attention.mask_value", "embed.position_ids"})
_BUFFER_NAMES = ("rotary_emb.inv_freq", "position_ids", "masked_bias", "num_batches_tracked")
_FACTOR = re.compile(r"depth\.\d+\..*\.[AB]")
PER_TOKEN = frozenset(
    {
        "embed.input",
        "embed.output",
        "embed.output.bias",
        "embed.output.bias_copy",
        "encoder.embed",
        "decoder.embed",
    }
)
# What must be equal in config.json for tensors of equal shapes to mean the same.
_STRUCTURE = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "hidden_size",
    "intermediate_size", "hidden_act", "hidden_activation", "num_experts_per_tok", "n_head", "n_layer",
    "activation_function", "num_heads", "d_kv", "feed_forward_proj", "rope_interleaved",
)  # fmt: skip

# What may differ; the result has the base's, although the others were tuned with theirs.
_KEPT = (
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "sliding_window", "layer_types",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "attn_logit_softcapping",
    "final_logit_softcapping", "query_pre_attn_scalar",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Inputs:
    """Checkpoints that go into one merge.

    Attributes:
        base: gives configuration, tokenizer and buffers; the first of every tuple of sources.
        tuned: the others.
        names: the floating-point parameters of the output in the base's order; a tied matrix once, buffers
            never.
        aliases: for each checkpoint the names of the base's parameters that it calls otherwise.
        matches: for each checkpoint the ids of the output's tokens there, -1 without one; None when all
            vocabularies are the same.
        rows: rows of the output's embeddings.
        config: settings of config.json that the common vocabulary changes.
        tokenizer: files of the common tokenizer, when it is not the base's.
        notes: what lining up found.
    """

    base: Checkpoint
    tuned: tuple[Checkpoint, ...]
    names: tuple[str, ...]
    aliases: tuple[Mapping[str, str], ...]
    matches: tuple[Ids, ...] | None = None
    rows: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, str] | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def sources(self, name: str) -> tuple[Source, ...]:
        """The parameter `name` of the base and of every tuned checkpoint, rows in the output's order."""
        found = tuple(
            Source(checkpoint, alias.get(name, name))
            for checkpoint, alias in zip((self.base, *self.tuned), self.aliases, strict=True)
        )
        if self.matches is None or self.slot(name).role not in PER_TOKEN:
            return found
        orders = line_up_rows([source.info for source in found], self.matches, self.rows)
        return tuple(
            dataclasses.replace(source, order=order) for source, order in zip(found, orders, strict=True)
        )

    def slot(self, name: str) -> Slot:
        """Layer and role of a parameter."""
        return self._slots[name]

    @cached_property
    def _slots(self) -> Mapping[str, Slot]:
        return {name: slot for slot, name in self.base.slots.items()}

    def copies(self) -> tuple[Row, ...]:
        """Buffers and tensors of integers: the base's, bit by bit."""
        merged = set(self.names)
        dropped = _tied_copies(self.base)
        return tuple(
            Row.copy(self.base, name)
            for name in self.base.tensors
            if name not in merged and name not in dropped
        )

    def rewrite(
        self,
        rows: Sequence[Row],
        *,
        passes: Sequence[Pass] = (),
        notes: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        counts: MutableMapping[str, int] | None = None,
    ) -> Rewrite:
        """The checkpoint made of `rows` and of what is not merged.

        Args:
            rows: one for each of `names`.
            passes: statistics that the rows need.
            notes: what the method counted.
            dtype: of the merged tensors ("BF16"), for config.json, where `rows` were given another.
            counts: what the rows' functions count while they run, such as fallbacks.
        """
        if "recursion" in self.base.config and any(map(_FACTOR.fullmatch, self.names)):
            raise ModelError(
                f"{self.base.folder}: holds factors of low rank, a pair for each depth of its loop; pairs of "
                "different models can not be merged number by number: merge first, then tie (merge/recurse)"
            )
        written = {row.name: row for row in (*rows, *self.copies())}
        order = [name for name in self.base.tensors if name in written]
        return Rewrite(
            base=self.base,
            rows=tuple(written[name] for name in order),
            config={**self.config, **(_dtype_settings(self.base, dtype) if dtype else {})},
            tokenizer=self.tokenizer,
            notes={"inputs": self.notes, "sample": f"1/{SHARE} of the rows", **(notes or {})},
            passes=tuple(passes),
            counts={} if counts is None else counts,
            inspect=diagnosis(self),
        )


def line_up(base: Checkpoint, tuned: Sequence[Checkpoint], *, vocabulary: Vocabulary = None) -> Inputs:
    """Line up checkpoints of one architecture.

    Args:
        base: gives configuration, tokenizer and buffers.
        tuned: at least one more checkpoint.
        vocabulary: what to do when vocabularies differ: "base" keeps the base's tokens, "union" adds those
            that only others have; None refuses.

    Raises:
        ModelError: architectures, shapes, names or (without `vocabulary`) vocabularies differ.
    """
    if not tuned:
        raise ModelError("a merge needs at least one checkpoint besides the base")
    aliases = [dict[str, str]()]
    for other in tuned:
        _check_configuration(base, other)
        aliases.append(_check_names(base, other))
    names = tuple(
        name
        for name, info in base.tensors.items()
        if info.is_float and name not in _tied_copies(base) and not is_buffer(base, name)
    )
    common = _match(base, tuned, vocabulary)
    for other, alias in zip(tuned, aliases[1:], strict=True):
        _check_shapes(base, other, names, alias, by_token=common.matches is not None)
    notes = {
        "base": str(base.folder),
        "tuned": [str(other.folder) for other in tuned],
        "parameters": len(names),
        **({"settings": settings} if (settings := _other_settings(base, tuned)) else {}),
        **common.notes,
    }
    return Inputs(
        base,
        tuple(tuned),
        names,
        tuple(aliases),
        common.matches,
        common.rows,
        common.config,
        common.tokenizer,
        notes,
    )


def _dtype_settings(base: Checkpoint, dtype: str) -> dict[str, str]:
    """config.json calls the dtype `dtype`, or `torch_dtype` in older folders."""
    name = str(DTYPES[dtype]).removeprefix("torch.")
    return {key: name for key in ("dtype", "torch_dtype") if key in base.config} or {"dtype": name}


def is_buffer(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is no parameter: what the model computes or counts by itself."""
    role = checkpoint.layout.place(name)[1]
    return role in _BUFFERS or name.endswith(_BUFFER_NAMES)


def _tied_copies(checkpoint: Checkpoint) -> set[str]:
    """Further copies of the input embedding; the model ties them again when it is loaded."""
    copies = {checkpoint.stored_output} if checkpoint.tied and checkpoint.stored_output else set()
    for role in ("encoder.embed", "decoder.embed"):
        name = checkpoint.named(role)
        if name is not None and same_bytes(
            checkpoint.info(checkpoint.input_embedding), checkpoint.info(name)
        ):
            copies.add(name)
    return copies


def _check_configuration(base: Checkpoint, other: Checkpoint) -> None:
    one, two = base.config.get("model_type"), other.config.get("model_type")
    if one != two:
        raise ModelError(
            f"{other.folder}: its architecture is '{two}', that of the base {base.folder} is '{one}'; "
            "only models of one architecture can be merged"
        )
    for key in _STRUCTURE:
        mine, theirs = base.text_config.get(key), other.text_config.get(key)
        if mine is not None and theirs is not None and mine != theirs:
            raise ModelError(
                f"{other.folder}/config.json: {key} is {theirs!r}, in the base {base.folder} it is {mine!r}; "
                "their weights do not mean the same"
            )
    for checkpoint in (base, other):
        if "quantization_config" in checkpoint.config:
            raise ModelError(
                f"{checkpoint.folder}: its weights are quantised (quantization_config); merge the "
                "full-precision checkpoint it was made from"
            )


def _other_settings(base: Checkpoint, tuned: Sequence[Checkpoint]) -> dict[str, dict[str, Any]]:
    """Folder -> settings that differ from the base's in a way that weights notice; each is said."""
    found: dict[str, dict[str, Any]] = {}
    for other in tuned:
        pairs = {key: (base.text_config.get(key), other.text_config.get(key)) for key in _KEPT}
        for key, (mine, theirs) in pairs.items():
            if mine is not None and theirs is not None and mine != theirs:
                found.setdefault(str(other.folder), {})[key] = theirs
                say(f"{other.folder}: {key} is {theirs!r}; the result has the base's, {mine!r}")
    return found


def _check_names(base: Checkpoint, other: Checkpoint) -> dict[str, str]:
    """Both must hold the same parameters; returns what the other calls by another name."""
    alias: dict[str, str] = {}
    output = base.output_embedding
    if output is not None and other.tied:
        alias[output] = other.input_embedding
    elif output is None and base.has_head and not other.tied:
        stored = other.stored_output
        if stored and not same_bytes(other.info(other.input_embedding), other.info(stored)):
            raise ModelError(
                f"{other.folder}: has an output matrix of its own, '{stored}', but the base {base.folder} "
                "ties it to the input embedding; give the untied checkpoint as the base"
            )
    mine = {n for n in base.tensors if not is_buffer(base, n)} - _tied_copies(base)
    theirs = {n for n in other.tensors if not is_buffer(other, n)} - _tied_copies(other)
    if output is None and other.stored_output:
        theirs.discard(other.stored_output)
    if missing := sorted(mine - theirs - alias.keys()):
        raise ModelError(
            f"{other.folder}: {len(missing)} tensors of the base {base.folder} are missing, first "
            f"'{missing[0]}' {base.info(missing[0]).shape}"
        )
    if extra := sorted(theirs - mine):
        raise ModelError(
            f"{other.info(extra[0]).file}: {len(extra)} tensors that the base {base.folder} has not, first "
            f"'{extra[0]}' {other.info(extra[0]).shape}"
        )
    return alias


def _check_shapes(
    base: Checkpoint, other: Checkpoint, names: Sequence[str], alias: Mapping[str, str], *, by_token: bool
) -> None:
    for name in names:
        one, two = base.info(name), other.info(alias.get(name, name))
        shapes = [one.shape, two.shape]
        if by_token and base.layout.place(name)[1] in PER_TOKEN:
            shapes = [shape[1:] if shape[0] != 1 else (1,) for shape in shapes]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"tensor '{name}' has shape {one.shape} in {one.file} and {two.shape} in {two.file}"
            )
        if not two.is_float:
            raise ModelError(f"{two.file}: tensor '{name}' is {two.dtype}; merged can be floating-point only")


@dataclass(frozen=True)
class _Common:
    """The vocabulary of the output and where each model has its tokens."""

    matches: tuple[Ids, ...] | None
    rows: int
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, str] | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _match(base: Checkpoint, tuned: Sequence[Checkpoint], vocabulary: Vocabulary) -> _Common:
    """Line up the vocabularies; without `matches` when all agree id by id."""
    rows = base.info(base.input_embedding).shape[0]
    sizes = {c.info(c.input_embedding).shape[0] for c in (base, *tuned)}
    if len(sizes) == 1 and all(_same_file(base, other, "tokenizer.json") for other in tuned):
        return _Common(None, rows)
    from calque.merge.transplant import tokenizer_files  # scipy, which a merge of one vocabulary needs not
    from calque.merge.union import union

    mine = Tokens.of(base.tokenizer())
    theirs = [Tokens.of(other.tokenizer()) for other in tuned]
    counts = {
        str(other.folder): found
        for other, tokens in zip(tuned, theirs, strict=True)
        if (found := _differences(mine, tokens))
    }
    if counts and vocabulary is None:
        folder, first = next(iter(counts.items()))
        raise ModelError(
            f"{folder}: its vocabulary differs from that of the base {base.folder}: {first['shared']:,} "
            f"tokens are shared, {first['only base']:,} are only in the base, {first['only here']:,} only "
            "here. Rows are matched by token; say what to do with the rest: --vocabulary base keeps the "
            "base's tokens, --vocabulary union adds the others (tokenizer_source in a mergekit file)"
        )
    common = union(mine, theirs) if vocabulary == "union" else mine
    matches = tuple(match_tokens(common, tokens) for tokens in (mine, *theirs))
    used = np.array([bool(string) for string in common.strings])
    same_ids = all((ids[used] == np.flatnonzero(used)).all() for ids in matches)
    if len(sizes) == 1 and not counts and same_ids:
        return _Common(None, rows)
    say(f"vocabularies are lined up by token: {counts or 'the same tokens under other ids'}")
    notes = {"vocabulary": vocabulary, "tokens": counts}
    if common is mine or len(common) == len(mine):
        return _Common(matches, rows, notes=notes)
    grown = max(rows, len(common))
    size = {"vocab_size": grown}
    config = size if base.text_config is base.config else {"text_config": size}
    return _Common(matches, grown, config, tokenizer_files(base, common), notes)


def _differences(mine: Tokens, theirs: Tokens) -> dict[str, int]:
    """How many tokens two vocabularies share and each has alone; empty when they have the same."""
    found, back = match_tokens(mine, theirs), match_tokens(theirs, mine)
    lacking = sum(bool(mine.strings[token]) for token in np.flatnonzero(found < 0))
    more = sum(bool(theirs.strings[token]) for token in np.flatnonzero(back < 0))
    shared = int((found >= 0).sum())
    return {"shared": shared, "only base": lacking, "only here": more} if lacking or more else {}


def _same_file(base: Checkpoint, other: Checkpoint, name: str) -> bool:
    one, two = base.folder / name, other.folder / name
    return one.is_file() and two.is_file() and one.read_bytes() == two.read_bytes()
