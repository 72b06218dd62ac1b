"""Packed weights: every format bit for bit, and products against float64 over what gguf makes of the blocks."""

from __future__ import annotations

import random

import pytest
import torch

from fdpp import ops, reference
from fdpp.formats import PACKED, layout_rows, pack, packed_bytes

from .cases import strided
from .numeric import ROUNDOFF, UNDERFLOW, assert_close, num_threads, oracle
from .stored import FORMATS, random_blocks, values

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


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


def check(x: torch.Tensor, weight: torch.Tensor, exact: torch.Tensor, actual: torch.Tensor, bias=None, **options):
    expected = oracle(reference.linear, x, exact, bias, **options)
    magnitude = oracle(reference.linear, x.abs(), exact.abs(), None if bias is None else bias.abs())
    float32 = (4 + x.shape[-1] / 32) * ROUNDOFF[torch.float32]
    tolerance = ROUNDOFF[x.dtype] * expected.abs() + float32 * magnitude + group_bound(x, exact) + UNDERFLOW[x.dtype]
    assert_close(actual, expected, tolerance)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows, columns", [(1, 256), (16, 512), (37, 768)])
def test_values_are_those_of_the_file(name, rows, columns):
    weight, exact = packed(name, rows, columns)
    layout, numbers = f"{name}:{rows}", torch.arange(rows)
    assert torch.equal(ops.dequantize_rows(weight, layout, columns, numbers), exact)
    assert torch.equal(reference.dequantize_rows(weight, layout, columns, numbers).float(), exact)


def test_every_scale_of_mxfp4():
    raw = random_blocks("mxfp4", 253, 32)
    raw[:, 0] = torch.arange(253)
    assert torch.equal(
        ops.dequantize_rows(pack(raw, "mxfp4"), "mxfp4:253", 32, torch.arange(253)), values("mxfp4", raw)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_looked_up_in_every_segment(dtype):
    (first, a), (second, b) = packed("q4_k", 20, 256), packed("q6_k", 33, 256)
    weight, exact = torch.cat([first, second]), torch.cat([a, b])
    rows = torch.tensor([[0, 19, 20], [52, 36, 20]])
    found = ops.dequantize_rows(weight, "q4_k:20,q6_k:33", 256, rows, dtype=dtype)
    assert found.dtype == dtype and torch.equal(found, exact[rows].to(dtype))
    for wrong in (-1, 53):
        with pytest.raises(RuntimeError, match=f"rows must be from 0 to 52; got {wrong} at place 1"):
            ops.dequantize_rows(weight, "q4_k:20,q6_k:33", 256, torch.tensor([3, wrong]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_products(name, dtype):
    rng = random.Random(name)
    for m in (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 65, 130):
        n, k = rng.choice([1, 15, 16, 33, 100]), 256 * rng.randint(1, 5) + (0 if PACKED[name].groups > 1 else 32)
        weight, exact = packed(name, n, k, seed=m)
        x = torch.randn(m, k) * (0.01 if dtype == torch.float16 else 1.0)  # or results leave its range
        x, bias = strided(x.to(dtype), rng, 1), torch.randn(n).to(dtype) if m % 2 else None
        check(x, weight, exact, ops.quantized_linear(x, weight, f"{name}:{n}", bias), bias)


@pytest.mark.parametrize("m", [1, 2, 5, 20])
def test_segments_gates_and_residuals(m):
    parts = [packed(name, rows, 512, magnitude=0.05) for name, rows in (("q4_k", 48), ("q6_k", 17), ("q8_0", 15))]
    weight, exact = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    layout = "q4_k:48,q6_k:17,q8_0:15"
    x, bias, residual = torch.randn(2, m, 512), torch.randn(80), torch.randn(2, m, 80)
    check(x, weight, exact, ops.quantized_linear(x, weight, layout, bias, residual=residual), bias, residual=residual)
    gated = ops.quantized_linear(x, weight, layout, bias, gated=True, activation="gelu")
    product = ops.quantized_linear(x, weight, layout, bias)
    gate, up = product[..., 0::2], product[..., 1::2]
    torch.testing.assert_close(gated, torch.nn.functional.gelu(gate) * up)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_the_same_bits_in_every_company(name):
    weight, _ = packed(name, 50, 1024)
    x = torch.randn(70, 1024, dtype=torch.float32)
    together = ops.quantized_linear(x, weight, f"{name}:50")
    for m in (1, 2, 3, 8, 64):
        assert torch.equal(ops.quantized_linear(x[:m], weight, f"{name}:50"), together[:m])
    with num_threads(1):
        assert torch.equal(ops.quantized_linear(x, weight, f"{name}:50"), together)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("m", [1, 2, 9])
def test_what_is_not_finite_stays_in_its_row(m, wrong):
    weight, exact = packed("q4_1", 20, 96)
    x = torch.randn(m, 96)
    expected = ops.quantized_linear(x, weight, "q4_1:20")
    x[-1, 50] = wrong
    actual = ops.quantized_linear(x, weight, "q4_1:20")
    assert actual[-1].isnan().all() and torch.equal(actual[:-1], expected[:-1])


def test_magnitudes():
    weight, exact = packed("q8_0", 16, 64)
    for scale in (1e-37, 1e-30, 1e-10, 1e10, 1e30):
        x = torch.randn(3, 64) * scale
        actual = ops.quantized_linear(x, weight, "q8_0:16")
        if scale < 1e-33:
            assert (actual == 0).all()  # documented: it counts as 0
        else:
            check(x, weight, exact, actual)
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
def test_a_wrong_layout_is_refused(layout, columns, message):
    weight, _ = packed("q4_k", 16, 256)
    with pytest.raises(RuntimeError, match=message):
        ops.quantized_linear(torch.randn(2, columns), weight, layout)
    with pytest.raises(RuntimeError, match=message):
        ops.dequantize_rows(weight, layout, columns, torch.tensor([0]))


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
