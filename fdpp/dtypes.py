"""The dtypes of the operators, by name or as torch has them, and which device takes which."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAMES = ("float32", "bfloat16", "float16")


def dtype_name(dtype: str | torch.dtype, device: str = "cpu") -> str:
    """``"float16"`` for ``torch.float16``, ``"torch.float16"`` and ``"float16"``.

    Args:
        device: the type of a torch device whose operators have to take the dtype.

    Raises:
        ValueError: they do not.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in NAMES:
        raise ValueError(f"dtype must be one of {', '.join(NAMES)}; got {dtype!r:.80}")
    if device != "cpu" and name == "float32":
        raise ValueError("dtype: expected bfloat16 or float16 on a GPU, got float32, which matrix units do not take")
    return name


def torch_dtype(dtype: str | torch.dtype, device: str = "cpu") -> torch.dtype:
    """The dtype of torch for what :func:`dtype_name` takes."""
    import torch

    return getattr(torch, dtype_name(dtype, device))
