"""Norms, silu_mul and rope_append against the oracle."""

from __future__ import annotations

import random

import pytest
import torch

from fdpp import reference
from fdpp._host import HEAD_DIMS

from .cases import BOGUS_PAGES, on_device, strided
from .numeric import assert_close, elementwise_tolerance, oracle

WIDTHS = [1, 2, 7, 16, 63, 64, 100, 576, 577, 4096]
LEADING = [(), (1,), (5,), (2, 3), (3, 1, 2)]


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


#: Norms by name: the arguments between x (and the residual) and eps.
NORMS = {
    "rms_norm": lambda width, dtype: [randn(width, dtype=dtype, seed=1)],
    "layer_norm": lambda width, dtype: [randn(width, dtype=dtype, seed=1), randn(width, dtype=dtype, seed=3)],
    "layer_norm without bias": lambda width, dtype: [randn(width, dtype=dtype, seed=1), None],
}


def norm_tolerance(name: str, x: torch.Tensor, expected: torch.Tensor, weights: list, dtype: torch.dtype):
    """Rounding, and of a layer norm what the deviations lose: the mean is a float32 sum of all of the row."""
    tolerance = elementwise_tolerance(expected, dtype, 8 + x.shape[-1] ** 0.5)
    if name == "rms_norm" or x.numel() == 0:
        return tolerance
    x, scale = x.double(), 1 / (x.double().var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()
    lost = (8 + x.shape[-1] ** 0.5) * 2.0**-24 * x.abs().amax(dim=-1, keepdim=True) * scale * weights[0].double().abs()
    # Where the deviations are about as small as what they lose, the scale itself is off by as much.
    deviations = (x - x.mean(dim=-1, keepdim=True)).abs() * scale
    return tolerance + lost * (1 + deviations)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("name", NORMS)
def test_norm(backend, dtype, ops, name, leading, width):
    x, weights = randn(*leading, width, dtype=dtype), NORMS[name](width, dtype)
    operator = name.split()[0]
    expected = oracle(getattr(reference, operator), x, *weights, 1e-5)
    for seed in range(3):
        placed = strided(on_device(x, backend.device), random.Random(seed))
        actual = getattr(ops, operator)(placed, *(on_device(w, backend.device) for w in weights), 1e-5)
        assert actual.dtype == dtype and actual.is_contiguous()
        assert_close(actual, expected, norm_tolerance(name, x, expected, weights, dtype))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("magnitude", [0.0, 1e-4, 1e4])
def test_norm_of_any_magnitude(backend, dtype, ops, name, magnitude):
    """Squares of large float16 values are summed in float32; eps keeps a row of zeros defined."""
    x, weights = magnitude * randn(3, 200, dtype=dtype), NORMS[name](200, dtype)
    operator = name.split()[0]
    expected = oracle(getattr(reference, operator), x, *weights, 1e-5)
    actual = getattr(ops, operator)(*(on_device(t, backend.device) for t in (x, *weights)), 1e-5)
    assert_close(actual, expected, norm_tolerance(name, x, expected, weights, dtype))


@pytest.mark.parametrize("width", [5, 200, 9000])
def test_layer_norm_far_from_zero(backend, dtype, ops, width):
    """Deviations are squared, not the values: the variance of large values near each other does not cancel."""
    x = 1000 + 4 * randn(3, width, dtype=dtype)
    weights = [torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)]
    expected = oracle(reference.layer_norm, x, *weights, 1e-5)
    actual = ops.layer_norm(*(on_device(t, backend.device) for t in (x, *weights)), 1e-5)
    assert_close(actual, expected, norm_tolerance("layer_norm", x, expected, weights, dtype))


@pytest.mark.parametrize("float32_residual", [False, True])
@pytest.mark.parametrize("width", [*WIDTHS, 9000])
@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("name", NORMS)
def test_add_norm(backend, dtype, ops, name, leading, width, float32_residual):
    x, weights = randn(*leading, width, dtype=dtype), NORMS[name](width, dtype)
    operator = name.split()[0]
    before = randn(*leading, width, dtype=torch.float32 if float32_residual else dtype, seed=2)
    for seed in range(3):
        residual = before.clone().to(backend.device)
        placed = strided(on_device(x, backend.device), random.Random(seed))
        placed_weights = [on_device(w, backend.device) for w in weights]
        actual = getattr(ops, f"add_{operator}")(placed, residual, *placed_weights, 1e-5)
        total = before.double() + x.double()
        assert_close(residual, total, elementwise_tolerance(total, before.dtype), "residual")
        expected = oracle(getattr(reference, operator), total, *weights, 1e-5)
        assert_close(actual, expected, norm_tolerance(name, total, expected, weights, dtype))
        assert actual.dtype == dtype and actual.is_contiguous()
        assert residual.dtype == before.dtype and actual.data_ptr() != residual.data_ptr()


