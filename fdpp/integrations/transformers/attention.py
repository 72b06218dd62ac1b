"""The attention of ``attn_implementation="fdpp"``: fdpp's operator for decode steps, transformers' own for the rest."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fdpp import ops
from fdpp.integrations.transformers import masks
from fdpp.integrations.transformers.support import takes, takes_heads

NAME = "fdpp"
# What decode_attention does not calculate; where it says nothing, it is None.
_FOREIGN = ("position_bias", "sinks", "indices", "block_indices", "cache")
# What sdpa does not calculate: a softcap refuses, sinks are ignored.
_EAGER = ("softcap", "s_aux", "sinks")


def register() -> None:
    """Make ``attn_implementation="fdpp"`` known to transformers."""
    AttentionInterface.register(NAME, decode_attention)
    AttentionMaskInterface.register(NAME, masks.decode_mask)


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of transformers' AttentionInterface.

    Args:
        query: ``[B, Hq, Q, D]``.
        key: ``[B, Hkv, S, D]``, heads not repeated; ``value:`` as well.
        attention_mask: of :func:`fdpp.integrations.transformers.masks.decode_mask`, or one that a user made.
        options: ``softcap``, ``s_aux`` (sinks, ``[Hq]``), and what other attention functions take.

    Returns:
        ``[B, Q, Hq, D]``, contiguous, dtype of ``query``, and attention weights where eager attention ran.
    """
    if masks.is_lengths(attention_mask):
        assert attention_mask is not None
        if _is_for_decoding(query, key, value, dropout, options):
            return _decode(query, key, value, attention_mask, scaling, options), None
        attention_mask = masks.boolean_mask(attention_mask, query.shape[2], key.shape[2])
    if any(options.get(name) is not None for name in _EAGER):
        return _eager(module, query, key, value, attention_mask, dropout, scaling, options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)


def _is_for_decoding(query: Tensor, key: Tensor, value: Tensor, dropout: float, options: dict[str, Any]) -> bool:
    sinks = options.get("s_aux")
    return (
        dropout == 0.0
        and takes_heads(query, key, value)
        and takes(query, key, value)
        and (sinks is None or (sinks.ndim == 1 and not (torch.is_grad_enabled() and sinks.requires_grad)))
        and all(options.get(name) is None for name in _FOREIGN)
    )


def _decode(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, options: dict[str, Any]
) -> Tensor:
    lengths, window = masks.read_lengths(mask)
    sinks = options.get("s_aux")
    return ops.decode_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        lengths,
        softmax_scale=scaling,
        window=window,
        softcap=options.get("softcap") or 0.0,
        sinks=None if sinks is None else sinks.float(),
    )


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The eager attention of the module's family, with the mask that it takes: numbers that are added."""
    causal = options.get("is_causal")
    if mask is None and query.shape[2] > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype is torch.bool:
        lowest = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, lowest)
    forward = sys.modules[type(module).__module__].eager_attention_forward
    return forward(module, query, key, value, mask, scaling=scaling, dropout=dropout, **options)
