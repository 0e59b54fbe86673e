"""Mixtures of experts by language family: which expert a language has, and forcing it while training.

In training the expert of a token's language is always among its K chosen ones: where the router does not
choose it, it takes the place of the last choice. The other K - 1 places are free, so that languages learn
from each other. In evaluation mode routing is the router's alone, and no language needs to be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calque.errors import ConfigError, ModelError
from calque.language import Language

EXPERTS = "calque_experts"  # key of config.json: language code -> number of its expert


def expert_of(config: Mapping[str, Any], language: str | Language) -> int:
    """The expert that a language was given when the model was upcycled.

    Raises:
        ConfigError: The model knows no expert for it.
    """
    known = config.get(EXPERTS) or {}
    code = Language.parse(language).code
    if code not in known:
        raise ConfigError(f"no expert for {code}; this model has experts for {', '.join(known) or 'none'}")
    return int(known[code])


@contextmanager
def forced(model: nn.Module, experts: Tensor) -> Iterator[None]:
    """Within this context every token is seen by the expert given for it, while the model trains.

    Args:
        model: A mixture of experts of plain transformers, with routers that give (logits, weights, choices).
        experts: Number of an expert for each token, in the shape of the token ids; -1 leaves a token free.

    Raises:
        ModelError: The model has no such router.
        ConfigError: There is no expert of that number, or not one for each token.
    """
    found = routers(model)
    flat = experts.reshape(-1)
    count = min(int(router.num_experts) for router in found)  # pyright: ignore
    if flat.numel() and not -1 <= int(flat.min()) <= int(flat.max()) < count:
        raise ConfigError(
            f"experts from {int(flat.min())} to {int(flat.max())}; the model has 0 to {count - 1}"
        )

    def hook(router: Any, _: Any, chosen: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        if not router.training:
            return chosen
        logits_NE, weights_NK, choices_NK = chosen
        if len(flat) != len(choices_NK):
            raise ConfigError(f"experts for {len(flat)} tokens, but {len(choices_NK)} are read")
        choices_NK = with_expert(choices_NK, flat.to(choices_NK.device))
        weights = torch.softmax(logits_NE, -1, dtype=torch.float32).gather(1, choices_NK)
        if router.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits_NE, weights.to(weights_NK.dtype), choices_NK

    handles = [router.register_forward_hook(hook) for router in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_expert(choices_NK: Tensor, experts_N: Tensor) -> Tensor:
    """The choices, the last one replaced by the expert asked for where it is not among them."""
    absent = (choices_NK != experts_N[:, None]).all(1) & (experts_N >= 0)
    result = choices_NK.clone()
    result[absent, -1] = experts_N[absent]
    return result


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of a model, in the order of its layers.

    Raises:
        ModelError: It has none that choose by a softmax over all experts.
    """
    marks = ("top_k", "num_experts", "norm_topk_prob", "weight")
    found = [module for module in model.modules() if all(hasattr(module, mark) for mark in marks)]
    if not found:
        raise ModelError(f"{type(model).__name__}: no router of experts found whose choice could be forced")
    return found


@contextmanager
def loads(model: nn.Module) -> Iterator[list[Tensor]]:
    """Count, for each router, how many tokens chose each expert within this context: one (E,) per router."""
    found = routers(model)
    counts = [torch.zeros(int(router.num_experts), dtype=torch.long) for router in found]  # pyright: ignore

    def hook(count: Tensor) -> Any:
        def add(_: Any, __: Any, chosen: tuple[Tensor, Tensor, Tensor]) -> None:
            count.add_(torch.bincount(chosen[2].reshape(-1).cpu(), minlength=len(count)))

        return add

    handles = [router.register_forward_hook(hook(c)) for router, c in zip(found, counts, strict=True)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
