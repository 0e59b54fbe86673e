"""Mixtures of deltas: LoRAs weighed by routers that are trained, or one delta for each language.

Paper: Li et al. 2023, arXiv:2308.06552 (MT4CrossOIE). Follows the authors' code for the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch.nn import functional

from calque.delta.delta import Delta, base_of
from calque.delta.places import layer_of
from calque.delta.switch import Switch
from calque.errors import ConfigError
from calque.language import Language
from calque.model.checkpoint import Checkpoint

Numbers = Mapping[str, torch.Tensor]
Router = Literal["past", "first", "token", "language"]


def mixture(
    base: Checkpoint,
    delta: Mapping[str, Delta],
    *,
    router: Router = "past",
    chosen: Annotated[int, Ge(1)] | None = None,
    dropped: Literal["renorm", "reference"] = "renorm",
    parts: Literal["train", "fixed"] = "train",
) -> Delta:
    """Put several deltas on one model and let a router, or the language, weigh them.

    y = W x + sum over i of g_i s_i B_i A_i x, g = softmax(R c), R (n, D) for each linear map, zero at first.
    c is what enters the map's layer: `past`: its mean over the document up to each token; `first`: at the
    first token, for encoders; `token`: at the token itself. `language`: no router; each example, or each
    run of tokens, takes the delta of its language, whatever its form.

    Args:
        base: The model they were made for.
        delta: LoRA deltas by name; with router "language", deltas of any form by language.
        router: What decides.
        chosen: Evaluate with the k largest g_i alone; training always mixes all.
        dropped: What becomes of the others' shares: "renorm" divides by the sum of the kept; "reference" is
            the released code, which takes a second softmax and gives the dropped exp(0) again.
        parts: Whether the deltas train with the routers or stay as they are.

    Returns:
        The delta, with the others as its parts. It can not be folded; each part by itself can.

    Raises:
        ConfigError: Fewer than one delta, a form that routers can not weigh, more chosen than there are, or
            `first` on a model whose first token sees nothing.
        ModelError: A delta of another base.

    Paper: Li et al. 2023, arXiv:2308.06552.

    Relations:
        At the start it is the mean of its parts; of parts that change nothing it changes nothing. One part is
        that part. Of equal parts it is that part, whatever the routers. With chosen=n, renorm changes
        nothing. No token sees later ones. `language` with one language is its delta.
    """
    names = [Language.parse(name).code for name in delta] if router == "language" else [*delta]
    held = dict(zip(names, delta.values(), strict=True))
    _refuse_misfit(base, held, router, chosen, parts)
    place = tuple(dict.fromkeys(module for part in held.values() for module in part.place))
    width = int(base.info(base.input_embedding).shape[1])
    tensors = {} if router == "language" else {f"{m}.router": torch.zeros(len(held), width) for m in place}
    settings = {"names": names, "router": router, "chosen": chosen, "dropped": dropped, "parts": parts}
    return Delta("mixture", place, "own", router, settings, tensors, base_of(base), tuple(held.values()))


def part_of(delta: Delta, name: str) -> Delta:
    """One part of a mixture, which can be folded or exported where its form allows."""
    names = delta.settings["names"]
    if name not in names:
        raise ConfigError(f"no part '{name}' in the mixture; it has {', '.join(names)}")
    return delta.parts[names.index(name)]


def kept(gates: torch.Tensor, chosen: int | None, dropped: str) -> torch.Tensor:
    """The gates (..., n) with all but the `chosen` largest taken away."""
    if chosen is None or (chosen >= gates.shape[-1] and dropped == "renorm"):
        return gates
    top = gates.topk(chosen, -1)
    left = torch.zeros_like(gates).scatter(-1, top.indices, top.values)
    return left.softmax(-1) if dropped == "reference" else left / left.sum(-1, keepdim=True)


def mixed(
    x: torch.Tensor, gates: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """sum over i of g_i B_i A_i x: x (..., in), gates (..., n), pairs of A (r, in) and B (out, r)."""
    ranks = torch.tensor([len(down) for down, _ in pairs], device=gates.device)
    down, up = torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], 1)
    hidden = functional.linear(x.to(down.dtype), down)
    return functional.linear(hidden * gates.repeat_interleave(ranks, -1).to(hidden), up)


def running_mean(
    x: torch.Tensor, positions: torch.Tensor, carried: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of x (B, T, D) over each document up to every token, and the last token's sum (B, D).

    Args:
        x: what is averaged.
        positions: of the tokens in their documents, from 0; shape (B, T).
        carried: sum over what came before this call, for documents that began earlier; shape (B, D).
    """
    index = torch.arange(x.shape[1], device=x.device) - positions
    goes_on = bool((index < 0).any())
    if goes_on and (carried is None or len(carried) != len(x)):
        raise ConfigError(
            "this router reads a text from its beginning: generate without beams and padding in front, or "
            "use router 'token'"
        )
    before = functional.pad(x.float().cumsum(1), (0, 0, 1, 0))
    own = index.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])
    total = before[:, 1:] - before.gather(1, own)
    if goes_on and carried is not None:
        total = total + carried[:, None] * (index < 0)[..., None]
    return total / (positions + 1)[..., None], total[:, -1].detach()


