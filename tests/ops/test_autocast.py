"""Operators under torch.autocast: the casts of torch.nn.functional.linear, the dtype of what is written or cached."""

from __future__ import annotations

import pytest
import torch

from fdpp import reference

from .numeric import assert_close
from .valid import CALLS, call_op, valid_arguments

SHAPES = [(1, 64, 64), (65, 64, 64), (128, 64, 64), (600, 96, 64)]  # M, N, K: every implementation


def other(dtype: torch.dtype) -> torch.dtype:
    """What autocast casts to, where the inputs have the dtype: another one."""
    return torch.float16 if dtype == torch.bfloat16 else torch.bfloat16


@pytest.mark.parametrize("M, N, K", SHAPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("residual_dtype", [None, "narrow", torch.float32], ids=str)
def test_linear(backend, dtype, ops, M, N, K, gated, residual_dtype):
    """The result has the dtype of autocast, or of a float32 residual, and the value; whatever M chooses."""
    generator = torch.Generator().manual_seed(M)
    cast = other(dtype)

    def randn(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(backend.device)

    x, weight, bias = randn(M, K), randn(N, K), randn(N)
    residual = None
    if residual_dtype is not None:
        residual = randn(M, N // 2 if gated else N, dtype=dtype if residual_dtype == "narrow" else residual_dtype)
    with torch.autocast(backend.device, cast):
        out = ops.linear(x, weight, bias, residual=residual, gated=gated)
    keeps = residual is not None and residual.dtype == torch.float32
    assert out.dtype == (torch.float32 if keeps else cast)
    casted = [t.to(cast) for t in (x, weight, bias)]
    residual = residual if keeps or residual is None else residual.to(cast)
    assert torch.equal(out, ops.linear(*casted, residual=residual, gated=gated))
    exact = reference.linear(*casted, residual=residual, gated=gated).cpu()
    assert_close(out.cpu(), exact, 4 * torch.finfo(cast).eps * (1 + exact.abs()))


@pytest.mark.parametrize("call", CALLS)
def test_every_operator(backend, ops, call):
    """Weights of one dtype, activations of another, a float32 residual, a cache: as a model under autocast has them."""
    dtype = backend.dtypes[0]
    cast = other(dtype)
    arguments = valid_arguments(call, backend.device, dtype)
    activations = ["x", "q", "k", "v"]
    mixed = arguments | {name: arguments[name].to(cast) for name in activations if name in arguments}
    if call.startswith("add_"):
        mixed["residual"] = arguments["residual"].float()
    with torch.autocast(backend.device, cast):
        out = call_op(ops, call, mixed)
    assert out.isfinite().all()
    written_dtype = dtype if "k_cache" in arguments else torch.float32 if "gated" in arguments else cast
    assert out.dtype == (dtype if call in ("silu_mul", "dequantize_rows") else written_dtype)
    for name, before in valid_arguments(call, backend.device, dtype).items():
        if isinstance(before, torch.Tensor) and name not in (*activations, "residual"):
            assert arguments[name].dtype == before.dtype, name


@pytest.mark.parametrize("call", CALLS)
def test_without_casts_nothing_changes(backend, dtype, ops, call):
    """Inputs that have the dtype of autocast already: the bits of a call without it."""
    expected = call_op(ops, call, valid_arguments(call, backend.device, dtype))
    with torch.autocast(backend.device, torch.bfloat16 if dtype == torch.float32 else dtype):
        actual = call_op(ops, call, valid_arguments(call, backend.device, dtype))
    if dtype != torch.float32 or "x" not in valid_arguments(call, backend.device):
        assert torch.equal(actual, expected)


@pytest.mark.where(lambda backend: backend.has_own_rules)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(backend, ops, compiler, dynamic):
    dtype = backend.dtypes[0]
    cast = other(dtype)

    def function(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        with torch.autocast(backend.device, cast):
            return ops.linear(ops.linear(x, weight), weight, residual=residual)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=compiler)
    for M in (3, 128):
        x, weight, residual = torch.ones(M, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype), torch.ones(M, 64)
        actual, expected = compiled(x, weight, residual), function(x, weight, residual)
        assert actual.dtype == expected.dtype == torch.float32
        assert torch.equal(actual, expected)


def test_float64_is_refused_as_ever(backend, ops):
    x = torch.ones(4, 24, dtype=torch.float64, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16), pytest.raises(RuntimeError, match="float64"):
        ops.linear(x, x)


def test_none_is_refused_as_ever(backend, ops):
    x = torch.ones(4, 24, dtype=backend.dtypes[0], device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16), pytest.raises(RuntimeError, match="weight must be a tensor"):
        ops.linear(x, None)
