"""Tensors that share memory: keys and values may interleave in one storage, but nobody reads what is written."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fdpp import reference

from .numeric import assert_close, elementwise_tolerance, oracle
from .valid import call_op, valid_arguments

Arguments = dict[str, Any]

#: Keys and values [B, S, H, D] as views of one storage.
PACKED = {
    "[2, B, S, H, D]": lambda B, S, H, D: torch.zeros(2, B, S, H, D).unbind(0),
    "[B, 2, S, H, D]": lambda B, S, H, D: torch.zeros(B, 2, S, H, D).unbind(1),
    "[B, S, 2, H, D]": lambda B, S, H, D: torch.zeros(B, S, 2, H, D).unbind(2),
    "[B, S, H, 2 D]": lambda B, S, H, D: torch.zeros(B, S, H, 2 * D).split(D, dim=-1),
    "[B, 2, H, S, D]": lambda B, S, H, D: [x.transpose(1, 2) for x in torch.zeros(B, 2, H, S, D).unbind(1)],
    "[S, H, 2, B, D]": lambda B, S, H, D: [x.permute(2, 0, 1, 3) for x in torch.zeros(S, H, 2, B, D).unbind(2)],
}


@pytest.mark.parametrize("call", ["rope_append", "rope_append_paged"])
@pytest.mark.parametrize("packed", PACKED)
def test_keys_and_values_of_one_storage(backend, dtype, ops, call, packed):
    """The same bits as with a storage for each: written by rope_append, then read by decode_attention."""
    apart, together = (valid_arguments(call, backend.device, dtype) for _ in range(2))
    views = PACKED[packed](*apart["k_cache"].shape)
    storage = torch.zeros(2 * apart["k_cache"].numel(), dtype=dtype, device=backend.device)
    for name, view in zip(("k_cache", "v_cache"), views, strict=True):
        together[name] = storage.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(apart[name])
    q, expected_q = (call_op(ops, call, arguments) for arguments in (together, apart))
    assert torch.equal(q, expected_q)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(together[name], apart[name])
    lengths = torch.tensor([20, 8], dtype=torch.int32, device=backend.device)
    out, expected = (
        ops.decode_attention(q, each["k_cache"], each["v_cache"], lengths, each["block_table"])
        for each in (together, apart)
    )
    assert torch.equal(out, expected)


def in_memory_of(x: Tensor, like: Tensor) -> Tensor:
    """A tensor of the shape and dtype of ``like`` at the beginning of ``x``."""
    return x.view(-1).view(torch.uint8).view(like.dtype)[: like.numel()].view(like.shape)


def aliased(name: str, other: str) -> Callable[[Arguments], Arguments]:
    """The argument ``name`` lies in the memory of ``other``, which is large enough."""
    return lambda arguments: {name: in_memory_of(arguments[other], arguments[name])}


def shifted(first: str, second: str, by: int) -> Callable[[Arguments], Arguments]:
    """Two arguments of one shape in one storage, the second ``by`` elements further on."""

    def change(arguments: Arguments) -> Arguments:
        x = arguments[first]
        storage = torch.ones(x.numel() + by, dtype=x.dtype, device=x.device)
        return {first: storage[: x.numel()].view(x.shape), second: storage[by:].view(x.shape)}

    return change


def expanded(name: str, dim: int) -> Callable[[Arguments], Arguments]:
    return lambda arguments: {name: arguments[name].narrow(dim, 0, 1).expand(arguments[name].shape)}


CACHES, COUNT = ("k_cache", "v_cache"), "rereference_count"
OVERLAPS = [
    *(("rope_append", expanded(cache, dim), cache, "of its own") for cache in CACHES for dim in (0, 1, 2)),
    *(("rope_append", aliased(x, y), x, y) for x in ("q", "k", "v", "cos", "sin", "positions") for y in CACHES),
    *(("rope_append_paged", aliased("block_table", cache), "block_table", cache) for cache in CACHES),
    # Nothing, half a head, a head, a slot and a sequence further on.
    *(("rope_append", shifted(*CACHES, by), "v_cache", "k_cache") for by in (0, 32, 64, 128, 3072)),
    # A row, an element, all but an element further on.
    *(("add_rms_norm", shifted("residual", "x", by), "x", "residual") for by in (24, 1, 143)),
    ("add_rms_norm", lambda a: {"x": a["residual"][:1].expand(2, 3, 24)}, "x", "residual"),
    ("add_rms_norm", lambda a: {"weight": a["residual"][1, 1]}, "weight", "residual"),
    *(("add_layer_norm", shifted("residual", "x", by), "x", "residual") for by in (24, 1, 143)),
    ("add_layer_norm", lambda a: {"weight": a["residual"][1, 1]}, "weight", "residual"),
    ("add_layer_norm", lambda a: {"bias": a["residual"][1, 1]}, "bias", "residual"),
    *(("decode_attention", aliased(x, COUNT), x, COUNT) for x in ("cache_seqlens", "phi", "alibi_slopes", "sinks")),
    ("decode_attention_paged", aliased("block_table", COUNT), "block_table", COUNT),
    *(("decode_attention", aliased(COUNT, x), x, COUNT) for x in ("q", *CACHES)),
]


@pytest.mark.parametrize("call, change, name, other", OVERLAPS)
def test_what_is_written_is_read_by_nobody_else(backend, dtype, ops, call, change, name, other):
    arguments = valid_arguments(call, backend.device, dtype)
    arguments |= change(arguments)
    before = {key: x.clone() for key, x in arguments.items() if isinstance(x, Tensor)}
    with pytest.raises(RuntimeError, match=rf"\b{name} must .*\b{other}\b"):
        call_op(ops, call, arguments)
    for key, x in before.items():
        assert torch.equal(arguments[key].nan_to_num(), x.nan_to_num()), f"{key} was written before the check"


def test_a_residual_may_be_added_to_itself(backend, dtype, ops):
    """Each element is read before it is written; torch's own in-place operators allow the same."""
    arguments = valid_arguments("add_rms_norm", backend.device, dtype)
    residual, weight = arguments["residual"], arguments["weight"]
    before = residual.cpu().clone()
    actual = ops.add_rms_norm(residual, residual, weight, 1e-5)
    assert torch.equal(residual.cpu(), before + before)
    expected = oracle(reference.rms_norm, before.double() + before.double(), weight.cpu(), 1e-5)
    assert_close(actual, expected, elementwise_tolerance(expected, dtype, 24))


