"""The operators as members of torch: opcheck, torch.compile without graph breaks, mutation, aliasing, gradients."""

from __future__ import annotations

import pytest
import torch

from .numeric import assert_close
from .valid import CALLS, call_op, op_name, split_arguments, valid_arguments


@pytest.mark.parametrize("call", CALLS)
def test_opcheck(backend, dtype, ops, call):
    positional, keyword = split_arguments(call, valid_arguments(call, backend.device, dtype))
    namespace = getattr(torch.ops, backend.namespace)
    torch.library.opcheck(getattr(namespace, op_name(call)).default, tuple(positional), keyword)


@pytest.mark.parametrize("call", CALLS)
def test_meta_tensors_give_shapes(backend, ops, call):
    """All on the meta device: the shape and dtype of the real result, without data."""
    arguments = valid_arguments(call, backend.device, torch.bfloat16)
    real = call_op(ops, call, arguments)
    meta = call_op(ops, call, {n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in arguments.items()})
    assert meta.is_meta and (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("call", CALLS)
def test_results_are_new_and_only_what_is_said_changes(backend, ops, call):
    arguments = valid_arguments(call, backend.device, backend.dtypes[0])
    before = {name: x.clone() for name, x in arguments.items() if isinstance(x, torch.Tensor)}
    out = call_op(ops, call, arguments)
    mutated = {a.name for a in getattr(torch.ops.fdpp, op_name(call)).default._schema.arguments if a.is_write}
    for name, old in before.items():
        assert out.untyped_storage().data_ptr() != arguments[name].untyped_storage().data_ptr(), name
        if name in mutated - {"rereference_count"}:
            assert not torch.equal(arguments[name], old), f"{name} should have changed"
        elif name not in mutated:
            assert torch.equal(arguments[name], old), f"{name} changed"


def _layer(ops, x, residual, norm, qkv, o, up, down, cos, sin, positions, k_cache, v_cache, lengths, count):
    """One decoder layer made of every operator: 4 query heads, 2 kv heads, head_dim 64."""
    x = ops.add_rms_norm(x, residual, norm, 1e-5)
    q, k, v = ops.linear(x, qkv).unflatten(-1, (-1, 64)).split([4, 2, 2], dim=2)
    q = ops.rope_append(q, k, v, cos, sin, positions, k_cache, v_cache)
    x = ops.decode_attention(q, k_cache, v_cache, lengths, num_splits=2, rereference_count=count)
    x = ops.flat_gemm(x.flatten(2), o)
    x = ops.rms_norm(x, norm, 1e-5)
    x = ops.silu_mul(ops.linear(x, up)) + ops.linear(x, up, gated=True)
    return ops.gemv(x, down, residual=residual)


def _layer_arguments(device: str, dtype: torch.dtype, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.2).to(dtype).to(device)

    hidden, lengths = 256, torch.arange(5, 5 + batch, dtype=torch.int32, device=device)
    angles = torch.rand(16, 32, generator=generator).to(device)
    weights = [randn(hidden), randn(512, hidden), randn(hidden, hidden), randn(128, hidden), randn(hidden, 64)]
    caches = [randn(batch, 16, 2, 64) for _ in range(2)]
    count = torch.zeros(4, dtype=torch.int64, device=device)
    x, residual = randn(batch, 1, hidden), randn(batch, 1, hidden)
    return [x, residual, *weights, angles.cos(), angles.sin(), (lengths - 1).unsqueeze(1), *caches, lengths, count]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dtype, ops, dynamic):
    """A layer compiled without graph breaks gives the bits of the eager one, in the result and in what it mutates."""
    torch.compiler.reset()
    compiled = torch.compile(_layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3):
        eager_arguments, arguments = (_layer_arguments(backend.device, dtype, batch) for _ in range(2))
        expected = _layer(ops, *eager_arguments)
        actual = compiled(ops, *arguments)
        assert torch.equal(actual, expected)
        for mine, theirs in zip(arguments, eager_arguments, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.where(lambda backend: torch.float32 in backend.dtypes)
def test_compile_with_inductor(backend, ops):
    """The default compiler as well; it may fuse what stands around the operators, hence a tolerance."""
    torch.compiler.reset()
    eager_arguments, arguments = (_layer_arguments(backend.device, torch.float32) for _ in range(2))
    expected = _layer(ops, *eager_arguments)
    actual = torch.compile(_layer, fullgraph=True)(ops, *arguments)
    assert_close(actual, expected, 1e-5)
    for mine, theirs in zip(arguments, eager_arguments, strict=True):
        assert_close(mine, theirs, 1e-5)
