"""The noun of parameter-efficient training: an addition at places of a model, with four axes.

form (what is computed) x place (where) x sharing (who owns the numbers) x gate (how much of it, when).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from calque.disk import checksum, new_folder, read_json, write_json
from calque.errors import ModelError
from calque.model.checkpoint import Checkpoint
from calque.model.files import BESIDE, DELTA

CONFIG, WEIGHTS = DELTA, "delta.safetensors"
_RECORD = ("form", "place", "sharing", "gate", "settings", "base")


@dataclass(frozen=True, eq=False)
class Delta:
    """An addition to one model.

    Attributes:
        form: what is computed: "lora", "shards", "bottleneck", "prefix", "sparse" ...
        place: the modules it stands at, as the model calls them; for a sparse delta the parameters.
        sharing: "own" numbers at every place, a "pool" shared by the places of one role, or "depth".
        gate: "fixed", or what decides how much of each part is added.
        settings: the settings of its form.
        tensors: what it consists of, by name; integers are tables that never train.
        base: folder, hash and model_type of the model it was made for.
        parts: the deltas it is put together from, when it is more than one.
    """

    form: str
    place: tuple[str, ...]
    sharing: str
    gate: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    base: Mapping[str, str] = field(repr=False)
    parts: tuple[Delta, ...] = ()

    @property
    def trainable(self) -> Mapping[str, torch.Tensor]:
        """Those of its tensors that train."""
        return {name: t for name, t in self.tensors.items() if t.is_floating_point()}

    def count(self) -> int:
        """How many numbers train."""
        own = sum(t.numel() for t in self.trainable.values())
        training = self.parts[-1:] if self.form == "stack" else () if self.fixed_parts else self.parts
        return own + sum(part.count() for part in training)

    @property
    def fixed_parts(self) -> bool:
        """Whether its parts stay as they are while it trains."""
        return self.settings.get("parts") == "fixed"

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Delta:
        """The same delta with other numbers."""
        return replace(self, tensors={**self.tensors, **tensors})

    def check_base(self, base: Checkpoint) -> None:
        """Refuse a model that the delta was not made for.

        Raises:
            ModelError: the weights of `base` are not those.
        """
        found = base_of(base)
        if found["hash"] != self.base["hash"]:
            raise ModelError(
                f"a '{self.form}' delta made for {self.base['folder']} (weights {self.base['hash'][:12]}) "
                f"does not belong to {base.folder} (weights {found['hash'][:12]}); give the base "
                "it was trained on"
            )

    def fingerprint(self) -> str:
        """Hash of its form, places, settings and numbers."""
        said = [self.form, self.place, self.gate, self.settings, *(part.fingerprint() for part in self.parts)]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path, *, folded: bool = False) -> None:
        """Write the new folder: delta.json and delta.safetensors, a folder within for each part.

        delta.json also says how many numbers train, and the shapes of all.

        Args:
            folder: where.
            folded: whether the weights beside it hold it already.
        """
        with new_folder(folder) as made:
            tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
            save_file(tensors, made / WEIGHTS, metadata={"format": "pt"})
            record = {
                key: getattr(self, key) for key in ("form", "place", "sharing", "gate", "settings", "base")
            }
            said = {"folded": True} if folded else {}
            said |= {"numbers": self.count(), "tensors": {name: [*t.shape] for name, t in tensors.items()}}
            write_json(made / CONFIG, {**record, **said, "parts": len(self.parts)})
            for number, part in enumerate(self.parts):
                part.save(made / f"part-{number}")

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """Read what `save` wrote.

        Raises:
            ModelError: the folder holds no delta, or a damaged one.
        """
        if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
            raise ModelError(f"{folder}: no delta; needed are {CONFIG} and {WEIGHTS}")
        record = read_json(folder / CONFIG)
        try:
            parts = tuple(cls.load(folder / f"part-{n}") for n in range(record.pop("parts")))
            record["place"] = tuple(record["place"])
            tensors, shapes = load_file(folder / WEIGHTS), record.pop("tensors", {})
            for key in ("folded", "numbers"):
                record.pop(key, None)
            for name, shape in shapes.items():
                if name not in tensors or [*tensors[name].shape] != shape:
                    raise ValueError(f"'{name}' of shape {shape} is not among its numbers")
            return cls(tensors=tensors, parts=parts, **record)
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise ModelError(f"{folder}: damaged delta: {error}") from None


def beside(checkpoint: Checkpoint) -> Delta | None:
    """The delta in a checkpoint's folder that its weights do not hold, so that both make up the model.

    Raises:
        ModelError: it belongs to other weights.
    """
    folder = checkpoint.folder / BESIDE
    if not (folder / CONFIG).is_file() or read_json(folder / CONFIG).get("folded"):
        return None
    delta = Delta.load(folder)
    delta.check_base(checkpoint)
    return delta


def base_of(base: Checkpoint) -> dict[str, str]:
    """Folder, hash of names, shapes and weights, and architecture of a delta's base."""
    digest = hashlib.sha256()
    for name, info in sorted(base.tensors.items()):
        digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
    for file in sorted({info.file for info in base.tensors.values()}):
        digest.update(checksum(file).encode())
    return {"folder": str(base.folder), "hash": digest.hexdigest(), "model_type": base.architecture}
