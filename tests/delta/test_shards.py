"""Mixture of Shards: the authors' numbers, and the limits in which it is something known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraModel, PeftConfig, PeftModel
from peft.utils import register_peft_method

from calque.delta.attach import attach, changes
from calque.delta.export import export
from calque.delta.lora import lora
from calque.delta.places import linear_places
from calque.delta.shards import count, draw, gathered, shards
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import TensorInfo

from ..merge.golden import array_of, cases, check
from .runs import IDS, PEFT, beside, logits, moved

CASES = {case.values[0]["name"]: case.values[0] for case in cases("02-mos-mixture-of-shards")}
LAYERS = [name for name in CASES if name != "parameter_counts"]


@pytest.mark.parametrize("name", LAYERS)
def test_reference_layer(name):
    case = CASES[name]
    p, expected = case["params"], case["outputs"]
    pool_A, pool_B, x, W = (
        torch.from_numpy(array_of(case["inputs"][k])) for k in ("pool_A", "pool_B", "x", "W")
    )
    pools = (pool_A.requires_grad_(), pool_B.requires_grad_())
    down = gathered(pool_A, torch.tensor(case["inputs"]["index_A"]), p["rank_r"])
    up = gathered(pool_B, torch.tensor(case["inputs"]["index_B"]), p["rank_r"]).T
    product = p["alpha"] / p["rank_r"] * up @ down
    y = x @ W.T + x @ product.T
    y.sum().backward()
    for key, value in {"A": down, "B": up, "delta_W": product, "y": y}.items():
        check(
            value.detach().numpy(),
            expected[key] if isinstance(expected[key], dict) else np.array(expected[key]),
        )
    for key, pool in zip(("grad_pool_A", "grad_pool_B"), pools, strict=True):
        check(pool.grad.numpy(), expected[key])
    used = torch.zeros(len(pool_A), dtype=torch.bool)
    used[case["inputs"]["index_A"]] = True
    assert not pool_A.grad[~used].any()


@pytest.mark.parametrize("name", LAYERS)
def test_drawn_rows_have_the_published_layout(name):
    p = CASES[name]["params"]
    sizes = (p["layers"], p["equivalent_rank_e"], p["rank_r"], p["private_rank_p"], p["shards_per_vector_l"])
    index = draw(p["layer"], *sizes, torch.Generator().manual_seed(0))
    own = CASES[name]["outputs"]["private_rows"]
    public = CASES[name]["outputs"]["public_rows"]
    assert len(index) == len(CASES[name]["inputs"]["index_A"]) and len(index.unique()) == len(index)
    assert index[len(index) - len(own) :].tolist() == own
    assert (index[: len(index) - len(own)] < max(1, public)).all()


def test_published_counts_and_start():
    case = CASES["parameter_counts"]
    for name, sizes in case["inputs"].items():
        d, kv, ffn = sizes["hidden"], sizes["kv"], sizes["ffn"]
        widths = [(d, d), (d, kv), (d, kv), (d, d), (d, ffn), (d, ffn), (ffn, d)]
        for budget, expected in case["outputs"][name].items():
            assert count(widths, sizes["layers"], int(budget)) == expected
    assert (
        case["outputs"]["llama2_7b"] | {"2": 4997120, "8": 19988480, "64": 159907840}
        == case["outputs"]["llama2_7b"]
    )


def headers_of_llama2_7b(folder):
    """A checkpoint whose headers are those of the model, over files without a number in them."""
    d, ffn, shapes = 4096, 11008, {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = (32000, d)
    for n in range(32):
        layer = f"model.layers.{n}"
        shapes |= {f"{layer}.self_attn.{m}_proj.weight": (d, d) for m in "qkvo"}
        shapes |= {f"{layer}.mlp.{m}_proj.weight": (ffn, d) for m in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (d, ffn)
    file = folder / "model.safetensors"
    file.write_bytes(b"")
    tensors = {name: TensorInfo(file, "F16", shape, 0, 0) for name, shape in shapes.items()}
    return Checkpoint(folder, {"model_type": "llama"}, tensors)


def test_numbers_of_llama2_7b_are_known_before_anything_is_attached(tmp_path):
    """5.00M, 19.99M and 159.91M at equivalent rank 2, 8 and 64, from the shapes of the headers."""
    base = headers_of_llama2_7b(tmp_path)
    assert shards(base, budget=2, rank=8, private=1, pieces=4).count() == 4_997_120
    assert lora(base, rank=8).count() == 19_988_480
    first = [place for place in linear_places(base) if place.layer == 0]
    widths = [(place.inputs, place.outputs) for place in first]
    assert [count(widths, 32, budget) for budget in (2, 8, 64)] == [4_997_120, 19_988_480, 159_907_840]


def test_peft_takes_no_form_of_its_own_from_outside():
    """What docs/methods/delta/shards.md says of it; when this fails, shards can be registered."""
    with pytest.raises(ValueError, match="Unknown PEFT type CALQUE_SHARDS, please add an entry to peft"):
        register_peft_method(name="calque_shards", config_cls=PeftConfig, model_cls=LoraModel)


def test_count_of_a_model_is_that_of_lora_of_the_budget(base):
    widths = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    for settings in (
        {"rank": 3, "pieces": 2},
        {"rank": 4, "pieces": 4, "private": 0},
        {"rank": 2, "private": 2},
    ):
        made = shards(base, budget=2, **settings)
        assert made.count() == count(widths, 3, 2)
    pool = made.tensors["mlp.down.pool_A"]
    assert pool.shape == (2 * 3 * 4, 12) and 0.9 / 48**0.5 < pool.abs().max() <= 1 / 48**0.5


@pytest.mark.filterwarnings(PEFT)
def test_exported_it_is_an_ordinary_lora(any_base, tmp_path):
    made = moved(shards(any_base, rank=3, pieces=2))
    export(made).save(tmp_path / "peft")
    back = PeftModel.from_pretrained(any_base.model(), str(tmp_path / "peft"))
    torch.testing.assert_close(logits(back), beside(any_base, a=made), atol=2e-5, rtol=1e-4)


def test_with_private_rows_only_it_trains_as_lora(base):
    """p = e = r: the same pairs as own parameters give the same losses, step by step."""
    made = moved(shards(base, budget=2, rank=2, private=2, pieces=2, alpha=4.0))
    twin = {
        f"{m}.{side}": t.clone() for m, p in changes(made).items() for side, t in zip("AB", p, strict=True)
    }

    plain = lora(base, rank=2, alpha=2.0).with_tensors(twin)  # scaling is in B already
    losses = {}
    for name, delta in {"shards": made, "lora": plain}.items():
        model = base.model().eval().requires_grad_(False)
        numbers = attach(model, {"a": delta}).parameters["a"]
        rates = {k: 0.05 * (4 if name == "lora" and k.endswith(".B") else 1) for k in numbers}
        losses[name] = []
        for _ in range(4):
            loss = model(input_ids=IDS, labels=IDS).loss
            losses[name].append(loss.item())
            loss.backward()
            with torch.no_grad():
                for key, number in numbers.items():
                    number -= rates[key] * number.grad
                    number.grad = None
    assert losses["lora"][0] - losses["lora"][-1] > 1e-3
    np.testing.assert_allclose(losses["shards"], losses["lora"], rtol=1e-5)


def test_without_dissociation_both_tables_are_one(base):
    made = shards(base, rank=4, pieces=2, dissociate=False)
    module = made.place[0]
    assert torch.equal(made.tensors[f"{module}.index_A"], made.tensors[f"{module}.index_B"])
    apart = shards(base, rank=4, pieces=2)
    assert not torch.equal(apart.tensors[f"{module}.index_A"], apart.tensors[f"{module}.index_B"])


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_layers_share_public_rows_and_never_private_ones(layers, budget, data):
    private = data.draw(st.integers(0, budget))
    rank = data.draw(st.integers(max(1, private), private + (budget - private) * layers))
    pieces, generator = data.draw(st.integers(1, 3)), torch.Generator().manual_seed(0)
    tables = [draw(n, layers, budget, rank, private, pieces, generator) for n in range(layers)]
    public = (budget - private) * layers * pieces
    own = [row for table in tables for row in table.tolist() if row >= public]
    assert len(own) == len(set(own)) == layers * private * pieces
    assert all(len(set(table.tolist())) == len(table) == rank * pieces for table in tables)
    assert all(int(table.max()) < budget * layers * pieces for table in tables)


def test_what_does_not_fit_is_said(base):
    with pytest.raises(ConfigError, match=r"pieces = 5 does not divide '.*' \(32 -> "):
        shards(base, pieces=5, rank=3)
    with pytest.raises(ConfigError, match=r"3 layers have 3 public vectors to draw 7 from"):
        shards(base, budget=2, rank=8, private=1)
    with pytest.raises(ConfigError, match=r"needed are private <= budget"):
        shards(base, budget=2, rank=4, private=3)
    with pytest.raises(ConfigError, match=r"no slot 'mlp.x'; it has attention.k"):
        shards(base, roles=("mlp.x",))
