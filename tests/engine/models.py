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
#: Families with names of their own for their sizes: heads of 64 elements.
_OWN = {"vocab_size": VOCAB, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
_WIDE = _OWN | {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 512}
_OPT = {name: value for name, value in _WIDE.items() if name != "initializer_range"} | {"ffn_dim": 192, "init_std": 0.2}
_MPT = _OWN | {"d_model": 256, "n_heads": 4, "n_layers": 3, "max_seq_len": 512}
_PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
_TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_WINDOWS = {"sliding_window": 9, "layer_types": [_SLIDING, _FULL, _SLIDING]}
_GEMMA = _WINDOWS | {"query_pre_attn_scalar": 40}
OWN_NAMES = {
    "opt": ("OPTConfig", _OPT),
    "opt-post-norm": ("OPTConfig", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 96}),
    "opt-gelu": ("OPTConfig", _OPT | {"activation_function": "gelu", "tie_word_embeddings": False}),
    "gpt-neox": ("GPTNeoXConfig", _WIDE | {"intermediate_size": 192}),
    "gpt-neox-serial": ("GPTNeoXConfig", _WIDE | {"intermediate_size": 192, "use_parallel_residual": False}),
    "bloom": ("BloomConfig", _OWN | {"hidden_size": 256, "n_layer": 3, "n_head": 4}),
    "bloom-six-heads": ("BloomConfig", _OWN | {"hidden_size": 384, "n_layer": 2, "n_head": 6}),
    "mpt": ("MptConfig", _MPT),
    "mpt-six-heads": ("MptConfig", _MPT | {"d_model": 384, "n_heads": 6}),
    "falcon": ("FalconConfig", _WIDE),
    "falcon-rw": (
        "FalconConfig",
        _WIDE | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon-groups": ("FalconConfig", _WIDE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "starcoder2": ("Starcoder2Config", _COMMON | {"hidden_size": 256, "sliding_window": 9}),
    "stablelm": ("StableLmConfig", _COMMON | {"hidden_size": 256, "use_qkv_bias": True}),
    "stablelm-parallel": ("StableLmConfig", _COMMON | {"hidden_size": 256, "use_parallel_residual": True}),
    "phi3": ("Phi3Config", _COMMON | {"hidden_size": 256, "pad_token_id": 0, "sliding_window": 9}),
    "phi4-mini": ("Phi3Config", _COMMON | {"hidden_size": 256, "pad_token_id": 0, "rope_parameters": _PARTIAL_ROPE}),
    "gemma2": ("Gemma2Config", _COMMON | _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0}),
    "gemma3": ("Gemma3TextConfig", _COMMON | _GEMMA | {"rope_parameters": _TWO_ROPES}),
    "granite": (
        "GraniteConfig",
        _COMMON
        | {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    ),
    "olmo2": ("Olmo2Config", _COMMON | {"hidden_size": 256}),
    "smollm3": ("SmolLM3Config", _COMMON | {"pad_token_id": 0, "no_rope_layers": [1, 0, 1]}),
    "ministral": ("MinistralConfig", _COMMON | _WINDOWS),
    "glm": ("GlmConfig", _COMMON | {"pad_token_id": 0}),
    "glm4": ("Glm4Config", _COMMON | {"pad_token_id": 0}),
    # What llama.cpp knows of these by itself: which layers have a window or rotate nothing, and a scale.
    "gemma2-llama.cpp": (
        "Gemma2Config",
        _COMMON | {"sliding_window": 9, "query_pre_attn_scalar": 64, "layer_types": [_SLIDING, _FULL, _SLIDING]},
    ),
    "gemma3-llama.cpp": (
        "Gemma3TextConfig",
        _COMMON
        | {"num_hidden_layers": 7, "sliding_window": 9, "query_pre_attn_scalar": 64}
        | {"rope_parameters": _TWO_ROPES | {_SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}},
    ),
    "smollm3-llama.cpp": ("SmolLM3Config", _COMMON | {"pad_token_id": 0, "num_hidden_layers": 5}),
}
VARIANTS |= OWN_NAMES
# What a token is rotated by depends on the length of its sequence: fed in pieces, a text gives other logits than whole.
LENGTH_DEPENDENT = {
    "dynamic-rope": ("LlamaConfig", {"rope_parameters": _DYNAMIC_ROPE, "max_position_embeddings": 64}),
    "longrope": ("LlamaConfig", {"rope_parameters": _LONGROPE}),
}


def tiny_model(variant: str, **sizes: int) -> torch.nn.Module:
    """A float32 model of transformers with random weights, biases and norms included."""
    config_name, changes = (VARIANTS | LENGTH_DEPENDENT)[variant]
    config = getattr(transformers, config_name)(**((changes if variant in OWN_NAMES else _COMMON | changes) | sizes))
    torch.manual_seed(sum(map(ord, variant)))
    # Some versions take sdpa for Gemma 2, too, which leaves soft caps out.
    options = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
            if "norm" in name or "ln_" in name:
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
