"""OLMo 2: norms after attention and MLP only, and norms of all queries and of all keys. Source: arXiv 2501.00656."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Head, NoNorm, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import activation, flag, read_config
from fdpp.models.parts import attention, embedding_and_head, gated_mlp


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    c = read_config({"rms_norm_eps": 1e-5} | dict(config))
    act, bias = activation(config, "hidden_act", "silu"), flag(config, "attention_bias")
    rotary = Rotary(c.rope, c.rotary_dim)

    def norm(name: str, size: int = c.hidden_size) -> RmsNorm:
        return RmsNorm(f"model.{name}", size, c.norm_eps)

    def block(index: int) -> Block:
        layer, heads = f"layers.{index}", f"layers.{index}.self_attn"
        q_norm, k_norm = norm(f"{heads}.q_norm", c.q_size), norm(f"{heads}.k_norm", c.kv_size)
        return Block(
            NoNorm(),
            attention(c, f"model.{heads}", rotary, bias=bias, o_bias=bias, q_norm=q_norm, k_norm=k_norm),
            NoNorm(),
            gated_mlp(c, f"model.{layer}.mlp", activation=act),
            after_attention=norm(f"{layer}.post_attention_layernorm"),
            after_mlp=norm(f"{layer}.post_feedforward_layernorm"),
        )

    embedding, head = embedding_and_head(c, stored)
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("norm"), Head(head), c.max_positions)
