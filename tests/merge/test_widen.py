"""WIDEN: the authors' numbers, the identities of its formula, roles of tensors, and the same from files."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from calque.errors import ModelError
from calque.merge.widen import changes_of, column_weights, experts, kind_of, widen
from calque.merge.widen import merged as merged_blocks
from calque.model.checkpoint import Checkpoint
from calque.model.slots import Slot

from .. import tiny
from .golden import array_of, cases, check
from .kin import changed, close, family, relative, same


def merged(base, deltas, kind="columns", threshold=1.0, score=1.0, normalize=False, height=None):
    """A tensor merged in memory, float64, in blocks of `height` rows."""

    def stream():
        tensors = [torch.from_numpy(np.array(t, dtype=float)) for t in (base, *deltas)]
        return zip(*(t.split(height or max(1, len(t))) for t in tensors), strict=True)

    def weigh(*changes):
        return column_weights(*changes, threshold, score, normalize)

    return torch.cat(list(merged_blocks(stream, kind, weigh, lambda mean: None))).numpy()


KINDS = {"embed_tokens": "rows", "norm": "vector", "bias": "vector"}


def kind_in_golden(name):
    return next((kind for part, kind in KINDS.items() if part in name), "columns")


@pytest.mark.parametrize("case", cases("17-widen"))
def test_the_authors_numbers(case):
    t, s = (case["params"][k] for k in ("above_average_value_ratio", "score_calibration_value"))
    inputs, outputs = case["inputs"], case["outputs"]
    if "W_pre" in inputs:
        found = merged(inputs["W_pre"], inputs["deltas"], threshold=t, score=s)
        np.testing.assert_allclose(found, outputs["W_merged"], atol=1e-9, rtol=1e-7)
        return
    for name, base in inputs["base"].items():
        deltas = [array_of(delta[name]) for delta in inputs["deltas"]]
        found = merged(array_of(base), deltas, kind_in_golden(name), t, s)
        check(found, outputs[name], atol=5e-9, rtol=1e-7)


def test_the_worked_example():
    base = [[1, 2, 0, 1], [0, 1, 2, -1], [2, 0, 1, 1]]
    deltas = [
        [[0.1, 0, 0.2, 0.3], [0, 0.1, -0.1, 0.1], [0.05, 0.2, 0, -0.2]],
        [[1, 0.5, 0, -0.2], [0.3, -1, 0.5, 0.2], [0, 0.4, -0.6, 0.1]],
    ]
    expected = [
        [2.068877, 2.375, 0.15, 1.142918],
        [0.3, 0.325, 2.3, -0.842918],
        [2.034439, 0.45, 0.55, 0.891041],
    ]
    np.testing.assert_allclose(merged(base, deltas), expected, atol=1e-6)


def drawn(models, rows=7, columns=12, seed=0, sizes=(0.5, 0.01, 0.1)):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((rows, columns))
    return base, [rng.standard_normal((rows, columns)) * sizes[n % 3] for n in range(models)]


KIND = st.sampled_from(["columns", "rows"])
some = dict(models=st.integers(1, 3), columns=st.integers(2, 15), seed=st.integers(0, 50), kind=KIND)
fast = settings(deadline=None, max_examples=30)


@fast
@given(**some)
def test_below_zero_it_is_task_arithmetic(models, columns, seed, kind):
    base, deltas = drawn(models, columns=columns, seed=seed)
    found = merged(base, deltas, kind, threshold=-1.0, score=0.7)
    np.testing.assert_allclose(found, base + 0.7 * sum(deltas), atol=1e-12)


@fast
@given(**some)
def test_far_above_the_mean_weights_are_shares(models, columns, seed, kind):
    base, deltas = drawn(models, columns=columns, seed=seed)
    weights = column_weights(
        *changes_of(iter([as_blocks(base, deltas)]), int(kind == "rows")), 1e9, 1.0, False
    )
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-12)
    if models == 2:
        assert (weights > 1 / (1 + np.e)).all() and (weights < np.e / (1 + np.e)).all()


def as_blocks(base, deltas):
    return tuple(torch.from_numpy(np.array(t)) for t in (base, *deltas))


@fast
@given(**some)
def test_order_of_models_and_columns_does_not_matter(models, columns, seed, kind):
    base, deltas = drawn(models, columns=columns, seed=seed)
    rng = np.random.default_rng(seed)
    places = rng.permutation(base.shape[1] if kind == "columns" else base.shape[0])
    move = (lambda t: t[:, places]) if kind == "columns" else (lambda t: t[places])
    found = merged(base, deltas, kind)
    turned = merged(move(base), [move(delta) for delta in deltas[::-1]], kind)
    np.testing.assert_allclose(turned, move(found), atol=1e-12)


@fast
@given(power=st.sampled_from([0.5, 2.0, 3.0]), seed=st.integers(0, 50))
def test_only_the_order_inside_a_model_counts(power, seed):
    change = torch.from_numpy(np.random.default_rng(seed).random((2, 9)))
    raised = torch.stack([change[0] ** power, change[1]])
    same_weights = column_weights(change, change, 1.0, 1.0, False)
    np.testing.assert_allclose(column_weights(raised, raised, 1.0, 1.0, False), same_weights)


@fast
@given(height=st.integers(1, 7), seed=st.integers(0, 9), kind=st.sampled_from(["columns", "rows"]))
def test_blocks_may_have_any_height(height, seed, kind):
    base, deltas = drawn(2, seed=seed)
    np.testing.assert_allclose(
        merged(base, deltas, kind, height=height), merged(base, deltas, kind), atol=1e-12
    )


def test_rows_are_columns_of_the_transpose():
    base, deltas = drawn(2)
    np.testing.assert_allclose(merged(base, deltas, "rows"), merged(base.T, [d.T for d in deltas]).T)


@pytest.mark.parametrize("models", [2, 3, 5])
def test_equal_models_do_not_give_the_model(models):
    base, (delta,) = drawn(1, columns=40)
    found = merged(base, [delta] * models)
    factor = ((found - base) / delta).mean(0)
    assert set(np.round(factor, 9)) <= {1.0, (1 + models) / 2, float(models)}
    assert factor.mean() == pytest.approx((1 + models) / 2, rel=0.15)
    np.testing.assert_allclose(merged(base, [delta] * models, normalize=True), base + delta, atol=1e-12)


def test_a_model_equal_to_the_base_changes_the_result():
    base, (delta,) = drawn(1)
    assert not np.allclose(merged(base, [delta, np.zeros_like(delta)]), merged(base, [delta]))


def test_the_middle_rank_is_not_above_the_mean():
    change = torch.arange(5.0).double()[None]
    weights = column_weights(change, change, 1.0, 3.0, False)
    assert weights[0].tolist() == [1, 1, 1, 3, 3]


def test_changes_are_exact_where_differences_are_tiny():
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.standard_normal((50, 8)))
    delta = torch.from_numpy(rng.standard_normal((50, 8))) * 1e-7
    length, turn = changes_of(iter([(base.float(), delta.float())]), 0)
    p, d = base.numpy().astype(np.longdouble), delta.numpy().astype(np.longdouble)
    w = p + d
    norm = lambda a: np.sqrt((a * a).sum(0))  # noqa: E731
    np.testing.assert_allclose(length[0], np.abs(norm(w) - norm(p)).astype(float), rtol=1e-3)
    across = d - p * ((p * d).sum(0) / (p * p).sum(0))  # the part at right angles: 1 - cos = |.|^2 / 2|p|^2
    exact = ((across**2).sum(0) / (2 * (p * p).sum(0))).astype(float)
    np.testing.assert_allclose(turn[0], exact, rtol=1e-3)


def test_columns_of_zeros():
    base, deltas = drawn(2)
    base[:, [0, 1]] = 0
    for delta in deltas:
        delta[:, 0] = 0
    length, turn = changes_of(iter([as_blocks(base, deltas)]), 0)
    assert (length[:, 0] == 0).all() and (turn[:, 0] == 0).all() and (turn[:, 1] == 1).all()
    result = merged(base, deltas)
    assert np.isfinite(result).all() and (result[:, 0] == 0).all()


ROLES = {
    "embed.input": "rows",
    "embed.position": "rows",
    "decoder.embed": "rows",
    "encoder.position": "rows",
    "encoder.attention.position": "rows",
    "embed.output": "columns",
    "attention.q": "columns",
    "mlp.down": "columns",
}


def test_kinds_follow_roles():
    for role, kind in ROLES.items():
        assert kind_of(Slot(0, role, (8, 4)), {"model_type": "llama"}) == kind
    for role in ("attention.qkv", "attention.o", "mlp.up", "mlp.down"):
        assert kind_of(Slot(0, role, (8, 4)), {"model_type": "gpt2"}) == "rows"
    assert kind_of(Slot(0, "experts.down", (3, 8, 4)), {}) == "experts"
    assert kind_of(Slot(0, "attention.norm", (8,)), {}) == "vector"
    assert kind_of(Slot(0, "embed.output.bias", (1, 8)), {}) == "vector"


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "mixtral", "bert", "m2m"])
def test_files_give_what_tensors_in_memory_give(architecture, tmp_path):
    base, tuned = family(tmp_path, (0.02, 0.003), architecture)
    out = widen(base, tuned).write(tmp_path / "out")
    for slot, name in base.slots.items():
        if name in out.tensors and base.info(name).is_float:
            kind = kind_of(slot, base.config)
            before = base.read(name).numpy()
            deltas = [t.read(name).numpy() - before for t in tuned]
            if kind == "experts":
                expected = np.stack([
                    merged(before[e], [d[e] for d in deltas]) for e in range(len(before))
                ])  # fmt: skip
            else:
                expected = merged(before, deltas, kind)
            np.testing.assert_allclose(out.read(name).numpy(), expected, atol=3e-6, err_msg=name)
    notes = json.loads((tmp_path / "out/rewrite.json").read_text())
    assert all(0 < mean <= 2 for mean in notes["mean_weight"].values())


@pytest.mark.parametrize("height", [1, 2, 4, 5, 7, 12])
def test_experts_are_taken_out_of_blocks_of_any_height(height):
    tensor = torch.arange(12 * 5.0).reshape(12, 5)
    found = list(experts(zip(tensor.split(height), (-tensor).split(height), strict=True), 4))
    assert torch.equal(torch.stack([one for one, _ in found]), tensor.reshape(3, 4, 5))
    assert torch.equal(torch.stack([other for _, other in found]), -tensor.reshape(3, 4, 5))


def test_experts_in_one_tensor_are_merged_apart(tmp_path):
    base, tuned = family(tmp_path, (0.02, 0.003), "mixtral")
    name, rows = "model.layers.0.mlp.experts.down_proj", base.info("lm_head.weight").shape[1]
    stacked = [stack_experts(c, tmp_path / c.folder.name / "stacked", name, rows) for c in (base, *tuned)]
    rewrite = widen(stacked[0], stacked[1:])
    row = next(row for row in rewrite.rows if row.name == name)
    found = torch.cat([block.reshape(-1, 3) for block in row.function(*row.inputs)]).reshape(row.shape)
    before, *after = (c.read(name) for c in stacked)
    for e in range(len(before)):
        expected = merged(before[e].numpy(), [(a[e] - before[e]).numpy() for a in after])
        np.testing.assert_allclose(found[e], expected, atol=1e-6)


def stack_experts(checkpoint, folder, name, rows):
    """The checkpoint with one more tensor (2, rows, 3) of experts, cut from its output matrix."""
    shutil.copytree(checkpoint.folder, folder)
    tensors = {n: checkpoint.read(n) for n in checkpoint.tensors}
    tensors[name] = tensors["lm_head.weight"].reshape(-1)[: 2 * rows * 3].reshape(2, rows, 3).clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(folder)


def test_one_tuned_model_gives_itself(tmp_path):
    base, (tuned,) = family(tmp_path, (0.02,))
    assert close(widen(base, [tuned]).write(tmp_path / "out"), tuned)


def test_vocabularies_are_matched_by_token(tmp_path):
    base, (tuned,) = family(tmp_path, (0.02,))
    folder = tmp_path / "other"
    order = torch.randperm(290, generator=torch.Generator().manual_seed(0))
    order = torch.cat([torch.arange(3), order[order >= 3]])

    def moved(name, tensor):
        return torch.cat([tensor[order], tensor[290:]]) if "embed" in name or "lm_head" in name else tensor

    other = changed(tuned, folder, moved)
    content = json.loads((folder / "tokenizer.json").read_text())
    places = {int(old): new for new, old in enumerate(order)}
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {token: places[number] for token, number in vocab.items()}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    plain = widen(base, [tuned]).write(tmp_path / "plain")
    by_token = widen(base, [Checkpoint.open(other.folder)], vocabulary="base").write(tmp_path / "by-token")
    rows = len(base.tokenizer())
    for name in base.tensors:
        cut = slice(0, rows) if base.info(name).shape[0] == 320 else slice(None)
        assert torch.allclose(plain.read(name)[cut], by_token.read(name)[cut], atol=1e-6), name


def test_other_vocabularies_are_refused_without_an_option(tmp_path):
    base, _ = family(tmp_path, ())
    other = relative(base, tmp_path / "other", 0.01, 1)
    tiny.tokenizer(tiny.CHICHEWA).save_pretrained(other.folder)
    with pytest.raises(ModelError, match="vocabulary"):
        widen(base, [Checkpoint.open(other.folder)])


def test_twice_is_not_once(tmp_path):
    base, tuned = family(tmp_path, (0.02, 0.003))
    once = widen(base, tuned).write(tmp_path / "once")
    twice = widen(base, [once, once]).write(tmp_path / "twice")
    assert not close(once, twice, atol=1e-3) and not same(once, twice)
