"""The parts that models are assembled from. Each declares the tensors that it wants of a checkpoint.

B sequences, S tokens of each, H the hidden size, D the head length; ``x`` is ``[B, S, H]`` in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fdpp import ops
from fdpp.engine.part import Part
from fdpp.engine.rope import Rotary, Tables
from fdpp.weights import Source, Weight


class Linear(Part):
    """``x @ weight.T + bias``, with the rows of one stored tensor or of several.

    Args:
        in_features: the columns of each tensor.
        rows: the rows of each tensor by its name, without ``.weight`` and ``.bias``.
        bias: whether there is one.
        interleaved: whether the rows of the tensors alternate, as ``linear(gated=True)`` wants them.
    """

    __slots__ = ("weight", "bias")

    def __init__(
        self, in_features: int, rows: Mapping[str, int], bias: bool = False, interleaved: bool = False
    ) -> None:
        def weight(kind: str, *columns: int) -> Weight:
            return Weight(tuple(Source(f"{name}.{kind}", (n, *columns)) for name, n in rows.items()), interleaved)

        self.weight = weight("weight", in_features)
        self.bias = weight("bias") if bias else None

    def __call__(self, x: Tensor, gated: bool = False) -> Tensor:
        return ops.linear(x, self.weight.tensor, None if self.bias is None else self.bias.tensor, gated=gated)


class RmsNorm(Part):
    """The RMS norm of the last dimension."""

    __slots__ = ("weight", "eps")

    def __init__(self, name: str, size: int, eps: float) -> None:
        self.weight = Weight((Source(f"{name}.weight", (size,)),))
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight.tensor, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add ``x`` to ``residual``, float32, which is **mutated**, and return the norm of the sum."""
        return ops.add_rms_norm(x, residual, self.weight.tensor, self.eps)


class Embedding(Part):
    """From tokens int64 ``[B, S]`` to ``x``."""

    def __init__(self, name: str, vocab_size: int, hidden_size: int) -> None:
        self.weight = Weight((Source(f"{name}.weight", (vocab_size, hidden_size)),))

    def __call__(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight.tensor)


@dataclass(slots=True)
class Pass:
    """What the layers share on one pass through the model.

    Attributes:
        positions: int32 ``[B, S]``; -1 for a token of a row that idles.
        block_table: of the cache; None where that is contiguous.
        tables: the cosines and sines of each rotary embedding.
        attend: from an attention, its q ``[B, S, Hq, D]``, and its keys and values in the cache, to ``[B, S, Hq, D]``.
    """

    positions: Tensor
    block_table: Tensor | None
    tables: Mapping[Rotary, Tables]
    attend: Callable[[Attention, Tensor, Tensor, Tensor], Tensor]


@dataclass(slots=True, eq=False)
class Attention(Part):
    """Attention with a key/value cache.

    Attributes:
        qkv: gives the queries, keys and values of a token, one after the other.
        o: takes the heads back to the hidden size.
        rotary: rotates queries and keys.
        num_heads: of the queries.
        num_kv_heads: of keys and values.
        head_dim: elements of a head.
        window: as in :func:`fdpp.ops.decode_attention`; -1 hides nothing.
        q_norm, k_norm: norms of each head before it is rotated.
    """

    qkv: Linear
    o: Linear
    rotary: Rotary
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int = -1
    q_norm: RmsNorm | None = None
    k_norm: RmsNorm | None = None

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, run: Pass) -> Tensor:
        """Append to the cache, which is **mutated**, and attend to it."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim)
        # Not split(): it wraps this in Python.
        q, k, v = qkv.split_with_sizes((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        tables = run.tables[self.rotary]
        q = ops.rope_append(q, k, v, *tables, run.positions, keys, values, run.block_table)
        return self.o(run.attend(self, q, keys, values).view(batch, length, -1))


@dataclass(slots=True, eq=False)
class GatedMlp(Part):
    """``down(silu(gate(x)) * up(x))``; the rows of gate and up alternate in one weight."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.gate_up(x, gated=True))


@dataclass(slots=True, eq=False)
class Block(Part):
    """A layer that norms before attention and before the MLP, and adds what each of them gives to the stream.

    Each add is fused with the norm that follows it: the add of the MLP with the first norm of the next block.
    """

    attention_norm: RmsNorm
    attention: Attention
    mlp_norm: RmsNorm
    mlp: GatedMlp

    def __call__(self, x: Tensor, residual: Tensor, keys: Tensor, values: Tensor, run: Pass) -> Tensor:
        """What the next norm adds to ``residual``, float32, which is **mutated**, as the cache is."""
        x = self.attention(self.attention_norm.add(x, residual), keys, values, run)
        return self.mlp(self.mlp_norm.add(x, residual))
