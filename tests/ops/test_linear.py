"""gemv, flat_gemm and linear against the oracle, over ragged shapes, strides and every tile configuration."""

from __future__ import annotations

import random

import pytest
import torch

from fdpp import dataflow, reference

from .cases import on_device, strided
from .numeric import ROUNDOFF, UNDERFLOW, assert_close, oracle

SIZES = [(1, 1), (1, 4097), (17, 63), (63, 577), (64, 64), (100, 17), (100, 1), (577, 100), (576, 1536), (33, 4097)]
SMALL_SIZES = [
    (1, 8),
    (17, 63),
    (40, 328),
    (64, 64),
    (33, 1033),
    (100, 1),
    (150, 512),
    (600, 264),  # more tiles than blocks run at a time: a block walks several
]  # where every thread is run by the host


def operands(m: int, n: int, k: int, dtype: torch.dtype, bias: bool = True):
    generator = torch.Generator().manual_seed(10_000 * m + 100 * n + k)
    shapes = [(m, k), (n, k), (n,)]
    x, weight, b = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x, weight, b if bias else None


class Problem:
    """Operands and what the oracle makes of them. Sums are float32, in any order, and rounded once.

    torch's own linear, which a GPU's ``linear`` takes for some shapes, rounds sums on the way, too: those of its splits
    of K, and before the bias.
    """

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        self.x, self.weight, self.bias = x, weight, bias
        self.expected = oracle(reference.linear, x, weight, bias)
        self.magnitude = oracle(reference.linear, x.abs(), weight.abs(), None if bias is None else bias.abs())
        float32 = (4 + x.shape[-1] ** 0.5) * ROUNDOFF[torch.float32]
        self.tolerance = ROUNDOFF[x.dtype] * self.expected.abs() + float32 * self.magnitude + UNDERFLOW[x.dtype]

    def rounded_sums(self) -> Problem:
        self.tolerance = self.tolerance + ROUNDOFF[self.x.dtype] * self.magnitude
        return self

    def check(self, op, device: str, rng: random.Random | None = None, **options) -> None:
        """``rng`` draws the outer strides of x and weight."""
        alignment = rng.choice([1, 8]) if rng else 1
        placed = [strided(t, rng, alignment) if rng else t for t in (self.x, self.weight)]
        actual = op(*(on_device(t, device) for t in (*placed, self.bias)), **options)
        assert actual.dtype == self.x.dtype and actual.is_contiguous()
        what = f"x {tuple(self.x.shape)}, weight {tuple(self.weight.shape)}, {self.x.dtype}, {options}"
        assert_close(actual, self.expected, self.tolerance, what)


def sizes(backend):
    return SMALL_SIZES if is_simt(backend) else SIZES


def is_simt(backend) -> bool:
    return backend.namespace != "fdpp"


def is_gpu(backend) -> bool:
    return backend.name != "cpu"


def takes_torch(backend, problem: Problem) -> bool:
    library, index = backend.library()
    (n, k), m = problem.weight.shape, problem.x[..., 0].numel()
    return library.choice(str(problem.x.dtype).removeprefix("torch."), n, k, m, index)["impl"] == "aten"


def configs(backend, dtype) -> range:
    library, index = backend.library()
    return range(library.flat_gemm_configs(str(dtype).removeprefix("torch."), index))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
def test_gemv(backend, dtype, ops, m):
    for n, k in sizes(backend):
        for bias in (True, False):
            Problem(*operands(m, n, k, dtype, bias)).check(ops.gemv, backend.device, random.Random(n * k + bias))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 33, 64])
def test_flat_gemm(backend, dtype, ops, m):
    for n, k in sizes(backend):
        problem = Problem(*operands(m, n, k, dtype))
        for config in (-1, *configs(backend, dtype)):
            problem.check(ops.flat_gemm, backend.device, random.Random(m + config), config=config)


