"""Gemma 2 and 3: norms before and after, weights of norms less 1, scaled embeddings, alternating windows.

Gemma 2 caps logits (arXiv 2408.00118); Gemma 3 norms heads instead, and rotates by two bases (arXiv 2503.19786).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fdpp.checks import check_integer
from fdpp.engine.layers import Block, Embedding, Head, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.errors import CheckpointError
from fdpp.models.config import (
    UNLIMITED,
    activation,
    flag,
    layer_count,
    layer_windows,
    number,
    read_config,
    sliding_window,
)
from fdpp.models.parts import attention, embedding_and_head, gated_mlp
from fdpp.models.rope import first, rope_config

_SLIDING, _FULL = "sliding_attention", "full_attention"


def build_gemma2(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    config = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} | dict(config)
    return _assemble(config, stored, _windows(config, 2), qk_norm=False)


# What the files leave out: the defaults of transformers.
_GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
}


def build_gemma3(config: Mapping[str, Any], stored: Collection[str]) -> Model:
    config = _GEMMA3 | dict(config)
    windows = _windows(config, first(config.get("sliding_window_pattern"), config.get("_sliding_window_pattern"), 6))
    return _assemble(config, stored, windows, qk_norm=True)


def _assemble(config: Mapping[str, Any], stored: Collection[str], windows: Sequence[int], qk_norm: bool) -> Model:
    if config.get("use_bidirectional_attention"):
        raise CheckpointError("use_bidirectional_attention: expected false")
    ropes = _ropes(config, two=qk_norm)
    c = read_config(
        dict(config) | {"rope_parameters": ropes[_FULL], "rope_scaling": None},
        head_dim=first(config.get("head_dim"), 256),
        tied_embeddings=flag(config, "tie_word_embeddings", True),
    )
    act, bias = activation(config, "hidden_activation", "gelu_pytorch_tanh"), flag(config, "attention_bias")
    rotaries = {
        kind: Rotary(rope_config({**config, "rope_scaling": None, "rope_parameters": rope}), c.head_dim)
        for kind, rope in ropes.items()
    }
    scale, cap = number(config, "query_pre_attn_scalar", 256) ** -0.5, _cap(config, "attn_logit_softcapping")

    def norm(name: str, size: int = c.hidden_size) -> RmsNorm:
        return RmsNorm(f"model.{name}", size, c.norm_eps, offset=1.0)

    def block(index: int, window: int) -> Block:
        layer, heads = f"layers.{index}", f"layers.{index}.self_attn"
        return Block(
            norm(f"{layer}.input_layernorm"),
            attention(
                c,
                f"model.{heads}",
                rotaries[_FULL if window == UNLIMITED else _SLIDING],
                bias=bias,
                o_bias=bias,
                window=window,
                softmax_scale=scale,
                softcap=cap,
                q_norm=norm(f"{heads}.q_norm", c.head_dim) if qk_norm else None,
                k_norm=norm(f"{heads}.k_norm", c.head_dim) if qk_norm else None,
            ),
            norm(f"{layer}.pre_feedforward_layernorm"),
            gated_mlp(c, f"model.{layer}.mlp", activation=act),
            after_attention=norm(f"{layer}.post_attention_layernorm"),
            after_mlp=norm(f"{layer}.post_feedforward_layernorm"),
        )

    embedding = Embedding("model.embed_tokens", c.vocab_size, c.hidden_size, scale=c.hidden_size**0.5)
    embedding, head = embedding_and_head(c, stored, embedding)
    blocks = [block(index, window) for index, window in enumerate(windows)]
    capped = Head(head, softcap=_cap(config, "final_logit_softcapping"))
    return Model(embedding, blocks, norm("norm"), capped, c.max_positions)


def _windows(config: Mapping[str, Any], period: Any) -> list[int]:
    """By ``layer_types``; where older configs leave it out, every ``period``-th layer sees everything."""
    check_integer("sliding_window_pattern", period, 1, 1 << 16)
    kinds = [_SLIDING if (index + 1) % period else _FULL for index in range(layer_count(config))]
    return layer_windows({"layer_types": kinds} | dict(config), sliding_window(config))


def _ropes(config: Mapping[str, Any], two: bool) -> dict[str, dict[str, Any]]:
    """The rotary parameters of each kind of layer: one set for both in Gemma 2, two with bases of their own in 3."""
    both = _mapping("rope_parameters", config.get("rope_parameters") or {})
    if any(isinstance(both.get(kind), Mapping) for kind in (_SLIDING, _FULL)):
        return {kind: _mapping(kind, both.get(kind) or {}) for kind in (_SLIDING, _FULL)}
    scaling = _mapping("rope_scaling", config.get("rope_scaling") or both)
    if not two:
        return dict.fromkeys((_SLIDING, _FULL), scaling)
    theta = {"rope_theta": first(config.get("rope_theta"), 1e6)}
    return {_SLIDING: {"rope_theta": first(config.get("rope_local_base_freq"), 1e4)}, _FULL: theta | scaling}


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{key}: expected an object, got {value!r:.80}")
    return dict(value)


def _cap(config: Mapping[str, Any], key: str) -> float:
    return 0.0 if config.get(key) is None else number(config, key)
