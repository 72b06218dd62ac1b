"""StarCoder2: Llama's names with layer norms and plain MLPs. Source: arXiv 2402.19173."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Head, LayerNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import activation, flag, number, read_config, sliding_window
from fdpp.models.parts import attention, embedding_and_head, plain_mlp


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    tied = flag(config, "tie_word_embeddings", True)
    c = read_config(config, norm_eps=number(config, "norm_epsilon", 1e-5), tied_embeddings=tied)
    bias, act = flag(config, "use_bias", True), activation(config, "hidden_act", "gelu_pytorch_tanh")
    rotary, window = Rotary(c.rope, c.rotary_dim), sliding_window(config, None)

    def norm(name: str) -> LayerNorm:
        return LayerNorm(f"model.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Block:
        layer = f"model.layers.{index}"
        return Block(
            norm(f"layers.{index}.input_layernorm"),
            attention(c, f"{layer}.self_attn", rotary, bias=bias, o_bias=bias, window=window),
            norm(f"layers.{index}.post_attention_layernorm"),
            plain_mlp(c, f"{layer}.mlp.c_fc", f"{layer}.mlp.c_proj", act, bias),
        )

    embedding, head = embedding_and_head(c, stored)
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("norm"), Head(head), c.max_positions)
