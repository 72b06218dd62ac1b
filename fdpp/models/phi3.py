"""Phi-3 and Phi-4-mini: Llama's layers with merged projections, LongRoPE and heads that are rotated in part.

Source: arXiv 2404.14219.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Head, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import activation, read_config, sliding_window
from fdpp.models.parts import attention, embedding_and_head, gated_mlp


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    c = read_config({"rms_norm_eps": 1e-5} | dict(config))
    act, window = activation(config, "hidden_act", "silu"), sliding_window(config, None)
    rotary = Rotary(c.rope, c.rotary_dim)

    def norm(name: str) -> RmsNorm:
        return RmsNorm(f"model.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Block:
        layer = f"model.layers.{index}"
        rows = {"qkv_proj": c.q_size + 2 * c.kv_size}
        return Block(
            norm(f"layers.{index}.input_layernorm"),
            attention(c, f"{layer}.self_attn", rotary, qkv=rows, window=window),
            norm(f"layers.{index}.post_attention_layernorm"),
            gated_mlp(c, f"{layer}.mlp", activation=act, merged="gate_up_proj"),
        )

    embedding, head = embedding_and_head(c, stored)
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("norm"), Head(head), c.max_positions)
