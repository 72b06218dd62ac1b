"""float64 oracles: the mathematical definition of every operator of :mod:`fdpp.ops`, for tests and for readers.

Same names, same arguments and same mutations as the operators; pure PyTorch on the CPU, without blocking, splitting or
any other trick. Results are float64, not rounded to the dtype of the inputs; what is mutated keeps its own dtype.
Arguments that steer an implementation only (``phi``, ``num_splits``, ``rereference_count``, ``config``) change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fdpp.formats import PACKED, PackedFormat, layout_rows, packed_bytes

_ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * torch.erfc(-x * 0.5**0.5),
    "gelu_tanh": lambda x: x * torch.sigmoid((8 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
}


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    phi: Tensor | None = None,
    window: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    num_splits: int = 0,
    rereference_count: Tensor | None = None,
) -> Tensor:
    """Oracle of :func:`fdpp.ops.decode_attention`; ``rereference_count`` stays as it is: an oracle has no reference.

    Only the keys that a query sees are touched, so that nothing else in the cache can reach the result.
    """
    batch, new_tokens, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    queries = q.double().unflatten(2, (kv_heads, q_heads // kv_heads))  # [B, Sq, Hkv, group, D]
    out = torch.zeros(queries.shape, dtype=torch.float64, device=q.device)

    def per_head(x: Tensor) -> Tensor:
        return x.double().view(kv_heads, -1, 1)

    for b, length in enumerate(cache_seqlens.tolist()):
        keys, values = (_sequence(cache, b, length, block_table) for cache in (k_cache, v_cache))
        for i in range(new_tokens):
            position = length - new_tokens + i
            first = 0 if window < 0 else max(0, position - window)
            if position < first:
                continue
            seen = slice(first, position + 1)
            # A sum per key, not a GEMM, in which equal keys may have sums that differ by where they stand.
            logits = scale * (queries[b, i].unsqueeze(2) * keys[:, None, seen]).sum(dim=-1)  # [Hkv, group, seen]
            if softcap > 0:
                logits = softcap * torch.tanh(logits / softcap)
            if alibi_slopes is not None:
                distance = position - torch.arange(first, position + 1, dtype=torch.float64, device=q.device)
                logits = logits - per_head(alibi_slopes) * distance
            if sinks is not None:  # an infinite one as the largest number: softmax is of finite logits
                logits = torch.cat([logits, per_head(sinks).clamp(max=torch.finfo(torch.float64).max)], dim=-1)
            weights = torch.softmax(logits, dim=-1)[..., : position + 1 - first]
            out[b, i] = weights @ values[:, seen]
    return out.flatten(2, 3)


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: str | None = None,
) -> Tensor:
    """Oracle of :func:`fdpp.ops.gemv`."""
    y = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    activate = _ACTIVATIONS[activation or ("silu" if gated else "identity")]
    y = activate(y[..., 0::2]) * y[..., 1::2] if gated else activate(y)
    return y if residual is None else y + residual.double()


def flat_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    config: int = -1,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: str | None = None,
) -> Tensor:
    """Oracle of :func:`fdpp.ops.flat_gemm`."""
    return gemv(x, weight, bias, residual=residual, gated=gated, activation=activation)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: str | None = None,
) -> Tensor:
    """Oracle of :func:`fdpp.ops.linear`."""
    return gemv(x, weight, bias, residual=residual, gated=gated, activation=activation)


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    layout: str,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: str | None = None,
) -> Tensor:
    """Oracle of :func:`fdpp.ops.quantized_linear`."""
    rows = torch.arange(layout_rows(layout), dtype=torch.int64, device="cpu")
    unpacked = dequantize_rows(weight, layout, x.shape[-1], rows)
    return linear(x, unpacked, bias, residual=residual, gated=gated, activation=activation)


def dequantize_rows(
    weight: Tensor, layout: str, columns: int, rows: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Oracle of :func:`fdpp.ops.dequantize_rows`: what csrc/common/weight_format.h says, in tensors of torch."""
    parts, start = [], 0
    for part in layout.split(","):
        name, _, count = part.partition(":")
        stop = start + packed_bytes(part, columns)
        parts.append(_unpacked(weight[start:stop].view(-(-int(count) // 16), -1), PACKED[name], columns)[: int(count)])
        start = stop
    return torch.cat(parts)[rows]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Oracle of :func:`fdpp.ops.rms_norm`."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight.double()


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Oracle of :func:`fdpp.ops.add_rms_norm`; ``residual`` is mutated."""
    total = residual.double() + x.double()
    residual.copy_(total)
    return rms_norm(total, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Oracle of :func:`fdpp.ops.layer_norm`."""
    x = x.double() - x.double().mean(dim=-1, keepdim=True)
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight.double()
    return normed if bias is None else normed + bias.double()


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Oracle of :func:`fdpp.ops.add_layer_norm`; ``residual`` is mutated."""
    total = residual.double() + x.double()
    residual.copy_(total)
    return layer_norm(total, weight, bias, eps)


def rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor | None = None,
    *,
    interleaved: bool = False,
) -> Tensor:
    """Oracle of :func:`fdpp.ops.rope_append`; ``k_cache`` and ``v_cache`` are mutated."""
    real = torch.nonzero(positions >= 0, as_tuple=True)
    slots = positions[real].long()
    turned_q, turned_k = (_rotate(x.double()[real], cos[slots], sin[slots], interleaved) for x in (q, k))
    rows = real[0]
    if block_table is not None:
        page_size = k_cache.shape[1]
        rows, slots = block_table[rows, slots // page_size].long(), slots % page_size
    k_cache[rows, slots] = turned_k.to(k_cache.dtype)
    v_cache[rows, slots] = v[real]
    return q.double().index_put(real, turned_q)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Oracle of :func:`fdpp.ops.silu_mul`."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def _sequence(cache: Tensor, b: int, length: int, block_table: Tensor | None) -> Tensor:
    """``[Hkv, length, D]``: what the cache holds of sequence ``b``, its pages (if any) put in order."""
    if block_table is None:
        slots = cache[b, :length]
    else:
        pages = block_table[b, : -(-length // cache.shape[1])].long()
        slots = cache[pages].flatten(0, 1)[:length]
    return slots.transpose(0, 1).double()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the first ``2 * cos.shape[-1]`` elements of ``x [tokens, heads, D]``, pair by pair."""
    cos, sin = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    first, second = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack([first, second], dim=-1).flatten(-2) if interleaved else torch.cat([first, second], dim=-1)
    return torch.cat([turned, rest], dim=-1)


def _unpacked(panels: Tensor, of: PackedFormat, columns: int) -> Tensor:
    """The rows of panels ``[panels, bytes]``."""
    runs = panels.reshape(len(panels) * columns // (32 * of.groups), -1)
    scale_bytes = 16 * of.scale_dtype.itemsize * (1 + of.has_min)
    scales = runs[:, :scale_bytes].contiguous().view(of.scale_dtype).double().view(len(runs), -1, 1, 1, 16)
    header = scale_bytes + 16 * of.has_zero
    zeros = runs[:, scale_bytes:header].int().view(len(runs), 1, 1, 16) if of.has_zero else of.zero
    groups = runs[:, header:].reshape(len(runs), of.groups, -1)
    own_bytes = 16 * of.sub_scales * (1 + of.has_min)
    own = groups[..., :own_bytes].contiguous().view(torch.int8).double()
    own = own.view(len(runs), of.groups, 1 + of.has_min, of.sub_scales, 16)
    scale, low = scales[:, 0], scales[:, 1] if of.has_min else torch.zeros(1, dtype=torch.float64, device="cpu")
    if of.sub_scales:
        scale, low = scale * own[:, :, 0], low * own[:, :, 1] if of.has_min else low
    codes, shift, start = torch.zeros(len(runs), of.groups, 32, 16, dtype=torch.int32, device="cpu"), 0, own_bytes
    for bits in (8, 4, 2, 1):
        if of.bits & bits:
            words = groups[..., start : start + 64 * bits].contiguous().view(torch.int16).int()
            words = words.view(len(runs), of.groups, bits, 16, 2).movedim(-2, -1)  # [..., word, half, row]
            fields = [words >> bits * s & (1 << bits) - 1 for s in range(16 // bits)]
            codes |= torch.stack(fields, dim=3).flatten(2, 4) << shift
            shift, start = shift + bits, start + 64 * bits
    if of.codebook:
        values = torch.tensor(of.codebook, dtype=torch.float64, device="cpu")[codes]
    else:
        values = (codes.to(torch.int8) if of.bits == 8 else codes - zeros).double()
    values = values.unflatten(2, (max(of.sub_scales, 1), -1))  # [runs, groups, halves, columns, 16]
    weights = scale.unsqueeze(-2) * values + low.unsqueeze(-2) if of.has_min else scale.unsqueeze(-2) * values
    return weights.flatten(2, 3).view(len(panels), columns, 16).transpose(1, 2).reshape(-1, columns)
