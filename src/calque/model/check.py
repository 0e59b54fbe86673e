"""Whether a checkpoint is sound: its numbers, sizes and special ids, and that transformers can use it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from calque.disk import read_json
from calque.errors import ModelError
from calque.model.files import GENERATION, TOKENIZER, companions
from calque.model.tensors import not_finite, same_bytes
from calque.progress import bar, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from calque.model.checkpoint import Checkpoint

_ROLES = ("bos", "eos", "pad")
_IDS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"})
_FORWARD_TOKENS = 16
_COMPUTED = frozenset({torch.bfloat16, torch.float16, torch.float32})  # a model can run in these
_SAMPLE = "It's 1,234.5 kg; Ng'ombe zi-4...\n\n  café  ሰላም 你好!"


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Read every tensor once: no NaN or Inf, tied matrices equal, tokenizer and matrices of one size.

    Raises:
        ModelError: names the tensor and row, or the sizes that disagree.
    """
    check_sizes(checkpoint, checkpoint.tokenizer())
    _check_ties(checkpoint)
    check_values(checkpoint, {})


def check_product(
    product: Checkpoint, base: Checkpoint, computed: Collection[str], text: Sequence[str] = ()
) -> None:
    """Whether a newly written checkpoint can be given to a user.

    Besides what `check_checkpoint` asks: no computed embedding row is all zero (that of padding may be),
    special ids agree wherever they did in the base, plain transformers loads it with nothing missing and
    nothing left over, tied matrices are one, each text survives encoding and decoding, and one forward pass
    gives finite numbers.

    Args:
        product: the new checkpoint.
        base: what it was made from.
        computed: names of the tensors that were computed, not copied.
        text: some of the user's text; without any, the forward pass reads arbitrary tokens.
    """
    tokenizer = product.tokenizer()
    check_sizes(product, tokenizer)
    embeddings = (product.input_embedding, product.output_embedding)
    skip = {tokenizer.pad_token_id} if tokenizer.pad_token_id is not None else set()  # pyright: ignore
    made = {name: skip for name in embeddings if name is not None and name in computed}
    checked = set(computed) - made.keys()  # when they were rounded
    check_values(product, made, rows=vocabulary(tokenizer), checked=checked)  # pyright: ignore
    _check_ties(product)
    _check_roles(product, tokenizer, base)
    before = _tokenizer_of(base, product, tokenizer) if text else None
    for line in text:
        _check_round_trip(product, tokenizer, before, unicodedata.normalize("NFC", line).strip())
    _check_forward(product, base, tokenizer, text)


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows that a tokenizer needs: its highest id and one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_sizes(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokenizer's ids, `vocab_size` and the special ids must fit both matrices."""
    for name in filter(None, (checkpoint.input_embedding, checkpoint.output_embedding)):
        rows = checkpoint.info(name).shape[0]
        if vocabulary(tokenizer) > rows:
            raise ModelError(
                f"{checkpoint.folder}: the tokenizer has {vocabulary(tokenizer):,} tokens, '{name}' only "
                f"{rows:,} rows; they belong to different models, or the embedding was not resized"
            )
        stated = checkpoint.text_config.get("vocab_size", rows)
        if stated != rows:
            raise ModelError(
                f"{checkpoint.folder}/config.json: vocab_size is {stated}, but '{name}' has {rows} rows"
            )
    rows = checkpoint.info(checkpoint.input_embedding).shape[0]
    for key, value in special_ids(checkpoint):
        if not 0 <= value < rows:
            raise ModelError(
                f"{checkpoint.folder}: {key} is {value}, outside the {rows} rows of the embedding"
            )


def special_ids(checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    """Every id of a special token in configuration and generation settings, with its key."""
    for settings in (checkpoint.config, checkpoint.text_config, generation_settings(checkpoint)):
        for key, value in settings.items():
            if key in _IDS:
                for entry in value if isinstance(value, list) else [value]:
                    if isinstance(entry, int) and entry != -1:
                        yield key, entry


def generation_settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The contents of generation_config.json; empty without one."""
    file = checkpoint.folder / GENERATION
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise ModelError(f"{file}: holds a {type(settings).__name__}, not a table of settings")
    return settings


def check_values(
    checkpoint: Checkpoint,
    no_zero_rows: Mapping[str, Collection[int]],
    *,
    rows: int = 0,
    checked: Collection[str] = (),
) -> None:
    """Stream all tensors: floating-point numbers must be finite.

    Args:
        checkpoint: what to read.
        no_zero_rows: tensors in which a row of zeros is an error too -> the rows that may be zero.
        rows: how many rows of such a tensor stand for tokens; the rest is padding.
        checked: tensors that need not be read.
    """
    with bar(f"check {checkpoint.folder.name.strip('.')}", checkpoint.nbytes, "B") as shown:
        for name, info in checkpoint.tensors.items():
            for first, block in info.blocks(1 << 20) if info.is_float and name not in checked else ():
                where = f"{info.file}: tensor '{name}'"
                if (bad := not_finite(block)) is not None:
                    raise ModelError(
                        f"{where}: {bad[1]} in row {first + bad[0]}; the file is damaged or training "
                        "diverged: fetch it again or use an earlier checkpoint"
                    )
                if name in no_zero_rows:
                    _check_zero_rows(where, first, block[: max(0, rows - first)], no_zero_rows[name])
            shown.update(info.nbytes)


def _check_zero_rows(where: str, first: int, block: torch.Tensor, allowed: Collection[int]) -> None:
    # Reading whole rows of bfloat16 is slow; the first numbers tell nearly always.
    begins = (~block[:, :8].any(dim=1)).nonzero().reshape(-1).tolist()
    empty = [row for row in begins if not block[row].any()]
    if bad := [first + row for row in empty if first + row not in allowed]:
        raise ModelError(f"{where}: {len(bad)} rows of zeros, the first is token {bad[0]}")


def _check_ties(checkpoint: Checkpoint) -> None:
    """If the files hold a second copy of a tied matrix, it must be the same one."""
    output = checkpoint.stored_output
    if not checkpoint.tied or output is None:
        if checkpoint.tied and checkpoint.has_head and not checkpoint.config_ties:
            raise ModelError(
                f"{checkpoint.folder}: the output matrix is missing, and config.json says that it is not "
                "tied to the input embedding (tie_word_embeddings false)"
            )
        return
    if not same_bytes(checkpoint.info(checkpoint.input_embedding), checkpoint.info(output)):
        raise ModelError(
            f"{checkpoint.folder}: config.json ties '{output}' to '{checkpoint.input_embedding}', but the "
            "files hold two different matrices; set tie_word_embeddings to what the model was trained with"
        )


def _check_roles(product: Checkpoint, tokenizer: PreTrainedTokenizerFast, base: Checkpoint) -> None:
    """Where tokenizer, configuration and generation settings of the base agree, the product's must too."""
    split = _disagreements(product, tokenizer)
    if split and (new := split.keys() - _disagreements(base, _tokenizer_of(base, product, tokenizer)).keys()):
        role = min(new)
        raise ModelError(f"{product.folder}: special ids disagree: {split[role]}")


def _disagreements(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Role -> what the tokenizer and the settings say, where they differ."""
    found = {}
    for role in _ROLES:
        own = getattr(tokenizer, f"{role}_token_id")
        stated = {value for key, value in special_ids(checkpoint) if key == f"{role}_token_id"}
        if own is not None and stated and own not in stated:
            found[role] = f"tokenizer {role} is {own}, configuration says {sorted(stated)}"
    return found


def _check_round_trip(product: Checkpoint, tokenizer: Any, before: Any, line: str) -> None:
    """Text must come back, or come back as the base's tokenizer would give it.

    A tokenizer that normalises on purpose must at least agree with itself.
    """
    ids = tokenizer.encode(line, add_special_tokens=False)
    back = str(tokenizer.decode(ids, skip_special_tokens=False))
    if back == line or back == before.decode(before.encode(line, add_special_tokens=False)):
        return
    lossless = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"] == "BPE"
    if lossless or tokenizer.encode(back, add_special_tokens=False) != ids:
        place = next((i for i, (a, b) in enumerate(zip(line, back, strict=False)) if a != b), 0)
        raise ModelError(
            f"{product.folder}: the tokenizer does not give text back: {line[place : place + 30]!r} comes "
            f"out as {back[place : place + 30]!r}"
        )


def check_same_tokenizer(product: Checkpoint, spec: str, text: Sequence[str]) -> None:
    """What transformers opens must be the tokenizer that was written, not one it builds for the architecture.

    Args:
        product: the new checkpoint.
        spec: the tokenizer.json that was meant.
        text: what both must cut alike; their vocabularies are compared as well.
    """
    meant, opened = Tokenizer.from_str(spec), product.tokenizer()
    same = opened.get_vocab() == meant.get_vocab(with_added_tokens=True) and all(
        opened.encode(line, add_special_tokens=False) == meant.encode(line, add_special_tokens=False).ids
        for line in (*text, _SAMPLE)
    )
    if not same:
        raise ModelError(
            f"{product.folder}: for model type '{product.config.get('model_type')}' transformers opens every "
            f"tokenizer as {type(opened).__name__}, which cuts text differently from the new one; give the "
            "new tokenizer the old one's normalizer, pre-tokenizer and special tokens"
        )


def _tokenizer_of(
    base: Checkpoint, product: Checkpoint, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """The base's tokenizer; `tokenizer`, the product's, where both folders have the same files."""
    mine, theirs = (
        {path: (folder / path).read_bytes() for path in companions(folder) if path.name in TOKENIZER}
        for folder in (base.folder, product.folder)
    )
    return tokenizer if mine == theirs else base.tokenizer()


def _check_forward(
    product: Checkpoint, base: Checkpoint, tokenizer: PreTrainedTokenizerFast, text: Sequence[str]
) -> None:
    """Load with plain transformers and run once.

    In the dtype of the files the weights stay mapped from them, and take no memory of their own.
    """
    stored = product.info(product.input_embedding).torch_dtype
    loaded, left = product.load(stored if stored in _COMPUTED else None)
    if left := [name for name in left if name not in base.tensors]:
        raise ModelError(
            f"{product.folder}: {type(loaded).__name__} has no place for {len(left)} tensors, first "
            f"'{left[0]}'; the model would be used without them"
        )
    shapes = {info.shape for info in product.tensors.values()}
    if made := [name for name, one in loaded.named_parameters() if tuple(one.shape) not in shapes]:
        say(
            f"{product.folder.name}: for a '{product.architecture}' transformers puts {len(made)} tensors "
            f"together anew (first '{made[0]}'), so the check holds those in memory"
        )
    model, size = loaded.eval(), vocabulary(tokenizer)
    ids = tokenizer.encode(text[0], add_special_tokens=False)[:_FORWARD_TOKENS] if text else []
    input_BT = torch.tensor([ids or list(range(min(8, size)))])
    extra = {"decoder_input_ids": input_BT} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            output = model(input_ids=input_BT, **extra)
    except (ValueError, LookupError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"{product.folder}: a forward pass over the product fails: {error}") from error
    if not torch.isfinite(output[0].float()).all():
        raise ModelError(f"{product.folder}: a forward pass over {input_BT.shape[1]} tokens gives NaN or Inf")
    _check_shared(product, model)


def _check_shared(product: Checkpoint, model: PreTrainedModel) -> None:
    """The loaded model must share its two matrices exactly when the checkpoint is tied."""
    output: Any = model.get_output_embeddings()
    entry: Any = model.get_input_embeddings()
    if output is None:
        return
    shared = output.weight.data_ptr() == entry.weight.data_ptr()
    if shared != product.tied:
        raise ModelError(
            f"{product.folder}: input and output matrix are {'tied' if shared else 'two'} in the loaded "
            f"model, but {'tied' if product.tied else 'two'} in the checkpoint"
        )
