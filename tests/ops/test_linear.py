"""gemv, flat_gemm and linear against the oracle, over ragged shapes, strides and every tile configuration."""

from __future__ import annotations

import random

import pytest
import torch

from fdpp import native, reference

from .cases import on_device, strided
from .numeric import ROUNDOFF, UNDERFLOW, assert_close, oracle

SIZES = [(1, 1), (1, 4097), (17, 63), (63, 577), (64, 64), (100, 17), (100, 1), (577, 100), (576, 1536), (33, 4097)]


def operands(m: int, n: int, k: int, dtype: torch.dtype, bias: bool = True):
    generator = torch.Generator().manual_seed(10_000 * m + 100 * n + k)
    shapes = [(m, k), (n, k), (n,)]
    x, weight, b = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x, weight, b if bias else None


class Problem:
    """Operands and what the oracle makes of them. Sums are float32, in any order, and rounded once."""

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        self.x, self.weight, self.bias = x, weight, bias
        self.expected = oracle(reference.linear, x, weight, bias)
        magnitude = oracle(reference.linear, x.abs(), weight.abs(), None if bias is None else bias.abs())
        float32 = (4 + x.shape[-1] ** 0.5) * ROUNDOFF[torch.float32]
        self.tolerance = ROUNDOFF[x.dtype] * self.expected.abs() + float32 * magnitude + UNDERFLOW[x.dtype]

    def check(self, op, device: str, rng: random.Random | None = None, **options) -> None:
        """``rng`` draws the outer strides of x and weight."""
        placed = [self.x, self.weight] if rng is None else [strided(self.x, rng), strided(self.weight, rng)]
        actual = op(*(on_device(t, device) for t in (*placed, self.bias)), **options)
        assert actual.dtype == self.x.dtype and actual.is_contiguous()
        what = f"x {tuple(self.x.shape)}, weight {tuple(self.weight.shape)}, {self.x.dtype}, {options}"
        assert_close(actual, self.expected, self.tolerance, what)


@pytest.mark.parametrize("m", [1, 2, 7])
@pytest.mark.parametrize("n, k", SIZES)
def test_gemv(backend, dtype, ops, m, n, k):
    for bias in (True, False):
        Problem(*operands(m, n, k, dtype, bias)).check(ops.gemv, backend.device, random.Random(n * k))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 33, 64])
def test_flat_gemm(backend, dtype, ops, m):
    for n, k in SIZES:
        problem = Problem(*operands(m, n, k, dtype))
        for config in range(-1, backend.flat_gemm_configs(dtype)):
            problem.check(ops.flat_gemm, backend.device, random.Random(m), config=config)


@pytest.mark.parametrize("m", [1, 2, 8, 17, 64, 65, 130])
def test_linear(backend, dtype, ops, m):
    for n, k in SIZES:
        for bias in (True, False):
            Problem(*operands(m, n, k, dtype, bias)).check(ops.linear, backend.device, random.Random(m))


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
@pytest.mark.parametrize("leading", [(), (3,), (1, 1), (2, 3), (2, 1, 4)])
def test_leading_dimensions(backend, dtype, ops, name, leading):
    x, weight, bias = operands(max(1, torch.Size(leading).numel()), 19, 37, dtype)
    problem = Problem(x.view(*leading, 37), weight, bias)
    problem.check(getattr(ops, name), backend.device)
    for seed in range(4):
        problem.check(getattr(ops, name), backend.device, random.Random(seed))


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
def test_one_row_for_all(backend, dtype, ops, name):
    """A row stride of 0, as ``expand`` makes it."""
    x, weight, bias = operands(1, 19, 37, dtype)
    actual = getattr(ops, name)(*(on_device(t, backend.device) for t in (x.expand(5, 37), weight, bias)))
    single = getattr(ops, name)(*(on_device(t, backend.device) for t in (x.repeat(5, 1), weight, bias)))
    assert torch.equal(actual, single)


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
def test_empty_sizes(backend, dtype, ops, name):
    """No rows or no columns: an empty result. No products to sum: the bias, or zeros."""
    op = getattr(ops, name)

    def ones(*shape):
        return torch.ones(shape, dtype=dtype, device=backend.device)

    assert op(ones(0, 8), ones(5, 8)).shape == (0, 5)
    assert op(ones(2, 0, 8), ones(5, 8), ones(5)).shape == (2, 0, 5)
    assert op(ones(3, 8), ones(0, 8)).shape == (3, 0)
    assert op(ones(3, 8), ones(0, 8), ones(0)).shape == (3, 0)
    assert torch.equal(op(ones(3, 0), ones(5, 0)), torch.zeros(3, 5, dtype=dtype, device=backend.device))
    assert torch.equal(op(ones(3, 0), ones(5, 0), ones(5)), ones(3, 5))


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
def test_nan_stays_in_its_row_and_column(backend, dtype, ops, name):
    x, weight, bias = operands(4, 21, 70, dtype)
    x[2, 69] = weight[20, 0] = float("nan")
    out = getattr(ops, name)(*(on_device(t, backend.device) for t in (x, weight, bias)))
    broken = torch.zeros(4, 21, dtype=torch.bool)
    broken[2, :] = broken[:, 20] = True
    assert torch.equal(out.isnan().cpu(), broken)


def test_every_implementation_of_linear_is_reached():
    """The shapes of ``test_linear`` take all three ways on the processor."""
    choose = native.load().linear_choice
    choices = {choose("float32", n, k, m)["impl"] for n, k in SIZES for m in (1, 2, 8, 17, 64, 65, 130)}
    assert choices == {"gemv", "flat_gemm", "aten"}
