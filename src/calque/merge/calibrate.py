"""Unigram calibration: new tokens start out as frequent as they are, without a step of training.

An averaged row says what a token means, not how often it is said; right after a transplant most of the loss
is probability lost on tokens that never come. The final hidden states h of a decoder share a large common
part, so there is a direction u with u.h close to 1 for every h. Adding b_v u to the output row of token v
adds b_v to its logit everywhere: a bias, in a matrix that has none. The b are solved so that the mean
predicted distribution becomes the token frequencies of the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor

from calque.data.corpus import Corpus
from calque.errors import ConfigError, DataError, ModelError
from calque.merge.rewrite import Rewrite, Row, Source
from calque.model.checkpoint import Checkpoint
from calque.progress import bar
from calque.vocab.map import VocabMap
from calque.vocab.tokens import Tokens

_LENGTH = 128  # tokens of one sequence that is read
_BLOCK = 128  # rows of logits held at once
_STEP, _LIMIT = 6.0, 8.0  # largest change of a bias in one round, and altogether
_COUNTED_BYTES = 2_000_000  # text that frequencies are counted on


def calibrate(
    base: Checkpoint,
    map: VocabMap,
    text: Corpus,
    *,
    positions: Annotated[int, Ge(64)] = 1024,
    prior: Annotated[float, Interval(ge=0, lt=1)] = 0.3,
    kept: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    ridge: Annotated[float, Interval(gt=0)] = 0.1,
    rounds: Annotated[int, Ge(1)] = 3,
    seed: int = 0,
) -> Rewrite:
    """Make new tokens as probable as they are frequent, by a closed-form shift of their output rows.

    With final hidden states H (N, D), mean m (D,), covariance S (D, D):

        u = S'^-1 m / (m . S'^-1 m),  S' = S + ridge * mean(diag S) * I      (least variance with u.m = 1)
        b_v += a_v * (log p_v - log mean_n softmax(H (W + b u^T)^T)_nv)      (`rounds` times)
        W_v <- W_v + b_v u

    where p = (1 - prior) * frequencies in the text + prior * what the model predicts for kept tokens, and
    a_v = 1 for new tokens, `kept` for tokens whose row was copied. A tied input row moves with it: by |b_v|
    times the length of u, some hundredths of its own length.

    Args:
        base: A transplanted model, not yet trained.
        map: The map it was made with; tells new tokens from copied ones.
        text: Training text in the new language.
        positions: Hidden states N that are looked at.
        prior: Share of the model's own predictions in the distribution aimed at; keeps words alive that the
            text lacks.
        kept: How far copied tokens follow.
        ridge: Steadies the inverse when N is small.
        rounds: Rounds of the fixed point.
        seed: Decides which passages are read.

    Returns:
        The rewrite; it changes the output matrix alone (with tied weights, the one matrix).

    Raises:
        ModelError: Map and model do not belong together, or the logits are no product with that matrix.
        DataError: The text is too short.

    Relations:
        With kept=0, rows of copied tokens keep their bits. Calibrating twice changes little the second time.
    """
    tokens = Tokens.of(base.tokenizer())
    if map.shape[0] != len(tokens):
        raise ModelError(f"the map makes {map.shape[0]:,} tokens, the model's tokenizer has {len(tokens):,}")
    language = text.languages[0]
    hidden_ND, head = _hidden(base, tokens, text, language, positions, seed)
    weight_VD = head.weight.detach().float()[: len(tokens)]
    frequency_V = _frequencies(tokens, text, language)
    strength_V = torch.from_numpy(np.where(_copied(map), kept, 1.0)).float()
    direction_D = _direction(hidden_ND, ridge)
    shift_V = _solve(
        hidden_ND, weight_VD, direction_D, frequency_V, strength_V, prior, rounds, _after_head(base)
    )
    name = base.output_embedding or base.input_embedding
    notes = {
        "method": "calibrate",
        "moved": int((shift_V.abs() > 0.01).sum()),
        "mean_shift": round(float(shift_V.abs().mean()), 4),
        "direction_length": round(float(direction_D.norm()), 5),
        "spread": round(float((hidden_ND @ direction_D).std()), 5),
    }
    changed = _shifted(base, name, shift_V, direction_D)
    rows = tuple(changed if n == name else Row.copy(base, n) for n in base.tensors)
    return Rewrite(base=base, rows=rows, notes=notes)


def _hidden(
    base: Checkpoint, tokens: Tokens, text: Corpus, language: str, positions: int, seed: int
) -> tuple[Tensor, Any]:
    """Final hidden states (N, D) on passages of the text, and the output layer."""
    model: Any = base.model(torch.float32).eval()
    head = model.get_output_embeddings()
    passages = _passages(tokens, text, language, seed)
    found: list[Tensor] = []
    with bar("calibrate", positions, "position") as shown, torch.inference_mode():
        while sum(len(states) for states in found) < positions:
            ids = next(passages, None)
            if ids is None:
                break
            found.append(model.base_model(input_ids=torch.tensor([ids]), use_cache=False)[0][0])
            shown.update(len(ids))
        if not found:
            raise DataError("the text has no passage to calibrate on; it needs a few hundred words")
        _check_product(model, torch.tensor([ids]) if ids else torch.tensor([[0]]), head, _after_head(base))
    return torch.cat(found)[:positions].float().clone(), head


def _passages(tokens: Tokens, text: Corpus, language: str, seed: int) -> Iterator[list[int]]:
    """Passages of `_LENGTH` tokens from documents in random order, each with the start token."""
    start = [tokens.special[role] for role in ("bos", "eos") if role in tokens.special][:1]
    documents = [body for _, body in text.documents(language)]
    cuts = [
        (number, place)
        for number, body in enumerate(documents)
        for place in range(0, max(1, len(body)), 4 * _LENGTH)
    ]
    random.Random(seed).shuffle(cuts)
    for number, place in cuts:
        ids = tokens.encode(documents[number][place : place + 8 * _LENGTH])[: _LENGTH - 1]
        if len(ids) > _LENGTH // 4:
            yield start + ids


def _frequencies(tokens: Tokens, text: Corpus, language: str) -> Tensor:
    """Relative frequency of each token in the text (V,), with a little for those that do not occur."""
    counts_V = np.full(len(tokens), 0.3)
    read = 0
    for line in text.texts(language):
        np.add.at(counts_V, tokens.encode(line + "\n"), 1.0)
        read += len(line.encode())
        if read >= _COUNTED_BYTES:
            break
    counts_V[[surface is None for surface in tokens.surface]] = 1e-3
    return torch.from_numpy(counts_V / counts_V.sum()).float()


def _copied(map: VocabMap) -> np.ndarray:
    """(V_target,) True for rows that are one old row, whole."""
    weights = map.output if map.output is not None else map.input
    single = np.diff(weights.indptr) == 1
    whole = np.asarray(weights.sum(axis=1)).ravel() == 1
    return single & whole


def _direction(hidden_ND: Tensor, ridge: float) -> Tensor:
    """u (D,): u.h has mean 1 and the least variance."""
    mean_D = hidden_ND.mean(0)
    spread_ND = hidden_ND - mean_D
    covariance_DD = spread_ND.T @ spread_ND / len(hidden_ND)
    covariance_DD += ridge * covariance_DD.diagonal().mean() * torch.eye(len(mean_D))
    direction_D = torch.linalg.solve(covariance_DD, mean_D)
    return direction_D / (direction_D @ mean_D)


def _solve(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    direction_D: Tensor,
    frequency_V: Tensor,
    strength_V: Tensor,
    prior: float,
    rounds: int,
    after: Callable[[Tensor], Tensor],
) -> Tensor:
    """b (V,): what is added to each logit."""

    def predicted(shift_V: Tensor) -> Tensor:
        total_V = torch.zeros(len(weight_VD))
        for rows in hidden_ND.split(_BLOCK):
            logits = rows @ weight_VD.T + (rows @ direction_D)[:, None] * shift_V
            total_V += torch.softmax(after(logits), 1).sum(0)
        return (total_V / len(hidden_ND)).clamp_min(1e-9)

    shift_V = torch.zeros(len(weight_VD))
    now_V = predicted(shift_V)
    known_V = torch.where(strength_V < 1, now_V, torch.zeros_like(now_V))
    aim_V = frequency_V
    if prior and known_V.sum() > 0:
        aim_V = (1 - prior) * frequency_V + prior * known_V / known_V.sum()
    for _ in range(rounds):
        shift_V += strength_V * (aim_V.clamp_min(1e-9).log() - now_V.log()).clamp(-_STEP, _STEP)
        now_V = predicted(shift_V)
    return shift_V.clamp(-_LIMIT, _LIMIT)


def _after_head(base: Checkpoint) -> Callable[[Tensor], Tensor]:
    """What the architecture does to logits after the product with the matrix."""
    cap = base.text_config.get("final_logit_softcapping")
    scale = base.text_config.get("logit_scale") or 1 / (base.text_config.get("logits_scaling") or 1)

    def after(logits: Tensor) -> Tensor:
        logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return after


def _check_product(model: Any, ids: Tensor, head: Any, after: Callable[[Tensor], Tensor]) -> None:
    """The model's own logits must be what is solved for here."""
    hidden = model.base_model(input_ids=ids, use_cache=False)[0][0, -1:]
    own = model(input_ids=ids, use_cache=False).logits[0, -1:]
    if not torch.allclose(after(head(hidden)), own, atol=1e-2, rtol=1e-3):
        raise ModelError(
            "this architecture changes its logits after the output matrix; it can not be calibrated"
        )


def _shifted(base: Checkpoint, name: str, shift_V: Tensor, direction_D: Tensor) -> Row:
    """The row of the matrix `name` with b u^T added; padding rows stay."""
    info = base.info(name)

    def function(source: Source) -> Iterator[Tensor]:
        first = 0
        for block in source.blocks():
            known = max(0, min(len(block), len(shift_V) - first))
            wide = block.float()
            wide[:known] += shift_V[first : first + known, None] * direction_D
            first += len(block)
            yield wide

    if len(info.shape) != 2 or info.shape[1] != len(direction_D):
        raise ConfigError(f"'{name}' has shape {info.shape}; calibration needs (tokens, {len(direction_D)})")
    return Row(name, info.dtype, info.shape, (Source(base, name),), function)
