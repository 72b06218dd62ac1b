"""Packed weights: every format bit for bit, and products against float64 over what gguf makes of the blocks."""

from __future__ import annotations

import random

import pytest
import torch

from fdpp import dataflow, reference
from fdpp.formats import PACKED, layout_rows, pack, packed_bytes

from .cases import on_device, strided
from .numeric import ROUNDOFF, UNDERFLOW, assert_close, num_threads, oracle
from .stored import FORMATS, random_blocks, values

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

on_cpus = pytest.mark.where(lambda backend: backend.name == "cpu")
on_gpus = pytest.mark.where(lambda backend: backend.name != "cpu")


def packed(
    name: str, rows: int, columns: int, seed: int = 0, magnitude: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A packed weight, and its values."""
    raw = random_blocks(name, rows, columns, seed, magnitude)
    return pack(raw, name), values(name, raw)


def group_bound(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What rounding x to 16 bits per 32 elements may cost: half a step of each, 2^-16 of the group's largest."""
    groups = x.double().abs().unflatten(-1, (-1, 32))
    rounded = groups.amax(-1, keepdim=True).expand_as(groups).flatten(-2) * 2.0**-16
    return oracle(reference.linear, rounded, weight.abs())


class Problem:
    """A product with a packed weight, and what the oracle makes of the weight's values."""

    def __init__(self, backend, x: torch.Tensor, weight: torch.Tensor, layout: str, exact: torch.Tensor):
        self.backend, self.x, self.weight, self.layout, self.exact = backend, x, weight, layout, exact

    def check(self, ops, bias=None, residual=None, extra_roundings: int = 0, **options) -> torch.Tensor:
        """``extra_roundings``: of weights and sums to the dtype of x, in torch's own linear."""
        device = self.backend.device
        placed = {"bias": bias, "residual": residual}
        actual = ops.quantized_linear(
            on_device(self.x, device),
            self.weight.to(device),
            self.layout,
            **{name: None if tensor is None else on_device(tensor, device) for name, tensor in placed.items()},
            **options,
        )
        expected = oracle(reference.linear, self.x, self.exact, bias, residual=residual, **options)
        magnitude = oracle(reference.linear, self.x.abs(), self.exact.abs(), None if bias is None else bias.abs())
        columns = self.x.shape[-1]
        tolerance = ROUNDOFF[self.x.dtype] * expected.abs() + UNDERFLOW[self.x.dtype]
        tolerance += (4 + columns / 32) * ROUNDOFF[torch.float32] * magnitude
        tolerance += extra_roundings * ROUNDOFF[self.x.dtype] * magnitude
        if self.backend.name == "cpu":
            tolerance += group_bound(self.x, self.exact)
            if residual is not None:  # the product is rounded before
                tolerance += ROUNDOFF[self.x.dtype] * (expected - residual.double()).abs()
        assert_close(actual, expected, tolerance, f"x {tuple(self.x.shape)}, {self.layout}, {self.x.dtype}, {options}")
        return actual


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows, columns", [(1, 256), (16, 512), (37, 768)])
def test_values_are_those_of_the_file(backend, ops, name, rows, columns):
    weight, exact = packed(name, rows, columns)
    layout, numbers = f"{name}:{rows}", torch.arange(rows)
    found = ops.dequantize_rows(weight.to(backend.device), layout, columns, numbers.to(backend.device))
    assert torch.equal(found.cpu(), exact)
    assert torch.equal(reference.dequantize_rows(weight, layout, columns, numbers).float(), exact)


def test_every_scale_of_mxfp4(backend, ops):
    raw = random_blocks("mxfp4", 253, 32)
    raw[:, 0] = torch.arange(253)
    weight, numbers = pack(raw, "mxfp4").to(backend.device), torch.arange(253, device=backend.device)
    assert torch.equal(ops.dequantize_rows(weight, "mxfp4:253", 32, numbers).cpu(), values("mxfp4", raw))


@pytest.mark.parametrize("out_dtype", DTYPES)
def test_rows_are_looked_up_in_every_segment(backend, ops, out_dtype):
    (first, a), (second, b) = packed("q4_k", 20, 256), packed("q6_k", 33, 256)
    weight, exact = torch.cat([first, second]).to(backend.device), torch.cat([a, b])
    rows = torch.tensor([[0, 19, 20], [52, 36, 20]])
    found = ops.dequantize_rows(weight, "q4_k:20,q6_k:33", 256, rows.to(backend.device), dtype=out_dtype)
    assert found.dtype == out_dtype and torch.equal(found.cpu(), exact[rows].to(out_dtype))
    for wrong in (-1, 53):
        numbers = torch.tensor([3, wrong, 4], device=backend.device)
        if backend.checks_values:
            with pytest.raises(RuntimeError, match=f"rows must be from 0 to 52; got {wrong} at place 1"):
                ops.dequantize_rows(weight, "q4_k:20,q6_k:33", 256, numbers)
        else:
            found = ops.dequantize_rows(weight, "q4_k:20,q6_k:33", 256, numbers).cpu()
            assert found[1].isnan().all() and torch.equal(found[::2], exact[3:5])


@pytest.mark.parametrize("name", FORMATS)
def test_products(backend, dtype, ops, name):
    rng = random.Random(name)
    for m in (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 65, 130):
        n, k = rng.choice([1, 15, 16, 33, 100]), 256 * rng.randint(1, 5) + (0 if PACKED[name].groups > 1 else 32)
        vendor = backend.name != "cpu" and m > 64  # torch's linear, with the weight in its dtype
        weight, exact = packed(name, n, k, seed=m, magnitude=0.5 if vendor else None)
        x = torch.randn(m, k) * (0.01 if dtype == torch.float16 else 1.0)  # or results leave its range
        x, bias = strided(x.to(dtype), rng, 1), torch.randn(n).to(dtype) if m % 2 else None
        Problem(backend, x, weight, f"{name}:{n}", exact).check(ops, bias, extra_roundings=3 * vendor)


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "int4_32"])
@pytest.mark.parametrize("columns", [32, 64, 96])
def test_few_columns(backend, dtype, ops, name, columns):
    weight, exact = packed(name, 20, columns, magnitude=0.5)
    for m in (1, 3):
        x = torch.randn(m, columns).to(dtype)
        Problem(backend, x, weight, f"{name}:20", exact).check(ops, extra_roundings=3 * (backend.name != "cpu"))


