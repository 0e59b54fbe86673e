"""Tiny models and tokenizers made on the spot: random weights, real file formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<pad>", "<s>", "</s>")
ENGLISH = ["the house stands on the hill", "a word is carried over into another language", "12 of 345 cats"]
CHICHEWA = ["nyumba ili pa phiri", "mawu amanyamulidwa kupita ku chilankhulo china", "amphaka 12 mwa 345"]

_SIZES = dict(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_T5 = dict(vocab_size=320, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
_MARIAN = dict(
    vocab_size=320,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=64,
    pad_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=0,
)
_GPT2 = dict(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2),
    "bert": ("BertConfig", "BertForMaskedLM", {}),
    "bert-headless": ("BertConfig", "BertModel", {}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {}),
    "xlm-r": ("XLMRobertaConfig", "XLMRobertaForMaskedLM", {}),
    "xmod": (
        "XmodConfig",
        "XmodForMaskedLM",
        {"languages": ["en_XX", "sw_KE"], "default_language": "en_XX"},
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", {**_T5, "tie_word_embeddings": False}),
    "marian": ("MarianConfig", "MarianMTModel", _MARIAN),
    "m2m": ("M2M100Config", "M2M100ForConditionalGeneration", _MARIAN),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            "num_experts": 4,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    ),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
}

# Not in the tables of names: they go by the generic rule.
UNKNOWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", {"tie_word_embeddings": True}),
    "phi": ("PhiConfig", "PhiForCausalLM", {}),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", _MARIAN),
    "gpt-oss": ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": 4}),
    "deepseek": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        dict(
            n_routed_experts=4,
            moe_intermediate_size=16,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
        ),
    ),
}


def tokenizer(lines=ENGLISH, size: int = 290, *, like: str = "") -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE with pad, bos and eos as ids 0, 1, 2.

    For qwen2, whose tokenizer class transformers decides itself, it cuts text as that class does.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = SPECIAL
    if like == "qwen2":
        qwen = hf.Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
        backend.normalizer, backend.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
        special = (*SPECIAL, "<|endoftext|>")
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([line for line in lines for _ in range(5)], trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )


def model(
    folder: Path, architecture: str = "llama", *, dtype=torch.float32, seed: int = 0, **settings
) -> Path:
    """Save a random tiny model with the English tokenizer; 320 rows, of which the tokenizer uses fewer."""
    config_name, model_name, own = {**ARCHITECTURES, **UNKNOWN}[architecture]
    sizes = own if own.get("vocab_size") else {**_SIZES, **own}
    torch.manual_seed(seed)
    made = getattr(hf, model_name)(getattr(hf, config_name)(**{**sizes, **settings}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    made.to(dtype).save_pretrained(folder)
    tokenizer(like=architecture).save_pretrained(folder)
    return folder


def edit_json(file: Path, **changes) -> None:
    """Set top-level keys of a JSON file; None removes a key."""
    content = json.loads(file.read_text())
    for key, value in changes.items():
        content.pop(key, None)
        if value is not None:
            content[key] = value
    file.write_text(json.dumps(content))
