"""The parts that models are assembled from. Each declares the tensors that it wants of a checkpoint.

B sequences, S tokens of each, H the hidden size, D the head length; ``x`` is ``[B, S, H]`` in the model's dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fdpp import ops
from fdpp.engine.part import Part
from fdpp.engine.rope import Rotary, Tables
from fdpp.weights import Rows, Source, Weight


class Linear(Part):
    """``activation(x @ weight.T + bias)``, with the rows of one stored tensor or of several.

    Args:
        in_features: the columns of each tensor.
        rows: the rows of each tensor by its name, without ``.weight`` and ``.bias``: their number, or which of them in
            what order.
        bias: whether there is one.
        interleaved: whether the rows of the tensors alternate, as ``linear(gated=True)`` wants them.
        activation: see :func:`fdpp.ops.linear`.
    """

    __slots__ = ("weight", "bias", "options")

    def __init__(
        self,
        in_features: int,
        rows: Mapping[str, int | Sequence[Rows]],
        bias: bool = False,
        interleaved: bool = False,
        activation: str | None = None,
    ) -> None:
        def sources(name: str, wanted: int | Sequence[Rows], columns: tuple[int, ...]) -> list[Source]:
            if isinstance(wanted, int):
                return [Source(name, (wanted, *columns))]
            return [Source(name, (part.count, *columns), part) for part in wanted]

        def weight(kind: str, *columns: int) -> Weight:
            parts = [sources(f"{name}.{kind}", wanted, columns) for name, wanted in rows.items()]
            flat = tuple(source for part in parts for source in part)
            return Weight(flat, interleaved, is_matrix=bool(columns))

        self.weight = weight("weight", in_features)
        self.bias = weight("bias") if bias else None
        self.options: dict[str, Any] = {"gated": True} if interleaved else {}
        if activation is not None:
            self.options["activation"] = activation

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, None if self.bias is None else self.bias.tensor
        if weight.packing is None:
            return ops.linear(x, weight.tensor, bias, **self.options)
        if weight.packing.columns is not None:
            x = x.index_select(-1, weight.packing.columns)
        if weight.interleaved and not weight.packing.interleaved:
            return self._gated_apart(x, bias)
        return ops.quantized_linear(x, weight.tensor, weight.packing.layout, bias, **self.options)

    def _gated_apart(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Gate and up where they are packed in two formats, one after the other."""
        bias = None if bias is None else bias.view(-1, 2).T.flatten()
        assert self.weight.packing is not None
        product = ops.quantized_linear(x, self.weight.tensor, self.weight.packing.layout, bias)
        if (activation := self.options.get("activation")) in (None, "silu"):
            return ops.silu_mul(product)
        gate, up = product.chunk(2, dim=-1)
        if activation == "relu":
            return F.relu(gate) * up
        return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


class RmsNorm(Part):
    """The RMS norm of the last dimension. Some families store their weight less ``offset``."""

    __slots__ = ("weight", "eps")

    def __init__(self, name: str, size: int, eps: float, offset: float = 0.0) -> None:
        self.weight = Weight((Source(f"{name}.weight", (size,)),), offset=offset)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight.tensor, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add ``x`` to ``residual``, float32, which is **mutated**, and return the norm of the sum."""
        return ops.add_rms_norm(x, residual, self.weight.tensor, self.eps)


class LayerNorm(Part):
    """The layer norm of the last dimension."""

    __slots__ = ("weight", "bias", "eps")

    def __init__(self, name: str, size: int, eps: float, bias: bool = True) -> None:
        self.weight = Weight((Source(f"{name}.weight", (size,)),))
        self.bias = Weight((Source(f"{name}.bias", (size,)),)) if bias else None
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight.tensor, None if self.bias is None else self.bias.tensor, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add ``x`` to ``residual``, float32, which is **mutated**, and return the norm of the sum."""
        bias = None if self.bias is None else self.bias.tensor
        return ops.add_layer_norm(x, residual, self.weight.tensor, bias, self.eps)


class NoNorm(Part):
    """Where others have a norm: the sum as it is."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add ``x`` to ``residual``, float32, which is **mutated**, and return the sum in the dtype of ``x``."""
        return residual.add_(x).to(x.dtype)


Norm = RmsNorm | LayerNorm | NoNorm


@dataclass(slots=True)
class Positions(Part):
    """A learned vector per position, which is added to that of the token; that of position p is row ``p + offset``."""

    weight: Weight
    offset: int = 0

    def __call__(self, positions: Tensor) -> Tensor:
        return F.embedding(positions.clamp(min=0) + self.offset, self.weight.tensor)  # -1: a row that idles


@functools.cache
def _rounded(number: float, dtype: torch.dtype) -> float:
    return torch.tensor(number, dtype=dtype, device="cpu").item()