@pytest.mark.parametrize("rows", [(48, 17, 15), (48, 20, 12)], ids=["splits a pair", "even"])
@pytest.mark.parametrize("m", [1, 2, 20])
def test_segments_gates_and_residuals(backend, dtype, ops, m, rows):
    names = ("q4_k", "q6_k", "q8_0")
    parts = [packed(name, count, 512, magnitude=0.05) for name, count in zip(names, rows, strict=True)]
    weight, exact = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    x, bias, residual = (torch.randn(shape).to(dtype) for shape in ((2, m, 512), (80,), (2, m, 80)))
    layout = ",".join(f"{name}:{count}" for name, count in zip(names, rows, strict=True))
    problem = Problem(backend, x, weight, layout, exact)
    product = problem.check(ops, bias)
    problem.check(ops, bias, residual=residual)

    gate, up = (product[..., i::2].cpu().float() for i in (0, 1))
    placed = [on_device(tensor, backend.device) for tensor in (x, weight)]
    gated = ops.quantized_linear(*placed, layout, bias.to(backend.device), gated=True, activation="gelu")
    rounded = ROUNDOFF[dtype] * (2 * gate.abs() * up.abs() + gate.abs() + up.abs())
    assert_close(gated, torch.nn.functional.gelu(gate) * up, 2 * rounded + 1e-5)


@on_cpus
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_the_same_bits_in_every_company(backend, ops, name):
    weight, _ = packed(name, 50, 1024)
    x = torch.randn(70, 1024, dtype=torch.float32)
    together = ops.quantized_linear(x, weight, f"{name}:50")
    for m in (1, 2, 3, 8, 64):
        assert torch.equal(ops.quantized_linear(x[:m], weight, f"{name}:50"), together[:m])
    with num_threads(1):
        assert torch.equal(ops.quantized_linear(x, weight, f"{name}:50"), together)


