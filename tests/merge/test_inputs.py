"""Rows are matched by token, never by index; what one model lacks comes from the first that has it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from calque.errors import ModelError
from calque.merge.inputs import is_buffer, line_up
from calque.merge.match import match_tokens
from calque.merge.stream import ahead, chunks, elementwise, whole
from calque.merge.union import union
from calque.model.checkpoint import Checkpoint
from calque.vocab.tokens import Tokens

from .. import tiny
from .kin import family

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models whose tokenizers share some tokens, and a third with the first one's in another order."""
    folder = tmp_path_factory.mktemp("models")
    made = [tiny.model(folder / f"m{seed}", seed=seed) for seed in range(3)]
    tiny.tokenizer(tiny.CHICHEWA).save_pretrained(made[1])
    shuffle(made[2] / "tokenizer.json")
    return [Checkpoint.open(folder) for folder in made]


def shuffle(file):
    spec = json.loads(file.read_text())
    vocabulary = spec["model"]["vocab"]
    fixed = len(tiny.SPECIAL)
    names = sorted(vocabulary, key=vocabulary.get)
    order = [*names[:fixed], *names[fixed:][::-1]]
    spec["model"]["vocab"] = {name: place for place, name in enumerate(order)}
    file.write_text(json.dumps(spec))


def mean(name, base, tuned):
    return sum(tuned, base) / (1 + len(tuned))


def strings(checkpoint):
    return Tokens.of(checkpoint.tokenizer()).strings


def test_tokens_under_other_ids_are_lined_up_without_a_word_from_the_user(models, tmp_path):
    base, _, other = models
    inputs = line_up(base, [other])
    out = inputs.rewrite(elementwise(inputs, mean)).write(tmp_path / "out")
    mine, theirs = strings(base), strings(other)
    for name in TABLES:
        one, two, made = base.read(name), other.read(name), out.read(name)
        for token, string in enumerate(mine):
            assert torch.equal(made[token], (one[token] + two[theirs.index(string)]) / 2)
        assert torch.equal(made[len(mine) :], one[len(mine) :]), "padding is the base's"


@pytest.mark.parametrize("vocabulary", ["base", "union"])
def test_differing_vocabularies(models, tmp_path, vocabulary):
    base, other, _ = models
    inputs = line_up(base, [other], vocabulary=vocabulary)
    out = inputs.rewrite(elementwise(inputs, mean)).write(tmp_path / "out", text=["the house", "nyumba"])
    made, mine, theirs = strings(out), strings(base), strings(other)
    assert made[: len(mine)] == mine
    assert (set(made) == set(mine) | set(theirs)) if vocabulary == "union" else (made == mine)
    for name in TABLES:
        one, two, result = base.read(name), other.read(name), out.read(name)
        for token, string in enumerate(made):
            row = one[mine.index(string)] if string in mine else two[theirs.index(string)]
            again = two[theirs.index(string)] if string in theirs else row
            assert torch.allclose(result[token], (row + again) / 2, rtol=0, atol=1e-7)
    assert out.config["vocab_size"] == len(out.read(TABLES[0]))


def test_the_union_grows_the_matrices_when_the_padding_is_full(tmp_path):
    folders = []
    for lines in (tiny.ENGLISH, tiny.CHICHEWA):
        folder = tiny.model(tmp_path / f"full{len(folders)}", seed=len(folders), vocab_size=290)
        tiny.tokenizer(lines).save_pretrained(folder)
        folders.append(Checkpoint.open(folder))
    inputs = line_up(folders[0], folders[1:], vocabulary="union")
    out = inputs.rewrite(elementwise(inputs, mean)).write(tmp_path / "out", text=["nyumba ili pa phiri"])
    assert len(out.read(TABLES[0])) == out.config["vocab_size"] == 317


def test_the_union_cuts_both_languages_as_their_own_tokenizers(models):
    one, two = (Tokens.of(model.tokenizer()) for model in models[:2])
    both = union(one, [two])
    assert both.decode(both.encode("nyumba ili pa phiri")) == "nyumba ili pa phiri"
    assert len(both.encode(tiny.CHICHEWA[0])) <= len(one.encode(tiny.CHICHEWA[0]))


def test_matching_a_vocabulary_with_itself_is_the_identity(models):
    tokens = Tokens.of(models[0].tokenizer())
    assert np.array_equal(match_tokens(tokens, tokens), np.arange(len(tokens)))