class Embedding(Part):
    """From tokens int64 ``[B, S]`` at positions int32 ``[B, S]`` to ``x``.

    Args:
        name: of the tensor ``[vocab_size, size]``.
        scale: factor of the vectors, rounded to their dtype.
        projection: from their size to that of the model.
        positions: learned ones.
        norm: of the vectors.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int,
        size: int,
        scale: float = 1.0,
        projection: Linear | None = None,
        positions: Positions | None = None,
        norm: LayerNorm | None = None,
    ) -> None:
        self.weight = Weight((Source(f"{name}.weight", (vocab_size, size)),), is_matrix=True)
        self.scale, self.projection, self.positions, self.norm = scale, projection, positions, norm

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self._vectors(tokens)
        if self.scale != 1.0:
            x = x * _rounded(self.scale, x.dtype)
        if self.projection is not None:
            x = self.projection(x)
        if self.positions is not None:
            x = x + self.positions(positions)
        return x if self.norm is None else self.norm(x)

    def _vectors(self, tokens: Tensor) -> Tensor:
        weight, packing = self.weight, self.weight.packing
        if packing is None:
            return F.embedding(tokens, weight.tensor)
        x = ops.dequantize_rows(weight.tensor, packing.layout, weight.shape[1], tokens, dtype=packing.dtype)
        return x if packing.columns is None else torch.empty_like(x).index_copy_(-1, packing.columns, x)


@dataclass(slots=True, eq=False)
class Head(Part):
    """From the normed stream to logits: ``softcap * tanh(scale * linear(projection(x)) / softcap)``.

    Attributes:
        linear: its weight may be that of the embedding.
        scale: factor of the logits.
        softcap: their bound; 0 for none.
        projection: from the size of the model to that of the linear layer's input.
    """

    linear: Linear
    scale: float = 1.0
    softcap: float = 0.0
    projection: Linear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.linear(x if self.projection is None else self.projection(x))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap:
            logits = (self.softcap * torch.tanh(logits.float() / self.softcap)).to(logits.dtype)
        return logits


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
        q_norm, k_norm: norms of each head, or of all heads as one, before they are rotated.
        softmax_scale, softcap: as in :func:`fdpp.ops.decode_attention`.
        alibi_slopes: of each query head, likewise; None for none.
        phi: the first reference of each query head's softmax, float32 ``[Hq]``; None for 0.
    """

    qkv: Linear
    o: Linear
    rotary: Rotary
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int = -1
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    softmax_scale: float | None = None
    softcap: float = 0.0
    alibi_slopes: tuple[float, ...] | None = None
    phi: Tensor | None = None

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, run: Pass) -> Tensor:
        """Append to the cache, which is **mutated**, and attend to it."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim)
        # Not split(): it wraps this in Python.
        q, k, v = qkv.split_with_sizes((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        cos, sin = run.tables[self.rotary]
        interleaved = self.rotary.interleaved
        q = ops.rope_append(q, k, v, cos, sin, run.positions, keys, values, run.block_table, interleaved=interleaved)
        return self.o(run.attend(self, q, keys, values).view(batch, length, -1))


def _normed(norm: Norm, heads: Tensor) -> Tensor:
    if isinstance(norm, NoNorm) or norm.weight.shape[0] == heads.shape[-1]:
        return norm(heads)
    return norm(heads.flatten(2)).view(heads.shape)


@dataclass(slots=True, eq=False)
class Mlp(Part):
    """``down(activation(up(x)))``, or ``down(activation(gate(x)) * up(x))`` where the rows of gate and up alternate.

    The first linear layer knows its activation.
    """

    up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


@dataclass(slots=True, eq=False)
class Block(Part):
    """A layer that norms before attention and before the MLP, and adds what each of them gives to the stream.

    Each add is fused with the norm that follows it: the add of the MLP with the first norm of the next block.

    Attributes:
        after_attention, after_mlp: norms of what is added.
        scale: factor of what is added.
    """

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    after_attention: Norm | None = None
    after_mlp: Norm | None = None
    scale: float = 1.0

    def __call__(self, x: Tensor, residual: Tensor, keys: Tensor, values: Tensor, run: Pass) -> Tensor:
        """What the next norm adds to ``residual``, float32, which is **mutated**, as the cache is."""
        x = self.attention(self.attention_norm.add(x, residual), keys, values, run)
        x = self._added(self.after_attention, x)
        return self._added(self.after_mlp, self.mlp(self.mlp_norm.add(x, residual)))

    def _added(self, norm: Norm | None, x: Tensor) -> Tensor:
        x = x if norm is None else norm(x)
        return x if self.scale == 1.0 else x * self.scale


@dataclass(slots=True, eq=False)
class ParallelBlock(Part):
    """A layer whose attention and MLP read the same stream, by one norm or by one each."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm | None
    mlp: Mlp

    def __call__(self, x: Tensor, residual: Tensor, keys: Tensor, values: Tensor, run: Pass) -> Tensor:
        """As :meth:`Block.__call__`."""
        normed = self.attention_norm.add(x, residual)
        mlp_input = normed if self.mlp_norm is None else self.mlp_norm(residual.to(x.dtype))
        return self.attention(normed, keys, values, run) + self.mlp(mlp_input)


@dataclass(slots=True, eq=False)
class PostNormBlock(Part):
    """A layer that norms the sums: what leaves it is a norm's result, to which nothing of the stream is added."""

    attention: Attention
    attention_norm: Norm
    mlp: Mlp
    mlp_norm: Norm

    def __call__(self, x: Tensor, residual: Tensor, keys: Tensor, values: Tensor, run: Pass) -> Tensor:
        """As :meth:`Block.__call__`."""
        residual.copy_(x)
        x = self.attention_norm.add(self.attention(x, keys, values, run), residual)
        residual.copy_(x)
        x = self.mlp_norm.add(self.mlp(x), residual)
        residual.zero_()
        return x


Layer = Block | ParallelBlock | PostNormBlock
