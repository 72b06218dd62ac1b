"""GPT-NeoX and Pythia: attention and MLP side by side, heads that are rotated in part. Source: arXiv 2204.06745."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Embedding, Head, Layer, LayerNorm, ParallelBlock
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import activation, flag, number, read_config
from fdpp.models.parts import attention, embedding_and_head, per_head, plain_mlp
from fdpp.models.rope import first


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    defaults = {"rotary_pct": 0.25, "rope_theta": first(config.get("rotary_emb_base"), 10000)}
    config = defaults | dict(config)
    c = read_config(config, norm_eps=number(config, "layer_norm_eps", 1e-5))
    act, bias = activation(config, "hidden_act", "gelu"), flag(config, "attention_bias", True)
    parallel = flag(config, "use_parallel_residual", True)
    rotary = Rotary(c.rope, c.rotary_dim)

    def norm(name: str) -> LayerNorm:
        return LayerNorm(f"gpt_neox.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Layer:
        layer = f"gpt_neox.layers.{index}"
        rows = {"query_key_value": per_head(c)}
        return (ParallelBlock if parallel else Block)(
            norm(f"layers.{index}.input_layernorm"),
            attention(c, f"{layer}.attention", rotary, bias=bias, o_bias=bias, qkv=rows, o="dense"),
            norm(f"layers.{index}.post_attention_layernorm"),
            plain_mlp(c, f"{layer}.mlp.dense_h_to_4h", f"{layer}.mlp.dense_4h_to_h", act),
        )

    embedding = Embedding("gpt_neox.embed_in", c.vocab_size, c.hidden_size)
    # The head is called embed_out by the files and lm_head by transformers 5.
    name = "embed_out" if "embed_out.weight" in stored else "lm_head"
    embedding, head = embedding_and_head(c, stored, embedding, name)
    blocks = [block(index) for index in range(c.num_layers)]
    return Model(embedding, blocks, norm("final_layer_norm"), Head(head), c.max_positions)
