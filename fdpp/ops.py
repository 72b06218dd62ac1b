"""The operators of fdpp: documented Python functions over ``torch.ops.fdpp.*``.

Every function here is one operator; the device of the tensors chooses the backend. All of them work under
``torch.compile(fullgraph=True)``, ``torch.export`` and ``torch.autocast``; the rules for that stand in
:mod:`fdpp.rules`. float64 oracles with the same signatures stand in :mod:`fdpp.reference`.

Wrong input raises ``RuntimeError`` with the tensor's name, what was expected and what came; so does it on meta tensors
and while a model is compiled. The operators are for inference and have no gradients: a call that wants one raises,
so call them under ``torch.inference_mode()`` (the cheapest) or ``torch.no_grad()``.

Under ``torch.autocast``, products cast as ``torch.nn.functional.linear`` does and leave a float32 ``residual`` as it
is; attention and rotation take the dtype of the cache, norms that of ``x`` (of a ``residual`` that is not float32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fdpp import dataflow, library, rules

library.load()
library.load_gpu()
dataflow.install()
rules.register("fdpp")
_fdpp = torch.ops.fdpp
_attention, _counted_attention = _fdpp.decode_attention.default, _fdpp.decode_attention.counted
_gemv, _flat_gemm, _linear = _fdpp.gemv.default, _fdpp.flat_gemm.default, _fdpp.linear.default
_quantized_linear, _dequantize_rows = _fdpp.quantized_linear.default, _fdpp.dequantize_rows.default
_rms_norm, _add_rms_norm = _fdpp.rms_norm.default, _fdpp.add_rms_norm.default
_layer_norm, _add_layer_norm = _fdpp.layer_norm.default, _fdpp.add_layer_norm.default
_rope_append, _silu_mul = _fdpp.rope_append.default, _fdpp.silu_mul.default


# torch takes 0.1 to 0.3 us for each option that it is given, so that the defaults are left out.
def _given(function: Callable[..., Tensor], **options: object) -> dict[str, Any]:
    defaults = function.__kwdefaults__ or {}
    return {
        name: value
        for name, value in options.items()
        if value is not defaults[name] and not (type(value) is float and value == defaults[name])
    }


def _epilogue(residual: Tensor | None, gated: bool, activation: str | None) -> dict[str, Any]:
    if activation is not None:
        return {"residual": residual, "gated": gated, "activation": activation}
    return {} if residual is None and gated is False else {"residual": residual, "gated": gated}


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
    """Causal attention of the newest ``Sq`` tokens over a key/value cache, split over the KV axis.

    Splits share one reference value ``phi`` instead of exchanging their maxima (FlashDecoding++, section 3), so
    that partial results merge by plain addition. A guard watches every tile and moves the reference of the rows
    that leave the safe range, whatever finite logits come; what the values must leave room for stands in
    csrc/common/softmax_state.h (256 keys of magnitude 1e30 in float32). A value that is not finite can reach every new
    token of its sequence that shares a tile with one that sees it.

    Runs on the CPU and, where their library was built, on NVIDIA (CUDA) and AMD (HIP) GPUs. There lengths and pages
    stay on the device and are not checked, and nothing waits for it, so that a call can be captured in a graph.

    Args:
        q: ``[B, Sq, Hq, D]``, float32 (CPU), bfloat16 or float16; ``Sq`` 1..16, ``D`` one of 64, 80, 96, 128, 192, 256.
            The last dimension is contiguous, the outer strides are free; on a GPU the data and each outer stride are
            multiples of 16 bytes. Query ``i`` of a sequence stands at position ``cache_seqlens - Sq + i``.
        k_cache: ``[B, S, Hkv, D]`` (contiguous cache) or, with ``block_table``, ``[blocks, page, Hkv, D]`` (paged
            cache), dtype of ``q``; ``Hq`` is a multiple of ``Hkv``. Same stride rule as ``q``.
        v_cache: as ``k_cache``.
        cache_seqlens: int32 ``[B]``, tokens in the cache of each sequence, the ``Sq`` new ones included. What lies
            beyond in the cache is never read. 0 gives zeros.
        block_table: int32 ``[B, max_pages]``, the pages of each sequence in order. Entries past the last page that
            a sequence uses are ignored, whatever they hold.
        softmax_scale: factor of ``q . k``, at most 1e30; default ``1 / sqrt(D)``.
        phi: float32 ``[Hq]``, the reference per query head, in logit units (natural logarithm); default 0. It changes
            how often references move and, with that, rounding; never the result. Not finite, it counts as 0.
        window: query ``i`` sees key ``j`` when ``i - window <= j <= i``; -1 means no limit.
        softcap: when not 0, a logit becomes ``softcap * tanh(logit / softcap)``; from 1e-6 to 1e30.
        alibi_slopes: float32 ``[Hq]``; ``slope * (i - j)`` is subtracted from the (capped) logit.
        sinks: float32 ``[Hq]``, one more logit per head in the denominator, with no value. NaN gives NaN.
        num_splits: number of KV splits; 0 lets the planner choose.
        rereference_count: int64 ``[Hq]``; **mutated**: the number of times a reference had to move is added. Shares no
            memory with the other tensors.

    Returns:
        ``[B, Sq, Hq, D]``, contiguous, dtype of ``q``. A query before the start of its sequence gives zeros.

    Raises:
        RuntimeError: a shape, dtype, device, stride or option that is not as above; on the CPU also a length beyond the
            cache (with ``block_table``, its columns times the page) or a page outside of it.

    Source: FlashDecoding++ (arXiv 2311.01282) section 3; names follow ``flash_attn_with_kvcache``.
    """
    options = _given(
        decode_attention,
        softmax_scale=softmax_scale,
        phi=phi,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        num_splits=num_splits,
        rereference_count=rereference_count,
    )
    attention = _counted_attention if "rereference_count" in options else _attention
    return attention(q, k_cache, v_cache, cache_seqlens, block_table, **options)


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: str | None = None,
) -> Tensor:
    """``x @ weight.T + bias`` by matrix-vector products (ImplA of the dataflow table), and what often follows it.

    Args:
        x: ``[..., K]``, float32 (CPU), bfloat16 or float16, last dimension contiguous; ``M`` is the product of the
            others. Any outer strides; on a GPU, rows of ``x`` and ``weight`` that do not begin at multiples of 16
            bytes, or a ``K`` that is no multiple of 8, are read element by element.
        weight: ``[N, K]``, dtype of ``x``, last dimension contiguous.
        bias: ``[N]``, dtype of ``x``, contiguous.
        residual: ``[..., N]`` (``[..., N / 2]`` when gated), dtype of ``x`` or float32, last dimension contiguous; is
            added to the result.
        gated: rows ``2 i`` and ``2 i + 1`` of the weight are gate and up of column ``i`` of the result, which is
            ``activation(gate) * up`` of their products.
        activation: of the biased product, before ``residual`` is added: ``"relu"``, ``"silu"``, ``"gelu"`` (with the
            error function) or ``"gelu_tanh"``. None means ``"silu"`` where gated, otherwise none.

    Returns:
        ``[..., N]`` (``[..., N / 2]`` when gated), contiguous, dtype of ``residual`` if there is one, else of ``x``.
        Sums are accumulated in float32. On a GPU the result is rounded once; elsewhere, and in ImplC, the product is
        rounded to the dtype of ``x`` before activation, gates and residual.

    Raises:
        RuntimeError: a shape, dtype, device or stride that is not as above.

    Source: FlashDecoding++ section 5, ImplA; best at M = 1, correct for every M.
    """
    return _gemv(x, weight, bias, **_epilogue(residual, gated, activation))


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
    """``x @ weight.T + bias`` for few rows (ImplB): a GEMM that streams the weights once through double-buffered tiles.

    Args:
        x: ``[..., K]``, ``M`` = product of the leading dimensions, at most 64. Otherwise as in :func:`gemv`.
        weight: ``[N, K]``.
        bias: ``[N]``.
        config: index of a tile configuration of the backend; -1 takes the default for the shape. On a GPU it names a
            tile and how its work is spread over blocks (csrc/gpu/flat_plan.h).
        residual: as in :func:`gemv`, and so are ``gated:`` and ``activation:``.

    Returns:
        as :func:`gemv`.

    Raises:
        RuntimeError: ``M`` above 64, an unknown ``config``, or as in :func:`gemv`.

    Source: FlashDecoding++ section 4.
    """
    return _flat_gemm(x, weight, bias, config=config, **_epilogue(residual, gated, activation))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: str | None = None,
) -> Tensor:
    """``x @ weight.T + bias`` by the implementation that the dataflow table names for this shape and device.

    The candidates are :func:`gemv` (A), :func:`flat_gemm` (B) and ``aten::linear`` (C).
    :func:`fdpp.explain` says which one a shape takes, and why; :func:`fdpp.dataflow.set_batch_invariant` makes a row's
    result independent of the rows around it. Arguments, result and errors as in :func:`gemv`.

    Source: FlashDecoding++ section 5 (heuristic dataflow).
    """
    return _linear(x, weight, bias, **_epilogue(residual, gated, activation))


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
    """:func:`linear` with a weight of few bits, as :func:`fdpp.formats.pack` makes it of blocks of a GGUF file.

    Its values are not rounded; ``x`` is, to 16 bits per 32 elements of a row: 2^-16 of the largest of them. A row's
    result does not depend on the rows around it. CPUs only.

    Args:
        x: ``[..., K]`` as in :func:`gemv`; magnitudes below 1e-33 count as 0.
        weight: uint8, contiguous ``[bytes]``: N rows of K columns, of which ``layout:`` says what they are, as in
            ``"q4_k:4096,q6_k:1024"`` (:mod:`fdpp.formats`).
        bias: as in :func:`gemv`, and so are ``residual:``, ``gated:`` and ``activation:``.

    Returns: as :func:`gemv`.

    Raises:
        RuntimeError: a layout that does not fit the weight or K, or arguments not as in :func:`gemv`.
    """
    return _quantized_linear(x, weight, layout, bias, **_epilogue(residual, gated, activation))


def dequantize_rows(
    weight: Tensor, layout: str, columns: int, rows: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows of a packed weight, for embeddings. CPUs only.

    Args:
        weight: as in :func:`quantized_linear`, of K = ``columns:`` columns and this ``layout:``.
        rows: int64 of any shape: the numbers of rows.
        dtype: of the result, float32, bfloat16 or float16.

    Returns:
        ``[*rows.shape, columns]``, contiguous: the exact values, rounded to ``dtype``.

    Raises:
        RuntimeError: a row that the weight does not have (in a recorded step it is NaN), or arguments not as above.
    """
    return _dequantize_rows(weight, layout, columns, rows, **({} if dtype is torch.float32 else {"dtype": dtype}))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last dimension, in float32 inside.

    Args:
        x: ``[..., H]``, float32 (CPU), bfloat16 or float16; last dimension contiguous, outer strides free.
        weight: ``[H]``, dtype of ``x``, contiguous.
        eps: added to the mean square.

    Returns:
        contiguous tensor of the shape and dtype of ``x``.

    Raises:
        RuntimeError: a shape, dtype, device or stride that is not as above.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """
    return _rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``residual += x`` and :func:`rms_norm` of the sum.

    Args:
        x: ``[..., H]`` as in :func:`rms_norm`.
        residual: shape of ``x``, dtype of ``x`` or float32, contiguous; **mutated** (the sum, rounded to its dtype).
            The norm is taken of the float32 sum. A float32 residual keeps what a deep stack of narrow layers adds up.
            Shares no memory with ``weight``, nor with ``x`` unless they are the same tensor.
        weight: ``[H]``.
        eps: added to the mean square.

    Returns:
        contiguous tensor of the shape and dtype of ``x``; never an alias of ``residual``.

    Raises:
        RuntimeError: a shape, dtype, device or stride that is not as above.
    """
    return _add_rms_norm(x, residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` over the last dimension, in float32 inside.

    Args:
        x: ``[..., H]`` as in :func:`rms_norm`.
        weight: ``[H]``, dtype of ``x``, contiguous.
        bias: as ``weight``, or None.
        eps: added to the variance (the mean of squared deviations).

    Returns:
        contiguous tensor of the shape and dtype of ``x``.

    Raises:
        RuntimeError: a shape, dtype, device or stride that is not as above.

    Source: Ba, Kiros and Hinton, arXiv 1607.06450.
    """
    return _layer_norm(x, weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """``residual += x`` and :func:`layer_norm` of the sum.

    Args:
        x: ``[..., H]`` as in :func:`rms_norm`.
        residual: **mutated**, as in :func:`add_rms_norm`. Shares no memory with ``weight`` and ``bias``.
        weight: ``[H]``.
        bias: ``[H]`` or None.
        eps: added to the variance.

    Returns:
        contiguous tensor of the shape and dtype of ``x``; never an alias of ``residual``.

    Raises:
        RuntimeError: a shape, dtype, device or stride that is not as above.
    """
    return _add_layer_norm(x, residual, weight, bias, eps)


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
    """Rotate ``q`` and ``k`` by their positions and write ``k`` and ``v`` into the cache.

    Args:
        q: ``[B, Sq, Hq, D]``, float32 (CPU), bfloat16 or float16, any ``Sq``; last dimension contiguous, outer
            strides free.
        k: ``[B, Sq, Hkv, D]``, likewise.
        v: ``[B, Sq, Hkv, D]``, likewise; not rotated.
        cos: float32 ``[max_position, rot / 2]``, contiguous; the first ``rot <= D`` elements of a head are rotated.
        sin: as ``cos``.
        positions: int32 ``[B, Sq]``: the position of each token, which is also its slot in its sequence's cache. A
            negative position marks padding: its query is copied as it is and nothing is written.
        k_cache: ``[B, S, Hkv, D]`` or paged ``[blocks, page, Hkv, D]``, dtype of ``q``; **mutated**. Last dimension
            contiguous, outer strides free, but no two elements in one place.
        v_cache: as ``k_cache``; **mutated**. Both may be views of one storage, such as ``kv[:, 0]`` and ``kv[:, 1]``,
            but share no element, with each other or with another argument.
        block_table: int32 ``[B, max_pages]`` for a paged cache.
        interleaved: rotate the pairs (2i, 2i+1) (GPT-J) instead of (i, i + rot/2) (GPT-NeoX, Llama).

    Returns:
        the rotated ``q``, ``[B, Sq, Hq, D]``, contiguous.

    Raises:
        RuntimeError: a position at or beyond ``max_position`` or the capacity of the cache, a page outside the cache, a
            shape, dtype, device or stride that is not as above. Positions and pages that lie on a GPU are not looked
            at: there such a token's query becomes NaN, and nothing is written for it.

    Source: RoFormer, arXiv 2104.09864.
    """
    options = {"interleaved": interleaved} if interleaved is not False else {}
    return _rope_append(q, k, v, cos, sin, positions, k_cache, v_cache, block_table, **options)


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``, where ``gate_up`` holds both halves side by side.

    Args:
        gate_up: ``[..., 2F]``, float32 (CPU), bfloat16 or float16; last dimension contiguous, outer strides free.

    Returns:
        ``[..., F]``, contiguous, dtype of ``gate_up``; computed in float32.

    Raises:
        RuntimeError: an odd last dimension, or a dtype or stride that is not as above.

    Source: Shazeer, arXiv 2002.05202 (SwiGLU).
    """
    return _silu_mul(gate_up)
