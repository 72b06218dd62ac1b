"""BLOOM: ALiBi in place of positions, a norm of the embeddings. Source: arXiv 2211.05100."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Embedding, Head, Layer, LayerNorm
from fdpp.engine.model import Model
from fdpp.models.config import expect, flag, number, read_config
from fdpp.models.parts import alibi_slopes, attention, embedding_and_head, no_rotary, per_head, plain_mlp
from fdpp.models.rope import first


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    expect(config, apply_residual_connection_post_layernorm=False)
    names = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embed"}
    config = {new: config.get(old) for new, old in names.items()} | dict(config)
    hidden = config["hidden_size"]
    c = read_config(
        config,
        intermediate_size=4 * hidden if type(hidden) is int else None,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        max_positions=first(config.get("seq_length"), 2048),  # of the texts that it has learned from
        tied_embeddings=flag(config, "tie_word_embeddings", True),
    )
    rotary, slopes = no_rotary(), alibi_slopes(c.num_heads)

    def norm(name: str) -> LayerNorm:
        return LayerNorm(f"transformer.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Layer:
        layer = f"transformer.h.{index}"
        rows, heads = {"query_key_value": per_head(c)}, f"{layer}.self_attention"
        return Block(
            norm(f"h.{index}.input_layernorm"),
            attention(c, heads, rotary, bias=True, o_bias=True, qkv=rows, o="dense", alibi_slopes=slopes),
            norm(f"h.{index}.post_attention_layernorm"),
            plain_mlp(c, f"{layer}.mlp.dense_h_to_4h", f"{layer}.mlp.dense_4h_to_h", "gelu_tanh"),
        )

    norm_of_tokens = norm("word_embeddings_layernorm")
    embedding = Embedding("transformer.word_embeddings", c.vocab_size, c.hidden_size, norm=norm_of_tokens)
    embedding, head = embedding_and_head(c, stored, embedding)
    blocks = [block(index) for index in range(c.num_layers)]
    return Model(embedding, blocks, norm("ln_f"), Head(head), c.max_positions)