def random_caches(rng: random.Random, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two views [B, S, H, 2] of one storage: strides nested in any order, with or without gaps, or any at all."""
    shape = [rng.randint(1, 3) for _ in range(3)]
    wild = rng.random() < 0.3

    def strides() -> list[int]:
        if wild:
            return [rng.randint(0, 14) for _ in shape]
        result, stride = [0, 0, 0], 2 * rng.randint(1, 2)
        for dim in rng.sample(range(3), 3):
            result[dim] = stride
            stride *= shape[dim] * rng.choice([1, 1, 2])
        return result

    first = strides()
    second = first if rng.random() < 0.7 else strides()
    storage = torch.zeros(1000, dtype=dtype)
    return tuple(storage.as_strided((*shape, 2), (*each, 1), rng.randint(0, 40)) for each in (first, second))


def places(x: Tensor) -> list[int]:
    """Where each element lies in the storage."""
    indices = itertools.product(*(range(size) for size in x.shape))
    return [x.storage_offset() + sum(i * s for i, s in zip(index, x.stride(), strict=True)) for index in indices]


def test_random_views_of_one_storage(backend, ops):
    """Refused exactly when a place is written twice."""
    rng, dtype = random.Random(0), backend.dtypes[0]
    outcomes = []
    for _ in range(400):
        k_cache, v_cache = random_caches(rng, dtype)
        written = places(k_cache) + places(v_cache)
        B, S, H, D = k_cache.shape
        new = torch.ones(B, 1, H, D, dtype=dtype, device=backend.device)
        table = torch.ones(S, 1, device=backend.device)
        positions = torch.zeros(B, 1, dtype=torch.int32, device=backend.device)
        storage = torch.zeros(1000, dtype=dtype, device=backend.device)
        caches = [storage.as_strided(x.shape, x.stride(), x.storage_offset()) for x in (k_cache, v_cache)]
        try:
            ops.rope_append(new, new, new, table, 0 * table, positions, *caches)
            accepted = True
        except RuntimeError as error:
            assert "memory" in str(error)
            accepted = False
        assert accepted == (len(set(written)) == len(written)), (k_cache.shape, k_cache.stride(), v_cache.stride())
        outcomes.append(accepted)
    assert 100 < sum(outcomes) < 300
