"""Documents side by side see only themselves, and the chunked loss is the loss."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional

from calque.data.ngram import Ngrams
from calque.data.pack import Batch
from calque.train import cross_entropy
from calque.train.causal import back_to_back, causal_objective, hidden_states, padded
from calque.train.soft import SoftLabels

from .conftest import llama


def batch_of(lengths, vocabulary, seed=0):
    ids = np.random.default_rng(seed).integers(0, vocabulary, sum(lengths))
    return Batch(ids, tuple(lengths), 0, (sum(lengths),), (0,) * len(lengths))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_packed_document_has_the_logits_it_has_alone(lengths, seed):
    model = llama(64).eval()
    batch = batch_of(lengths, 64, seed)
    with torch.no_grad():
        together = model.lm_head(hidden_states(model, batch))
        ids = torch.from_numpy(batch.ids).split(lengths)
        alone = torch.cat([model(part[None]).logits[0] for part in ids])
    assert (together - alone).abs().max() < 1e-5
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("window", [3, 8, 100])
def test_a_sliding_window_stays_inside_its_document(window):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=window, bos_token_id=0, eos_token_id=1, pad_token_id=None,
        )
    ).eval()  # fmt: skip
    batch = batch_of([5, 20, 11], 64)
    with torch.no_grad():
        together = model.lm_head(hidden_states(model, batch))
        alone = torch.cat([model(p[None]).logits[0] for p in torch.from_numpy(batch.ids).split([5, 20, 11])])
    assert (together - alone).abs().max() < 1e-5


def test_packed_and_padded_losses_and_gradients_agree():
    batch = batch_of([7, 19, 1, 4], 64)
    gradients = []
    for objective in (back_to_back, padded):
        model = llama(64)
        loss = objective(model, batch).total
        loss.backward()
        gradients.append((loss.detach(), *(p.grad for p in model.parameters())))
    for packed, rows in zip(*gradients, strict=True):
        assert torch.allclose(packed, rows, atol=1e-6)


def test_under_autocast_documents_are_attended_in_blocks_and_gradients_stay_near(monkeypatch):
    from calque.train import attention

    seen = []
    in_blocks = attention.causal_attention
    monkeypatch.setattr(
        attention, "causal_attention", lambda q, k, v, s: seen.append(q.dtype) or in_blocks(q, k, v, s)
    )
    batch = batch_of([7, 190, 40], 64)
    gradients = []
    for on in (False, True):
        model = llama(64)
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            total = back_to_back(model, batch).total
        total.backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    assert seen == [torch.bfloat16] * len(seen) and len(seen) == 3 * model.config.num_hidden_layers
    exact, near = gradients
    assert torch.nn.functional.cosine_similarity(exact, near, dim=0) > 0.999


def test_a_model_that_scales_its_logits_is_found_out(capsys):
    from transformers import CohereConfig, CohereForCausalLM

    model = CohereForCausalLM(
        CohereConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, logit_scale=0.25, bos_token_id=0, eos_token_id=1, pad_token_id=None,
        )
    )  # fmt: skip
    assert causal_objective(model) is padded
    assert "padded rows" in capsys.readouterr().err
    assert causal_objective(llama(64)) is back_to_back


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), v=st.integers(2, 12), chunk=st.integers(1, 4), seed=st.integers(0, 99))
def test_chunked_cross_entropy_is_cross_entropy(n, v, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, v, (n,), generator=generator)
    inputs = [torch.randn(*s, generator=generator) * 3 for s in ((n, 5), (v, 5), (v,))]
    results = []
    for own in (True, False):
        hidden, weight, bias = (x.clone().requires_grad_() for x in inputs)
        if own:
            loss = own_loss(hidden, weight, labels, bias, chunk)
        else:
            loss = functional.cross_entropy(
                hidden @ weight.T + bias, labels, ignore_index=-1, reduction="sum"
            )
            loss = loss / max(1, int((labels >= 0).sum()))
        (loss * 2).backward()
        results.append((loss.detach(), hidden.grad, weight.grad, bias.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def own_loss(hidden, weight, labels, bias, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_ROWS", chunk)
        return cross_entropy.linear_cross_entropy(hidden, weight, labels, bias)[0]


def test_labels_all_ignored_give_loss_zero():
    weight = torch.randn(6, 4, requires_grad=True)
    loss = cross_entropy.linear_cross_entropy(torch.randn(3, 4), weight, torch.full((3,), -100))[0]
    loss.backward()
    assert loss == 0 and weight.grad.abs().max() == 0
    model = llama(64)
    assert back_to_back(model, batch_of([1, 1], 64)).total == 0
    assert padded(model, batch_of([1, 1], 64)).total == 0


def test_frozen_output_rows_get_no_gradient():
    weight = torch.randn(6, 4)
    hidden = torch.randn(3, 4, requires_grad=True)
    cross_entropy.linear_cross_entropy(hidden, weight, torch.tensor([0, 5, -100]))[0].backward()
    assert weight.grad is None and hidden.grad[2].abs().max() == 0


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99), chunk=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_rows_that_are_learnt_get_the_gradient_they_have_among_all(seed, chunk, dtype):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 4, generator=generator) for n in (7, 12))
    labels = torch.randint(-1, 12, (7,), generator=generator)
    learnt = torch.randperm(12, generator=generator)[: seed % 12]
    grads = []
    for rows in (None, learnt):
        own, weights = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with (
            pytest.MonkeyPatch.context() as patch,
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            patch.setattr(cross_entropy, "_ROWS", chunk)
            cross_entropy.linear_cross_entropy(own, weights, labels, learnt=rows)[0].backward()
        grads.append((own.grad, weights.grad))
    (whole_hidden, whole), (some_hidden, some) = grads
    assert torch.equal(whole_hidden, some_hidden)
    expected = torch.zeros_like(whole)
    expected[learnt] = whole[learnt]
    torch.testing.assert_close(some, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_seen_rows_alone_give_the_gradients_of_all_where_tokens_are(tied):
    batch = batch_of([7, 19, 4], 64)
    grads = []
    for seen in (False, True):
        model = llama(64, tied=tied)
        causal_objective(model, seen_rows=seen)(model, batch).total.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    unseen = torch.ones(64, dtype=torch.bool)
    unseen[torch.from_numpy(batch.ids)] = False
    for name, grad in grads[0].items():
        kept = grad.clone()
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            kept[unseen] = 0
            assert not grads[1][name][unseen].any()
        torch.testing.assert_close(grads[1][name], kept, atol=1e-6, rtol=1e-5)


def test_bfloat16_autocast_is_close():
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16, requires_grad=True), torch.randn(30, 16, requires_grad=True)
    labels = torch.randint(0, 30, (9,))
    exact = functional.cross_entropy(hidden @ weight.T, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy.linear_cross_entropy(hidden, weight, labels)[0]
    loss.backward()
    assert loss.dtype == torch.float32 and abs(loss - exact) < 0.05
    assert weight.grad.dtype == torch.float32


def soft_labels(batch: Batch, vocabulary: int, share: float) -> SoftLabels:
    text = np.random.default_rng(3).integers(0, vocabulary, (40, 9)).tolist()
    return SoftLabels.counted(Ngrams.of_documents(text, vocabulary), batch, share)


def test_soft_labels_give_the_loss_against_the_mixed_distribution():
    torch.manual_seed(0)
    batch = replace(batch_of([5, 7, 3], 20), sources=(0, 1, 0))
    soft = soft_labels(batch, 20, 0.3)
    hidden, weight = torch.randn(15, 6, requires_grad=True), torch.randn(20, 6, requires_grad=True)
    labels = torch.from_numpy(batch.labels())
    wanted = torch.zeros(15, 20).scatter_(1, labels.clamp(min=0)[:, None], 1.0)
    dense = (soft.rest[:, None] * soft.base).index_put((soft.rows, soft.columns), soft.values, True)
    wanted = torch.lerp(wanted, dense, soft.share[:, None])
    rows = -(wanted * torch.log_softmax(hidden @ weight.T, 1)).sum(1)
    expected = rows[labels >= 0].sum() / 12
    gradients = torch.autograd.grad(expected, (hidden, weight))
    for loss, plain in (
        cross_entropy.linear_cross_entropy(hidden, weight, labels, None, soft),
        cross_entropy.cross_entropy(hidden @ weight.T, labels, soft),
    ):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), gradients)
        torch.testing.assert_close(plain, functional.cross_entropy(hidden @ weight.T, labels))
    assert soft.share.tolist() == pytest.approx([0.3] * 5 + [0.0] * 7 + [0.3] * 3)


def test_soft_labels_are_the_same_in_blocks_of_any_size(monkeypatch):
    batch = batch_of([5, 7, 3], 20)
    soft = soft_labels(batch, 20, 0.5)
    hidden, weight = torch.randn(15, 6), torch.randn(20, 6)
    labels = torch.from_numpy(batch.labels())
    whole = cross_entropy.linear_cross_entropy(hidden, weight, labels, None, soft)
    monkeypatch.setattr(cross_entropy, "_ROWS", 4)
    torch.testing.assert_close(cross_entropy.linear_cross_entropy(hidden, weight, labels, None, soft), whole)


def test_packed_and_padded_agree_on_soft_labels():
    model, batch = llama(64), batch_of([4, 9], 64)
    soft = soft_labels(batch, 64, 0.7)
    one, other = back_to_back(model, batch, soft), padded(model, batch, soft)
    torch.testing.assert_close(one.total, other.total, atol=1e-5, rtol=1e-5)
    assert one.parts["causal"] == pytest.approx(other.parts["causal"], rel=1e-4)
    assert one.parts["taught"] != pytest.approx(one.parts["causal"], rel=1e-3)
