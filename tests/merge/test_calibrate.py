"""Calibration: predictions become as frequent as tokens are, and nothing else moves."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.errors import DataError, ModelError
from calque.merge.calibrate import _direction, _frequencies, calibrate
from calque.merge.transplant import transplant
from calque.model.checkpoint import Checkpoint
from calque.model.tensors import same_bytes
from calque.vocab.map import build_map
from calque.vocab.tokens import Tokens

from .. import tiny


def corpus(lines):
    return Corpus.of(Example(f"{n}", {"nya_Latn": line}, group=f"{n // 4}") for n, line in enumerate(lines))


TEXT = corpus(tiny.CHICHEWA * 10)


@pytest.fixture(scope="module", params=["llama", "llama-tied", "gemma2"])
def start(request, tmp_path_factory):
    """A tiny transplanted model and its map: the first 40 rows copied, the others averages."""
    folder = tmp_path_factory.mktemp(request.param)
    base = Checkpoint.open(tiny.model(folder / "base", request.param))
    old, new = Tokens.of(base.tokenizer()), Tokens.of(tiny.tokenizer(tiny.CHICHEWA, size=301))
    weights = np.full((len(new), len(old)), 1 / len(old))
    weights[:40] = np.eye(40, len(old))
    how = np.array([0] * 40 + [1] * (len(new) - 40), np.uint8)
    vocab_map = build_map(old, new, csr_matrix(weights), how, ("copy", "mean"), fallback="mean")
    return transplant(base, vocab_map, new).write(folder / "start"), vocab_map


@torch.no_grad()
def predicted(checkpoint):
    """Mean predicted distribution (V,) on the text."""
    tokens, model = Tokens.of(checkpoint.tokenizer()), checkpoint.model()
    ids = [tokens.encode(body) for _, body in TEXT.documents()]
    return torch.cat([model(torch.tensor([i])).logits[0].softmax(-1) for i in ids]).mean(0)


def distance(checkpoint):
    aim = _frequencies(Tokens.of(checkpoint.tokenizer()), TEXT, "nya_Latn")
    return float((aim * (aim / predicted(checkpoint)[: len(aim)]).log()).sum())


def test_predictions_come_nearer_to_the_frequencies_and_stay_there(start, tmp_path):
    base, vocab_map = start
    once = calibrate(base, vocab_map, TEXT, prior=0, kept=1).write(tmp_path / "once")
    assert distance(once) < 0.5 * distance(base)
    if not base.tied:  # a tied input row moves with its output row, and with it what is predicted
        again = calibrate(once, vocab_map, TEXT, prior=0, kept=1)
        first = calibrate(base, vocab_map, TEXT, prior=0, kept=1)
        assert again.notes["mean_shift"] < 0.5 * first.notes["mean_shift"]


def test_only_the_output_matrix_moves_and_copied_rows_may_stay(start, tmp_path):
    base, vocab_map = start
    out = calibrate(base, vocab_map, TEXT, kept=0).write(tmp_path / "out")
    name = base.output_embedding or base.input_embedding
    for other in base.tensors:
        assert same_bytes(base.info(other), out.info(other)) == (other != name)
    before, after = base.read(name), out.read(name)
    assert torch.equal(before[10:40], after[10:40])
    assert not torch.equal(before[60:], after[60:])


def test_the_direction_has_mean_one_and_less_variance_than_the_plain_mean():
    hidden = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3
    u = _direction(hidden, 1e-6)
    plain = hidden.mean(0) / hidden.mean(0).square().sum()
    assert (hidden @ u).mean() == pytest.approx(1, abs=1e-4)
    assert (hidden @ u).std() < (hidden @ plain).std()


def test_the_same_seed_gives_the_same_bits(start, tmp_path):
    base, vocab_map = start
    one, two = (calibrate(base, vocab_map, TEXT, seed=3).write(tmp_path / name) for name in "ab")
    assert all(same_bytes(one.info(name), two.info(name)) for name in base.tensors)


def test_wrong_material_is_refused(start):
    base, vocab_map = start
    with pytest.raises(DataError, match="no passage to calibrate on"):
        calibrate(base, vocab_map, corpus(["a b", "c"]))
    other = tiny.tokenizer(tiny.CHICHEWA, size=290)
    size, tokens = len(Tokens.of(other)), Tokens.of(other)
    eye, how = csr_matrix(np.eye(size)), np.zeros(size, np.uint8)
    small = build_map(tokens, tokens, eye, how, ("same",), fallback="mean")
    with pytest.raises(ModelError, match=f"the map makes {size} tokens"):
        calibrate(base, small, TEXT)
