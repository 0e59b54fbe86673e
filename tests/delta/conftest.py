"""A model to put deltas on, and what its logits are."""

import pytest

from calque.model.checkpoint import Checkpoint

from .. import tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return Checkpoint.at(tiny.model(tmp_path_factory.mktemp("base") / "llama", num_hidden_layers=3))


@pytest.fixture(scope="session", params=["llama", "gpt2", "gpt-neox", "bert"])
def any_base(request, tmp_path_factory):
    return Checkpoint.at(tiny.model(tmp_path_factory.mktemp("base") / request.param, request.param))
