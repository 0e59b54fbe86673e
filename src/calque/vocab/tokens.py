"""A tokenizer seen as a vocabulary: what each token stands for, byte by byte."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from calque.disk import clear_disk_errors
from calque.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_CARRIED = ("chat_template", "model_max_length", "padding_side", "truncation_side")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x9FFF), (0xF900, 0xFAFF))


def byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each of the 256 bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in plain}
    rest = [byte for byte in range(256) if byte not in plain]
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(rest)}


_ALPHABET = byte_alphabet()
_LETTER_OF = {byte: char for char, byte in _ALPHABET.items()}


@dataclass(frozen=True, eq=False)
class Tokens:
    """A fast tokenizer and the canonical byte surface of each of its V tokens.

    Two tokens of different tokenizers stand for the same text exactly when their surfaces are equal,
    whatever alphabet or blank mark their tokenizer writes.

    Attributes:
        backend: The tokenizer itself, without padding or truncation.
        strings: V strings as the vocabulary spells them; "" for an id without a token.
        surface: V byte strings including a leading blank; None for special and missing tokens.
        special: Ids by role ("bos", "eos", "unk", "pad", ...) and by special string.
        roles: Special string by role, a subset of `special`'s keys.
        config: Chat template and other plain settings that belong to the tokenizer's folder.
    """

    backend: Tokenizer
    strings: tuple[str, ...]
    surface: tuple[bytes | None, ...]
    special: Mapping[str, int]
    roles: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, ref: str | Path) -> Tokens:
        """Open a tokenizer.json, a folder that holds one, or whatever names a model.

        Raises:
            ModelError: There is no fast tokenizer at `ref`.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        path = _resolve(ref)
        try:
            if path.is_file():
                return cls.of(PreTrainedTokenizerFast(tokenizer_file=str(path)))
            if (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
                return cls.of(PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json")))
            return cls.of(AutoTokenizer.from_pretrained(str(path), use_fast=True))
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer at '{ref}': {str(error).splitlines()[0]}") from None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Tokens:
        """View a fast transformers tokenizer; the tokenizer itself is copied and never changed.

        Raises:
            ModelError: A slow tokenizer, which has no inspectable vocabulary.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            kind = type(tokenizer).__name__
            raise ModelError(f"{kind} is a slow tokenizer; a fast one (tokenizer.json) is needed")
        named = tokenizer.special_tokens_map
        roles = {role: str(named[f"{role}_token"]) for role in ROLES if f"{role}_token" in named}
        config = {key: getattr(tokenizer, key, None) for key in _CARRIED}
        if (config["model_max_length"] or 0) > 1 << 40:
            config["model_max_length"] = None
        kept = {key: value for key, value in config.items() if value is not None}
        return cls.wrap(backend, roles=roles, config=kept, extra=tokenizer.all_special_tokens)

    @classmethod
    def wrap(
        cls,
        backend: Tokenizer,
        *,
        roles: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        extra: Iterable[str] = (),
    ) -> Tokens:
        """View a bare `tokenizers.Tokenizer`; `roles` and `extra` name its special tokens."""
        roles = dict(roles or {})
        backend = Tokenizer.from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        strings = [""] * (max(vocabulary.values(), default=-1) + 1)
        for string, token in vocabulary.items():
            strings[token] = string
        added = backend.get_added_tokens_decoder()
        names = (
            {entry.content for entry in added.values() if entry.special} | set(extra) | set(roles.values())
        )
        special = {name: vocabulary[name] for name in sorted(names) if name in vocabulary}
        special |= {role: vocabulary[name] for role, name in roles.items() if name in vocabulary}
        hidden = set(special.values())
        literal = {token for token in added if token not in hidden}
        spell = _speller(json.loads(backend.to_str()), set(vocabulary))
        surface = tuple(
            None
            if token in hidden or not string
            else (string.encode() if token in literal else spell(string))
            for token, string in enumerate(strings)
        )
        return cls(backend, tuple(strings), surface, special, roles, dict(config or {}))

    def __len__(self) -> int:
        return len(self.strings)

    @cached_property
    def kind(self) -> str:
        """How the vocabulary spells text: "bytelevel", "metaspace", "wordpiece" or "plain"."""
        return _kind(json.loads(self.backend.to_str()))

    @cached_property
    def by_surface(self) -> Mapping[bytes, int]:
        """Id by surface; of equal surfaces the lowest id."""
        found: dict[bytes, int] = {}
        for token, surface in enumerate(self.surface):
            if surface is not None:
                found.setdefault(surface, token)
        return found

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(self.special.values())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of many texts, without special tokens."""
        return [found.ids for found in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Per token of `encode(text)` the characters [start, stop) it stands for."""
        return self.backend.encode(text, add_special_tokens=False).offsets

    def words(self, text: str) -> list[list[int]]:
        """Token ids of a text, grouped so that the pieces of one word stand together.

        Two neighbouring tokens belong together when no character lies between them and letters meet at
        their border; scripts that write no blanks between words (Han, Kana, Thai, ...) are left apart.
        """
        found = self.backend.encode(text, add_special_tokens=False)
        groups: list[list[int]] = []
        last = 0
        for token, (start, stop) in zip(found.ids, found.offsets, strict=True):
            begin = start + (len(text[start:stop]) - len(text[start:stop].lstrip()))
            inside = begin == start and start <= last and start < stop
            if groups and inside and (start < last or _letters_meet(text, start)):
                groups[-1].append(token)
            else:
                groups.append([token])
            last = stop
        return groups

    def encode_surface(self, surface: bytes) -> list[int]:
        """Ids of the pieces that write exactly these bytes, as in the middle of a text.

        Nothing is put in front, so b"dog" does not become " dog". Bytes that the vocabulary can not
        write give no piece; an empty list means that none could be written.
        """
        unknown = self.special.get("unk")
        if self.kind == "bytelevel":
            string = "".join(_LETTER_OF[byte] for byte in surface)
        else:
            string = surface.decode("utf-8", errors="ignore")
            if self.kind == "wordpiece" or string.encode() != surface:
                return self._longest_pieces(surface)
            if self.kind == "metaspace":
                string = string.replace(" ", "▁")
        return [piece.id for piece in self.backend.model.tokenize(string) if piece.id != unknown]

    def _longest_pieces(self, surface: bytes) -> list[int]:
        """Greedy pieces, longest first, over byte values."""
        table, pieces, start = self.by_surface, [], 0
        longest = self._longest
        while start < len(surface):
            for stop in range(min(len(surface), start + longest), start, -1):
                if (token := table.get(surface[start:stop])) is not None:
                    pieces.append(token)
                    start = stop
                    break
            else:
                start += 1
        return pieces

    @cached_property
    def _longest(self) -> int:
        return max((len(surface) for surface in self.by_surface), default=0)

    def show(self, token: int) -> str:
        """A token as a person reads it: its text, or its bytes where they are no whole characters."""
        surface = self.surface[token]
        if surface is None:
            return self.strings[token]
        try:
            return surface.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in surface)

    def hf(self) -> PreTrainedTokenizerBase:
        """A transformers tokenizer that behaves the same."""
        from transformers import PreTrainedTokenizerFast

        named = {f"{role}_token": string for role, string in self.roles.items()}
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self.backend.to_str()), **named, **self.config
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        with clear_disk_errors(folder):
            self.hf().save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        """Read what `save` wrote."""
        return cls.open(folder)


def _resolve(ref: str | Path) -> Path:
    path = Path(ref).expanduser()
    if path.suffix == ".json" or (path.is_dir() and not (path / "adapter_config.json").is_file()):
        return path
    from calque.model.checkpoint import Checkpoint

    return Checkpoint.open(ref).folder


def _letters_meet(text: str, place: int) -> bool:
    return 0 < place < len(text) and _is_word(text[place - 1]) and _is_word(text[place])


def _is_word(char: str) -> bool:
    code = ord(char)
    if any(low <= code <= high for low, high in _UNSPACED) or code >= 0x20000:
        return False
    return unicodedata.category(char)[0] in "LM"


def _parts(part: Any) -> list[dict[str, Any]]:
    """A tokenizer component and everything nested in it."""
    if not isinstance(part, dict):
        return []
    nested = [
        inner
        for key in ("pretokenizers", "normalizers", "decoders", "processors")
        for inner in part.get(key) or []
    ]
    return [part, *(deep for inner in nested for deep in _parts(inner))]


def _kind(spec: Mapping[str, Any]) -> str:
    types = {p["type"] for key in ("pre_tokenizer", "decoder") for p in _parts(spec.get(key))}
    if spec["model"]["type"] == "WordPiece":
        return "wordpiece"
    if "ByteLevel" in types:
        return "bytelevel"
    marks = [p for p in _parts(spec.get("normalizer")) if p["type"] == "Replace" and p.get("content") == "▁"]
    return "metaspace" if "Metaspace" in types or marks else "plain"


def _speller(spec: Mapping[str, Any], vocabulary: set[str]) -> Any:
    """The function that turns a vocabulary string of this kind of tokenizer into its bytes."""
    kind = _kind(spec)
    if kind == "bytelevel":
        # A character outside the alphabet can only come from a token added as literal text.
        return lambda string: b"".join(
            bytes([_ALPHABET[char]]) if char in _ALPHABET else char.encode() for char in string
        )
    if kind == "metaspace":
        has_bytes = {"<0x00>", "<0xFF>"} <= vocabulary
        return lambda string: _metaspace_bytes(string, has_bytes)
    if kind == "wordpiece":
        mark = spec["model"].get("continuing_subword_prefix", "##")
        return lambda string: _wordpiece_bytes(string, mark)
    return str.encode


def _metaspace_bytes(string: str, has_bytes: bool) -> bytes:
    if has_bytes and (found := _BYTE_TOKEN.fullmatch(string)):
        return bytes([int(found[1], 16)])
    return string.replace("▁", " ").encode()


def _wordpiece_bytes(string: str, mark: str) -> bytes:
    if mark and string.startswith(mark) and string != mark:
        return string[len(mark) :].encode()
    # An unmarked piece begins a word; punctuation stands by itself and carries no blank elsewhere either.
    return (" " + string if string[:1].isalnum() else string).encode()
