"""Masked models and encoder-decoders learn to undo noise, which is the same after a kill."""

import json

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.data.noise import byte_sentinels, restore_spans
from calque.data.pack import Pieces
from calque.errors import ConfigError
from calque.model.checkpoint import Checkpoint
from calque.train.denoise import denoise
from calque.vocab.tokens import byte_alphabet

from .test_lm import changed, losses

SMALL = {"batch_tokens": 128, "length": 40, "lr": 3e-3, "precision": "float32", "warmup": 0.0}


@pytest.fixture(scope="session")
def masked(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    own = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), cls_token="<s>",
        sep_token="</s>", mask_token="<mask>", pad_token="<s>",
    )  # fmt: skip
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    hf.BertForMaskedLM(
        hf.BertConfig(vocab_size=len(own), max_position_embeddings=64, hidden_dropout_prob=0.0, **sizes)
    ).save_pretrained(folder)
    own.save_pretrained(folder)
    return Checkpoint.at(folder)


@pytest.fixture(scope="session")
def bytes_t5(tmp_path_factory):
    """A byte model: 0 padding, 1 end, 2 unknown, then the bytes; the vocabulary is rounded up to 384."""
    folder = tmp_path_factory.mktemp("byt5")
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{c: b + 3 for c, b in byte_alphabet().items()}}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    own = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    assert own("é", add_special_tokens=False)["input_ids"] == [198, 172]
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=384, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=1, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    hf.T5ForConditionalGeneration(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return Checkpoint.at(folder)


def test_masked_tokens_are_restored(masked, corpus, tmp_path):
    result = denoise(masked, corpus, work=tmp_path, noise="masks", steps=25, density=0.3, **SMALL)
    seen = losses(tmp_path)
    assert sum(seen[-4:]) < 0.9 * sum(seen[:4]) and result.config["architectures"] == ["BertForMaskedLM"]
    pieces, tokenizer = Pieces.load(tmp_path / "text.tokens"), masked.tokenizer()
    assert max(pieces.size(n) for n in range(len(pieces))) <= 40
    text = "".join(tokenizer.decode(pieces.piece(n)[1:-1]) for n in range(len(pieces)))
    assert text == "".join(corpus.texts())
    assert "bits_per_byte" in json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])


def test_spans_of_a_byte_model(bytes_t5, tmp_path):
    text = Corpus.of(Example(str(n), {"nya_Latn": "mawu a Mulungu ndi é " * 30}, str(n)) for n in range(3))
    settings = {**SMALL, "batch_tokens": 256, "length": 64, "mean_span": 5.0, "sentinels": "bytes"}
    result = denoise(bytes_t5, text, text, work=tmp_path, noise="spans", steps=12, check_steps=6, **settings)
    seen = losses(tmp_path)
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])
    assert result.config["architectures"] == ["T5ForConditionalGeneration"]
    notes = json.loads((result.folder / "training.json").read_text())["stage 0"]
    assert notes["best_step"] == 12 and notes["best"] > 0


def test_a_causal_model_learns_spans_too(base, corpus, tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="no sentinels <extra_id_0>"):
        denoise(base, corpus, work=tmp_path, noise="spans", steps=1, **SMALL)
    with pytest.raises(ConfigError, match="no mask token"):
        denoise(base, corpus, work=tmp_path, noise="masks", steps=1, **SMALL)
    denoise(base, corpus, work=tmp_path, noise="spans", sentinels="bytes", steps=8, **SMALL)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


def test_noise_is_the_same_after_a_kill_and_another_in_each_epoch(masked, tmp_path, monkeypatch):
    from calque.train import steps

    text = Corpus.of(Example(str(n), {"nya_Latn": "anthu onse amabadwa ali omasuka"}, str(n)) for n in (1, 2))
    settings = {**SMALL, "batch_tokens": 60, "save_steps": 2, "steps": 6, "noise": "masks", "density": 0.3}
    straight = denoise(masked, text, work=tmp_path / "a", **settings)
    real = steps._show

    def show(shown, amount, line):
        if line["step"] == 4:
            raise KeyboardInterrupt
        real(shown, amount, line)

    monkeypatch.setattr(steps, "_show", show)
    with pytest.raises(KeyboardInterrupt):
        denoise(masked, text, work=tmp_path / "b", **settings)
    monkeypatch.setattr(steps, "_show", real)
    resumed = denoise(masked, text, work=tmp_path / "b", **settings)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and not changed(straight, resumed)
    assert len(set(losses(tmp_path / "a"))) == 6


def test_byte_sentinels_of_a_text_go_back(bytes_t5):
    assert restore_spans([5, 258, 6], [258, 7, 8, 257, 9], byte_sentinels()).tolist() == [5, 7, 8, 6]
