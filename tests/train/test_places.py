"""Every objective gives what plain transformers or a few lines of torch give; without labels it is 0."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from torch.nn import functional

from calque.data.pack import IGNORED, Batch
from calque.train import places
from calque.train.causal import causal_objective
from calque.train.rank import listwise, pairwise, ranking

from .conftest import llama

BERT = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=40, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


def bert(kind, **more):
    torch.manual_seed(0)
    return getattr(hf, f"BertFor{kind}")(hf.BertConfig(**BERT, **more))


def t5():
    torch.manual_seed(0)
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


def batch_of(lengths, prompts=(), answers=(), weights=(), seed=0):
    ids = np.random.default_rng(seed).integers(1, 64, sum(lengths))
    answers = tuple(np.asarray(answer) for answer in answers)
    n = len(lengths)
    return Batch(ids, tuple(lengths), 0, (sum(lengths),), (0,) * n, tuple(prompts), answers, tuple(weights))


def alone(batch):
    return [torch.from_numpy(ids)[None] for ids in batch.split()]


def gradient(model, total):
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def test_an_answer_is_learnt_and_its_prompt_is_not():
    batch, model = batch_of([9, 5, 7], prompts=[4, 1, 0]), llama(64)
    total, count = 0.0, 0
    for ids, prompt in zip(alone(batch), batch.prompts, strict=True):
        labels = ids.clone()
        labels[:, :prompt] = IGNORED
        size = ids.shape[1] - max(1, prompt)
        total, count = total + model(ids, labels=labels).loss * size, count + size
    assert batch.targets() == count
    for objective in (causal_objective(model), places.labelled(places.next_tokens, "answer")):
        assert torch.allclose(objective(model, batch).total, total / count, atol=1e-5)


def test_a_translation_is_that_of_an_encoder_decoder():
    batch, model = batch_of([9, 6], prompts=[4, 3]), t5()
    total = 0.0
    for ids, prompt in zip(alone(batch), batch.prompts, strict=True):
        source, target = ids[:, :prompt], ids[:, prompt:]
        total += model(input_ids=source, labels=target).loss * target.shape[1]
    found = places.labelled(places.translation, "answer")(model, batch)
    assert torch.allclose(found.total, total / batch.targets(), atol=1e-5)
    assert found.parts["answer"] == pytest.approx(found.total.item())


def test_masked_tokens_and_tags_are_classes_of_tokens():
    answers = [[IGNORED, 5, IGNORED, 2, 7], [IGNORED, 1, IGNORED]]
    batch = batch_of([5, 3], answers=answers)
    assert places.labels_given(batch) == 4
    for model in (bert("MaskedLM"), bert("TokenClassification", num_labels=8)):
        expected = sum(
            model(ids, labels=torch.tensor([answer])).loss * sum(a >= 0 for a in answer)
            for ids, answer in zip(alone(batch), answers, strict=True)
        )
        found = places.labelled(places.each_token, "tag")(model, batch).total
        assert torch.allclose(found, expected / 4, atol=1e-5)


def test_classes_are_those_of_transformers_also_for_decoders():
    torch.manual_seed(0)
    decoder = hf.LlamaForSequenceClassification(
        hf.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_labels=3, pad_token_id=0,
        )
    )  # fmt: skip
    batch = batch_of([5, 3, 8], answers=[[2], [0], [1]])
    for model in (decoder, bert("SequenceClassification", num_labels=3)):
        losses = [
            model(ids, labels=torch.tensor([int(answer[0])])).loss
            for ids, answer in zip(alone(batch), batch.answers, strict=True)
        ]
        found = places.labelled(places.each_piece, "classify")(model, batch).total
        assert torch.allclose(found, sum(losses) / 3, atol=1e-5)


def test_a_second_segment_begins_after_the_prompt():
    batch, model = batch_of([7, 5], prompts=[3, 2], answers=[[1], [0]]), bert("SequenceClassification")
    losses = []
    for ids, prompt, answer in zip(alone(batch), batch.prompts, batch.answers, strict=True):
        segments = (torch.arange(ids.shape[1]) >= prompt).long()[None]
        losses.append(model(ids, token_type_ids=segments, labels=torch.tensor(answer)).loss)
    found = places.labelled(places.each_piece, "classify")(model, batch).total
    assert torch.allclose(found, sum(losses) / 2, atol=1e-5)


def test_the_ends_of_a_span_are_those_of_transformers():
    batch, model = batch_of([9, 6], answers=[[3, 5], [0, 0]]), bert("QuestionAnswering")
    losses = [
        model(ids, start_positions=torch.tensor([a]), end_positions=torch.tensor([b])).loss
        for ids, (a, b) in zip(alone(batch), batch.answers, strict=True)
    ]
    found = places.labelled(places.ends_of_span, "qa")(model, batch).total
    assert torch.allclose(found, sum(losses) / 2, atol=1e-5)


def test_pairs_and_lists_by_hand():
    scores, grades = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1, 0, 2])
    pairs = [(0, 1), (2, 0), (2, 1)]
    expected = sum(math.log(1 + math.exp(scores[j] - scores[i])) for i, j in pairs) / 3
    assert float(pairwise(scores, grades)) == pytest.approx(expected, rel=1e-6)
    log_p = torch.log_softmax(scores, 0)
    assert float(listwise(scores, grades)) == pytest.approx(-float(log_p[0] / 3 + 2 * log_p[2] / 3))
    nothing = torch.zeros(3, dtype=torch.long)
    assert pairwise(scores, nothing) == 0 and listwise(scores, nothing) == 0


@pytest.mark.parametrize("how", ["pairwise", "listwise"])
def test_candidates_are_ranked_within_their_list(how):
    model = bert("SequenceClassification", num_labels=1)
    sizes, grades = [[4, 6], [5, 3, 3]], [[0, 1], [2, 0, 1]]
    batch = batch_of(
        [10, 11],
        prompts=[2, 2],
        answers=[[*n, *g] for n, g in zip(sizes, grades, strict=True)],
        weights=[1, 3],
    )
    expected = []
    for ids, own, wanted in zip(alone(batch), sizes, grades, strict=True):
        segments = [(torch.arange(n) >= 2).long()[None] for n in own]
        scores = [
            model(c, token_type_ids=s).logits[0, 0] for c, s in zip(ids.split(own, 1), segments, strict=True)
        ]
        expected.append(
            {"pairwise": pairwise, "listwise": listwise}[how](torch.stack(scores), torch.tensor(wanted))
        )
    found = ranking(how)(model, batch).total
    assert torch.allclose(found, (expected[0] + 3 * expected[1]) / 2, atol=1e-5)


def test_distillation_by_hand_with_weights():
    batch = batch_of([5, 3, 4], answers=[[2], [0], [IGNORED]], weights=[1.0, 0.5, 7.0])
    student, teacher = (
        bert("SequenceClassification", num_labels=3),
        bert("SequenceClassification", num_labels=3),
    )
    with torch.no_grad():
        teacher.classifier.weight.mul_(20)
    objective = places.taught(places.each_piece, teacher, "classify", share=0.3, temperature=2.0)
    found = objective(student, batch)
    hard, soft = [], []
    for ids, label, weight in zip(alone(batch)[:2], (2, 0), (1.0, 0.5), strict=True):
        z, u = student(ids).logits[0], teacher(ids).logits[0]
        hard.append(-weight * torch.log_softmax(z, 0)[label])
        p = torch.softmax(u / 2, 0)
        soft.append(weight * 4 * (p * (p.log() - torch.log_softmax(z / 2, 0))).sum())
    assert found.parts["classify"] == pytest.approx(sum(hard).item() / 2, rel=1e-4)
    assert found.parts["teacher"] == pytest.approx(sum(soft).item() / 2, rel=1e-4)
    assert found.total.item() == pytest.approx(
        0.7 * sum(hard).item() / 2 + 0.3 * sum(soft).item() / 2, rel=1e-4
    )
    assert not any(p.requires_grad for p in teacher.parameters())
    same = places.taught(
        places.each_piece, bert("SequenceClassification", num_labels=3), "c", share=1, temperature=2
    )
    plain = replace(batch, weights=())
    assert abs(same(student, plain).total.item()) < 1e-6
    assert gradient(student, same(student, plain).total).abs().max() < 1e-6


def test_the_span_of_a_teacher_has_no_padding_in_it():
    batch = batch_of([9, 4], answers=[[3, 5], [1, 2]])
    student, teacher = bert("QuestionAnswering"), bert("QuestionAnswering")
    with torch.no_grad():
        teacher.qa_outputs.weight.mul_(9)
    objective = places.taught(places.ends_of_span, teacher, "qa", share=1.0, temperature=1.0)
    expected = []
    for ids in alone(batch):
        z, u = student(ids), teacher(ids)
        for said, meant in ((z.start_logits, u.start_logits), (z.end_logits, u.end_logits)):
            expected.append(
                functional.kl_div(torch.log_softmax(said[0], 0), torch.softmax(meant[0], 0), reduction="sum")
            )
    assert torch.allclose(objective(student, batch).total, sum(expected) / 4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "objective", "batch"),
    [
        (lambda: llama(64), places.next_tokens, batch_of([4, 3], prompts=[4, 3])),
        (lambda: llama(64), None, batch_of([4, 3], prompts=[4, 3])),
        (
            lambda: bert("MaskedLM"),
            places.each_token,
            batch_of([4, 2], answers=[[IGNORED] * 4, [IGNORED] * 2]),
        ),
        (lambda: bert("SequenceClassification"), places.each_piece, batch_of([4, 2], answers=[[-100]] * 2)),
        (
            lambda: bert("QuestionAnswering"),
            places.ends_of_span,
            batch_of([4, 2], answers=[[-100, -100]] * 2),
        ),
        (lambda: bert("SequenceClassification", num_labels=1), "rank", batch_of([4], answers=[[2, 2, 0, 0]])),
    ],
)
def test_without_a_label_loss_and_gradient_are_zero(make, objective, batch):
    model = make()
    if objective is None:
        loss = causal_objective(model)
    elif objective == "rank":
        loss = ranking("listwise")
    else:
        loss = places.taught(objective, make(), "x", share=0.5, temperature=2.0)
    found = loss(model, batch).total
    assert found.item() == 0
    assert gradient(model, found).abs().max() == 0
