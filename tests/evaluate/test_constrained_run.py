"""The evaluator holds written answers to a task's grammar where it is told to."""

import pytest

pytest.importorskip("llguidance", reason="extra 'constrain' is not installed")

from calque.evaluate.run import run
from calque.evaluate.source import Source

from .conftest import byte_level, save_model


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """A tiny random model whose <s> ends a text."""
    folder = tmp_path_factory.mktemp("ending")
    return save_model(folder, byte_level(), eos_token_id=0, max_position_embeddings=1024)


def test_tags_within_the_grammar_and_without(ending):
    found = {}
    for constrain in (False, True):
        table = run(
            {"m": ending},
            {"pos": Source("sample")},
            languages=["eng_Latn"],
            limit=2,
            shots=0,
            constrain=constrain,
        )
        found[constrain] = {
            name: sum(r["value"] for r in table.rows() if r["metric"] == name)
            for name in ("unparsed", "words")
        }
        assert f"constrain:{constrain}" in table.values("signature")[0]
    assert found[True]["unparsed"] == 0 < found[False]["unparsed"] <= found[True]["words"]
