"""WIDEN: changes are ranked inside each model, so that a small fine-tuning counts as much as a large one."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval

from calque.merge.inputs import Vocabulary, line_up
from calque.merge.rewrite import Rewrite, Row, Source
from calque.merge.task_vector import replay
from calque.model.checkpoint import Checkpoint
from calque.model.slots import Slot

Kind = Literal["columns", "rows", "experts", "vector"]
_CONV1D = frozenset({"attention.qkv", "attention.o", "mlp.up", "mlp.down"})  # GPT-2 stores these (in, out)


def widen(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
    *,
    threshold: float = 1.0,
    score: Annotated[float, Interval(ge=0)] = 1.0,
    normalize: bool = False,
    vocabulary: Vocabulary = None,
) -> Rewrite:
    """Merge models that moved unequally far from their base, by ranking what each of them changed.

    A column of a matrix (out, in) is the weights of one input; of an embedding, one token's vector. With
    W = m D (m the length of each column, D its direction), for model n and column j of C:

        dm_n[j] = |m_n[j] - m_0[j]|;   dd_n[j] = 1 - cos(D_n[:, j], D_0[:, j])
        rank p inside the model (ties: the earlier column is lower);   r_n[j] = p / C
        q_n[j] = softmax over the models of r[:, j];   q_n[j] = score  where  2 p > threshold (C - 1)
        w_n[j] = (q_n[j] from dm + q_n[j] from dd) / 2
        out[:, j] = W_0[:, j] + sum_n w_n[j] (W_n[:, j] - W_0[:, j])

    Vectors (norms, biases) are not ranked: |difference| itself takes the place of r, its mean that of the
    middle rank.

    Args:
        base: The model that all others were tuned from.
        tuned: Models to merge: typically one tuned for a task, one pretrained further on a language.
        threshold: How far above the average rank a column counts as important; 1 is the average.
        score: Weight of important columns.
        normalize: Where the weights of a column add up to more than 1, divide them by their sum. Not part of
            the published method.
        vocabulary: What to do when vocabularies differ.

    Returns:
        The rewrite; each tensor is read twice.

    Paper: Yu et al. 2024, arXiv:2408.03092.

    Raises:
        ModelError: The models do not fit together.

    Relations:
        One tuned model gives itself. With a threshold below 0 it is task arithmetic with weight `score`. The
        order of the models does not matter. Merging N equal models does NOT give the model, unless
        `normalize`: its above-average columns move N times as far.
    """
    inputs = line_up(base, tuned, vocabulary=vocabulary)
    factors: dict[str, float] = {}

    def row(name: str) -> Row:
        slot, sources = inputs.slot(name), inputs.sources(name)
        kind = kind_of(slot, base.config)

        def function(*sources: Source) -> Iterator[torch.Tensor]:
            stream = replay(sources, math.prod(sources[0].shape))
            means: list[float] = []
            if kind == "experts":
                for expert in experts(stream(), sources[0].shape[1]):
                    yield from merged(lambda one=expert: iter([one]), "columns", weigh, means.append)
            else:
                yield from merged(stream, kind, weigh, means.append)
            factors[name] = sum(means) / len(means)

        return Row(name, sources[0].info.dtype, sources[0].shape, sources, function)

    def weigh(magnitude_NC: torch.Tensor, direction_NC: torch.Tensor | None) -> torch.Tensor:
        return column_weights(magnitude_NC, direction_NC, threshold, score, normalize)

    notes = {
        "method": "widen", "threshold": threshold, "score": score, "normalize": normalize,
        "mean_weight": factors,
    }  # fmt: skip
    return inputs.rewrite(tuple(row(name) for name in inputs.names), notes=notes)


Weigh = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
Blocks = tuple[torch.Tensor, ...]


def kind_of(slot: Slot, config: Mapping[str, Any]) -> Kind:
    """Along which axis the columns of a tensor lie, from its role.

    "columns": along the last axis. "rows": along the first (embeddings, and GPT-2's matrices, stored turned
    round). "experts": one matrix per entry of the first axis. "vector": no columns at all.
    """
    if len([extent for extent in slot.shape if extent > 1]) < 2:
        return "vector"
    if len(slot.shape) == 3:
        return "experts"
    turned = config.get("model_type") == "gpt2" and slot.role in _CONV1D
    embeds = slot.role.startswith("embed.") and not slot.role.startswith("embed.output")
    embeds |= slot.role.endswith((".embed", ".position"))  # of an encoder's or a decoder's own
    return "rows" if turned or embeds else "columns"


def merged(
    stream: Callable[[], Iterator[Blocks]], kind: Kind, weigh: Weigh, report: Callable[[float], None]
) -> Iterator[torch.Tensor]:
    """The merged tensor block by block; `stream` gives (base, differences...) from the start each time."""
    if kind == "vector":
        changes = [torch.cat([b[n].abs().reshape(-1).double() for b in stream()]) for n in _models(stream)]
        weights_NC = weigh(torch.stack(changes), None)
    else:
        weights_NC = weigh(*changes_of(stream(), 0 if kind == "columns" else 1))
    report(float(weights_NC.sum(0).mean()))
    done = 0
    for base, *deltas in stream():
        rows = len(base) if base.dim() else 1
        for delta, weight_C in zip(deltas, weights_NC.to(base.dtype), strict=True):
            if kind != "columns":
                weight_C = weight_C[done : done + (base.numel() if kind == "vector" else rows)]
            factor = weight_C.reshape(base.shape if kind == "vector" else _shape(base, kind))
            base.addcmul_(delta, factor)
        done += base.numel() if kind == "vector" else rows
        yield base


def experts(blocks: Iterator[Blocks], height: int) -> Iterator[Blocks]:
    """Blocks of exactly one expert each, `height` rows, from blocks of any height."""
    waiting: list[Blocks] = []
    rows = 0
    for block in blocks:
        flat = tuple(tensor.reshape(-1, tensor.shape[-1]) for tensor in block)
        start = 0
        while start < len(flat[0]):
            stop = min(len(flat[0]), start + height - rows)
            waiting.append(tuple(tensor[start:stop] for tensor in flat))
            rows, start = rows + stop - start, stop
            if rows == height:
                yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
                waiting, rows = [], 0


def _models(stream: Callable[[], Iterator[Blocks]]) -> range:
    return range(1, len(next(iter(stream()))))


def _shape(block: torch.Tensor, kind: Kind) -> tuple[int, ...]:
    """Shape in which one number per column is laid over a block."""
    return (-1, *[1] * (block.dim() - 1)) if kind == "rows" else tuple(block.shape[1:])


def changes_of(blocks: Iterator[Blocks], axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(change of length, change of direction) of every column, float64 (N, C).

    Args:
        blocks: (base, differences...) of consecutive rows.
        axis: over which a column extends: 0 when columns are the last axis, 1 when they are the rows.

    All comes from three sums per column, |p|^2, p.d and |d|^2 of base p and difference d, by

        |p + d| - |p| = (2 p.d + |d|^2) / (|p + d| + |p|)
        1 - cos(p, p + d) = (|p|^2 |d|^2 - (p.d)^2) / (|p| |p + d| (|p| |p + d| + p.(p + d)))

    which lose nothing when d is small, where 1 - cos would be rounding noise. A column that is 0 in both has
    not changed; one that is 0 in one of them has turned by 1, as if it stood at a right angle.
    """
    totals: torch.Tensor | None = None
    lines = array("d")  # a list of small tensors between large blocks would keep memory from being used again
    for base, *deltas in blocks:
        flat = [t.reshape(len(t), -1) for t in (base, *deltas)]
        pairs = [(flat[0], one) for one in flat] + [(one, one) for one in flat[1:]]
        sums = torch.stack([_sum(one * other, axis) for one, other in pairs])
        if axis == 1:
            lines.frombytes(sums.T.contiguous().numpy().tobytes())
        else:
            totals = sums if totals is None else totals.add_(sums)
    if totals is None:
        totals = torch.frombuffer(lines, dtype=torch.float64).reshape(-1, len(pairs)).T
    models = len(pairs) // 2
    pp, pd, dd = totals[0], totals[1 : models + 1], totals[models + 1 :]
    before, after = pp.sqrt(), (pp + 2 * pd + dd).clamp_(min=0).sqrt()
    both, product, inner = before + after, before * after, pp + pd
    length = (2 * pd + dd).abs() / torch.where(both > 0, both, 1)
    spread = (pp * dd - pd.square()).clamp_(min=0)
    near = spread / torch.where(product > 0, product * (product + inner), 1)
    far = 1 - inner / torch.where(product > 0, product, 1)
    turn = torch.where(inner > 0, near, far)
    return length, torch.where(product > 0, turn, (both > 0).double())


