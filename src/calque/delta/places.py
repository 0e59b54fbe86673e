"""Where a delta may stand: the linear maps of a model's layers, by role, from shapes alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calque.errors import ConfigError
from calque.model.adapter import STORED_TRANSPOSED
from calque.model.checkpoint import Checkpoint

_NO_PLACES = ("expert.", "router", "norm", "adapter.", "position")


@dataclass(frozen=True)
class Place:
    """One linear map of one layer.

    Attributes:
        layer: number of the layer.
        role: what the map does there.
        module: its module in the model.
        inputs: how wide its input is.
        outputs: how wide its output is.
    """

    layer: int
    role: str
    module: str
    inputs: int
    outputs: int


def linear_places(base: Checkpoint, roles: Sequence[str] = ()) -> tuple[Place, ...]:
    """The linear maps of the layers with these roles, in the order of layers; all roles when none is given.

    Raises:
        ConfigError: a role that the model does not have (those it has are listed), or a looped model.
    """
    if "recursion" in base.config:
        raise ConfigError(
            f"{base.folder}: the layers of a looped model share their maps, so that a delta could not be "
            "told apart by depth; use delta/depthwise, which has numbers for each depth"
        )
    return _stored_places(base, roles)


def sided_places(base: Checkpoint, roles: Sequence[str]) -> tuple[Place, ...]:
    """The linear maps with these roles, of an encoder-decoder those of encoder and decoder.

    Raises:
        ConfigError: it has none of them.
    """
    wanted = {f"{side}{role}" for side in ("", "encoder.", "decoder.") for role in roles}
    found = tuple(place for place in linear_places(base) if place.role in wanted)
    return found or linear_places(base, roles)


def depth_places(base: Checkpoint, roles: Sequence[str] = ()) -> tuple[Place, ...]:
    """The linear maps of a looped model at every depth, in the order of depths.

    Raises:
        ConfigError: a role that the model does not have, or a model that is not looped.
    """
    if "recursion" not in base.config:
        raise ConfigError(
            f"{base.folder}: is no looped model, which merge/recurse makes; for others use delta/lora"
        )
    loops = int(base.config["recursion"]["loops"])
    shared = int(base.config["recursion"]["shared"])
    block = _stored_places(base, roles)
    return tuple(
        replace(place, layer=layer, module=base.layout.name(layer, place.role).removesuffix(".weight"))
        for layer in range(loops * shared)
        for place in block
        if place.layer == layer % shared
    )


def layer_of(module: str) -> str:
    """The layer that a module lies in: its name up to its first number."""
    found = re.match(r".*?\.\d+(?=\.)", module)
    return found.group() if found else module


def _stored_places(base: Checkpoint, roles: Sequence[str]) -> tuple[Place, ...]:
    found: list[Place] = []
    for slot, name in base.slots.items():
        plain = name.endswith(".weight") and len(slot.shape) == 2
        if slot.layer is None or not plain or any(word in slot.role for word in _NO_PLACES):
            continue
        turned = base.architecture in STORED_TRANSPOSED
        outputs, inputs = reversed(slot.shape) if turned else slot.shape
        found.append(Place(slot.layer, slot.role, name.removesuffix(".weight"), inputs, outputs))
    known = sorted({place.role for place in found})
    for role in roles:
        if role not in known:
            raise ConfigError(f"{base.folder}: no slot '{role}'; it has {', '.join(known) or 'none'}")
    kept = [place for place in found if not roles or place.role in roles]
    return tuple(sorted(kept, key=lambda place: (place.layer, known.index(place.role))))
