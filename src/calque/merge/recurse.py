"""Layers tied into a loop: one shared block run several times, with a low-rank residual for each depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from calque.errors import ConfigError, ModelError
from calque.merge.inputs import is_buffer
from calque.merge.passthrough import layer_count
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.stream import chunks
from calque.model.adapter import STORED_TRANSPOSED
from calque.model.checkpoint import Checkpoint
from calque.model.low_rank import truncated_svd
from calque.model.recursive import MODEL_TYPE

Init = Literal["stepwise", "average", "lower"]


def recurse(
    base: Checkpoint,
    *,
    loops: Annotated[int, Ge(1)] = 2,
    init: Init = "average",
    rank: Annotated[int, Ge(0)] = 64,
    vectors: Literal["own", "shared"] = "own",
) -> Rewrite:
    """Tie the L layers of a model into one block of K = L / loops layers that is run `loops` times.

    Depth l uses block layer k = l mod K. The block's weights W'_k are, by `init`,

        stepwise   layer round((k)(L - 1) / (K - 1)), ties to even: best without residuals
        average    the mean of the layers k, K + k, 2K + k ...: makes the residuals small
        lower      layer k

    and with rank r > 0 every matrix of depth l is W'_k + B A, B A the best rank-r approximation of W_l - W'_k
    (B = U_r S_r, A = V_r^T, no scaling), W'_k rounded as it is stored.

    Args:
        base: The model to tie; L must be a multiple of `loops`.
        loops: How often the block runs; 1 keeps the model as it is.
        init: Where the shared weights come from.
        rank: Rank of the residuals; 0 for none. At most min(in, out) of a matrix is used.
        vectors: Norm gains and biases of each depth: its own, as they were, or those of the block.

    Returns:
        The rewrite; its checkpoint loads through `Checkpoint.model`, not with plain transformers.

    Paper: Bae et al. 2025, ICLR, arXiv:2410.20672.

    Raises:
        ConfigError: L is no multiple of `loops`.
        ModelError: The model has experts, or an encoder and a decoder, or is looped already.

    Relations:
        With one loop the logits are the base's. With full rank and own vectors they are too, within rounding,
        for every init. The error of the weights falls with the rank. A model whose loops were equal loses
        nothing at rank 0 with average or lower.
    """
    plan = _Plan(base, *_checked(base, loops), init)
    rows = [_outside(base, name) for name in base.tensors if base.layout.place(name)[0] is None]
    rows = [row for row in rows if row is not None]
    for name in base.tensors:
        layer, role = base.layout.place(name)
        if layer is None or is_buffer(base, name):
            continue
        vector = len(base.info(name).shape) < 2
        if layer < plan.block and not (vector and vectors == "own"):
            rows.append(plan.shared(name, layer, role))
        if vector and vectors == "own":
            info = base.info(name)
            rows.append(Row(f"depth.{layer}.{role}", info.dtype, info.shape, (Source(base, name),)))
        elif not vector and rank and loops > 1:
            rows += plan.residual(name, layer, role, rank)
    recursion = {
        "model_type": base.config.get("model_type"), "loops": loops, "shared": plan.block, "init": init,
        "rank": rank, "vectors": vectors,
    }  # fmt: skip
    before, after = (sum(map(math.prod, shapes)) for shapes in (_shapes(base), (row.shape for row in rows)))
    notes = {"method": "recurse", **recursion, "parameters": after, "parameters_before": before}
    return Rewrite(
        base=base, rows=tuple(rows), config={"model_type": MODEL_TYPE, "recursion": recursion}, notes=notes
    )


def stepwise(layers: int, block: int) -> list[int]:
    """K layers at equal distances, the first and the last among them; halves are rounded to even."""
    if block == 1:
        return [0]
    return [round(Fraction(k * (layers - 1), block - 1)) for k in range(block)]


def origins(layers: int, loops: int, init: Init) -> list[list[int]]:
    """For each layer of the block the layers that it is the mean of."""
    block = layers // loops
    if init == "stepwise":
        return [[layer] for layer in stepwise(layers, block)]
    return [[k + loop * block for loop in range(loops if init == "average" else 1)] for k in range(block)]


def mean(sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of tensors of one shape, added up in their order; in place of the first."""
    total, *others = sources
    for other in others:
        total.add_(other)
    return total.div_(len(sources)) if others else total