@pytest.mark.parametrize("name", NORMS)
def test_add_norm_of_a_sum_that_float16_has_no_room_for(backend, ops, name):
    """The norm is that of the float32 sum; the residual itself becomes infinite."""
    x = torch.full((2, 100), 6e4, dtype=torch.float16)
    x[:, ::2] *= -1
    weights, operator = NORMS[name](100, torch.float16), "add_" + name.split()[0]
    residual, expected_residual = x.clone().to(backend.device), x.clone()
    actual = getattr(ops, operator)(
        on_device(x, backend.device), residual, *(on_device(w, backend.device) for w in weights), 1e-5
    )
    expected = oracle(getattr(reference, operator), x, expected_residual, *weights, 1e-5)
    assert_close(actual, expected, elementwise_tolerance(expected, x.dtype, 24))
    assert actual.isfinite().all() and expected_residual.isinf().all()
    assert torch.equal(residual.cpu(), expected_residual)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leading", LEADING)
def test_silu_mul(backend, dtype, ops, leading, width):
    gate_up = 4 * randn(*leading, 2 * width, dtype=dtype)
    expected = oracle(reference.silu_mul, gate_up)
    for seed in range(3):
        actual = ops.silu_mul(strided(on_device(gate_up, backend.device), random.Random(seed)))
        assert actual.dtype == dtype and actual.is_contiguous()
        assert_close(actual, expected, elementwise_tolerance(expected, dtype, 16))


