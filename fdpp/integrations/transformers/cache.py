"""Layers of transformers' DynamicCache that append in place, so that attention reads their memory as it lies.

transformers' own layers copy all keys and values for every token. These hold them token by token, ``[B, capacity, H,
D]``, and give views ``[B, H, tokens, D]`` of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
)

_FIRST_CAPACITY = 64


class _Storage:
    """Room behind the keys, or the values, of a layer."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None  # [B, capacity, H, D]
        self.view: Tensor | None = None  # [B, H, tokens, D], of the buffer: the tokens that are kept
        self.end = 0  # of the view, in the buffer

    def append(self, kept: Tensor, new: Tensor) -> Tensor:
        """``[B, H, tokens, D]`` of what the layer kept and of what is new; in place where the buffer has room.

        Args:
            kept: what the layer holds. Where it is not the view of last time, somebody put it there, and it is copied.
        """
        count, tokens = new.shape[-2], kept.shape[-2] if kept.ndim == 4 else 0
        if self.buffer is None or kept is not self.view or not self._has_room(count):
            batch, heads, _, width = new.shape
            capacity = max(_FIRST_CAPACITY, 2 * (tokens + count))
            buffer = new.new_empty(batch, capacity, heads, width)
            if tokens:
                buffer[:, :tokens] = kept.transpose(1, 2)
            self.buffer, self.end = buffer, tokens
        self.buffer[:, self.end : self.end + count] = new.transpose(1, 2)
        self.end += count
        return self.last(tokens + count)

    def _has_room(self, count: int) -> bool:
        assert self.buffer is not None
        if self.end + count > self.buffer.shape[1]:
            return False
        # What inference mode made can be written there alone. A compiler does not trace the question.
        return torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not self.buffer.is_inference()

    def last(self, tokens: int) -> Tensor:
        """The last tokens of the buffer, which are kept from now on."""
        assert self.buffer is not None
        self.view = self.buffer[:, self.end - tokens : self.end].transpose(1, 2)
        return self.view

    def drop(self, view: Tensor, tokens: int) -> None:
        """The layer dropped its last tokens, or as many as it had: ``view``, of the buffer, is what it keeps."""
        assert self.view is not None
        self.view, self.end = view, self.end - min(tokens, self.view.shape[-2])


class _Appending(CacheLayerMixin):  # type: ignore[misc]
    """What both kinds of layers share. A layer becomes one by its class, so that it keeps its state."""

    keys: Tensor
    values: Tensor

    def _storages(self) -> tuple[_Storage, _Storage]:
        if "_fdpp" not in self.__dict__:
            self._fdpp = _Storage(), _Storage()
        return self._fdpp

    def _appends(self, keys: Tensor, values: Tensor) -> bool:
        """Whether the new tokens fit the old, and no gradient is recorded, which may need the memory as it is."""
        if torch.is_grad_enabled() or keys.ndim != 4:
            return False
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        pairs = ((self.keys, keys), (self.values, values))
        return all(
            old.dtype is new.dtype
            and old.device == new.device
            and (old.ndim != 4 or (old.shape[:2], old.shape[3]) == (new.shape[:2], new.shape[3]))
            for old, new in pairs
        )

    def _append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        of_keys, of_values = self._storages()
        return of_keys.append(self.keys, keys), of_values.append(self.values, values)

    def _keep(self, tokens: int) -> None:
        of_keys, of_values = self._storages()
        self.keys, self.values = of_keys.last(tokens), of_values.last(tokens)

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens, so that the next ones take their place in memory."""
        of_keys, of_values = self._storages()
        are_ours = self.keys is of_keys.view and self.values is of_values.view
        super().crop(tokens_to_remove)
        if are_ours and self.keys is not None:
            of_keys.drop(self.keys, -tokens_to_remove)
            of_values.drop(self.values, -tokens_to_remove)


class AppendingLayer(_Appending, DynamicLayer):  # type: ignore[misc]
    """A DynamicLayer that appends in place."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, tokens, D]`` each; views of all tokens, of the same layout."""
        if not self._appends(key_states, value_states):
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = self._append(key_states, value_states)
        return self.keys, self.values


class AppendingWindowLayer(_Appending, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A DynamicSlidingWindowLayer that appends in place: the window moves through a buffer of twice its size."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, tokens, D]`` each; views of the new tokens and of those that the first of them sees."""
        if not self._appends(key_states, value_states):
            return super().update(key_states, value_states, *args, **kwargs)
        count = key_states.shape[-2]
        self.cumulative_length += count
        keys, values = self._append(key_states, value_states)
        tokens = keys.shape[-2]
        self._keep(tokens if self.record_past else min(tokens, self.sliding_window - 1))
        seen = min(tokens, self.sliding_window - 1 + count) if self.record_past else tokens
        return keys[:, :, tokens - seen :], values[:, :, tokens - seen :]


_APPENDING = {DynamicLayer: AppendingLayer, DynamicSlidingWindowLayer: AppendingWindowLayer}


def append_in_place(cache: Cache | None) -> None:
    """Let the layers of a cache append in place, where they are transformers' plain ones and stay on one device.

    Args:
        cache: **mutated**: the classes of its layers, which keep what they hold. Any other object is left alone.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if not isinstance(cache, Cache) or cache.offloading:
        return
    for layer in cache.layers:
        layer.__class__ = _APPENDING.get(type(layer), type(layer))
    replicated = cache.layer_class_to_replicate
    cache.layer_class_to_replicate = _APPENDING.get(replicated, replicated)
