"""How a pass attends to the cache: a step by decode attention, a prompt by torch's over what the cache holds."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fdpp import dataflow, ops
from fdpp.engine.kv_cache import KVCache
from fdpp.engine.layers import Attention

_MAX_DECODE_QUERIES = 16  # what decode_attention takes at once
_INVARIANT_SPLITS = 8  # of the keys, where results must not depend on the batch

Attend = Callable[[Attention, Tensor, Tensor, Tensor], Tensor]
"""See :attr:`fdpp.engine.layers.Pass.attend`."""


def attend_step(cache: KVCache, cache_seqlens: Tensor, rereferences: Tensor | None) -> Attend:
    """Attention of the last tokens of each sequence.

    Args:
        cache_seqlens: int32 ``[B]``, tokens of each sequence, the last ones included; 0 for a row that idles.
        rereferences: int64 ``[Hq]``, **mutated**: it counts the references that moved.
    """
    # Its own plan, which depends on the batch, or a fixed number.
    num_splits = _INVARIANT_SPLITS if dataflow.is_batch_invariant() else 0

    def attend(attention: Attention, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return ops.decode_attention(
            q,
            keys,
            values,
            cache_seqlens,
            cache.block_table,
            softmax_scale=attention.softmax_scale,
            phi=attention.phi,
            window=attention.window,
            softcap=attention.softcap,
            alibi_slopes=_on_device(attention.alibi_slopes, q.device),
            num_splits=num_splits,
            rereference_count=rereferences,
        )

    return attend


def attend_prompt(cache: KVCache, start: int, stop: int, device: torch.device) -> Attend:
    """Attention of positions ``start`` to ``stop`` of one sequence over everything up to each of them."""
    if stop - start <= _MAX_DECODE_QUERIES:
        return attend_step(cache, torch.tensor([stop], dtype=torch.int32, device=device), None)
    ends = [*range(start + _MAX_DECODE_QUERIES, stop, _MAX_DECODE_QUERIES), stop]
    steps = functools.cache(functools.partial(_attend_steps, cache, ends, device))
    mask = functools.cache(functools.partial(_mask, start=start, stop=stop, device=device))

    def attend(attention: Attention, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # torch's attention has neither soft caps nor, without a mask per head, slopes.
        if attention.softcap or attention.alibi_slopes is not None:
            pieces = zip(steps(), q.split(_MAX_DECODE_QUERIES, dim=1), strict=True)
            return torch.cat([step(attention, piece, keys, values) for step, piece in pieces], dim=1)
        window = attention.window
        first = _first_key(window, start)
        k, v = (cache.gather(cached, first, stop).transpose(1, 2) for cached in (keys, values))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k,
            v,
            attn_mask=mask(window),
            is_causal=mask(window) is None,
            scale=attention.softmax_scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2).contiguous()

    return attend


def _attend_steps(cache: KVCache, ends: list[int], device: torch.device) -> list[Attend]:
    """Attention of as many queries at a time as a step may have; the positions of each piece end before its number."""
    lengths = torch.tensor(ends, dtype=torch.int32, device=device)
    return [attend_step(cache, length, None) for length in lengths.split(1)]


@functools.cache
def _on_device(slopes: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
    return None if slopes is None else torch.tensor(slopes, dtype=torch.float32, device=device)


def _first_key(window: int, start: int) -> int:
    return max(0, start - window) if window >= 0 else 0


def _mask(window: int, start: int, stop: int, device: torch.device) -> Tensor | None:
    """Which of the keys up to ``stop`` each query ``start..stop`` sees; None where plain causality says it all."""
    if start == 0 and (window < 0 or window >= stop - 1):
        return None
    i = torch.arange(start, stop, dtype=torch.int64, device=device)[:, None]
    j = torch.arange(_first_key(window, start), stop, dtype=torch.int64, device=device)[None]
    return (j <= i) & (j >= i - window) if window >= 0 else j <= i
