"""Objectives that order the candidates of a list: one score for each, compared within the list.

A piece is a whole list: its tokens are those of its candidates back to back, its answer is their lengths and
then their grades; its prompt is the length of the query that every candidate begins with.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from calque.data.pack import Batch
from calque.train.rows import run
from calque.train.stage import Loss, Objective


def lists(batch: Batch) -> int:
    """How many lists a batch has: what the loss is the mean over."""
    return len(batch.lengths)


def ranking(how: Literal["pairwise", "listwise"]) -> Objective:
    """The mean over lists of `pairwise` or `listwise`, on the scores of a model with one output."""
    of_list = {"pairwise": pairwise, "listwise": listwise}[how]

    def objective(model: PreTrainedModel, batch: Batch) -> Loss:
        scores, grades = scored(model, batch)
        weights = batch.weights or (1.0,) * len(scores)
        found = [w * of_list(s, g) for s, g, w in zip(scores, grades, weights, strict=True)]
        total = torch.stack(found).mean()
        return Loss(total, {how: float(total.detach())})

    return objective


def pairwise(scores_N: torch.Tensor, grades_N: torch.Tensor) -> torch.Tensor:
    """Mean over pairs with grade_i > grade_j of log(1 + exp(s_j - s_i)); 0 without such a pair.

    Paper: Burges et al. 2005 (RankNet).
    """
    better = grades_N[:, None] > grades_N[None, :]
    losses = functional.softplus(scores_N[None, :] - scores_N[:, None])
    return (losses * better).sum() / max(1, int(better.sum()))


def listwise(scores_N: torch.Tensor, grades_N: torch.Tensor) -> torch.Tensor:
    """-sum_i p_i log softmax(s)_i with p = grades / their sum; 0 when no grade is above 0.

    Paper: Cao et al. 2007 (ListNet), with grades as they are instead of their exponentials.
    """
    mass = grades_N.clamp(min=0).to(scores_N.dtype)
    wanted = mass / mass.sum().clamp(min=1e-9)
    return -(wanted * functional.log_softmax(scores_N, 0)).sum()


def scored(model: PreTrainedModel, batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Scores and grades of each list of a batch."""
    answers = [np.split(answer, 2) for answer in batch.answers]
    sizes = [len(lengths) for lengths, _ in answers]
    candidates = Batch(
        ids=batch.ids,
        lengths=tuple(int(n) for lengths, _ in answers for n in lengths),
        nbytes=batch.nbytes,
        tokens=batch.tokens,
        sources=tuple(np.repeat(batch.sources, sizes).tolist()),
        prompts=tuple(np.repeat(batch.prompts, sizes).tolist()),
    )
    out, _ = run(model, candidates)
    grades = torch.from_numpy(np.concatenate([grades for _, grades in answers])).to(out.logits.device)
    return [*out.logits[:, 0].float().split(sizes)], [*grades.split(sizes)]