def _sum(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.sum(axis).double()


def column_weights(
    magnitude_NC: torch.Tensor,
    direction_NC: torch.Tensor | None,
    threshold: float,
    score: float,
    normalize: bool,
) -> torch.Tensor:
    """w (N, C) of the published formula; without directions (vectors) from the changes themselves."""
    if direction_NC is None:
        weights_NC = torch.softmax(magnitude_NC, 0)
        weights_NC[magnitude_NC > threshold * magnitude_NC.mean(1, keepdim=True)] = score
    else:
        both = [_ranked(change, threshold, score) for change in (magnitude_NC, direction_NC)]
        weights_NC = (both[0] + both[1]) / 2
    if normalize:
        weights_NC /= weights_NC.sum(0).clamp_(min=1)
    return weights_NC


def _ranked(change_NC: torch.Tensor, threshold: float, score: float) -> torch.Tensor:
    """Softmax over models of the ranks, `score` for those above the threshold.

    The comparison with the mean is one of integers: with an odd number of columns the middle rank equals the
    mean exactly, and is not above it.
    """
    columns = change_NC.shape[1]
    order_NC = torch.argsort(change_NC, dim=1, stable=True)
    places_NC = torch.empty_like(order_NC).scatter_(1, order_NC, torch.arange(columns).expand_as(order_NC))
    shares_NC = torch.softmax(places_NC.double() / columns, 0)
    shares_NC[2 * places_NC > threshold * (columns - 1)] = score
    return shares_NC
