"""decode_attention against the oracle on random shapes, strides, lengths, pages, dtypes and options."""

from __future__ import annotations

import random

import pytest
import torch

from .cases import GROUPS, HEAD_DIMS, AttentionCase, on_device, random_attention_case
from .numeric import assert_close


def check(case: AttentionCase, ops, device: str, rng: random.Random | None = None, alignment: int = 1) -> None:
    expected = case.expected()
    actual = case.run(ops, device, rng, alignment)
    assert actual.dtype == case.inputs["q"].dtype and actual.is_contiguous()
    assert_close(actual, expected, case.tolerance(expected), case)


@pytest.mark.parametrize("seed", range(400))
def test_random_case(backend, ops, seed):
    check(random_attention_case(seed, backend.dtypes), ops, backend.device, random.Random(seed), backend.alignment)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim_and_group(backend, dtype, ops, head_dim, group):
    generator = torch.Generator().manual_seed(head_dim + group)
    q = torch.randn(2, 1, 2 * group, head_dim, generator=generator).to(dtype)
    k_cache, v_cache = (torch.randn(2, 130, 2, head_dim, generator=generator).to(dtype) for _ in range(2))
    lengths = torch.tensor([130, 67], dtype=torch.int32)
    inputs = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": lengths, "block_table": None}
    check(AttentionCase(inputs), ops, backend.device)


@pytest.mark.parametrize("new_tokens", range(1, 17))
def test_every_number_of_new_tokens(backend, dtype, ops, new_tokens):
    generator = torch.Generator().manual_seed(new_tokens)
    q = torch.randn(3, new_tokens, 6, 64, generator=generator).to(dtype)
    k_cache, v_cache = (torch.randn(3, 100, 2, 64, generator=generator).to(dtype) for _ in range(2))
    lengths = torch.tensor([100, new_tokens, max(0, new_tokens - 1)], dtype=torch.int32)
    inputs = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": lengths, "block_table": None}
    check(AttentionCase(inputs), ops, backend.device)


def test_one_cache_for_the_whole_batch(backend, dtype, ops):
    """A cache whose batch stride is 0 (``expand``), and a q whose every stride but the last is 0."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 1, 64, generator=generator).to(dtype)
    k, v = (torch.randn(1, 90, 2, 64, generator=generator).to(dtype) for _ in range(2))
    lengths = torch.tensor([90, 33, 0], dtype=torch.int32)
    inputs = {"q": q.expand(3, 4, 6, 64), "k_cache": k.expand(3, -1, -1, -1), "v_cache": v.expand(3, -1, -1, -1)}
    inputs |= {"cache_seqlens": lengths, "block_table": None}
    case = AttentionCase({name: None if x is None else x.contiguous() for name, x in inputs.items()})
    actual = ops.decode_attention(*(on_device(x, backend.device) for x in inputs.values()))
    expected = case.expected()
    assert_close(actual, expected, case.tolerance(expected), case)


def test_long_context(backend, dtype, ops):
    """16k keys in four heads: more splits than one sequence usually gets."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, 1, 4, 64, generator=generator).to(dtype)
    k_cache, v_cache = (torch.randn(1, 16384, 1, 64, generator=generator).to(dtype) for _ in range(2))
    inputs = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    inputs |= {"cache_seqlens": torch.tensor([16383], dtype=torch.int32), "block_table": None}
    check(AttentionCase(inputs), ops, backend.device)


@pytest.mark.parametrize("batch, capacity", [(0, 16), (2, 0), (0, 0)])
def test_nothing_to_do(backend, dtype, ops, batch, capacity):
    q = torch.ones(batch, 2, 4, 64, dtype=dtype, device=backend.device)
    cache = torch.ones(batch, capacity, 2, 64, dtype=dtype, device=backend.device)
    lengths = torch.zeros(batch, dtype=torch.int32, device=backend.device)
    out = ops.decode_attention(q, cache, cache.clone(), lengths)
    assert out.shape == q.shape and not out.any()
