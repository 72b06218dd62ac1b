"""The dtypes of the operators, by name or as torch has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAMES = ("float32", "bfloat16", "float16")  # numbered as in csrc/common/dtype.h


def dtype_name(dtype: str | torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``, ``"torch.float32"`` and ``"float32"``.

    Raises:
        ValueError: it is none of the operators' dtypes.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in NAMES:
        raise ValueError(f"dtype must be one of {', '.join(NAMES)}; got {dtype!r:.80}")
    return name


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of torch for what :func:`dtype_name` takes."""
    import torch

    return getattr(torch, dtype_name(dtype))