@dataclass(frozen=True, eq=False)
class _Plan:
    """Rows of the shared block and of the residuals."""

    base: Checkpoint
    layers: int
    block: int
    init: Init

    def _sources(self, layer: int, role: str) -> tuple[Source, ...]:
        """What the shared weight of depth `layer` is made of."""
        wanted = origins(self.layers, self.layers // self.block, self.init)[layer % self.block]
        return tuple(Source(self.base, self.base.layout.name(origin, role)) for origin in wanted)

    def shared(self, name: str, layer: int, role: str) -> Row:
        info, sources = self.base.info(name), self._sources(layer, role)
        if len(sources) == 1:
            return Row(name, info.dtype, info.shape, sources)

        def function(*given: Source) -> Iterator[torch.Tensor]:
            for blocks in chunks(given, dtype=_wide(info.torch_dtype)):
                yield mean(blocks)

        return Row(name, info.dtype, info.shape, sources, function)

    def residual(self, name: str, layer: int, role: str, rank: int) -> list[Row]:
        """B and A of one matrix at one depth; the decomposition is made once for both."""
        info, sources = self.base.info(name), self._sources(layer, role)
        flip = self.base.config.get("model_type") in STORED_TRANSPOSED
        rows, columns = info.shape[::-1] if flip else info.shape
        rank = min(rank, rows, columns)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []

        def factors(own: Source, *others: Source) -> tuple[torch.Tensor, torch.Tensor]:
            wide = _wide(info.torch_dtype)
            tied = mean([source.read().to(wide) for source in others]).to(info.torch_dtype).to(wide)
            gap = own.read().to(wide) - tied
            return truncated_svd(gap.T if flip else gap, rank)

        def up(*given: Source) -> Iterator[torch.Tensor]:
            found[:] = [factors(*given)]
            yield found[0][0]

        def down(*given: Source) -> Iterator[torch.Tensor]:
            yield (found.pop() if found else factors(*given))[1]

        inputs = (Source(self.base, name), *sources)
        return [
            Row(f"depth.{layer}.{role}.B", info.dtype, (rows, rank), inputs, up),
            Row(f"depth.{layer}.{role}.A", info.dtype, (rank, columns), inputs, down),
        ]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _checked(base: Checkpoint, loops: int) -> tuple[int, int]:
    """Number of layers, and of layers in the block."""
    if "recursion" in base.config:
        raise ModelError(f"{base.folder}: its layers are tied into a loop already")
    layers = layer_count(base)
    if layers % loops:
        fits = [n for n in range(2, layers + 1) if layers % n == 0]
        raise ConfigError(f"loops = {loops}: {base.folder} has {layers} layers; possible are {fits}")
    roles = {base.layout.place(name)[1] for name in base.tensors}
    if found := next((role for role in sorted(roles) if role.startswith("expert.")), None):
        raise ModelError(f"{base.folder}: has experts ('{found}'); only dense layers can be tied into a loop")
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name, info in base.tensors.items():
        layer, role = base.layout.place(name)
        if layer is not None and not is_buffer(base, name):
            shapes.setdefault(role, []).append(info.shape)
    for role, found in shapes.items():
        if len(found) != layers or len(set(found)) > 1 or len(found[0]) > 2:
            raise ModelError(
                f"{base.folder}: '{role.removeprefix('~')}' is in {len(found)} of {layers} layers, with the "
                f"shapes {sorted(set(found))}; only equal layers of matrices and vectors can be tied"
            )
    return layers, layers // loops


def _outside(base: Checkpoint, name: str) -> Row | None:
    """What is no layer is copied; a second copy of a tied matrix is left out."""
    return None if base.tied and name == base.stored_output else Row.copy(base, name)


def _shapes(base: Checkpoint) -> list[tuple[int, ...]]:
    left_out = base.stored_output if base.tied else None
    return [info.shape for name, info in base.tensors.items() if name != left_out]
