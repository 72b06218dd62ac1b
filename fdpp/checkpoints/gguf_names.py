"""GGUF metadata and tensor names, translated into the terms of a Hugging Face checkpoint."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from fdpp.checkpoints.gguf_architectures import Architecture
from fdpp.checks import check_integer, check_number
from fdpp.errors import CheckpointError
from fdpp.rope_config import yarn_magnitude

_CONFIG_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}


def tensor_name(architecture: Architecture, name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name that is not in the tables stays as it is."""
    stem, _, suffix = name.rpartition(".")
    if stem in architecture.model:
        return f"{architecture.model[stem]}.{suffix}"
    block, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if block == "blk" and layer.isdecimal() and part in architecture.parts:
        return f"{architecture.layer}.{layer}.{architecture.parts[part]}.{suffix}"
    return name


def stored_name(architecture: Architecture, name: str) -> str | None:
    """The GGUF name of a Hugging Face tensor, from which :func:`tensor_name` leads back; None where there is none."""
    stem, _, suffix = name.rpartition(".")
    for stored, own in architecture.model.items():
        if architecture.old_names.get(stem, stem) == own:
            return f"{stored}.{suffix}"
    layer, _, part = stem.removeprefix(f"{architecture.layer}.").partition(".")
    if layer.isdecimal():
        for stored, own in architecture.parts.items():
            if part == own:
                return f"blk.{layer}.{stored}.{suffix}"
    return None


def hugging_face_config(
    metadata: Mapping[str, Any],
    architecture: Architecture,
    tensors: Collection[str],
    rope_factors: Mapping[str, list[float]] | None = None,
) -> dict[str, Any]:
    """The ``config.json`` that belongs to a GGUF file.

    Args:
        metadata: the key/value pairs of the file.
        architecture: of the file.
        tensors: the names of its tensors, as :func:`tensor_name` gives them. They say what the metadata leave out:
            which biases exist and whether the embeddings are tied.
        rope_factors: LongRoPE's ``short_factor`` and ``long_factor``, which are tensors of the file.
    """
    prefix = f"{metadata.get('general.architecture')}."
    config = {new: _uniform(metadata.get(prefix + old)) for old, new in _CONFIG_KEYS.items()}
    config["model_type"] = architecture.model_type
    tokens = metadata.get("tokenizer.ggml.tokens")
    config["vocab_size"] = len(tokens) if isinstance(tokens, list) else metadata.get(prefix + "vocab_size")
    config["sliding_window"] = metadata.get(prefix + "attention.sliding_window")
    config["tie_word_embeddings"] = f"{architecture.model['output']}.weight" not in tensors
    config["rope_parameters"] = rope_parameters(metadata, prefix + "rope.", rope_factors or {})
    config["head_dim"] = _head_dim(metadata, prefix, config)
    config["partial_rotary_factor"] = _rotated_share(metadata, prefix, config["head_dim"])
    stated = {new: _uniform(metadata.get(prefix + old)) for old, new in architecture.keys.items()}
    config |= {key: value for key, value in stated.items() if value is not None}
    return config | architecture.derive(dict.fromkeys(architecture.keys.values()) | config, tensors)


def rope_parameters(
    metadata: Mapping[str, Any], prefix: str, rope_factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The scaling of the rotary embedding, read as llama.cpp reads it: linear where the file does not say which."""
    scaling = prefix + "scaling."
    kind = metadata.get(scaling + "type", "longrope" if rope_factors else "linear")
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
    """The head length, after a check that keys and values share it."""
    hidden, heads, head_dim = (config[key] for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if head_dim is None and type(hidden) is int and type(heads) is int and heads > 0:
        head_dim = hidden // heads
    if (length := metadata.get(prefix + "attention.value_length", head_dim)) != head_dim:
        raise CheckpointError(f"attention.value_length: expected the head length {head_dim!r:.80}, got {length!r:.80}")
    return head_dim


def _rotated_share(metadata: Mapping[str, Any], prefix: str, head_dim: Any) -> float:
    """The part of a head that is rotated; all of it where the file does not say."""
    key = "rope.dimension_count"
    count = metadata.get(prefix + key, head_dim)
    if type(head_dim) is not int or head_dim < 1 or count == head_dim:
        return 1.0
    check_integer(key, count, 0, head_dim)
    return float(count / head_dim)
