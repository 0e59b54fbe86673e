"""A model and a text small enough to train in a second."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.model.checkpoint import Checkpoint

SENTENCE = "anthu onse amabadwa ali omasuka ndipo ndi wofanana pa ulemu wao ndi zowayenereza"
WORDS = SENTENCE.split()


def document(number: int) -> str:
    """Some words in an order that can be learnt."""
    start, size = number * 5 % len(WORDS), 4 + number * 7 % 23
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(size))


@pytest.fixture(scope="session")
def texts():
    return [document(number) for number in range(40)]


@pytest.fixture(scope="session")
def corpus(texts):
    return Corpus.of(Example(str(n), {"nya_Latn": t}, group=str(n)) for n, t in enumerate(texts))


@pytest.fixture(scope="session")
def tokenizer(texts):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def llama(vocabulary: int, *, tied: bool = True, layers: int = 4) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=None,
        )
    )


@pytest.fixture(scope="session", params=[True, False], ids=["tied", "untied"])
def any_base(request, tokenizer, tmp_path_factory):
    return save(tokenizer, tmp_path_factory.mktemp("base"), tied=request.param)


@pytest.fixture(scope="session")
def base(tokenizer, tmp_path_factory):
    return save(tokenizer, tmp_path_factory.mktemp("base"), tied=True)


def save(tokenizer, folder, *, tied):
    llama(len(tokenizer), tied=tied).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.at(folder)
