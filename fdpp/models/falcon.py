"""Falcon: multi-query attention beside the MLP; the older RW models with ALiBi; the newer with KV groups.

Source: arXiv 2311.16867.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Embedding, Head, Layer, LayerNorm, ParallelBlock
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import ModelConfig, activation, flag, number, read_config
from fdpp.models.parts import alibi_slopes, attention, embedding_and_head, no_rotary, plain_mlp
from fdpp.models.rope import first
from fdpp.weights import Rows

_OLD_NAMES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_kv_heads": "n_head_kv"}


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    config = {new: config.get(old) for new, old in _OLD_NAMES.items()} | dict(config)
    grouped, multi_query = flag(config, "new_decoder_architecture"), flag(config, "multi_query", True)
    hidden, heads = config.get("hidden_size"), config["num_attention_heads"]
    kv_heads = first(config["num_kv_heads"], heads) if grouped else 1 if multi_query else heads
    c = read_config(
        config,
        num_kv_heads=kv_heads,
        intermediate_size=first(config.get("ffn_hidden_size"), 4 * hidden if type(hidden) is int else None),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        max_positions=first(config.get("max_position_embeddings"), 2048),
        tied_embeddings=flag(config, "tie_word_embeddings", True),
    )
    act, bias, with_alibi = activation(config, "activation", "gelu"), flag(config, "bias"), flag(config, "alibi")
    parallel = grouped or flag(config, "parallel_attn", True)
    norms = first(config.get("num_ln_in_parallel_attn"), 2) if grouped else 1
    rotary = no_rotary() if with_alibi else Rotary(c.rope, c.head_dim)
    # Falcon scales its logits after the slopes have been subtracted.
    slopes = tuple(slope * c.head_dim**-0.5 for slope in alibi_slopes(c.num_heads)) if with_alibi else None
    rows = {"query_key_value": _rows(c)}

    def norm(name: str) -> LayerNorm:
        return LayerNorm(f"transformer.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Layer:
        layer = f"transformer.h.{index}"
        heads = attention(
            c, f"{layer}.self_attention", rotary, bias=bias, o_bias=bias, qkv=rows, o="dense", alibi_slopes=slopes
        )
        mlp = plain_mlp(c, f"{layer}.mlp.dense_h_to_4h", f"{layer}.mlp.dense_4h_to_h", act, bias)
        if parallel and norms == 2:
            return ParallelBlock(norm(f"h.{index}.ln_attn"), heads, norm(f"h.{index}.ln_mlp"), mlp)
        first_norm = norm(f"h.{index}.input_layernorm")
        if parallel:
            return ParallelBlock(first_norm, heads, None, mlp)
        return Block(first_norm, heads, norm(f"h.{index}.post_attention_layernorm"), mlp)

    embedding = Embedding("transformer.word_embeddings", c.vocab_size, c.hidden_size)
    embedding, head = embedding_and_head(c, stored, embedding)
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("ln_f"), Head(head), c.max_positions)


def _rows(c: ModelConfig) -> list[Rows]:
    """Queries, keys and values: the merged tensor holds, per KV head, its queries, its key and its value."""
    head, queries = c.head_dim, c.q_size // c.num_kv_heads
    bounds = [0, queries, queries + head, queries + 2 * head]
    total = c.num_kv_heads * bounds[-1]
    return [Rows(total, start, stop, c.num_kv_heads) for start, stop in zip(bounds, bounds[1:], strict=False)]
