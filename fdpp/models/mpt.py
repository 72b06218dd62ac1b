"""MPT: ALiBi, and no bias anywhere. Source: https://www.databricks.com/blog/mpt-7b."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Embedding, Head, LayerNorm
from fdpp.engine.model import Model
from fdpp.errors import CheckpointError
from fdpp.models.config import expect, flag, number, read_config
from fdpp.models.parts import alibi_slopes, attention, embedding_and_head, no_rotary, plain_mlp

_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
}


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    heads = config.get("attn_config") or {}
    if not isinstance(heads, Mapping):
        raise CheckpointError(f"attn_config: expected an object, got {heads!r:.80}")
    expect(config, no_bias=True, logit_scale=None)
    expect(heads, alibi=True, clip_qkv=None, qk_ln=False, prefix_lm=False)
    config = dict(config) | {new: config.get(old) for new, old in _NAMES.items()}
    hidden = config["hidden_size"]
    c = read_config(
        config,
        intermediate_size=int(number(config, "expansion_ratio", 4) * hidden) if type(hidden) is int else None,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        tied_embeddings=flag(config, "tie_word_embeddings", True),
    )
    rotary, slopes = no_rotary(), alibi_slopes(c.num_heads, number(heads, "alibi_bias_max", 8))
    scale = None if heads.get("softmax_scale") is None else number(heads, "softmax_scale")

    def norm(name: str) -> LayerNorm:
        return LayerNorm(f"transformer.{name}", c.hidden_size, c.norm_eps, bias=False)

    def block(index: int) -> Block:
        layer = f"transformer.blocks.{index}"
        rows = {"Wqkv": 3 * c.q_size}
        return Block(
            norm(f"blocks.{index}.norm_1"),
            attention(c, f"{layer}.attn", rotary, qkv=rows, o="out_proj", softmax_scale=scale, alibi_slopes=slopes),
            norm(f"blocks.{index}.norm_2"),
            plain_mlp(c, f"{layer}.ffn.up_proj", f"{layer}.ffn.down_proj", "gelu", bias=False),
        )

    embedding = Embedding("transformer.wte", c.vocab_size, c.hidden_size)
    embedding, head = embedding_and_head(c, stored, embedding)
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("norm_f"), Head(head), c.max_positions)
