"""Sparse differences: the authors' masks and sums."""

import pytest
import torch

from calque.delta.attach import attach, fold_in, foldable
from calque.delta.delta import Delta
from calque.delta.lora import lora
from calque.delta.sparse import add, select, sparse
from calque.delta.stack import stack
from calque.errors import ConfigError, ModelError
from calque.merge.fold import fold
from calque.model.checkpoint import Checkpoint

from .. import tiny
from ..merge.golden import content
from .runs import IDS, beside, logits, moved, plain

REFERENCE = content("07-modular-clir-reranking")["cases"]
MASKS = [case for case in REFERENCE if case["kind"] == "select_mask"]
SUMS = [case for case in REFERENCE if case["kind"] == "compose"]


def tensors(named):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in named.items()}


@pytest.mark.parametrize("case", MASKS, ids=lambda case: f"k={case['k']}")
def test_reference_masks(case):
    before, after = tensors(case["before"]), tensors(case["after"])
    names = case.get("maskable") or list(before)
    gap = {name: (after[name] - before[name]).abs() for name in names}
    already = case.get("already_selected")
    taken = {name: torch.tensor(m, dtype=torch.bool) for name, m in already.items()} if already else None
    if case.get("raises"):
        with pytest.raises(ConfigError, match="are free"):
            select(gap, case["k"], taken)
        return
    masks = select(gap, case["k"], taken)
    for name, expected in case["mask"].items():
        if name in masks:
            assert masks[name].int().tolist() == expected
    new = sum(int(mask.sum()) for mask in masks.values()) - sum(int(m.sum()) for m in (taken or {}).values())
    assert new == case["selected"]


@pytest.mark.parametrize("case", [c for c in SUMS if not any(m.get("abs") for m in c["modules"])])
def test_reference_sums(case):
    made = []
    for module in case["modules"]:
        held = {}
        for name, value in tensors(module["diffs"]).items():
            index = value.flatten().nonzero().squeeze(1)
            held |= {f"{name}.index": index, f"{name}.value": value.flatten()[index]}
        made.append(Delta("sparse", tuple(module["diffs"]), "own", "fixed", {}, held, {"hash": ""}))
    model = torch.nn.Module()
    for name, value in tensors(case["base"]).items():
        model.register_parameter(name, torch.nn.Parameter(value))
    total = add(made)
    for name in total.place:
        weight, index = dict(model.named_parameters())[name], total.tensors[f"{name}.index"]
        result = weight.detach().flatten().index_add(0, index, total.tensors[f"{name}.value"]).view_as(weight)
        expected = torch.tensor(case["result"][name], dtype=torch.float64)
        torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    return Checkpoint.at(tiny.model(folder, num_hidden_layers=3, seed=9))


def test_it_begins_at_zero_trains_only_its_entries_and_folds(base, tuned, tmp_path):
    made = sparse(base, tuned, keep=0.05)
    weights = sum(base.info(n).nbytes // 4 for s, n in base.slots.items() if s.layer is not None and
                  "norm" not in s.role)  # fmt: skip
    assert made.count() == round(0.05 * weights)
    model = base.model()
    attached = attach(model, {"a": made})
    assert torch.equal(logits(model), plain(base))
    model.requires_grad_(False)
    for number in attached.parameters["a"].values():
        number.requires_grad_()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(number.grad is not None for number in attached.parameters["a"].values())
    names = {name for name, _ in base.model().named_parameters()}
    attached.detach()
    assert {name for name, _ in model.named_parameters()} == names
    noisy = moved(made, scale=0.5)
    noisy.save(tmp_path / "d")
    folded = base.model()
    fold_in(folded, Delta.load(tmp_path / "d"))
    torch.testing.assert_close(logits(folded), beside(base, a=noisy), atol=1e-6, rtol=1e-6)
    off = {n for n, p in folded.named_parameters() if not torch.equal(p, base.read(n))}
    assert off == set(made.place)


