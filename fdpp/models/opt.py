"""OPT: layer norms, learned positions, plain MLPs. Source: Zhang et al., arXiv 2205.01068."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.checks import check_integer
from fdpp.engine.layers import Block, Embedding, Head, Layer, LayerNorm, Linear, NoNorm, Positions, PostNormBlock
from fdpp.engine.model import Model
from fdpp.models.config import activation, expect, flag, read_config
from fdpp.models.parts import attention, embedding_and_head, no_rotary, plain_mlp
from fdpp.models.rope import first
from fdpp.weights import Source, Weight

_OFFSET = 2  # of the rows of the positions


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    expect(config, layer_norm_elementwise_affine=True)
    tied = flag(config, "tie_word_embeddings", True)
    c = read_config(config, intermediate_size=config.get("ffn_dim"), norm_eps=1e-5, tied_embeddings=tied)
    act, bias = activation(config, "activation_function", "relu"), flag(config, "enable_bias", True)
    norms_before = flag(config, "do_layer_norm_before", True)
    # OPT-350m embeds in fewer dimensions than it computes in.
    embedded = first(config.get("word_embed_proj_dim"), c.hidden_size)
    check_integer("word_embed_proj_dim", embedded, 8, 1 << 18)
    narrow = embedded != c.hidden_size
    rotary, decoder = no_rotary(), "model.decoder"

    def norm(name: str) -> LayerNorm:
        return LayerNorm(f"{decoder}.{name}", c.hidden_size, c.norm_eps)

    def block(number: int) -> Layer:
        layer = f"layers.{number}"
        heads = attention(c, f"{decoder}.{layer}.self_attn", rotary, bias=bias, o_bias=bias, o="out_proj")
        mlp = plain_mlp(c, f"{decoder}.{layer}.fc1", f"{decoder}.{layer}.fc2", act, bias)
        attention_norm, mlp_norm = norm(f"{layer}.self_attn_layer_norm"), norm(f"{layer}.final_layer_norm")
        if norms_before:
            return Block(attention_norm, heads, mlp_norm, mlp)
        return PostNormBlock(heads, attention_norm, mlp, mlp_norm)

    positions = Source(f"{decoder}.embed_positions.weight", (c.max_positions + _OFFSET, c.hidden_size))
    embedding, head = embedding_and_head(
        c,
        stored,
        Embedding(
            f"{decoder}.embed_tokens",
            c.vocab_size,
            embedded,
            projection=Linear(embedded, {f"{decoder}.project_in": c.hidden_size}) if narrow else None,
            positions=Positions(Weight((positions,)), _OFFSET),
        ),
    )
    has_final_norm = norms_before and not flag(config, "_remove_final_layer_norm")
    return Model(
        embedding,
        [block(number) for number in range(c.num_layers)],
        norm("final_layer_norm") if has_final_norm else NoNorm(),
        Head(head, projection=Linear(c.hidden_size, {f"{decoder}.project_out": embedded}) if narrow else None),
        c.max_positions,
    )