@pytest.mark.parametrize("m", [1, 2, 8, 17, 64, 65, 130])
def test_linear(backend, dtype, ops, m):
    for n, k in sizes(backend):
        for bias in (True, False):
            problem = Problem(*operands(m, n, k, dtype, bias))
            if is_gpu(backend) and takes_torch(backend, problem):
                problem.rounded_sums()
            problem.check(ops.linear, backend.device, random.Random(m))


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
@pytest.mark.parametrize("residual", [None, "dtype of x", "float32"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "gelu_tanh"])
def test_epilogues(backend, dtype, ops, name, residual, gated, activation):
    """Against the oracle, for every configuration; where the product was rounded first, that counts, too."""
    out_dtype = torch.float32 if residual == "float32" else dtype
    for m, n, k in [(1, 34, 40), (3, 100, 77), (9, 6, 1032), (33, 66, 64), (64, 2, 8)]:
        x, weight, bias = operands(m, n, k, dtype)
        weight = weight * k**-0.5
        product = Problem(x, weight, bias)
        if name == "linear" and is_gpu(backend):
            product.rounded_sums()
        rounded = product.tolerance + ROUNDOFF[dtype] * product.expected.abs()
        y, wrong = product.expected, rounded
        if gated or activation:  # whose slope is at most 1.2
            gate, gate_wrong = (y[:, 0::2], rounded[:, 0::2]) if gated else (y, rounded)
            activated = reference._ACTIVATIONS[activation or "silu"](gate).abs()
            # exp(-x^2) loses what x^2 has no room for.
            wrong = 1.2 * gate_wrong + 16 * ROUNDOFF[torch.float32] * (1 + gate**2) * activated
        if gated:
            up, up_wrong = y[:, 1::2], rounded[:, 1::2]
            wrong = wrong * (up.abs() + up_wrong) + activated * up_wrong
        columns = n // 2 if gated else n
        stream = None if residual is None else operands(m, 1, columns, out_dtype)[0]
        expected = oracle(reference.linear, x, weight, bias, residual=stream, gated=gated, activation=activation)
        tolerance = 2 * ROUNDOFF[out_dtype] * expected.abs() + wrong + UNDERFLOW[dtype]
        for config in configs(backend, dtype) if name == "flat_gemm" else (None,):
            rng = random.Random(m)
            placed = [on_device(strided(t, rng), backend.device) for t in (x, weight)]
            options = {} if config is None else {"config": config}
            if stream is not None:
                options["residual"] = on_device(strided(stream, rng), backend.device)
            actual = getattr(ops, name)(
                *placed, on_device(bias, backend.device), gated=gated, **options, activation=activation
            )
            assert actual.dtype == out_dtype and actual.is_contiguous() and actual.shape == (m, columns)
            assert_close(
                actual, expected, tolerance, f"x {m} x {k}, weight {n} x {k}, {options.keys()}, config {config}"
            )


@pytest.mark.parametrize("m", [2, 5, 17, 64, 70])
def test_batch_invariance(backend, dtype, ops, m):
    """A row's bits do not depend on the rows around it, once that is asked for."""
    n, k = 50, 1096
    x, weight, bias = (on_device(t, backend.device) for t in operands(m, n, k, dtype))
    dataflow.set_batch_invariant(True)
    try:
        together = ops.linear(x, weight, bias)
        for row in range(0, m, 3):
            assert torch.equal(ops.linear(x[row : row + 1], weight, bias)[0], together[row]), row
    finally:
        dataflow.set_batch_invariant(False)


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
@pytest.mark.parametrize("leading", [(), (3,), (1, 1), (2, 3), (2, 1, 4)])
def test_leading_dimensions(backend, dtype, ops, name, leading):
    x, weight, bias = operands(max(1, torch.Size(leading).numel()), 19, 37, dtype)
    problem = Problem(x.view(*leading, 37), weight, bias)
    if name == "linear" and is_gpu(backend):
        problem.rounded_sums()
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


def test_every_implementation_of_linear_is_reached(backend):
    """The shapes of ``test_linear`` take all three ways."""
    library, index = backend.library()
    dtype = str(backend.dtypes[0]).removeprefix("torch.")
    ms = (1, 2, 8, 17, 64, 65, 130)
    choices = {library.choice(dtype, n, k, m, index)["impl"] for n, k in sizes(backend) for m in ms}
    assert choices == {"gemv", "flat_gemm", "aten"}


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh"])
def test_activations_at_the_ends(backend, dtype, ops, activation):
    """Where e^x or e^(-x^2) leave float32 the result is x, or nothing; NaN stays NaN."""
    ends = [-6e4, -1e3, -200.0, -40.0, -15.0, -13.5, -9.0, -5.0, -1e-4, -0.0, 0.0, 1e-4, 5.0, 9.0, 13.5, 200.0, 6e4]
    x = torch.tensor(ends).to(dtype)[:, None] * torch.eye(1, 8, dtype=dtype)
    weight = torch.eye(2, 8, dtype=dtype)
    expected = oracle(reference.linear, x, weight, activation=activation)
    # exp(-x^2) loses what x^2 has no room for.
    tolerance = (ROUNDOFF[dtype] + 16 * ROUNDOFF[torch.float32] * (1 + x[:, :1].double() ** 2)) * expected.abs()
    for name in ("gemv", "flat_gemm", "linear"):
        placed = [on_device(t, backend.device) for t in (x, weight)]
        actual = getattr(ops, name)(*placed, activation=activation)
        assert_close(actual, expected, tolerance + UNDERFLOW[dtype] + 1e-36, name)
        assert getattr(ops, name)(placed[0] * float("nan"), placed[1], activation=activation).isnan().all()


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
def test_an_unknown_activation_is_refused(backend, dtype, ops, name):
    x = torch.ones(2, 8, dtype=dtype, device=backend.device)
    with pytest.raises(RuntimeError, match=f"fdpp::{name}: activation must be relu, silu.*; got 'tanh'"):
        getattr(ops, name)(x, x, activation="tanh")
