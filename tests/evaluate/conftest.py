"""A tokenizer, tiny random models and texts that the tests of this folder share."""

from pathlib import Path

import pytest
import torch
from tests import tiny as tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.evaluate.lm import Reader
from calque.model.checkpoint import Checkpoint

VERSES = [
    "Pachiyambi Mulungu adalenga kumwamba ndi dziko lapansi.",
    "Ndipo dziko lapansi linali lopanda kanthu, mdima unali pamwamba pa nyanja.",
    "Ng'ombe zinayi zinayenda m'mudzi; mwana anaona 1,234 mbalame.",
    "Mulungu anati, Kuwale; ndipo kunawala. “Zabwino”, anatero — café ሰላም 你好.",
]


def byte_level(size=300, bos="<s>"):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [bos] if bos else []
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(VERSES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"bos_token": bos} if bos else {}))


def save_model(folder: Path, tokenizer, seed=0, **changes):
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)  # far from uniform, so that a wrong context shows
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.at(folder)


def corpus(language="nya_Latn", documents=4, lines=6):
    return Corpus.of(
        Example(f"{d}.{n}", {language: f"{VERSES[(d + n) % 4]} {d}"}, group=f"BOOK{d}")
        for d in range(documents)
        for n in range(lines + 2 * d)
    )


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("tiny"), tokenizer)


@pytest.fixture(scope="session")
def books():
    return corpus()


@pytest.fixture(scope="session", params=["t5", "marian"])
def between(request, tmp_path_factory):
    """An encoder-decoder whose tokenizer ends every text with </s>."""
    folder = tiny_models.model(tmp_path_factory.mktemp("between") / request.param, request.param)
    file = folder / "tokenizer.json"
    backend = Tokenizer.from_file(str(file))
    end = backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    backend.save(str(file))
    for name in ("config.json", "generation_config.json"):
        tiny_models.edit_json(folder / name, decoder_start_token_id=0)
    return Reader.open("m", Checkpoint.at(folder), torch.float32)
