"""Llama 2 and 3, and what shares their layers: SmolLM2, TinyLlama, Yi, ..."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fdpp.engine.layers import Block, Head, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.errors import CheckpointError
from fdpp.models.config import UNLIMITED, expect, flag, read_config
from fdpp.models.parts import attention, embedding_and_head, gated_mlp, no_rotary


def build(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    bias = flag(config, "attention_bias")
    return assemble(
        config,
        stored,
        qkv_bias=bias,
        o_bias=flag(config, "attention_output_bias", bias),
        mlp_bias=flag(config, "mlp_bias"),
    )


def assemble(
    config: Mapping[str, Any],
    stored: Collection[str],
    *,
    windows: Sequence[int] | None = None,
    rotated: Sequence[bool] | None = None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    **sizes: Any,
) -> Model:
    """A model with Llama's layers.

    Args:
        config: the content of ``config.json``.
        stored: the names of the tensors that there are.
        windows: of the attention of each layer; None where none has one.
        rotated: which layers rotate queries and keys; None for all.
        qkv_bias, o_bias, mlp_bias: which of the linear layers have a bias.
        qk_norm: whether the heads of queries and keys are normed.
        sizes: see :func:`fdpp.models.config.read_config`.

    Raises:
        CheckpointError: the config says something else, or nothing that makes sense.
    """
    expect(config, hidden_act="silu")
    c = read_config(config, **sizes)
    if c.rotary_dim != c.head_dim:
        raise CheckpointError(f"partial_rotary_factor: expected 1.0, got {c.rotary_dim / c.head_dim:g}")
    windows, rotated = windows or [UNLIMITED] * c.num_layers, rotated or [True] * c.num_layers
    rotary, unrotated = Rotary(c.rope, c.head_dim, has_divisors="rope_freqs.weight" in stored), no_rotary()

    def norm(name: str, size: int = c.hidden_size) -> RmsNorm:
        return RmsNorm(name, size, c.norm_eps)

    def block(number: int, window: int, rotary: Rotary) -> Block:
        layer = f"model.layers.{number}"
        heads = f"{layer}.self_attn"
        return Block(
            norm(f"{layer}.input_layernorm"),
            attention(
                c,
                heads,
                rotary,
                bias=qkv_bias,
                o_bias=o_bias,
                window=window,
                q_norm=norm(f"{heads}.q_norm", c.head_dim) if qk_norm else None,
                k_norm=norm(f"{heads}.k_norm", c.head_dim) if qk_norm else None,
            ),
            norm(f"{layer}.post_attention_layernorm"),
            gated_mlp(c, f"{layer}.mlp", bias=mlp_bias),
        )

    embedding, head = embedding_and_head(c, stored)
    blocks = [
        block(number, window, rotary if turns else unrotated)
        for number, (window, turns) in enumerate(zip(windows, rotated, strict=True))
    ]
    return Model(embedding, blocks, norm("model.norm"), Head(head), c.max_positions)
