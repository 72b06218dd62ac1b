"""Tiny random models of every family, as transformers makes them."""

from __future__ import annotations

from typing import Any

import tokenizers
import torch
import transformers

VOCAB = 300
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}
_YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 64 for i in range(32)],
    "long_factor": [1.0 + i / 4 for i in range(32)],
}

# name: (class of the config, what differs from _COMMON)
VARIANTS = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("LlamaConfig", {"rope_parameters": _LLAMA3_ROPE}),
    "linear-rope": ("LlamaConfig", {"rope_parameters": _LINEAR_ROPE}),
    "yarn-rope": ("LlamaConfig", {"rope_parameters": _YARN_ROPE}),
    "mistral-window": ("MistralConfig", {"sliding_window": 11}),
    "mistral-full": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {}),
    "qwen3-wide": ("Qwen3Config", {"head_dim": 80, "attention_bias": True, "num_key_value_heads": 1}),
}
# What a token is rotated by depends on the length of its sequence: fed in pieces, a text gives other logits than whole.
LENGTH_DEPENDENT = {
    "dynamic-rope": ("LlamaConfig", {"rope_parameters": _DYNAMIC_ROPE, "max_position_embeddings": 64}),
    "longrope": ("LlamaConfig", {"rope_parameters": _LONGROPE}),
}


def tiny_model(variant: str) -> torch.nn.Module:
    """A float32 model of transformers with random weights, biases and norms included."""
    config_name, changes = (VARIANTS | LENGTH_DEPENDENT)[variant]
    config = getattr(transformers, config_name)(**(_COMMON | changes))
    torch.manual_seed(sum(map(ord, variant)))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d"), ("Ġ", "and"), ("i", "n"), ("e", "r")]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_vocabulary() -> list[str]:
    """Special tokens, the 256 bytes in GPT-2's spelling, the merges, and fillers up to VOCAB."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = SPECIAL + alphabet + [left + right for left, right in MERGES]
    return tokens + [f"filler{i}" for i in range(VOCAB - len(tokens))]


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over :func:`tiny_vocabulary`."""
    vocabulary = {token: index for index, token in enumerate(tiny_vocabulary())}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in SPECIAL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )


def tiny_gguf_tokenizer() -> dict[str, Any]:
    """The same tokenizer as the metadata of a GGUF file."""
    tokens = tiny_vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
