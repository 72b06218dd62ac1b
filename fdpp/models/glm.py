"""GLM-4: heads of which every other pair is rotated, merged gate and up; ``glm4`` norms after as well.

Source: arXiv 2406.12793.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fdpp.engine.layers import Block, Head, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.models.config import activation, flag, read_config
from fdpp.models.parts import attention, embedding_and_head, gated_mlp


def build_glm(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    return _assemble(config, stored, norms_after=False)


def build_glm4(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    return _assemble(config, stored, norms_after=True)


def _assemble(config: Mapping[str, Any], stored: Collection[str], norms_after: bool) -> Model:
    c = read_config({"partial_rotary_factor": 0.5, "head_dim": 128, "rms_norm_eps": 1.5625e-7} | dict(config))
    act, bias = activation(config, "hidden_act", "silu"), flag(config, "attention_bias", True)
    rotary = Rotary(c.rope, c.rotary_dim, interleaved=True)

    def norm(name: str) -> RmsNorm:
        return RmsNorm(f"model.{name}", c.hidden_size, c.norm_eps)

    def block(index: int) -> Block:
        layer = f"layers.{index}"
        return Block(
            norm(f"{layer}.input_layernorm"),
            attention(c, f"model.{layer}.self_attn", rotary, bias=bias),
            norm(f"{layer}.post_attention_layernorm"),
            gated_mlp(c, f"model.{layer}.mlp", activation=act, merged="gate_up_proj"),
            after_attention=norm(f"{layer}.post_self_attn_layernorm") if norms_after else None,
            after_mlp=norm(f"{layer}.post_mlp_layernorm") if norms_after else None,
        )

    embedding, head = embedding_and_head(c, stored)
    return Model(embedding, [block(i) for i in range(c.num_layers)], norm("norm"), Head(head), c.max_positions)
