"""Llama 2 and 3, and what shares their layers: SmolLM2, TinyLlama, Yi, ..."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fdpp.engine.layers import Attention, Block, Embedding, GatedMlp, Linear, RmsNorm
from fdpp.engine.model import Model
from fdpp.engine.rope import Rotary
from fdpp.errors import CheckpointError
from fdpp.models.config import UNLIMITED, ModelConfig, flag, read_config


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
        qkv_bias, o_bias, mlp_bias: which of the linear layers have a bias.
        qk_norm: whether the heads of queries and keys are normed.
        sizes: see :func:`fdpp.models.config.read_config`.

    Raises:
        CheckpointError: the config says something else, or nothing that makes sense.
    """
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"hidden_act: expected 'silu', got {activation!r:.80}")
    c = read_config(config, **sizes)
    hidden, inner, q, kv = c.hidden_size, c.intermediate_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    rotary = Rotary(c.rope, c.head_dim, has_divisors="rope_freqs.weight" in stored)

    def norm(name: str, size: int = hidden) -> RmsNorm:
        return RmsNorm(name, size, c.norm_eps)

    def block(number: int, window: int) -> Block:
        layer = f"model.layers.{number}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        qkv = {f"{attention}.q_proj": q, f"{attention}.k_proj": kv, f"{attention}.v_proj": kv}
        gate_up = {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}
        return Block(
            norm(f"{layer}.input_layernorm"),
            Attention(
                Linear(hidden, qkv, qkv_bias),
                Linear(q, {f"{attention}.o_proj": hidden}, o_bias),
                rotary,
                c.num_heads,
                c.num_kv_heads,
                c.head_dim,
                window,
                norm(f"{attention}.q_norm", c.head_dim) if qk_norm else None,
                norm(f"{attention}.k_norm", c.head_dim) if qk_norm else None,
            ),
            norm(f"{layer}.post_attention_layernorm"),
            GatedMlp(
                Linear(hidden, gate_up, mlp_bias, interleaved=True),
                Linear(inner, {f"{mlp}.down_proj": hidden}, mlp_bias),
            ),
        )

    embedding, head = _embedding_and_head(c, stored)
    blocks = [block(number, window) for number, window in enumerate(windows or [UNLIMITED] * c.num_layers)]
    return Model(embedding, blocks, norm("model.norm"), head, c.max_positions)


def _embedding_and_head(c: ModelConfig, stored: Collection[str]) -> tuple[Embedding, Linear]:
    """The embedding and the head, which may be one weight.

    The file counts, as in transformers, not the config's word: with tied embeddings it may hold either of the two, and
    where it holds both, the head has been trained on its own.
    """
    embedding = Embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
    head = Linear(c.hidden_size, {"lm_head": c.vocab_size})
    has_embedding, has_head = (part.weight.sources[0].name in stored for part in (embedding, head))
    if c.tied_embeddings and not (has_embedding and has_head):
        embedding.weight = head.weight = head.weight if has_head else embedding.weight
    return embedding, head
