"""Plain Python values from what users pass: numbers of numpy and torch, and arrays of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fdpp.errors import RequestError, show


def plain(value: object) -> Any:
    """Python's own number or nested lists for a scalar or array of numpy or torch; anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """The value as an ``int``.

    Raises:
        RequestError: it is no integer, or outside ``low..high``.
    """
    number = plain(value)
    if type(number) is not int or number < low or (high is not None and number > high):
        wanted = f"an integer >= {low}" if high is None else f"an integer in {low}..{high}"
        raise RequestError(f"{name}: expected {wanted}, got {show(value)}")
    return number
