"""Parts that several families assemble, with the names that most of them use."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fdpp.engine.layers import Attention, Embedding, Linear, Mlp
from fdpp.engine.rope import Rotary
from fdpp.models.config import ModelConfig
from fdpp.rope_config import RopeConfig
from fdpp.weights import Rows


def no_rotary() -> Rotary:
    """Leaves queries and keys as they are."""
    return Rotary(RopeConfig(), 0)


def attention(
    c: ModelConfig,
    name: str,
    rotary: Rotary,
    *,
    bias: bool = False,
    o_bias: bool = False,
    qkv: Mapping[str, int | Sequence[Rows]] | None = None,
    o: str = "o_proj",
    **options: Any,
) -> Attention:
    """Attention with the names of Llama.

    Args:
        bias, o_bias: of queries, keys and values, and of the output.
        qkv: the rows of queries, keys and values, where they have other names below ``name``.
        o: the output's name.
        options: of :class:`Attention`.
    """
    rows = qkv or {"q_proj": c.q_size, "k_proj": c.kv_size, "v_proj": c.kv_size}
    return Attention(
        Linear(c.hidden_size, {f"{name}.{part}": wanted for part, wanted in rows.items()}, bias),
        Linear(c.q_size, {f"{name}.{o}": c.hidden_size}, o_bias),
        rotary,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        **options,
    )


def per_head(c: ModelConfig) -> list[Rows]:
    """Queries, keys and values of a merged tensor that holds the three of a head side by side."""
    head = c.head_dim
    return [Rows(3 * c.q_size, part * head, (part + 1) * head, c.num_heads) for part in range(3)]


def gated_mlp(
    c: ModelConfig,
    name: str,
    *,
    bias: bool = False,
    activation: str | None = None,
    merged: str | None = None,
    down: str = "down_proj",
) -> Mlp:
    """A gated MLP with the names of Llama.

    Args:
        activation: of the gate; None means SiLU.
        merged: the name below ``name`` of a tensor that holds first gate and then up.
        down: the last layer's name.
    """
    inner = c.intermediate_size
    rows: dict[str, int | Sequence[Rows]] = {f"{name}.gate_proj": inner, f"{name}.up_proj": inner}
    if merged is not None:
        rows = {f"{name}.{merged}": [Rows(2 * inner, 0, inner), Rows(2 * inner, inner, 2 * inner)]}
    return Mlp(
        Linear(c.hidden_size, rows, bias, interleaved=True, activation=activation),
        Linear(inner, {f"{name}.{down}": c.hidden_size}, bias),
    )


def plain_mlp(c: ModelConfig, up: str, down: str, activation: str, bias: bool = True) -> Mlp:
    """An MLP without a gate, whose two layers have these names."""
    return Mlp(
        Linear(c.hidden_size, {up: c.intermediate_size}, bias, activation=activation),
        Linear(c.intermediate_size, {down: c.hidden_size}, bias),
    )


def embedding_and_head(
    c: ModelConfig,
    stored: Collection[str],
    embedding: Embedding | None = None,
    head: str = "lm_head",
    head_bias: bool = False,
) -> tuple[Embedding, Linear]:
    """The embedding, by default that of Llama, and the layer that gives the logits; they may share one weight.

    The file counts, as in transformers, not the config's word: with tied embeddings it may hold either of the two, and
    where it holds both, the head has been trained on its own.
    """
    embedding = embedding or Embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
    linear = Linear(embedding.weight.shape[1], {head: c.vocab_size}, head_bias)
    has_embedding, has_head = (part.weight.sources[0].name in stored for part in (embedding, linear))
    if c.tied_embeddings and not (has_embedding and has_head):
        embedding.weight = linear.weight = linear.weight if has_head else embedding.weight
    return embedding, linear


def alibi_slopes(num_heads: int, max_bias: float = 8.0) -> tuple[float, ...]:
    """The slopes of ALiBi (Press et al., arXiv 2108.12409): a geometric sequence for the largest power of two of the
    heads, and every second of the sequence for twice as many for the others."""
    power = 1 << num_heads.bit_length() - 1
    slopes = [2.0 ** (-max_bias * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-max_bias * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return tuple(slopes + between[: num_heads - power])
