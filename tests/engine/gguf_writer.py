"""Writes a small model of transformers as a GGUF file, the way llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from fdpp.checkpoints.gguf_names import _LAYER_TENSORS, _MODEL_TENSORS
from fdpp.engine import rope
from fdpp.models.rope import rope_config
from fdpp.rope_config import Llama3Scaling, LongRopeScaling, YarnScaling

_GGUF_NAMES = {new: old for table in (_LAYER_TENSORS, _MODEL_TENSORS) for old, new in table.items()}


def write_gguf(
    path: Path,
    model: torch.nn.Module,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model``; matrices are stored as ``kind``, and **mutated** to what that storage can express."""
    config = model.config
    permuted = config.model_type in ("llama", "mistral")
    writer = gguf.GGUFWriter(path, "llama" if permuted else config.model_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_rope_scaling(writer, config)
    for key, value in (metadata or {}).items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_key_value(key, value, _type(value))
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if values.ndim > 1 and kind != gguf.GGMLQuantizationType.F32:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values))
        if permuted and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = _interleave(values, heads)
        stored = gguf.quants.quantize(values, kind) if values.ndim > 1 else values
        plain = values.ndim == 1 or kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(stored), raw_dtype=None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_rope_scaling(writer: gguf.GGUFWriter, config: Any) -> None:
    read = rope_config(config.to_dict())
    if read.linear_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(read.linear_factor)
    if isinstance(read.scaling, Llama3Scaling):
        plain = 1.0 / (read.theta ** (torch.arange(0, config.head_dim, 2) / config.head_dim))
        divisors = plain / rope.inverse_frequencies(read, config.head_dim)
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


def _gguf_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    parts = stem.split(".")
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{_GGUF_NAMES['.'.join(parts[3:])]}.{suffix}"
    return f"{_GGUF_NAMES[stem]}.{suffix}"


def _type(value: Any) -> gguf.GGUFValueType:
    return gguf.GGUFValueType.get_type(value)