def test_byte_tokens_match_by_their_value():
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "A", "▁the"]
    backend = Tokenizer(BPE({piece: place for place, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Metaspace()
    theirs = Tokens.wrap(backend, roles={"unk": "<unk>"})
    mine = Tokens.of(tiny.tokenizer())
    found = match_tokens(mine, theirs)
    for token, surface in enumerate(mine.surface):
        if surface is not None and len(surface) == 1:
            expected = {b" ": "▁", b"A": "A"}.get(surface, f"<0x{surface[0]:02X}>")
            assert theirs.strings[found[token]] == expected


def test_tied_matrices_are_counted_once_and_buffers_never(tmp_path):
    pair = [Checkpoint.open(tiny.model(tmp_path / f"t{seed}", "llama-tied", seed=seed)) for seed in (0, 1)]
    names = line_up(pair[0], pair[1:]).names
    assert len(set(names)) == len(names) and "lm_head.weight" not in names
    neox = Checkpoint.open(tiny.model(tmp_path / "neox", "gpt-neox"))
    assert is_buffer(neox, "gpt_neox.layers.0.attention.rotary_emb.inv_freq")
    assert is_buffer(neox, "gpt_neox.layers.1.attention.masked_bias")
    assert not is_buffer(neox, "gpt_neox.layers.1.attention.dense.weight")


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_every_architecture_can_be_merged_with_itself(tmp_path, architecture):
    pair = [Checkpoint.open(tiny.model(tmp_path / f"m{seed}", architecture, seed=seed)) for seed in (0, 1)]
    inputs = line_up(pair[0], pair[1:])
    out = inputs.rewrite(elementwise(inputs, mean)).write(tmp_path / "out")
    for name in inputs.names:
        assert torch.equal(out.read(name), (pair[0].read(name) + pair[1].read(name)) / 2), name
    assert {row.name for row in inputs.copies()} == set(out.tensors) - set(inputs.names)


def test_whole_tensors_and_blocks_give_the_same(models, tmp_path):
    inputs = line_up(models[0], [models[2]])
    one = inputs.rewrite(elementwise(inputs, mean)).write(tmp_path / "one")
    two = inputs.rewrite(whole(inputs, mean)).write(tmp_path / "two")
    assert all(torch.equal(one.read(name), two.read(name)) for name in inputs.names)


@given(size=st.integers(200, 50_000))
@settings(max_examples=10)
def test_blocks_of_any_size_make_the_tensor(models, size):
    inputs = line_up(models[0], [models[2]])
    for name in (*TABLES, "model.norm.weight"):
        sources = inputs.sources(name)
        for place, source in enumerate(sources):
            joined = torch.cat([blocks[place] for blocks in chunks(sources, size * 4)])
            assert torch.equal(joined, source.read())


def test_what_fails_ahead_is_raised_where_it_is_used():
    def three():
        yield 1
        raise ModelError("no more")

    items = ahead(three())
    assert next(items) == 1
    with pytest.raises(ModelError, match="no more"):
        next(items)


def test_the_diagnosis_is_what_the_whole_tensors_say(models, tmp_path):
    base, _, other = models
    inputs = line_up(base, [other])
    out = inputs.rewrite(elementwise(inputs, mean)).write(tmp_path / "out")
    said = json.loads((out.folder / "rewrite.json").read_text())["tensors"]
    name = "model.layers.0.mlp.up_proj.weight"
    change = other.read(name) - base.read(name)
    assert said[name]["layer"] == 0 and said[name]["role"] == "mlp.up"
    assert said[name]["norm"][0] == pytest.approx(float(change.norm()), rel=1e-3)
    assert said[name]["merged"] == pytest.approx(float(change.norm()) / 2, rel=1e-3)
    assert said[name]["changed"] == pytest.approx(1.0, abs=0.01) and said[name]["conflict"] == 0
    assert set(inputs.names) <= said.keys()


def test_a_union_of_unigram_tokenizers_is_refused_with_the_reason():
    def unigram(*words):
        scores = [("<unk>", 0.0), *((word, -1.0) for word in words)]
        return Tokens.wrap(Tokenizer(Unigram(scores, unk_id=0)))

    with pytest.raises(ModelError, match=r"Unigram cuts by probabilities of tokens.*: use --vocabulary base"):
        union(unigram("a", "b"), [unigram("a", "c")])


def test_settings_that_weights_notice_are_said(tmp_path, capsys):
    base, (tuned,) = family(tmp_path, (0.02,))
    tiny.edit_json(tuned.folder / "config.json", rms_norm_eps=0.1)
    tuned = Checkpoint.at(tuned.folder)
    notes = line_up(base, [tuned]).notes
    assert notes["settings"] == {str(tuned.folder): {"rms_norm_eps": 0.1}}
    assert "rms_norm_eps is 0.1; the result has the base's, 1e-06" in capsys.readouterr().err
    assert "settings" not in line_up(base, [base]).notes
