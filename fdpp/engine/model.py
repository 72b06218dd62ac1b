"""A model: a stack of blocks, run over a token of each sequence (step) or over prompts (prefill.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fdpp.engine.attend import attend_step
from fdpp.engine.kv_cache import KVCache
from fdpp.engine.layers import Attention, Embedding, Head, Layer, Linear, Norm, Pass
from fdpp.engine.part import Part
from fdpp.engine.rope import Rotary, Tables
from fdpp.weights import Weight


class Model(Part):
    """The parts of one model. Threads may share it: what belongs to a request is in its cache.

    Args:
        embedding: of the tokens.
        blocks: the layers.
        norm: of what the last layer leaves.
        head: gives the logits.
        max_positions: the most tokens of a sequence.
    """

    def __init__(
        self, embedding: Embedding, blocks: Sequence[Layer], norm: Norm, head: Head, max_positions: int
    ) -> None:
        self.embedding, self.blocks, self.norm, self.head = embedding, list(blocks), norm, head
        self.max_positions = max_positions
        self.version = 0  # another number whenever a part got another tensor, which a captured step does not know
        self._rotaries = list(self.walk(Rotary))

    @property
    def vocab_size(self) -> int:
        return self.embedding.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.value_dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.tensor.device

    @property
    def attentions(self) -> list[Attention]:
        return [block.attention for block in self.blocks]

    def weights(self) -> list[Weight]:
        """All that a checkpoint has to fill, each once."""
        return list(self.walk(Weight))

    def linear_shapes(self) -> set[tuple[int, int]]:
        """``(N, K)`` of the weights that a step multiplies with."""
        return {(N, K) for N, K in (linear.weight.shape for linear in self.walk(Linear))}

    def step_bytes(self, context_len: int, batch: int = 1) -> int:
        """Bytes that a step reads: all weights once, and the keys and values that ``batch`` sequences see.

        Of the input embedding a step reads a row per token, which is not counted.
        """
        read = {weight for part in (*self.blocks, self.norm, self.head) for weight in part.walk(Weight)}
        weights = sum(weight.tensor.nbytes for weight in read)
        cached = 0
        for attention in self.attentions:
            seen = context_len if attention.window < 0 else min(context_len, attention.window + 1)
            cached += 2 * seen * attention.num_kv_heads * attention.head_dim * self.dtype.itemsize
        return weights + batch * cached

    def reserve(self, length: int) -> None:
        """Make the rotary tables cover positions below ``length``, at least. They never shrink."""
        for rotary in self._rotaries:
            rotary.reserve(length, self.device)

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
        return self.extend(tokens[:, None], positions, cache_seqlens, cache)[:, 0]

    def extend(self, tokens: Tensor, positions: Tensor, cache_seqlens: Tensor, cache: KVCache) -> Tensor:
        """Append some tokens to each sequence and predict what follows each of them.

        Args:
            tokens: int64 ``[B, S]``, S at most 16.
            positions: int32 ``[B, S]``; -1 for all of a row that idles.
            cache_seqlens: int32 ``[B]``, the last position + 1.
            cache: as in :meth:`step`.

        Returns:
            logits ``[B, S, V]``, as in :meth:`step`.
        """
        attend = attend_step(cache, cache_seqlens, cache.rereferences)
        return self.head(self.forward(tokens, cache, Pass(positions, cache.block_table, self.step_tables(), attend)))

    def step_tables(self) -> dict[Rotary, Tables]:
        """The tables of each rotary embedding for steps: those in use now, which :meth:`reserve` may replace."""
        return {rotary: rotary.tables for rotary in self._rotaries}

    def prompt_tables(self, length: int) -> dict[Rotary, Tables]:
        """The tables of each rotary embedding for a prompt of that length."""
        return {rotary: rotary.prompt_tables(length) for rotary in self._rotaries}

    def prompt_kind(self, length: int) -> int:
        """Prompts of one kind have the same :meth:`prompt_tables`."""
        return length if any(rotary.depends_on(length) for rotary in self._rotaries) else 0

    def forward(self, tokens: Tensor, cache: KVCache, run: Pass) -> Tensor:
        """The normed output of the last layer, ``[B, S, H]``, for tokens ``[B, S]``; appends to the cache."""
        x = self.embedding(tokens, run.positions)
        # The stream is float32: rounding it to a narrow dtype would cost more than all else that is rounded.
        residual = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = block(x, residual, keys, values, run)
        return self.norm.add(x, residual)
