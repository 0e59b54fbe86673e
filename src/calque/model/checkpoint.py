"""A checkpoint on disk, seen tensor by tensor: opening one reads its headers and nothing else.

No code from the folder is ever run: weights are read from safetensors alone, pickled ones are refused,
and the `auto_map` of a configuration (which asks for the folder's own Python files) is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from calque.disk import read_json
from calque.errors import ModelError
from calque.model.files import CONFIG, INDEX, WEIGHTS, pickled_weights
from calque.model.slots import Layout, Slot, layout
from calque.model.tensors import TensorInfo, read_header
from calque.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

_KINDS = {"model_type": str, "architectures": list, "text_config": dict, "recursion": dict}
# What transformers raises over sizes and settings that make no model.
UNBUILDABLE = (ValueError, LookupError, TypeError, RuntimeError, ArithmeticError)
_LONGEST = 200  # characters of a file's name
_RECURSION = {"model_type": str, "loops": int, "shared": int}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model in a plain Hugging Face folder; tensors are read when asked for.

    Attributes:
        folder: where `config.json`, the weights and the tokenizer lie.
        config: the contents of `config.json`.
        tensors: parameter name -> where its bytes are, in the order of the files.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, ref: str | Path) -> Checkpoint:
        """Open a model: a folder, a `.gguf` file, an asset name, a PEFT adapter on its base, or a hub id.

        What is not a plain folder is turned into one, once, in the cache.

        Raises:
            ModelError: the model is damaged or can not be read without running its code.
            ConfigError: `ref` is nothing that is known.
        """
        from calque.model.source import resolve_model

        return cls.at(resolve_model(ref))

    @classmethod
    def at(cls, folder: Path) -> Checkpoint:
        """Open a plain folder as it is; headers and index are checked against the files."""
        return cls(folder, _read_config(folder), _read_tensors(folder))

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """The tensor `name`, or some rows of its first axis, in its own dtype and freshly allocated.

        Raises:
            ModelError: there is no such tensor.
        """
        return self.info(name).read(rows)

    def info(self, name: str) -> TensorInfo:
        """Where the tensor `name` lies."""
        if name not in self.tensors:
            raise ModelError(f"{self.folder}: has no tensor '{name}' ({len(self.tensors)} others)")
        return self.tensors[name]

    def blocks(self, name: str, nbytes: int = 16 << 20) -> Iterator[tuple[int, torch.Tensor]]:
        """The tensor `name` as pairs (first row, rows) of about `nbytes` bytes each."""
        return self.info(name).blocks(nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of `config` that describes the language model: all of it, unless it has other senses."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, Mapping) else self.config

    @property
    def architecture(self) -> str:
        """The `model_type` whose names the parameters have; of a looped model that of its layers."""
        return str(self.config.get("recursion", self.config).get("model_type", ""))

    @cached_property
    def layout(self) -> Layout:
        """How this model names its parameters; the generic rule for unknown architectures says so."""
        shapes = {name: info.shape for name, info in self.tensors.items()}
        found = layout(self.architecture, shapes)
        if not found.family:
            say(
                f"{self.folder}: architecture '{self.config.get('model_type')}' is not in the table of "
                f"names; by the generic rule the input embedding is '{found.input or 'not found'}' "
                f"and the output '{found.output or 'tied'}'"
            )
        return found

    @cached_property
    def slots(self) -> Mapping[Slot, str]:
        """Every place of the model -> the name of the parameter there; one to one."""
        return {self.layout.slot(name, info.shape): name for name, info in self.tensors.items()}

    @cached_property
    def tied(self) -> bool:
        """Whether the output matrix is the input embedding."""
        return self.stored_output is None or self.config_ties

    @cached_property
    def input_embedding(self) -> str:
        """Name of the input embedding, (vocabulary, hidden)."""
        name = self.named("embed.input")
        if name is None:
            raise ModelError(
                f"{self.folder}: no input embedding found among {len(self.tensors)} tensors of architecture "
                f"'{self.config.get('model_type')}'"
            )
        return name

    @property
    def output_embedding(self) -> str | None:
        """Name of the output matrix, (vocabulary, hidden); None when it is tied to the input embedding."""
        return None if self.tied else self.stored_output

    @cached_property
    def output_bias(self) -> str | None:
        """Name of the bias of the output layer, one number per token; None without one."""
        return self.named("embed.output.bias")

    @property
    def stored_output(self) -> str | None:
        """Name of the output matrix if the files hold one, be it a copy of a tied one or not."""
        return self.named("embed.output")

    def named(self, role: str) -> str | None:
        """Name of the parameter outside the layers with this role, None when the model has none."""
        try:
            name = self.layout.name(None, role)
        except KeyError:
            return None
        return name if name in self.tensors else None

    @cached_property
    def output_name(self) -> str | None:
        """What the model calls its output matrix, also where that is tied and the files do not hold it."""
        if not self.has_head:
            return None
        try:
            return self.layout.name(None, "embed.output")
        except KeyError:  # an architecture that is not in the table: its class knows
            kind = model_class(self.config)
            if kind is None:
                return None
            with torch.device("meta"):
                model = kind(self.loaded_config)
            head = model.get_output_embeddings()
            return next((f"{name}.weight" for name, module in model.named_modules() if module is head), None)

    @cached_property
    def two_stacks(self) -> bool:
        """Whether it has an encoder and a decoder, so that a number alone names no layer."""
        roles = (self.layout.place(name)[1] for name in self.tensors)
        return bool(self.config.get("is_encoder_decoder")) or any(
            role.startswith(("encoder.", "decoder.")) for role in roles
        )

    @cached_property
    def config_ties(self) -> bool:
        """Whether the configuration ties the output matrix to the input embedding."""
        stated = self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings"))
        if stated is not None:
            return bool(stated)
        return bool(getattr(self.loaded_config, "tie_word_embeddings", True))

    @property
    def has_head(self) -> bool:
        """Whether the model predicts tokens, as its class in the configuration says."""
        names = self.config.get("architectures") or [""]
        return any(
            word in str(names[0]) for word in ("CausalLM", "LMHead", "MaskedLM", "ConditionalGen", "MT")
        )

    @cached_property
    def loaded_config(self) -> PreTrainedConfig:
        """The configuration as transformers understands it, defaults filled in."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        if "recursion" in self.config:
            from calque.model.recursive import full_config

            return full_config(self)
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
            raise ModelError(f"{self.folder}/config.json: transformers does not know it: {error}") from None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The folder's tokenizer, as transformers opens it."""
        from transformers import AutoTokenizer

        try:
            with quiet():  # it wonders about the model's type, which is none of its business
                return AutoTokenizer.from_pretrained(
                    self.folder, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:  # transformers and tokenizers raise bare Exception for damaged files
            raise ModelError(
                f"{self.folder}: no usable tokenizer ({type(error).__name__}: {error}); "
                "a model folder needs its tokenizer.json beside the weights"
            ) from None

    def model(self, dtype: torch.dtype | None = torch.float32) -> PreTrainedModel:
        """The whole model, built by plain transformers with the class its configuration names.

        Args:
            dtype: of the parameters in memory; None leaves them as they are stored, and mapped from the file.

        Raises:
            ModelError: transformers can not build it, or would have to invent some of its weights.
        """
        return self.load(dtype)[0]

    def load(self, dtype: torch.dtype | None = torch.float32) -> tuple[PreTrainedModel, list[str]]:
        """As `model`, with the names of the tensors that the model has no place for."""
        import transformers

        if "recursion" in self.config:
            from calque.model.recursive import build as build_looped

            return build_looped(self, dtype), []
        build: Any = model_class(self.config) or transformers.AutoModelForCausalLM
        settings = {"dtype": dtype or "auto", "local_files_only": True, "use_safetensors": True}
        if build is transformers.AutoModelForCausalLM:
            settings["trust_remote_code"] = False
        try:
            with quiet():
                loaded: Any = build.from_pretrained(self.folder, output_loading_info=True, **settings)
        except (*UNBUILDABLE, OSError) as error:
            raise ModelError(f"{self.folder}: transformers can not build this model: {error}") from error
        model, found = loaded
        absent = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
        if absent:
            raise ModelError(
                f"{self.folder}: {len(absent)} tensors that {type(model).__name__} needs are missing or have "
                f"another shape, first {absent[0]}"
            )
        return model, sorted(found["unexpected_keys"])

    def check(self) -> None:
        """Read every tensor once and compare sizes; raise ModelError on the first thing that is wrong."""
        from calque.model.check import check_checkpoint

        check_checkpoint(self)


def model_class(config: Mapping[str, Any]) -> Any:
    """The model class of transformers that a configuration names; None when it names none of them."""
    import transformers

    found = getattr(transformers, str((config.get("architectures") or [""])[0]), None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers prints nothing: what is wrong is said as an error, once, and its bars are not ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read_config(folder: Path) -> Mapping[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise ModelError(f"{folder}: no config.json; a model folder needs config.json and model.safetensors")
    config = read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"{file}: holds a {type(config).__name__}, not a table of settings")
    _check_kinds(file, config)
    if "recursion" in config:
        _check_kinds(file, config["recursion"] or {}, required=True, kinds=_RECURSION)
    return config


def _check_kinds(
    file: Path, settings: Mapping[str, Any], *, required: bool = False, kinds: Mapping[str, type] = _KINDS
) -> None:
    """What is read here must be of its kind; transformers says the rest."""
    for key, kind in kinds.items():
        value = settings.get(key)
        if not isinstance(value, kind) and (value is not None or required):
            raise ModelError(f"{file}: {key} is {value!r}, which is no {kind.__name__}")


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / WEIGHTS).is_file():
        tensors = read_header(folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        tensors = _read_shards(folder)
    else:
        raise ModelError(_without_weights(folder))
    if not tensors:
        raise ModelError(f"{folder}: the weights hold no tensor")
    return tensors


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX
    where = _weight_map(index)
    tensors: dict[str, TensorInfo] = {}
    for shard in dict.fromkeys(where.values()):
        if Path(shard).name != shard or shard in ("", ".", "..") or len(shard) > _LONGEST:
            raise ModelError(f"{index}: names '{shard}', which is not a file inside the folder")
        if not (folder / shard).is_file():
            raise ModelError(f"{index}: the shard '{shard}' is missing; fetch it again")
        for name, info in read_header(folder / shard).items():
            if name in tensors:
                raise ModelError(
                    f"{folder}: tensor '{name}' stands in two shards, {tensors[name].file.name} and {shard}"
                )
            tensors[name] = info
    for name, shard in where.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ModelError(f"{index}: tensor '{name}' is not in '{shard}', where the index puts it")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise ModelError(f"{index}: has no table 'weight_map' from tensor names to files")
    return where


def _without_weights(folder: Path) -> str:
    """What to say about a folder that has no safetensors weights."""
    if pickles := pickled_weights(folder):
        source, target = json.dumps(str(folder)), json.dumps(f"{folder}-safe")
        return (
            f"{folder}: the weights are pickled ({pickles[0]}); unpickling can run code, so this is refused. "
            "If you trust their origin, convert them once: python -c 'from transformers import "
            f"AutoModelForCausalLM as M, AutoTokenizer as T; "
            f"M.from_pretrained({source}).save_pretrained({target}); "
            f"T.from_pretrained({source}).save_pretrained({target})'"
        )
    if shards := sorted(folder.glob("*.safetensors")):
        return (
            f"{folder}: {shards[0].name} is there, but neither {WEIGHTS} nor {INDEX}; fetch the missing one"
        )
    if files := sorted(folder.glob("*.gguf")):
        return f"{folder}: no weights but {files[0].name}; give that .gguf file itself"
    return f"{folder}: no weights; a model folder needs {WEIGHTS} (or shards and {INDEX}) beside config.json"
