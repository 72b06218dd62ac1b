"""The decoder: one stack of layers, run over a chunk of one prompt (prefill) or a token of each sequence (step)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fdpp import dataflow, ops
from fdpp.engine import rope
from fdpp.engine.config import DecoderConfig
from fdpp.engine.kv_cache import KVCache
from fdpp.engine.weights import DecoderWeights

PREFILL_CHUNK = 1024  # tokens; bounds the memory of activations and masks
_MAX_DECODE_QUERIES = 16  # what decode_attention takes at once
_INVARIANT_SPLITS = 8  # of the keys, where results must not depend on the batch
_RESERVING = threading.Lock()  # not one per decoder: a lock can be neither copied nor pickled

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From q ``[B, S, Hq, D]``, the layer's keys and values in the cache, and its window, to ``[B, S, Hq, D]``."""


class Decoder:
    """The layers of one model on one device. Threads may share it: what belongs to a request is in its cache."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.device = weights.embedding.device
        self._qkv_heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        # What a layer adds to the stream is normed for whoever reads it next: the next layer, or the head.
        next_norms = [layer.input_norm for layer in weights.layers[1:]] + [weights.final_norm]
        self._layers = list(zip(weights.layers, config.windows, next_norms, strict=True))
        self._step_tables = self._on_device(rope.step_tables, 0)

    def __reduce__(self) -> tuple[Any, ...]:  # without the rotary tables, which the next request reserves
        return type(self), (self.config, self.weights)

    def reserve(self, length: int) -> None:
        """Make the rotary tables cover positions below ``length``, at least. They never shrink."""
        with _RESERVING:
            if length > len(self._step_tables[0]):
                self._step_tables = self._on_device(rope.step_tables, length)

    def _on_device(self, tables: Callable[..., tuple[Tensor, Tensor]], length: int) -> tuple[Tensor, Tensor]:
        cos, sin = tables(self.config.rope, self.config.head_dim, length, self.weights.rope_divisors)
        return cos.to(self.device), sin.to(self.device)

    def _prompt_tables(self, length: int) -> tuple[Tensor, Tensor]:
        """The rotary tables of a prompt: those of the steps, unless the prompt's length changes the frequencies."""
        limit = rope.changes_beyond(self.config.rope)
        return self._step_tables if limit is None or length <= limit else self._on_device(rope.prompt_tables, length)

    def step(self, tokens: Tensor, positions: Tensor, cache_seqlens: Tensor, cache: KVCache) -> Tensor:
        """Append one token to each sequence and predict the next.

        Args:
            tokens: int64 ``[B]``.
            positions: int32 ``[B, 1]``; -1 for a row that idles.
            cache_seqlens: int32 ``[B]``, ``positions + 1``.
            cache: **mutated**: keys and values of the new tokens are written, and it counts the references that moved.

        Returns:
            logits ``[B, V]`` in the dtype of the weights. Rows that idle hold no meaning.
        """

        def attention(q: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
            return ops.decode_attention(
                q,
                keys,
                values,
                cache_seqlens,
                cache.block_table,
                window=window,
                num_splits=num_splits,
                rereference_count=cache.rereferences,
            )

        num_splits = _num_splits()
        hidden = self._forward(tokens[:, None], positions, cache, attention, self._step_tables)
        return ops.linear(hidden[:, 0], self.weights.lm_head)

    def prefill(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Run a whole prompt and predict its continuation.

        Args:
            tokens: int64 ``[S]``, S at least 1.
            cache: of one sequence (:meth:`KVCache.row`); **mutated**: filled from position 0.

        Returns:
            logits ``[V]`` after the last token.
        """
        hidden = self.weights.embedding[:0]
        tables = self._prompt_tables(len(tokens))
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = tokens[None, start : start + PREFILL_CHUNK]
            stop = start + chunk.shape[1]
            positions = torch.arange(start, stop, dtype=torch.int32, device=tokens.device)[None]
            hidden = self._forward(chunk, positions, cache, self._prefill_attention(cache, start, stop), tables)
        return ops.linear(hidden[0, -1:], self.weights.lm_head)[0]

    def _forward(
        self, tokens: Tensor, positions: Tensor, cache: KVCache, attention: Attention, tables: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The normed output of the last layer, ``[B, S, H]``, for tokens ``[B, S]``; appends to the cache."""
        config, eps = self.config, self.config.norm_eps
        batch, length = tokens.shape
        x = F.embedding(tokens, self.weights.embedding)
        residual = x.float()  # rounding the stream to a narrow dtype would cost more than all else that is rounded
        x = ops.rms_norm(x, self.weights.layers[0].input_norm, eps)
        for (layer, window, next_norm), keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias).view(batch, length, -1, config.head_dim)
            q, k, v = qkv.split_with_sizes(self._qkv_heads, dim=2)  # not split(): it wraps this in Python
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = ops.rms_norm(q, layer.q_norm, eps), ops.rms_norm(k, layer.k_norm, eps)
            q = ops.rope_append(q, k, v, *tables, positions, keys, values, cache.block_table)
            x = ops.linear(attention(q, keys, values, window).view(batch, length, -1), layer.o, layer.o_bias)
            x = ops.add_rms_norm(x, residual, layer.post_norm, eps)
            x = ops.linear(x, layer.gate_up, layer.gate_up_bias, gated=True)
            x = ops.add_rms_norm(ops.linear(x, layer.down, layer.down_bias), residual, next_norm, eps)
        return x

    def _prefill_attention(self, cache: KVCache, start: int, stop: int) -> Attention:
        """Attention of positions ``start`` to ``stop`` over everything up to each of them."""
        device = self.device
        if stop - start <= _MAX_DECODE_QUERIES:
            lengths = torch.tensor([stop], dtype=torch.int32, device=device)
            return lambda q, keys, values, window: ops.decode_attention(
                q, keys, values, lengths, cache.block_table, window=window, num_splits=_num_splits()
            )
        firsts = {window: max(0, start - window) if window >= 0 else 0 for window in set(self.config.windows)}
        masks = {window: _mask(window, first, start, stop, device) for window, first in firsts.items()}

        def attention(q: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
            k, v = (cache.gather(cached, firsts[window], stop).transpose(1, 2) for cached in (keys, values))
            mask = masks[window]
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )
            return out.transpose(1, 2).contiguous()

        return attention


def _num_splits() -> int:
    """For ``decode_attention``: its own plan, which depends on the batch, or a fixed number."""
    return _INVARIANT_SPLITS if dataflow.is_batch_invariant() else 0


def _mask(window: int, first: int, start: int, stop: int, device: torch.device) -> Tensor | None:
    """Which of the keys ``first..stop`` each query ``start..stop`` sees; None where plain causality says it all."""
    if start == 0 and (window < 0 or window >= stop - 1):
        return None
    i = torch.arange(start, stop, dtype=torch.int64, device=device)[:, None]
    j = torch.arange(first, stop, dtype=torch.int64, device=device)[None]
    return (j <= i) & (j >= i - window) if window >= 0 else j <= i
