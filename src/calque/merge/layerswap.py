"""Layer swapping: the outer layers of a language expert around the middle of a task expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval

from calque.errors import ConfigError, ModelError
from calque.merge.change import best_split, by_layer, changes
from calque.merge.inputs import Inputs, Vocabulary, line_up
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.stream import chunks
from calque.model.checkpoint import Checkpoint

Side = Literal["language", "task", "base", "average"]
Outside = Mapping[str, Side]  # role of a parameter outside the layers -> where it comes from
_OF_32 = (5, 2)  # bottom and top layers of the language expert in the paper's model of 32 layers
_TASK, _LANGUAGE = 1, 2  # places in the sources of a parameter; the base is 0


@dataclass(frozen=True)
class Plan:
    """How many layers come from where: b bottom, transition, the middle, transition, u top."""

    bottom: int
    top: int
    transition_bottom: int = 1
    transition_top: int = 1
    weight: float = 0.5

    def shares(self, layers: int) -> list[float]:
        """The language expert's share of each layer: 1, `weight` or 0.

        Raises:
            ConfigError: More layers are given away than the model has, or a number is negative.
        """
        counts = (self.bottom, self.transition_bottom, self.transition_top, self.top)
        if min(counts) < 0 or sum(counts) > layers:
            raise ConfigError(
                f"bottom {self.bottom} + transition_bottom {self.transition_bottom} + transition_top "
                f"{self.transition_top} + top {self.top} do not fit into a model of {layers} layers"
            )
        middle = [0.0] * (layers - sum(counts))
        return [
            *[1.0] * self.bottom, *[self.weight] * self.transition_bottom,
            *middle, *[self.weight] * self.transition_top, *[1.0] * self.top,
        ]  # fmt: skip


def layerswap(
    base: Checkpoint,
    task: Checkpoint,
    language: Checkpoint,
    *,
    bottom: Annotated[int, Ge(0)] | None = None,
    top: Annotated[int, Ge(0)] | None = None,
    choose: Literal["depth", "change"] = "depth",
    transition_bottom: Annotated[int, Ge(0)] = 1,
    transition_top: Annotated[int, Ge(0)] = 1,
    weight: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    embeddings: Side = "language",
    head: Side = "language",
    norm: Side = "language",
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Take bottom and top layers from a language expert, the middle from a task expert.

    With N layers, b = bottom, u = top and the transitions t_b, t_u inside, towards the middle:

        0 <= i < b and N - u <= i                               the language expert's layer
        b <= i < b + t_b and N - u - t_u <= i < N - u           weight * language + (1 - weight) * task
        between them                                            the task expert's layer

    Whole layers: attention, feed-forward and norms. All but the transitions is copied bit by bit.

    Args:
        base: What both experts were tuned from; gives configuration and tokenizer.
        task: Expert of the task, in the language that it was learned in.
        language: Expert of the language.
        bottom: Layers from the language expert at the input; without it (and top) they are chosen.
        top: Layers from the language expert at the output.
        choose: How bottom and top are found when not given: "depth" scales the paper's 5 and 2 of 32 layers,
            "change" reads all three models and gives layers to the expert that changed them more
            (`analyze/shift`).
        transition_bottom: Averaged layers above the bottom ones.
        transition_top: Averaged layers below the top ones.
        weight: The language expert's weight in averaged layers.
        embeddings: Where the input embedding comes from; with tied weights the output matrix too.
        head: Where the output matrix comes from.
        norm: Where the final norm comes from.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite.

    Paper: Bandarkar et al. 2025, ICLR, arXiv:2410.01335.

    Raises:
        ConfigError: More layers than there are, or a head that is tied to other embeddings.
        ModelError: The models do not fit together, or have an encoder and a decoder.

    Relations:
        Two equal experts give that expert, bit for bit. Copied layers equal their source, bit for bit.
        bottom=N gives the language expert; bottom=top=0 without transitions gives the task expert's layers.
        Swapped roles with the complementary layers give a model that with this one adds up to both experts.
    """
    inputs = line_up(base, [task, language], vocabulary=vocabulary)
    layers = depth(inputs)
    if head != embeddings and base.tied:
        raise ConfigError(
            f"head from '{head}' and embeddings from '{embeddings}': {base.folder} ties the output matrix to "
            "the embedding; give both the same"
        )
    found: dict[str, Any] = {}
    if bottom is None or top is None:
        chosen = _chosen(inputs, layers, choose, found)
        bottom, top = (c if given is None else given for c, given in zip(chosen, (bottom, top), strict=True))
    plan = Plan(bottom, top, transition_bottom, transition_top, weight)
    outside: Outside = {"embed.input": embeddings, "embed.output": head, "final_norm": norm}
    notes = {"method": "layerswap", **dataclasses.asdict(plan), "outside": outside, **found}
    notes["shares"] = plan.shares(layers)
    return inputs.rewrite(swapped(inputs, plan, outside), notes=notes)


