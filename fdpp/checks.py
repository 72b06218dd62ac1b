"""Checks of the numbers in files: every value is checked before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

from fdpp.errors import CheckpointError


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Raise a CheckpointError unless the value is an integer in ``low..high``."""
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{name}: expected an integer in {low}..{high}, got {value!r:.80}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise a CheckpointError unless the value is a finite number in ``low..high``."""
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise CheckpointError(f"{name}: expected a number in {low:g}..{high:g}, got {value!r:.80}")


def check_flag(name: str, value: object) -> None:
    """Raise a CheckpointError unless the value is true or false."""
    if type(value) is not bool:
        raise CheckpointError(f"{name}: expected true or false, got {value!r:.80}")
