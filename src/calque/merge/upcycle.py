"""A dense model becomes a mixture of experts in its last layers, one expert per language family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt

from calque.errors import ConfigError, ModelError
from calque.language import Language, distance
from calque.merge.passthrough import layer_count
from calque.merge.rewrite import Rewrite, Row, Source
from calque.model.checkpoint import Checkpoint
from calque.model.moe import EXPERTS

# dense architecture -> the mixture of plain transformers that has the same dense layers
_TARGETS = {
    "llama": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "mistral": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen2": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen3": ("qwen3_moe", "Qwen3MoeForCausalLM"),
}
_PARTS = ("gate_proj", "up_proj", "down_proj")


def upcycle(
    base: Checkpoint,
    *,
    languages: Sequence[str],
    layers: Annotated[int, Ge(1)] = 2,
    experts: Annotated[int, Ge(1)] | None = None,
    chosen: Annotated[int, Ge(1)] = 2,
    preserve: bool = False,
    shared: bool = False,
    router: Literal["normal", "zero"] = "normal",
    spread: Annotated[float, Gt(0)] = 0.02,
    seed: int = 0,
) -> Rewrite:
    """Give the last layers of a dense model one expert for each language family.

    In each of the last `layers` layers the feed-forward network is copied E times; a router W_r (E, hidden)
    chooses K = `chosen` of them for each token x:

        y = sum over the K largest p_e of p_e FFN_e(x),   p = softmax(W_r x) over all E

    As published the p_e of the chosen are not normalised, so y is the dense network's output times about
    K / E: the new model is worse than its base until it is trained. With `preserve` they are divided by their
    sum, and since all experts are equal at first the model computes what its base does.

    Args:
        base: A dense decoder (Llama, Mistral, Qwen2, Qwen3).
        languages: Languages that it will be trained on, as codes or names. Joined by +, as in zho+kor+jpn,
            they are one group; if any are, every entry gets one expert, whatever the families.
        layers: How many of the last layers get experts; all others stay dense.
        experts: E; by default as many as the languages have families. Fewer join the nearest families, more
            take families apart.
        chosen: K, the experts that see a token.
        preserve: Normalise the weights of the chosen experts.
        shared: Add one more copy that sees every token, behind a sigmoid gate; with `preserve` its output
            starts at zero. Not for Qwen3.
        router: "normal" draws the router's weights; "zero" makes all experts equally probable.
        spread: Standard deviation of the router's weights.
        seed: Of that draw.

    Returns:
        The rewrite; a Qwen2-MoE or Qwen3-MoE checkpoint that plain transformers loads. `config.json` keeps
        the expert of each language under "calque_experts".

    Paper: Zheng et al. 2025, ICLR, arXiv:2410.10626.

    Raises:
        ConfigError: No language, or numbers of layers, experts or choices that do not fit together.
        ModelError: The architecture has no mixture that plain transformers loads.

    Relations:
        With preserve the logits are the base's, for every router, E and K. Without, an expert layer's output
        is that of the base times the sum of the chosen p. E = K = 1 gives the base's logits in both.
    """
    groups = grouped(languages, experts)
    model_type, architecture = _target(base, shared)
    depth = layer_count(base)
    if layers > depth:
        raise ConfigError(f"layers = {layers}: {base.folder} has {depth}")
    if chosen > len(groups):
        raise ConfigError(f"chosen = {chosen} of {len(groups)} experts; give fewer, or more experts")
    first = depth - layers
    mixture = _Mixture(base, model_type, len(groups), preserve, shared, spread * (router == "normal"), seed)
    rows: list[Row] = []
    for name in base.tensors:
        layer, role = base.layout.place(name)
        if base.tied and name == base.stored_output:
            continue
        if layer is None or layer < first or not role.startswith("mlp.") or role.startswith("mlp.norm"):
            rows.append(Row.copy(base, name))
    rows += [row for layer in range(first, depth) for row in mixture.rows(layer)]
    assigned = {language.code: number for number, group in enumerate(groups) for language in group}
    config = mixture.config(first, chosen) | {
        "model_type": model_type, "architectures": [architecture], EXPERTS: assigned
    }  # fmt: skip
    before, after = (
        sum(map(math.prod, s)) for s in ([i.shape for i in base.tensors.values()], [r.shape for r in rows])
    )
    notes = {
        "method": "upcycle", "experts": [[language.code for language in group] for group in groups],
        "layers": list(range(first, depth)), "chosen": chosen, "preserve": preserve, "parameters": after,
        "parameters_before": before,
    }  # fmt: skip
    return Rewrite(base=base, rows=tuple(rows), config=config, notes=notes)


def grouped(languages: Sequence[str], experts: int | None = None) -> list[list[Language]]:
    """Groups as they are given, joined by +, or by family where none are.

    Raises:
        ConfigError: As in `families`, or a number of experts other than that of the groups given.
    """
    groups = [[Language.parse(one) for one in entry.split("+")] for entry in languages]
    flat = [language for group in groups for language in group]
    if len(flat) == len(groups):
        return families(flat, experts)
    families(flat)  # refuses what is given twice
    if experts not in (None, len(groups)):
        raise ConfigError(f"experts = {experts}, but {len(groups)} groups are given; leave experts out")
    return groups


def families(languages: Sequence[Language], experts: int | None = None) -> list[list[Language]]:
    """Group languages: by the root of their family, joined or taken apart to `experts` groups.

    The two groups with the smallest mean distance are joined again and again; languages of one family all
    before any of two families. Languages of unknown family count as families of their own.

    Raises:
        ConfigError: No language, one given twice, or more experts than languages.
    """
    if not languages or len(set(languages)) < len(languages):
        raise ConfigError(
            f"languages: give each once, at least one; given were {[str(c) for c in languages]}"
        )
    if experts is not None and experts > len(languages):
        raise ConfigError(
            f"experts = {experts} for {len(languages)} languages; give one language per expert at least"
        )
    wanted = experts or len({_root(language) for language in languages})
    groups = [[language] for language in languages]
    while len(groups) > wanted:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
        i, j = min(pairs, key=lambda pair: (_apart(groups[pair[0]], groups[pair[1]]), pair))
        groups[j] += groups.pop(i)
    return groups


def _root(language: Language) -> str:
    return language.family[0] if language.family else language.iso


def _apart(one: Sequence[Language], other: Sequence[Language]) -> float:
    pairs = [(a, b) for a in one for b in other]
    return sum(distance(a, b) + (_root(a) != _root(b)) for a, b in pairs) / len(pairs)


def _target(base: Checkpoint, shared: bool) -> tuple[str, str]:
    """(model type, class) of the mixture for a dense model."""
    kind = str(base.config.get("model_type"))
    if kind not in _TARGETS:
        raise ModelError(
            f"{base.folder}: for '{kind}' plain transformers has no mixture with the same dense layers; "
            f"possible are {', '.join(_TARGETS)}"
        )
    roles = {base.layout.place(name)[1] for name in base.tensors}
    odd = sorted(
        r for r in roles if r in ("attention.o.bias", *(f"mlp.{p}.bias" for p in ("gate", "up", "down")))
    )
    if odd:
        raise ModelError(f"{base.folder}: has biases ('{odd[0]}') that the mixture has no place for")
    if kind == "mistral" and base.config.get("sliding_window"):
        raise ModelError(f"{base.folder}: attends in a sliding window, which the mixture does not")
    if shared and kind == "qwen3":
        raise ConfigError("shared: Qwen3-MoE has no shared expert; leave it out")
    return _TARGETS[kind]


@dataclass(frozen=True, eq=False)
class _Mixture:
    """Rows and settings of the expert layers."""

    base: Checkpoint
    model_type: str
    experts: int
    preserve: bool
    shared: bool
    spread: float
    seed: int

    def rows(self, layer: int) -> Iterator[Row]:
        prefix = self.base.layout.name(layer, "mlp.gate").removesuffix("gate_proj.weight")
        dtype = self.base.info(f"{prefix}gate_proj.weight").dtype
        hidden = self.base.info(f"{prefix}gate_proj.weight").shape[1]
        yield Row(f"{prefix}gate.weight", dtype, (self.experts, hidden), (), self._drawn(layer, hidden))
        for part in _PARTS:
            for expert in range(self.experts):
                yield self._copy(f"{prefix}experts.{expert}.{part}.weight", f"{prefix}{part}.weight")
        if self.model_type != "qwen2_moe":
            return
        for part in _PARTS:  # plain transformers wants a shared expert: of size 1 and zero unless asked for
            shape = self.base.info(f"{prefix}{part}.weight").shape
            target = f"{prefix}shared_expert.{part}.weight"
            if self.shared and not (self.preserve and part == "down_proj"):
                yield self._copy(target, f"{prefix}{part}.weight")
            else:
                small = (shape[0], 1) if part == "down_proj" else (1, shape[1])
                yield _zeros(target, dtype, shape if self.shared else small)
        yield _zeros(f"{prefix}shared_expert_gate.weight", dtype, (1, hidden))

    def _copy(self, target: str, name: str) -> Row:
        info = self.base.info(name)
        return Row(target, info.dtype, info.shape, (Source(self.base, name),))

    def _drawn(self, layer: int, hidden: int) -> Any:
        def function() -> Iterator[torch.Tensor]:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
            yield torch.randn(self.experts, hidden, generator=generator) * self.spread

        return function

    def config(self, first: int, chosen: int) -> dict[str, Any]:
        size = self.base.config["intermediate_size"]
        settings: dict[str, Any] = {
            "num_experts": self.experts,
            "num_experts_per_tok": chosen,
            "norm_topk_prob": self.preserve,
            "moe_intermediate_size": size,
            "mlp_only_layers": list(range(first)),
            "decoder_sparse_step": 1,
            "router_aux_loss_coef": 0.0,
            "output_router_logits": False,
        }
        if self.model_type == "qwen2_moe":
            biased = self.base.layout.name(0, "attention.q.bias") in self.base.tensors
            settings |= {"qkv_bias": biased, "shared_expert_intermediate_size": size if self.shared else 1}
        return settings


def _zeros(name: str, dtype: str, shape: tuple[int, ...]) -> Row:
    return Row(name, dtype, shape, (), lambda: iter([torch.zeros(shape)]))
