"""Comparison with an oracle: tolerances argued from the dtype, and reports that say where and by how much."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: Relative error of rounding to nearest, per dtype (half the distance between neighbours of 1).
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

#: Half the smallest positive number: what rounding may lose where relative error means nothing.
UNDERFLOW = {torch.float32: 2.0**-126, torch.bfloat16: 2.0**-126, torch.float16: 2.0**-25}


def assert_close(actual: Tensor, expected: Tensor, tolerance: Tensor | float, what: object = "result") -> None:
    """Fail unless ``|actual - expected| <= tolerance`` everywhere, NaN and infinities in equal places included.

    The report counts the wrong elements and gives the coordinates and values of the one furthest outside.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    tolerance = torch.as_tensor(tolerance, dtype=torch.float64).expand_as(expected)
    error = (actual - expected).abs()
    wrong = ~(error <= tolerance) & ~(actual == expected) & ~(actual.isnan() & expected.isnan())
    if not wrong.any():
        return
    excess = torch.where(wrong, error / tolerance.clamp_min(1e-300), -1.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    worst = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    rows = wrong.nonzero()
    raise AssertionError(
        f"{what}\n  {int(wrong.sum())} of {wrong.numel()} elements are wrong, "
        f"coordinates {rows.amin(0).tolist()} .. {rows.amax(0).tolist()}\n"
        f"  worst at {list(worst)}: got {actual[worst].item():.9g}, expected {expected[worst].item():.9g}, "
        f"error {error[worst].item():.3g}, tolerance {tolerance[worst].item():.3g} ({excess[worst].item():.3g} x)"
    )


def elementwise_tolerance(expected: Tensor, dtype: torch.dtype, roundings: float = 1.0, scale: Tensor | float = 0.0):
    """Bound for an op computed in float32 and rounded once: the final rounding plus ``roundings`` float32 ones.

    ``scale`` bounds the magnitudes that were added up where they can be larger than the result.
    """
    magnitude = torch.maximum(expected.abs(), torch.as_tensor(scale, dtype=torch.float64))
    return ROUNDOFF[dtype] * expected.abs() + roundings * ROUNDOFF[torch.float32] * magnitude + UNDERFLOW[dtype]


@contextmanager
def num_threads(count: int):
    """Run a block with ``count`` threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def oracle(function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Call an oracle in one thread: its many small steps lose more to waiting, on a busy machine, than they gain."""
    with num_threads(1):
        return function(*args, **options)
