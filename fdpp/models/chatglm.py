"""ChatGLM2, ChatGLM3 and GLM-4 as first published: GLM's layers under other names, with merged projections.

Source: https://huggingface.co/THUDM/chatglm2-6b.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Embedding, Head, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import expect, flag, number, read_config
from fdpp.models.parts import attention, embedding_and_head, gated_mlp

_NAMES = {
    "vocab_size": "padded_vocab_size",
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "seq_length",
    "head_dim": "kv_channels",
}


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    expect(
        config,
        rmsnorm=True,
        post_layer_norm=True,
        add_bias_linear=False,
        apply_residual_connection_post_layernorm=False,
        pre_seq_len=None,
    )
    config = dict(config) | {new: config.get(old) for new, old in _NAMES.items()}
    groups = flag(config, "multi_query_attention")
    c = read_config(
        config | {"partial_rotary_factor": 0.5, "rope_theta": 10000 * number(config, "rope_ratio", 1.0)},
        num_kv_heads=config.get("multi_query_group_num" if groups else "num_attention_heads"),
        norm_eps=number(config, "layernorm_epsilon", 1e-5),
    )
    bias = flag(config, "add_qkv_bias") or flag(config, "add_bias_linear")
    rotary, encoder = Rotary(c.rope, c.rotary_dim, interleaved=True), "transformer.encoder"

    def norm(name: str) -> RmsNorm:
        return RmsNorm(f"{encoder}.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Block:
        layer = f"{encoder}.layers.{index}"
        rows = {"query_key_value": c.q_size + 2 * c.kv_size}
        return Block(
            norm(f"layers.{index}.input_layernorm"),
            attention(c, f"{layer}.self_attention", rotary, bias=bias, qkv=rows, o="dense"),
            norm(f"layers.{index}.post_attention_layernorm"),
            gated_mlp(c, f"{layer}.mlp", merged="dense_h_to_4h", down="dense_4h_to_h"),
        )

    embedding = Embedding("transformer.embedding.word_embeddings", c.vocab_size, c.hidden_size)
    embedding, head = embedding_and_head(c, stored, embedding, "transformer.output_layer")
    blocks = [block(index) for index in range(c.num_layers)]
    return Model(embedding, blocks, norm("final_layernorm"), Head(head), c.max_positions)