def install(
    model: torch.nn.Module,
    delta: Delta,
    parts: Sequence[Numbers],
    numbers: Numbers,
    switch: Switch,
    name: str,
) -> Callable[[], None]:
    """Hook the routers and what they weigh in; returns what takes them out again."""
    reader = _Reader(model, str(delta.settings["router"]), {layer_of(module) for module in delta.place})
    scales = [float(part.settings["alpha"]) / int(part.settings["rank"]) for part in delta.parts]
    chosen, dropped = delta.settings["chosen"], str(delta.settings["dropped"])

    def hook(module: str) -> Any:
        held = [n for n, part in enumerate(delta.parts) if module in part.place]
        scale = torch.tensor([scales[n] for n in held])

        def added(linear: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            router = numbers[f"{module}.router"]
            state = reader.state[layer_of(module)]
            gates = functional.linear(state.to(router.dtype), router).float().softmax(-1)
            gates = kept(gates, None if linear.training else chosen, dropped)
            pairs = [(parts[n][f"{module}.A"], parts[n][f"{module}.B"]) for n in held]
            change = mixed(inputs[0], gates[..., held] * scale.to(gates), pairs)
            return out + switch.scaled(name, change).to(out.dtype)

        return added

    handles = [model.get_submodule(m).register_forward_hook(hook(m)) for m in delta.place]

    def remove() -> None:
        for handle in (*handles, *reader.handles):
            handle.remove()

    return remove


class _Reader:
    """What the routers of each layer read: (B, T, D), or (B, 1, D) for a whole sentence."""

    def __init__(self, model: Any, router: str, layers: set[str]) -> None:
        self.router, self.state = router, dict[str, torch.Tensor]()
        self._sums: dict[str, torch.Tensor] = {}
        self._stated: tuple[torch.Tensor | None, int] = (None, 0)
        self.handles = [model.base_model.register_forward_pre_hook(self._place, with_kwargs=True)]
        for layer in layers:
            module = model.get_submodule(layer)
            hook = lambda _, given, named, layer=layer: self._read(layer, given, named)  # noqa: E731
            self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _place(self, _: Any, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        cache = named.get("past_key_values")
        self._stated = named.get("position_ids"), int(cache.get_seq_length()) if cache is not None else 0

    def _read(self, layer: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = given[0] if given else named["hidden_states"]
        if self.router == "past":
            stated, first = self._stated
            if stated is None:
                stated = torch.arange(first, first + hidden.shape[1], device=hidden.device)[None]
            mean, self._sums[layer] = running_mean(
                hidden, stated.expand(len(hidden), -1), self._sums.get(layer)
            )
            self.state[layer] = mean
        else:
            self.state[layer] = hidden[:, :1] if self.router == "first" else hidden


def _refuse_misfit(
    base: Checkpoint, held: Mapping[str, Delta], router: str, chosen: int | None, parts: str
) -> None:
    if not held:
        raise ConfigError("a mixture of no deltas; give at least one by name")
    if router != "language":
        if odd := next((f"'{name}' ({d.form})" for name, d in held.items() if d.form != "lora"), None):
            raise ConfigError(f"a router weighs LoRA deltas; {odd} is none: router 'language' takes any form")
        if chosen is not None and chosen > len(held):
            raise ConfigError(f"chosen = {chosen} of {len(held)} deltas; give at most {len(held)}")
    elif parts == "fixed" or chosen is not None:
        raise ConfigError("router 'language' has nothing of its own to train or to choose; leave both out")
    elif odd := next((name for name, d in held.items() if d.parts or d.form == "sparse"), None):
        raise ConfigError(f"'{odd}' ({held[odd].form}) can not be switched by example; give single forms")
    kind = str((base.config.get("architectures") or [""])[0])
    if router == "first" and ("CausalLM" in kind or "LMHead" in kind):
        raise ConfigError(f"router 'first': the first token of a {kind} sees nothing of the text; use 'past'")
    for part in held.values():
        part.check_base(base)
