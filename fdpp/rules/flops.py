"""Floating point operations, for ``torch.utils.flop_counter.FlopCounterMode``; as torch does, of products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._ops import OpOverloadPacket
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from fdpp.formats import layout_rows


def linear(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> int:
    """A multiplication and an addition per element of ``x`` and row of ``weight``."""
    return 2 * x.numel() * weight.shape[0]


def quantized_linear(x: Tensor, weight: Tensor, layout: str, *args: Any, **kwargs: Any) -> int:
    """As :func:`linear`, of a packed weight."""
    return 2 * x.numel() * layout_rows(layout)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None = None,
    *,
    window: int = -1,
    **kwargs: Any,
) -> int:
    """``q @ k.T`` and ``p @ v`` over the keys of each sequence; over the whole cache where lengths have no values.

    As for torch's own attention, the triangle that causality leaves out of the newest tokens is counted.
    """
    batch, tokens, heads, head_dim = q.shape
    if cache_seqlens.is_meta or isinstance(cache_seqlens, FakeTensor):
        capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
        lengths = [capacity] * batch
    else:
        lengths = cache_seqlens.tolist()
    keys = sum(length if window < 0 else min(length, window + tokens) for length in lengths)
    return 4 * keys * tokens * heads * head_dim


_FORMULAS: dict[str, Callable[..., int]] = {
    "decode_attention": decode_attention,
    "gemv": linear,
    "flat_gemm": linear,
    "linear": linear,
    "quantized_linear": quantized_linear,
}


def register(packet: OpOverloadPacket) -> None:
    """Give the operator its formula; one without products has none."""
    formula = _FORMULAS.get(packet._qualified_op_name.partition("::")[2])
    if formula is not None:
        register_flop_formula(packet, get_raw=True)(formula)
