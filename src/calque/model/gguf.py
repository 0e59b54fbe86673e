"""A quantised GGUF file into a plain model folder, once.

`transformers` can load a GGUF file but not save what it loaded, takes half a minute each time, and forgets
how digits are split. After the conversion the model behaves like any other.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from calque.disk import clear_disk_errors
from calque.errors import ModelError
from calque.model.checkpoint import quiet
from calque.progress import say

# The values of `tokenizer.ggml.pre` that split every digit from its neighbours before the GPT-2 pattern.
_SPLITS_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})
# Bytes of a value by its kind in the file format, version 2 and 3.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model in `file` as an ordinary folder: config, float32 safetensors, tokenizer.

    The weights are the de-quantised values, bit by bit; logits equal those of the model that
    `transformers` loads from the file.

    Args:
        file: a GGUF file of a causal language model that `transformers` knows.
        folder: where to write; the caller puts it in place when it is whole.

    Raises:
        ModelError: no GGUF file, a cut one, or an architecture that `transformers` can not read.
        DataError: the disk is full.
    """
    pre = _pre_tokenizer(file)
    say(f"convert {file.name} to a plain folder, once (about a minute)")
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with quiet():
            # Not AutoTokenizer: it reads the whole file once more, to find this class.
            tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(**source)  # pyright: ignore
            read: Any = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, output_loading_info=True
            )
    except (ValueError, LookupError, RuntimeError, struct.error) as error:
        raise ModelError(f"{file}: transformers can not read this GGUF file ({error})") from error
    model, found = read
    if absent := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise ModelError(
            f"{file}: {len(absent)} tensors that {type(model).__name__} needs are missing, first "
            f"'{absent[0]}'; they would be random: fetch the file again"
        )
    if pre in _SPLITS_DIGITS:
        _split_digits(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    folder.mkdir(exist_ok=True)
    with clear_disk_errors(folder), quiet():
        plain(model).save_pretrained(folder)
        _save_tokenizer(tokenizer, folder)


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that is not marked as quantised, without copying them."""
    settings = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    with torch.device("meta"):
        fresh = type(model)(type(model.config)(**settings))
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


def _split_digits(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save, and let nothing in the folder remember the file it came from."""
    for key in ("gguf_file", "name_or_path", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.name_or_path = ""
    tokenizer.save_pretrained(folder)


def _pre_tokenizer(file: Path) -> str:
    """The value of `tokenizer.ggml.pre`, "" where there is none, read from the file's header alone.

    The readers at hand build an object for each of the vocabulary's strings, which takes half the time of
    a whole conversion; this one steps over them.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such file")
    with file.open("rb") as stream:
        magic = stream.read(4)
        if magic != b"GGUF":
            raise ModelError(f"{file}: not a GGUF file (it begins with {magic!r}, should be b'GGUF')")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _find_pre(data)
            except (struct.error, KeyError, UnicodeDecodeError) as error:
                raise ModelError(f"{file}: cut or damaged GGUF header ({error}); fetch it again") from None


def _find_pre(data: mmap.mmap) -> str:
    """Walk over all fields, which also finds out whether the header is whole."""
    (count,) = struct.unpack_from("<Q", data, 16)
    at, found = 24, ""
    for _ in range(count):
        key, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        if key == b"tokenizer.ggml.pre":
            found = _string(data, at + 4)[0].decode()
        at = _after(data, at + 4, kind)
    if at > len(data):
        raise struct.error(f"its last field ends at byte {at}, the file at {len(data)}")
    return found


def _string(data: mmap.mmap, at: int) -> tuple[bytes, int]:
    """A length-prefixed string and where it ends."""
    (length,) = struct.unpack_from("<Q", data, at)
    if at + 8 + length > len(data):
        raise struct.error(f"a string of {length} bytes at byte {at} reaches over the end of the file")
    return data[at + 8 : at + 8 + length], at + 8 + length


def _after(data: mmap.mmap, at: int, kind: int) -> int:
    """Where a value of this kind ends."""
    if kind == _STRING:
        return _string(data, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner not in (_STRING, _ARRAY):
        return at + length * _SIZES[inner]
    for _ in range(length):
        at = _after(data, at, inner)
    return at
