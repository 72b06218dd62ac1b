"""GGUF metadata and tensor names, translated into the terms of a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.errors import CheckpointError

_CONFIG_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}

_MODEL_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tensor_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name that is not in the tables stays as it is."""
    stem, _, suffix = name.rpartition(".")
    if stem in _MODEL_TENSORS:
        return f"{_MODEL_TENSORS[stem]}.{suffix}"
    block, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if block == "blk" and layer.isdecimal() and part in _LAYER_TENSORS:
        return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.{suffix}"
    return name


def hugging_face_config(metadata: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """The ``config.json`` that belongs to a GGUF file.

    Args:
        metadata: the key/value pairs of the file.
        tensors: the names of its tensors, as :func:`tensor_name` gives them. They say what the metadata leave out:
            which biases exist and whether the embeddings are tied.
    """
    prefix = f"{metadata.get('general.architecture')}."
    config = {new: metadata.get(prefix + old) for old, new in _CONFIG_KEYS.items()}
    tokens = metadata.get("tokenizer.ggml.tokens")
    config["vocab_size"] = metadata.get(prefix + "vocab_size", len(tokens) if isinstance(tokens, list) else None)
    config["sliding_window"] = metadata.get(prefix + "attention.sliding_window")
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in tensors
    config["attention_output_bias"] = "model.layers.0.self_attn.o_proj.bias" in tensors
    config["mlp_bias"] = "model.layers.0.mlp.down_proj.bias" in tensors
    kind = metadata.get(prefix + "rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise CheckpointError(f"rope.scaling.type: expected 'none' or 'linear', got {kind!r:.80}")
    if kind == "linear":
        factor = metadata.get(prefix + "rope.scaling.factor")
        config["rope_parameters"] = {"rope_type": kind, "factor": factor, "rope_theta": config["rope_theta"]}
    _check_head_lengths(metadata, prefix, config)
    return config


def _check_head_lengths(metadata: Mapping[str, Any], prefix: str, config: Mapping[str, Any]) -> None:
    """Keys and values of one length, rotated whole: what the decoder does, said a second time in the file."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config["head_dim"]
    if head_dim is None and type(hidden) is int and type(heads) is int and heads > 0:
        head_dim = hidden // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if (length := metadata.get(prefix + key, head_dim)) != head_dim:
            raise CheckpointError(f"{key}: expected the head length {head_dim!r:.80}, got {length!r:.80}")