def test_silu_mul_at_the_ends(backend, dtype, ops):
    """Gates where e^-x or e^x leave float32: the result is the gate itself, or nothing."""
    gate = torch.tensor([-6e4, -1e3, -200.0, -110.0, -89.0, -88.0, -0.0, 0.0, 88.0, 89.0, 110.0, 200.0, 1e3, 6e4])
    gate_up = torch.cat([gate, torch.ones(len(gate))]).to(dtype)
    expected = oracle(reference.silu_mul, gate_up)
    actual = ops.silu_mul(on_device(gate_up, backend.device))
    assert_close(actual, expected, elementwise_tolerance(expected, dtype, 128) + 1e-36)
    assert ops.silu_mul(on_device(torch.tensor([[float("nan"), 1.0]]).to(dtype), backend.device)).isnan().all()


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
def test_nothing_to_do(backend, dtype, ops, shape):
    x = torch.ones(shape, dtype=dtype, device=backend.device)
    weight = torch.ones(shape[-1], dtype=dtype, device=backend.device)
    assert ops.silu_mul(x).shape == (*shape[:-1], shape[-1] // 2)
    assert ops.rms_norm(x, weight, 1e-5).shape == shape
    assert ops.layer_norm(x, weight, weight, 1e-5).shape == shape
    assert ops.add_rms_norm(x, x.clone(), weight, 1e-5).shape == shape
    assert ops.add_layer_norm(x, x.clone(), weight, weight, 1e-5).shape == shape


def rope_case(seed: int, dtype: torch.dtype):
    """Random tokens of random sequences, some of them padding, with tables and caches of any layout."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batch, tokens, kv_heads = rng.choice([1, 1, 3, 5]), rng.choice([1, 1, 2, 17]), rng.choice([1, 2, 4])
    q_heads, head_dim = kv_heads * rng.choice([1, 2, 3, 7]), rng.choice(HEAD_DIMS)
    rotated = rng.choice([head_dim, head_dim, head_dim // 2, 2, 20, 0])
    page_size = rng.choice([None, 8, 16, 24])
    starts = [rng.randint(0, 60) for _ in range(batch)]
    positions = torch.tensor(starts).unsqueeze(1) + torch.arange(tokens)
    padding = torch.rand(batch, tokens, generator=generator) < rng.choice([0.0, 0.3, 1.0])
    positions[padding] = rng.choice([-1, -7, -(2**31)])
    capacity = max(starts) + tokens + rng.randint(0, 5)
    if page_size is None:
        shape, block_table = (batch, capacity), None
    else:
        pages = -(-capacity // page_size)
        shape = (batch * pages + 3, page_size)
        block_table = torch.randperm(shape[0], generator=generator)[: batch * pages].view(batch, pages).int()
        unused = torch.ones(batch, pages, dtype=torch.bool)
        for b, row in enumerate(positions.tolist()):
            unused[b, [position // page_size for position in row if position >= 0]] = False
        block_table[unused] = rng.choice(BOGUS_PAGES)
    angles = 100 * torch.rand(capacity + rng.randint(0, 9), rotated // 2, generator=generator)
    heads = (q_heads, kv_heads, kv_heads)
    q, k, v = (torch.randn(batch, tokens, h, head_dim, generator=generator).to(dtype) for h in heads)
    caches = [torch.randn(*shape, kv_heads, head_dim, generator=generator).to(dtype) for _ in range(2)]
    return [q, k, v, angles.cos(), angles.sin(), positions.int(), *caches, block_table], rng.random() < 0.5


@pytest.mark.parametrize("seed", range(60))
def test_rope_append(backend, dtype, ops, seed):
    args, interleaved = rope_case(seed, dtype)
    rng = random.Random(seed)
    mine = [on_device(x, backend.device) for x in args]
    for i in (0, 1, 2, 6, 7):  # q, k, v and the caches are views
        mine[i] = strided(mine[i], rng)
    theirs = [None if x is None else x.clone() for x in args]
    expected = oracle(reference.rope_append, *theirs, interleaved=interleaved)
    actual = ops.rope_append(*mine, interleaved=interleaved)

    assert actual.dtype == dtype and actual.is_contiguous()
    largest = [x.double().abs().amax(dim=-1, keepdim=True) for x in (expected, theirs[6])]
    tolerance = elementwise_tolerance(expected, dtype, 4, 2 * largest[0])
    assert_close(actual, expected, tolerance, f"seed {seed}: q")
    padding = args[5] < 0
    assert torch.equal(actual.cpu()[padding], args[0][padding])
    written = ~torch.isclose(theirs[6].double(), args[6].double(), rtol=0, atol=0).all(dim=-1, keepdim=True)
    k_cache = theirs[6].double()
    # Both sides are rounded: two roundings apart at most.
    tolerance = written * (2 * elementwise_tolerance(k_cache, dtype, 4, 2 * largest[1]))
    assert_close(mine[6], k_cache, tolerance, f"seed {seed}: k_cache")
    assert_close(mine[7], theirs[7], 0.0, f"seed {seed}: v_cache")


def test_rope_append_agrees_with_the_definition_of_a_rotation(backend, ops):
    """A quarter turn sends (x, y) to (-y, x), in both pairings; position 0 copies."""
    cos = torch.tensor([[1.0, 1.0], [0.0, 0.0]], device=backend.device)
    sin = torch.tensor([[0.0, 0.0], [1.0, 1.0]], device=backend.device)
    x = torch.zeros(1, 2, 1, 64)
    x[..., :6] = torch.arange(1.0, 7.0)
    x = x.to(backend.dtypes[0]).to(backend.device)
    for interleaved, turned in [(False, [-3, -4, 1, 2, 5, 6]), (True, [-2, 1, -4, 3, 5, 6])]:
        caches = [torch.zeros_like(x) for _ in range(2)]
        positions = torch.tensor([[0, 1]], dtype=torch.int32, device=backend.device)
        q = ops.rope_append(x, x, x, cos, sin, positions, *caches, interleaved=interleaved)
        assert torch.equal(q[0, 0], x[0, 0]) and q[0, 1, 0, :6].tolist() == turned
        assert torch.equal(caches[0], q) and torch.equal(caches[1], x)


@pytest.mark.parametrize("batch, tokens", [(0, 1), (2, 0)])
def test_rope_append_of_nothing(backend, dtype, ops, batch, tokens):
    q, k, v = (torch.ones(batch, tokens, h, 64, dtype=dtype, device=backend.device) for h in (4, 2, 2))
    table = torch.ones(8, 32, device=backend.device)
    positions = torch.zeros(batch, tokens, dtype=torch.int32, device=backend.device)
    caches = [torch.zeros(batch, 8, 2, 64, dtype=dtype, device=backend.device) for _ in range(2)]
    assert ops.rope_append(q, k, v, table, table, positions, *caches).shape == q.shape
    assert not caches[0].any()