def depth(inputs: Inputs) -> int:
    """How many layers the models have.

    Raises:
        ModelError: They have an encoder and a decoder, or no layers that can be told apart.
    """
    slots = [inputs.slot(name) for name in inputs.names]
    if "recursion" in inputs.base.config:
        raise ModelError(f"{inputs.base.folder}: its layers are tied into a loop; swap before you tie")
    if inputs.base.two_stacks:
        raise ModelError(f"{inputs.base.folder}: has an encoder and a decoder; one stack can be swapped")
    layers = [slot.layer for slot in slots if slot.layer is not None]
    if not layers:
        raise ModelError(f"{inputs.base.folder}: no layers found among its {len(inputs.names)} parameters")
    return max(layers) + 1


def by_depth(layers: int) -> tuple[int, int]:
    """The paper's bottom and top layers, scaled to another depth; they leave room for two transitions."""
    bottom, top = (round(count * layers / 32) for count in _OF_32)
    return (bottom, max(1, top)) if layers >= 8 else (int(layers > 2), int(layers > 3))


def _chosen(inputs: Inputs, layers: int, choose: str, found: dict[str, Any]) -> tuple[int, int]:
    if choose == "depth":
        return by_depth(layers)
    moved = changes(inputs, "change of both experts")
    profiles = [by_layer((both[expert] for both in moved.values()), layers) for expert in (0, 1)]
    found["change"] = {
        name: [round(float(value), 6) for value in profile]
        for name, profile in zip(("task", "language"), profiles, strict=True)
    }
    return best_split(profiles[0].tolist(), profiles[1].tolist())


def swapped(inputs: Inputs, plan: Plan, outside: Outside) -> tuple[Row, ...]:
    """One row per parameter; `outside` says where those without a layer come from."""
    shares = plan.shares(depth(inputs))
    return tuple(_row(inputs, name, _parts(inputs, name, shares, outside)) for name in inputs.names)


def _parts(inputs: Inputs, name: str, shares: Sequence[float], outside: Outside) -> dict[int, float]:
    """Source -> weight of one parameter; weights add up to 1, and 0 is left out."""
    slot = inputs.slot(name)
    if slot.layer is not None:
        share = shares[slot.layer]
    else:
        side = outside.get(slot.role.removesuffix(".bias"), outside["embed.input"])
        if side == "base":
            return {0: 1.0}
        share = {"language": 1.0, "task": 0.0, "average": 0.5}[side]
    return {place: part for place, part in ((_LANGUAGE, share), (_TASK, 1 - share)) if part}


def _row(inputs: Inputs, name: str, parts: Mapping[int, float]) -> Row:
    """A copy where one source is all of it, else a weighted sum."""
    sources, dtype = inputs.sources(name), inputs.base.info(name).dtype
    used = tuple(sources[place] for place in parts)
    if len(used) == 1 and used[0].order is None and used[0].info.dtype == dtype:
        return Row(name, dtype, used[0].shape, used)
    weights = list(parts.values())

    def function(*given: Source) -> Iterator[torch.Tensor]:
        for first, *others in chunks(given, dtype=torch.float64 if dtype == "F64" else torch.float32):
            for other in others:
                first.lerp_(other, weights[1])
            yield first

    return Row(name, dtype, sources[0].shape, used, function)
