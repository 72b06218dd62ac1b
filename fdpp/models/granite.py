"""Granite 3: Llama's layers with four multipliers. Source: https://huggingface.co/ibm-granite."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Embedding, Head, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import activation, flag, number, read_config
from fdpp.models.parts import attention, embedding_and_head, gated_mlp


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    c = read_config(config)
    act, rotary = activation(config, "hidden_act", "silu"), Rotary(c.rope, c.rotary_dim)
    bias, mlp_bias = flag(config, "attention_bias"), flag(config, "mlp_bias")
    scale, residual_scale = number(config, "attention_multiplier", 1.0), number(config, "residual_multiplier", 1.0)

    def norm(name: str) -> RmsNorm:
        return RmsNorm(f"model.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Block:
        layer = f"model.layers.{index}"
        return Block(
            norm(f"layers.{index}.input_layernorm"),
            attention(c, f"{layer}.self_attn", rotary, bias=bias, o_bias=bias, softmax_scale=scale),
            norm(f"layers.{index}.post_attention_layernorm"),
            gated_mlp(c, f"{layer}.mlp", bias=mlp_bias, activation=act),
            scale=residual_scale,
        )

    scaled = number(config, "embedding_multiplier", 1.0)
    embedding = Embedding("model.embed_tokens", c.vocab_size, c.hidden_size, scale=scaled)
    embedding, linear = embedding_and_head(c, stored, embedding)
    head = Head(linear, scale=1 / number(config, "logits_scaling", 1.0))
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("norm"), head, c.max_positions)
