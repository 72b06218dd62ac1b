"""GGUF metadata and tensor names, translated into the terms of a Hugging Face checkpoint."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from fdpp.checks import check_number
from fdpp.errors import CheckpointError
from fdpp.rope_config import yarn_magnitude

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

# llama.cpp stores the rows of q and k in the order of interleaved rotary pairs for these architectures.
_WITH_ROTARY_PAIRS = {"llama", "mistral"}


def has_rotary_pairs(architecture: str, name: str) -> bool:
    """Whether the rows of a head are stored as (pair, half) in the GGUF tensor ``name``, and not as (half, pair)."""
    return architecture in _WITH_ROTARY_PAIRS and name.rpartition(".")[0].endswith((".attn_q", ".attn_k"))


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


def hugging_face_config(
    metadata: Mapping[str, Any], tensors: Collection[str], rope_factors: Mapping[str, list[float]] | None = None
) -> dict[str, Any]:
    """The ``config.json`` that belongs to a GGUF file.

    Args:
        metadata: the key/value pairs of the file.
        tensors: the names of its tensors, as :func:`tensor_name` gives them. They say what the metadata leave out:
            which biases exist and whether the embeddings are tied.
        rope_factors: LongRoPE's ``short_factor`` and ``long_factor``, which are tensors of the file.
    """
    prefix = f"{metadata.get('general.architecture')}."
    config = {new: _uniform(metadata.get(prefix + old)) for old, new in _CONFIG_KEYS.items()}
    config["model_type"] = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens")
    config["vocab_size"] = len(tokens) if isinstance(tokens, list) else metadata.get(prefix + "vocab_size")
    config["sliding_window"] = metadata.get(prefix + "attention.sliding_window")
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in tensors
    config["attention_output_bias"] = "model.layers.0.self_attn.o_proj.bias" in tensors
    config["mlp_bias"] = "model.layers.0.mlp.down_proj.bias" in tensors
    config["rope_parameters"] = rope_parameters(metadata, prefix + "rope.", rope_factors or {})
    config["head_dim"] = _head_dim(metadata, prefix, config)
    return config


def rope_parameters(
    metadata: Mapping[str, Any], prefix: str, rope_factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The scaling of the rotary embedding, read as llama.cpp reads it: linear where the file does not say which."""
    scaling = prefix + "scaling."
    kind = metadata.get(scaling + "type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise CheckpointError(f"rope.scaling.type: expected none, linear, yarn or longrope, got {kind!r:.80}")
    if rope_factors and kind != "longrope":
        raise CheckpointError(f"rope.scaling.type: expected longrope beside tensors of its factors, got {kind!r}")
    if kind == "none":
        return {"rope_type": "default"}
    # Files from before YaRN have the old key; 0 stands for no scaling.
    factor = metadata.get(scaling + "factor", metadata.get(prefix + "scale_linear", 0))
    factor = 1.0 if factor == 0 else factor
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    check_number("rope.scaling.factor", factor, 1e-3, 1e6)
    attention = metadata.get(scaling + "attn_factor", 1.0)
    check_number("rope.scaling.attn_factor", attention, 1e-3, 1e3)
    parameters = {
        "rope_type": kind,
        "original_max_position_embeddings": metadata.get(scaling + "original_context_length"),
    }
    if kind == "longrope":
        if factor != 1.0:
            raise CheckpointError(f"rope.scaling.factor: expected none with longrope, got {factor!r:.80}")
        return {**parameters, **rope_factors, "attention_factor": attention}
    return parameters | {
        "factor": factor,
        "beta_fast": metadata.get(scaling + "yarn_beta_fast"),
        "beta_slow": metadata.get(scaling + "yarn_beta_slow"),
        "attention_factor": attention * _yarn_attention(metadata, scaling, factor),
    }


def _yarn_attention(metadata: Mapping[str, Any], scaling: str, factor: float) -> float:
    """What llama.cpp makes of the factor and the logarithm's multiplier.

    It has two more keys, which it overrides for YaRN: a file in which they say something else is refused.
    """
    multiplier = metadata.get(scaling + "yarn_log_multiplier", 0.0)
    check_number("rope.scaling.yarn_log_multiplier", multiplier, 0.0, 1e3)
    computed = yarn_magnitude(factor) / (yarn_magnitude(factor, multiplier) if multiplier else 1.0)
    for key, expected in (("yarn_ext_factor", (-1.0, 1.0)), ("yarn_attn_factor", (-1.0, 1.0, computed))):
        value = metadata.get(scaling + key, 1.0)
        check_number(f"rope.scaling.{key}", value, -1e3, 1e3)
        if not any(math.isclose(value, number, rel_tol=1e-4) for number in expected):
            raise CheckpointError(f"rope.scaling.{key}: expected {expected[-1]:g}, got {value:g}")
    return computed


def _uniform(value: Any) -> Any:
    """The value that all layers have, where the file gives it for each of them."""
    return value[0] if isinstance(value, list) and value and value.count(value[0]) == len(value) else value


def _head_dim(metadata: Mapping[str, Any], prefix: str, config: Mapping[str, Any]) -> Any:
    """The head length, after a check that keys and values share it and are rotated whole."""
    hidden, heads, head_dim = (config[key] for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if head_dim is None and type(hidden) is int and type(heads) is int and heads > 0:
        head_dim = hidden // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if (length := metadata.get(prefix + key, head_dim)) != head_dim:
            raise CheckpointError(f"{key}: expected the head length {head_dim!r:.80}, got {length!r:.80}")
    return head_dim
