"""Writes a small model of transformers as a GGUF file, the way llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from fdpp.engine.rope import inverse_frequencies
from fdpp.models.rope import rope_config
from fdpp.rope_config import Llama3Scaling, LongRopeScaling, YarnScaling
from tests.ops.stored import random_blocks

#: llama.cpp's names of what transformers calls otherwise.
_ARCHITECTURES = {"mistral": "llama", "gpt_neox": "gptneox", "gemma3_text": "gemma3", "glm": "chatglm"}
_PERMUTED = ("llama", "mistral", "granite", "smollm3")
_WITH_ALIBI = ("bloom", "mpt")
#: What some families write: key, and the attribute of the config.
_EXTRA_KEYS = {
    "use_parallel_residual": "use_parallel_residual",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
    "logit_scale": "logits_scaling",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
}


def write_gguf(
    path: Path,
    model: torch.nn.Module,
    kind: gguf.GGMLQuantizationType | Callable[[str], gguf.GGMLQuantizationType] = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model``; matrices are stored as ``kind`` (of the name), and **mutated** to what that storage can express.

    Of the kinds that the gguf package cannot write, blocks are random, whatever the values are.
    """
    kind_of = kind if callable(kind) else lambda name: kind
    config = model.config
    kind_of_model = config.model_type
    permuted, architecture = kind_of_model in _PERMUTED, _ARCHITECTURES.get(kind_of_model, kind_of_model)
    writer = gguf.GGUFWriter(path, architecture)
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    kv_heads = _kv_heads(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_first(config, "max_position_embeddings", "max_seq_len", "seq_length") or 2048)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(_first(config, "intermediate_size", "ffn_hidden_size") or 4 * hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if kind_of_model not in _WITH_ALIBI:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        rope = config.rope_parameters
        rope = rope.get("full_attention", rope)
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope["rope_theta"])
        _add_rope_scaling(writer, config, head_dim)
    if (eps := _first(config, "rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(_first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"))
    if kind_of_model == "mpt":
        writer.add_max_alibi_bias(config.attn_config.alibi_bias_max)
    for key, attribute in _EXTRA_KEYS.items():
        if (value := getattr(config, attribute, None)) is not None and kind_of_model not in (
            "mistral",
            "qwen2",
            "qwen3",
        ):
            writer.add_key_value(f"{architecture}.{key}", value, _type(value))
    for key, value in (metadata or {}).items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_key_value(key, value, _type(value))
    enum = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(enum, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        values, own = parameter.detach().numpy(), kind_of(name)
        is_quantised = values.ndim > 1 and own != gguf.GGMLQuantizationType.F32
        if is_quantised:
            values = _quantised(values, own)  # rows from here on, whose values are put into the model
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(values, own)))
        if permuted and ("q_proj" in name or "k_proj" in name):
            values = _interleave(values, heads if "q_proj" in name else kv_heads)
        if "query_key_value" in name and kind_of_model in ("gpt_neox", "bloom", "falcon"):
            values = _ungroup(values, kv_heads, heads // kv_heads, head_dim)
        if kind_of_model.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        plain = not is_quantised or own == gguf.GGMLQuantizationType.F16
        writer.add_tensor(_gguf_name(names, name), np.ascontiguousarray(values), raw_dtype=None if plain else own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantised(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """``[rows, ...]``; the rows can change their order like those of the values."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        return random_blocks(kind.name.lower(), *values.shape, magnitude=0.02).numpy()


def _add_rope_scaling(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    values = config.to_dict()
    both = values["rope_parameters"]
    read = rope_config(values | {"rope_parameters": both.get("full_attention", both)})
    if read.linear_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(read.linear_factor)
    if isinstance(read.scaling, Llama3Scaling):
        plain = 1.0 / (read.theta ** (torch.arange(0, head_dim, 2) / head_dim))
        divisors = plain / inverse_frequencies(read, head_dim)
        writer.add_tensor("rope_freqs.weight", divisors[0].float().numpy())
    if isinstance(read.scaling, YarnScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(read.scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(read.scaling.original_max_positions)
    if isinstance(read.scaling, LongRopeScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(read.scaling.original_max_positions)
        writer.add_rope_scaling_attn_factors(read.attention_factor)
        writer.add_tensor("rope_factors_short.weight", np.array(read.scaling.short_factors, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(read.scaling.long_factors, np.float32))


def _interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows (half, pair) of each head to (pair, half)."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _ungroup(values: np.ndarray, groups: int, queries: int, head_dim: int) -> np.ndarray:
    """Rows of each group (its queries, its key, its value) to all queries, all keys, all values."""
    rows = values.reshape(groups, queries + 2, head_dim, *values.shape[1:])
    parts = (rows[:, :queries], rows[:, queries : queries + 1], rows[:, queries + 1 :])
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])


def _kv_heads(config: Any) -> int:
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        return 1 if config.multi_query else config.num_attention_heads
    return _first(config, "num_key_value_heads", "num_kv_heads") or config.num_attention_heads


def _first(config: Any, *attributes: str) -> Any:
    return next((value for name in attributes if (value := getattr(config, name, None)) is not None), None)


def _gguf_name(names: gguf.TensorNameMap, name: str) -> str:
    """The converter leaves out the prefix of some families."""
    stem, _, suffix = name.rpartition(".")
    found = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
    assert found is not None, name
    return f"{found}.{suffix}"


def _type(value: Any) -> gguf.GGUFValueType:
    return gguf.GGUFValueType.get_type(value)
