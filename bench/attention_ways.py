"""Ways to compute the attention of one new token: fdpp's, torch's, and those of libraries that may be installed.

A way takes a ``Problem`` and gives a function of the number of the cache's copy, which returns ``[B, 1, Hq, D]``. It
raises ImportError where it is not installed, RuntimeError where it does not do this shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fdpp import library, ops

PAGE = 16
MAX_MATH_BYTES = 2 << 30


@dataclass
class Problem:
    """``caches``: copies ``[2, B, S, Hkv, D]`` of keys and values; ``q``: ``[B, 1, Hq, D]``; ``lengths``: int32 [B]."""

    q: torch.Tensor
    caches: list[torch.Tensor]
    lengths: torch.Tensor

    @functools.cached_property
    def heads_first(self) -> list[torch.Tensor]:
        """The copies as ``[2, B, Hkv, S, D]``."""
        return [cache.transpose(2, 3).contiguous() for cache in self.caches]

    @functools.cached_property
    def expanded(self) -> list[torch.Tensor]:
        """The copies as ``[2, B, Hq, S, D]``."""
        return [cache.repeat_interleave(self.repeats, dim=2) for cache in self.heads_first]

    @property
    def repeats(self) -> int:
        """Query heads of a KV head."""
        return self.q.shape[2] // self.caches[0].shape[3]

    @property
    def grouped(self) -> bool:
        return self.repeats > 1

    def pages(self) -> list[torch.Tensor]:
        """The copies as ``[2, B * S / PAGE, PAGE, Hkv, D]``."""
        if self.caches[0].shape[2] % PAGE != 0:
            raise RuntimeError(f"the context is no multiple of a page's {PAGE} tokens")
        return [cache.flatten(1, 2).unflatten(1, (-1, PAGE)) for cache in self.caches]

    def block_table(self) -> torch.Tensor:
        """int32 [B, S / PAGE]: each sequence's pages in a random order, which does not change its attention."""
        batch, pages = self.q.shape[0], self.caches[0].shape[2] // PAGE
        generator = torch.Generator().manual_seed(0)
        rows = [b * pages + torch.randperm(pages, generator=generator) for b in range(batch)]
        return torch.stack(rows).int().to(self.q.device)


Function = Callable[[int], torch.Tensor]
Way = Callable[[Problem], Function]


def fdpp(num_splits: int) -> Way:
    """``num_splits``: 0 leaves the plan to fdpp."""

    def way(problem: Problem) -> Function:
        q, caches, lengths = problem.q, problem.caches, problem.lengths
        return lambda i: ops.decode_attention(q, caches[i][0], caches[i][1], lengths, num_splits=num_splits)

    return way


def fdpp_paged(problem: Problem) -> Function:
    q, caches, lengths, table = problem.q, problem.pages(), problem.lengths, problem.block_table()
    return lambda i: ops.decode_attention(q, caches[i][0], caches[i][1], lengths, table)


def fdpp_running_maximum(problem: Problem) -> Function:
    """The same kernel as everybody else would write it: csrc/common/softmax_state.h, RunningMaximum."""
    library.load("running_maximum")
    attention = torch.ops.fdpp_running_maximum.decode_attention
    q, caches, lengths = problem.q, problem.caches, problem.lengths
    return lambda i: attention(q, caches[i][0], caches[i][1], lengths)


def torch_sdpa(backend: SDPBackend | None, expanded: bool) -> Way:
    """torch's attention in its own layout [B, H, S, D], keys and values of grouped heads repeated for all or not."""

    def way(problem: Problem) -> Function:
        if expanded and not problem.grouped:
            raise RuntimeError("every query head has its own keys and values")
        if backend == SDPBackend.MATH and problem.caches[0].nbytes * problem.repeats > MAX_MATH_BYTES:
            raise RuntimeError("it would materialise intermediate results of many times the cache's size")
        q, caches = problem.q.transpose(1, 2), problem.expanded if expanded else problem.heads_first
        grouped = problem.grouped and not expanded

        def attend(i: int) -> torch.Tensor:
            return scaled_dot_product_attention(q, caches[i][0], caches[i][1], enable_gqa=grouped).transpose(1, 2)

        if backend is None:
            return attend

        def attend_by_backend(i: int) -> torch.Tensor:
            with sdpa_kernel(backend):
                return attend(i)

        return attend_by_backend

    return way


def flashinfer(problem: Problem) -> Function:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    (batch, _, heads, head_dim), kv_heads = problem.q.shape, problem.caches[0].shape[3]
    q, caches, table = problem.q.squeeze(1), problem.pages(), problem.block_table()
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    indptr = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * table.shape[1]
    last = torch.full((batch,), PAGE, dtype=torch.int32, device=q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=problem.grouped)
    wrapper.plan(
        indptr, table.flatten(), last, heads, kv_heads, head_dim, PAGE, q_data_type=q.dtype, kv_data_type=q.dtype
    )
    return lambda i: wrapper.run(q, (caches[i][0], caches[i][1])).unsqueeze(1)


def flash_attn(problem: Problem) -> Function:
    from flash_attn import flash_attn_with_kvcache

    q, caches, lengths = problem.q, problem.caches, problem.lengths
    return lambda i: flash_attn_with_kvcache(q, caches[i][0], caches[i][1], cache_seqlens=lengths)


_GPU_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WAYS: dict[str, dict[str, Way]] = {
    "cpu": {
        "fdpp": fdpp(num_splits=0),
        "fdpp paged": fdpp_paged,
        "torch": torch_sdpa(None, expanded=False),
        "torch expanded": torch_sdpa(None, expanded=True),
    },
    "cuda": {
        "fdpp": fdpp(num_splits=0),
        "fdpp paged": fdpp_paged,
        "fdpp running maximum": fdpp_running_maximum,
        **{f"torch {name}": torch_sdpa(backend, expanded=False) for name, backend in _GPU_BACKENDS.items()},
        **{f"torch {name} expanded": torch_sdpa(backend, expanded=True) for name, backend in _GPU_BACKENDS.items()},
        "flashinfer": flashinfer,
        "flash-attn": flash_attn,
    },
}
