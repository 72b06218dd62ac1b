"""The mask of ``attn_implementation="fdpp"``: lengths where a mask says no more than that, else a boolean mask.

Lengths are int32 ``[B, 1, 1, n]``, the same along the last dimension, so that they pass through transformers as a mask
of four dimensions that is ready. ``n`` is 1 where a token sees all before it, and ``window + 1`` where it sees the last
``window`` tokens, itself included: a number that torch.compile knows without reading a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import and_masks, causal_mask_function, sdpa_mask

from fdpp.integrations.transformers.support import MAX_NEW_TOKENS

# Families whose own code calculates with the mask before attention sees it.
_READERS = (
    "axk2", "deepseek_v32", "deepseek_v4", "doge", "dots3_note", "git", "glm5_next", "glm_moe_dsa", "hy_v4", "inkling2",
    "minimax_m3_vl", "mistral_large4", "qwen4_exp",
)  # fmt: skip
READERS = tuple(f"transformers.models.{name}.configuration_{name}" for name in _READERS)
_INTERSECTION = and_masks(causal_mask_function).__code__


def decode_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **options: Any,
) -> Tensor | None:
    """The mask function of transformers' AttentionMaskInterface.

    Args:
        q_offset: the position of the first new token; of a static cache, a tensor.
        kv_offset: the position of the first key.
        attention_mask: bool ``[B, tokens]``, False where a token is padding.
        local_size: the window of ``mask_function``.

    Returns:
        lengths (see above), or what sdpa's mask function returns: bool ``[B, 1, q_length, kv_length]`` or None.
    """
    window = local_size if local_size is not None and kv_length > local_size else None
    if (
        q_length <= MAX_NEW_TOKENS
        and _attends_as_is(config)
        and _is_causal(mask_function, local_size, config, not use_vmap and (allow_is_causal_skip or q_length == 1))
        and not _may_pad(attention_mask, kv_offset, q_offset, q_length)
    ):
        return _lengths(batch_size, q_offset + q_length - kv_offset, window, device)
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        device=device,
        **options,
    )


def is_lengths(mask: Tensor | None) -> bool:
    """Whether :func:`decode_mask` made lengths. Another mask of int32, which no attention takes, is none of them."""
    if mask is None or mask.dtype is not torch.int32:
        return False
    return mask.shape[1:3] == (1, 1) and (mask.shape[3] == 1 or mask.stride(3) == 0)


def read_lengths(mask: Tensor) -> tuple[Tensor, int]:
    """int32 ``[B]``, and the window of decode_attention, which does not count the token itself: -1 for none."""
    return mask[:, 0, 0, 0].contiguous(), mask.shape[-1] - 2 if mask.shape[-1] > 1 else -1


def boolean_mask(mask: Tensor, q_length: int, kv_length: int) -> Tensor:
    """Bool ``[B, 1, q_length, kv_length]`` that says what lengths say, True where a token sees a key."""
    lengths, window = read_lengths(mask)
    keys = torch.arange(kv_length, dtype=torch.int32, device=mask.device)
    new = torch.arange(q_length, dtype=torch.int32, device=mask.device)
    position = (lengths[:, None] - q_length + new)[:, None, :, None]
    seen = keys <= position
    return seen if window < 0 else seen & (keys >= position - window)


def _attends_as_is(config: Any) -> bool:
    """Whether a model of transformers itself hands the mask to attention untouched."""
    module = type(config).__module__
    return module.startswith("transformers.models.") and module not in READERS


def _is_causal(function: Callable[..., Any], local_size: int | None, config: Any, is_plain: bool) -> bool:
    """Whether a mask function says causality, or causality within the window of the config, and nothing else.

    Args:
        is_plain: transformers put nothing over the function that it made.
    """
    if local_size is None:
        return function is causal_mask_function
    is_window = local_size == getattr(config, "sliding_window", None)
    is_chunk = getattr(config, "attention_chunk_size", None) is not None
    return function.__code__ is _INTERSECTION and is_plain and is_window and not is_chunk


def _may_pad(attention_mask: Tensor | None, kv_offset: int, q_offset: int | Tensor, q_length: int) -> bool:
    """Whether a key that causality lets through may be padding. A traced program cannot read that."""
    if attention_mask is None:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    seen = attention_mask[:, kv_offset : int(q_offset) + q_length]
    return seen.shape[1] < int(q_offset) + q_length - kv_offset or not bool(seen.all())


def _lengths(batch_size: int, length: int | Tensor, window: int | None, device: torch.device | str) -> Tensor:
    if isinstance(length, Tensor):
        lengths = length.to(torch.int32).reshape(-1).expand(batch_size)
    else:
        lengths = torch.full((batch_size,), length, dtype=torch.int32, device=device)
    return lengths[:, None, None, None].expand(batch_size, 1, 1, 1 if window is None else window + 1)