def test_language_and_task_add_up_in_any_order(base, tuned):
    one, two = moved(sparse(base, tuned, keep=0.05), 1), moved(sparse(base, tuned, keep=0.1), 2)
    both = base.model()
    for made in (one, two):
        fold_in(both, made)
    torch.testing.assert_close(beside(base, a=add([one, two])), logits(both), atol=1e-5, rtol=1e-5)
    assert torch.allclose(beside(base, a=add([two, one])), beside(base, a=add([one, two])), atol=1e-5)


def test_a_task_is_learnt_over_a_language_and_composed_with_another(base, tuned):
    task, nya, swh = (moved(sparse(base, tuned, keep=keep), n) for n, keep in enumerate((0.05, 0.1, 0.2)))
    model = base.model().requires_grad_(False)
    attached = attach(model, {"a": stack(base, [nya, task])})
    both = beside(base, a=add([nya, task]))
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=1e-5)
    named = attached.named()
    assert sum(p.numel() for name, p in model.named_parameters() if name in named) == task.count()
    attached.use("")
    assert torch.equal(logits(model), plain(base))
    over_swh = attach(base.model(), {"swh": swh, "task": attached.detach()["a"].parts[1]})
    torch.testing.assert_close(logits(over_swh.model), beside(base, a=add([swh, task])), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model), plain(base))
    assert {name for name, _ in model.named_parameters()} == {n for n, _ in base.model().named_parameters()}


def test_a_stack_of_sparse_deltas_folds_into_plain_weights(base, tuned, tmp_path):
    nya, task = (moved(sparse(base, tuned, keep=keep), n) for n, keep in enumerate((0.05, 0.1)))
    both = stack(base, [nya, task])
    both.save(tmp_path / "both")
    folded = base.model()
    fold_in(folded, both)
    torch.testing.assert_close(logits(folded), beside(base, a=both), atol=1e-6, rtol=1e-6)
    made = fold(tmp_path / "both", base).write(tmp_path / "model")
    for name, parameter in folded.named_parameters():
        torch.testing.assert_close(made.read(name), parameter.detach(), atol=1e-6, rtol=1e-6)
    assert foldable(both) and not foldable(stack(base, [nya, lora(base, rank=2)]))


def test_what_a_task_moved_is_told_from_the_language_below_it(base, tuned, tmp_path):
    nya = moved(sparse(base, tuned, keep=0.1))
    model = base.model()
    fold_in(model, nya)
    name = nya.place[0]
    with torch.no_grad():
        model.get_parameter(name)[:3] += 0.01
    model.save_pretrained(tmp_path / "task")
    made = sparse(base, Checkpoint.at(tmp_path / "task"), nya, keep=1e-9)
    assert made.place == (name,) and {*made.tensors[f"{name}.index"].tolist()} <= {0, 1, 2}
    assert stack(base, [nya, made]).count() == made.count()
    with pytest.raises(ConfigError, match="below is a 'lora' delta"):
        sparse(base, tuned, lora(base, rank=2))
    with pytest.raises(ModelError, match="does not belong to"):
        sparse(tuned, base, nya)


def test_sums_are_taken_off_in_any_order(base, tuned):
    model, one, two = base.model(), moved(sparse(base, tuned), 1), moved(sparse(base, tuned, keep=0.1), 2)
    first, second = attach(model, {"a": one}), attach(model, {"b": two})
    first.detach()
    torch.testing.assert_close(logits(model), beside(base, b=two))
    second.detach()
    assert torch.equal(logits(model), plain(base))


def test_what_is_wrong_is_said(base, tuned, tmp_path):
    with pytest.raises(ConfigError, match="none of its weights differs"):
        sparse(base, base)
    with pytest.raises(ModelError, match="is missing or of another shape"):
        sparse(base, Checkpoint.at(tiny.model(tmp_path / "m", num_hidden_layers=2)))
    made = sparse(base, tuned)
    model = base.model()
    attach(model, {"a": made}).use(["a", "a"])
    with pytest.raises(ConfigError, match="can not be chosen for each example"):
        logits(model)
