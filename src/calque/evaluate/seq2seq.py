"""Log-likelihood of choices in encoder-decoders: the prompt goes in, the choice comes out.

Shape letters: B choices, S tokens of a prompt, T tokens of a choice, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from calque.errors import ConfigError, DataError, ModelError
from calque.evaluate.lm import Reader, context_length


def encoded(reader: Reader, text: str) -> tuple[int, ...]:
    """A text as the tokenizer gives it to the model, with the special tokens that belong around it."""
    return tuple(reader.tokens.backend.encode(text, add_special_tokens=True).ids)


def likelihoods(
    reader: Reader, pairs: Sequence[tuple[str, str]], *, batch_tokens: int = 1024
) -> tuple[list[float], list[int]]:
    """log p(choice | prompt) in nats of each pair, its end included; and the tokens of each choice.

    A prompt that several choices follow one after the other goes through the encoder once in a batch.

    Raises:
        ConfigError: A prompt longer than the encoder reads.
        DataError: A choice without text.
        ModelError: A probability that is no number.
    """
    room = context_length(reader.model)
    given = [(encoded(reader, prompt), encoded(reader, choice.strip())) for prompt, choice in pairs]
    for (source, _), (_, choice) in zip(given, pairs, strict=True):
        if not choice.strip():
            raise DataError("a choice without text; every choice needs some")
        if room and len(source) > room:
            raise ConfigError(
                f"a prompt has {len(source)} tokens, the context of '{reader.name}' {room}; "
                "show fewer examples"
            )
    order = sorted(range(len(given)), key=lambda n: (-len(given[n][0]), given[n][0], -len(given[n][1])))
    found = [0.0] * len(given)
    answer = max((len(target) for _, target in given), default=0)
    while order:
        size = max(1, batch_tokens // (len(given[order[0]][0]) + answer))
        batch, order = order[:size], order[size:]
        for n, value in zip(batch, _read(reader, [given[n] for n in batch]), strict=True):
            found[n] = value
    if not all(math.isfinite(value) for value in found):
        raise ModelError(f"system '{reader.name}': the probability of a choice is no number")
    return found, [len(target) for _, target in given]


def _read(reader: Reader, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
    model = reader.model
    here = next(model.parameters()).device
    sources = list(dict.fromkeys(source for source, _ in pairs))
    ids_PS, seen_PS = _padded(sources)
    targets_BT, counted_BT = _padded([target for _, target in pairs])
    rows = torch.tensor([sources.index(source) for source, _ in pairs], device=here)
    with torch.inference_mode():
        encoder = model.get_encoder()
        states = encoder(input_ids=ids_PS.to(here), attention_mask=seen_PS.to(here))[0]
        logits_BTV = model(
            encoder_outputs=(states[rows],),
            attention_mask=seen_PS.to(here)[rows],
            labels=targets_BT.to(here),
            use_cache=False,
        ).logits.float()
    logp_BT = logits_BTV.log_softmax(-1).gather(-1, targets_BT.to(here)[..., None])[..., 0]
    return (logp_BT.double() * counted_BT.to(here)).sum(1).tolist()


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] ids padded on the right, and 1 where they are no padding."""
    ids_BT = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    real_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        real_BT[row, : len(ids)] = 1
    return ids_BT, real_BT
