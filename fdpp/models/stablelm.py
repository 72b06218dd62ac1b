"""StableLM 2: Llama's layers with layer norms and heads that are rotated in part. Source: arXiv 2402.17834."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Head, Layer, LayerNorm, ParallelBlock
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import activation, expect, flag, number, read_config
from fdpp.models.parts import attention, embedding_and_head, gated_mlp


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    expect(config, qk_layernorm=False)
    config = {"partial_rotary_factor": 0.25} | dict(config)
    c = read_config(config, norm_eps=number(config, "layer_norm_eps", 1e-5))
    bias, act = flag(config, "use_qkv_bias"), activation(config, "hidden_act", "silu")
    parallel, rotary = flag(config, "use_parallel_residual"), Rotary(c.rope, c.rotary_dim)

    def norm(name: str) -> LayerNorm:
        return LayerNorm(f"model.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Layer:
        layer = f"model.layers.{index}"
        heads = attention(c, f"{layer}.self_attn", rotary, bias=bias)
        first, mlp = norm(f"layers.{index}.input_layernorm"), gated_mlp(c, f"{layer}.mlp", activation=act)
        if parallel:
            return ParallelBlock(first, heads, None, mlp)
        return Block(first, heads, norm(f"layers.{index}.post_attention_layernorm"), mlp)

    embedding, head = embedding_and_head(c, stored)
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("norm"), Head(head), c.max_positions)