@on_gpus
@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k"])
def test_a_row_alone_where_batches_do_not_matter(backend, dtype, ops, name):
    weight, _ = packed(name, 50, 1024, magnitude=0.1)
    x, weight = torch.randn(70, 1024).to(dtype).to(backend.device), weight.to(backend.device)
    dataflow.set_batch_invariant(True)
    try:
        together = ops.quantized_linear(x, weight, f"{name}:50")
        for m in (1, 8, 33):
            assert torch.equal(ops.quantized_linear(x[:m], weight, f"{name}:50"), together[:m])
    finally:
        dataflow.set_batch_invariant(False)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("m", [1, 2, 9])
def test_what_is_not_finite_stays_in_its_row(backend, dtype, ops, m, wrong):
    weight = packed("q4_1", 20, 96)[0].to(backend.device)
    x = torch.randn(m, 96).to(dtype).to(backend.device)
    expected = ops.quantized_linear(x, weight, "q4_1:20")
    x[-1, 50] = wrong
    actual = ops.quantized_linear(x, weight, "q4_1:20")
    assert not actual[-1].isfinite().any() and torch.equal(actual[:-1], expected[:-1])


@on_cpus
def test_magnitudes(backend, ops):
    weight, exact = packed("q8_0", 16, 64)
    for scale in (1e-37, 1e-30, 1e-10, 1e10, 1e30):
        x = torch.randn(3, 64) * scale
        actual = ops.quantized_linear(x, weight, "q8_0:16")
        if scale < 1e-33:
            assert (actual == 0).all()  # documented: it counts as 0
        else:
            Problem(backend, x, weight, "q8_0:16", exact).check(ops)
    assert (ops.quantized_linear(torch.zeros(1, 64), weight, "q8_0:16") == 0).all()


@pytest.mark.parametrize(
    "layout, columns, message",
    [
        ("", 256, "layout must be formats with their rows"),
        ("q4_k", 256, "layout must be formats with their rows"),
        ("q4_k:", 256, "layout must be formats"),
        ("q4_k:0", 256, "layout must be formats"),
        ("q4_k:-16", 256, "layout must be formats"),
        ("q4_k:99999999999999999999", 256, "layout must be formats"),
        ("q4_k:16,", 256, "layout must be formats"),
        (",".join(["q8_0:2147483648"] * 9), 1 << 20, "layout must be of at most 2.48 bytes"),
        ("q9:16", 256, "format must be one of q4_0, q4_1"),
        ("q4_k:16", 32, "columns of q4_k must be a multiple of 256; got 32"),
        ("q4_k:32", 256, r"weight must have shape \[bytes of the layout\]"),
        ("q5_k:16", 256, r"weight must have shape \[bytes of the layout\]"),
    ],
)
def test_a_wrong_layout_is_refused(backend, dtype, ops, layout, columns, message):
    weight = packed("q4_k", 16, 256)[0].to(backend.device)
    with pytest.raises(RuntimeError, match=message):
        ops.quantized_linear(torch.randn(2, columns).to(dtype).to(weight.device), weight, layout)
    with pytest.raises(RuntimeError, match=message):
        ops.dequantize_rows(weight, layout, columns, torch.tensor([0], device=weight.device))


@pytest.mark.parametrize("name", FORMATS)
def test_scales_that_are_not_finite_are_refused(name):
    raw = random_blocks(name, 20, 256)
    raw[7] = 255
    with pytest.raises(ValueError, match=f"{name}: expected finite scales"):
        pack(raw, name)


def test_what_is_no_block_is_refused():
    raw = random_blocks("q4_0", 4, 64)
    for wrong in (raw[:, :-1], raw.float(), raw[0], raw[:, ::2], raw[:0]):
        with pytest.raises(ValueError, match=r"raw must be contiguous uint8 \[rows, n \* 18\]"):
            pack(wrong, "q4_0")
    with pytest.raises(ValueError, match="format must be one of"):
        pack(raw, "q9")


def test_bytes():
    """What packing adds to a file: nothing, or bytes in place of scales of 6 bits."""
    for name, of in PACKED.items():
        file, memory = of.file_bytes / of.block, packed_bytes(f"{name}:16", 256) / 16 / 256
        assert memory == file or name in ("q2_k", "q3_k", "q4_k", "q5_k", "iq4_xs", "mxfp4")
        assert memory < 1.2 * file
    assert layout_rows("q4_k:20,q6_k:3") == 23 and layout_rows("q4_k") == 0
