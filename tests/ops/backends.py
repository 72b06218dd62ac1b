"""The backends that every op test runs on: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fdpp import native, ops


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators.

    Attributes:
        name: id of the test.
        device: where the inputs of the ops are put.
        dtypes: the dtypes that its kernels take.
        available: whether this machine can run it.
        ops: gives an object with the functions of :mod:`fdpp.ops`; called only where ``available()``.
        flat_gemm_configs: gives the number of tile configurations of ``flat_gemm`` for a dtype; likewise.
    """

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    available: Callable[[], bool]
    ops: Callable[[], Any]
    flat_gemm_configs: Callable[[torch.dtype], int]

    def __str__(self) -> str:
        return self.name


BACKENDS = [
    Backend(
        name="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        available=lambda: True,
        ops=lambda: ops,
        flat_gemm_configs=lambda dtype: native.load().flat_gemm_configs(str(dtype).removeprefix("torch.")),
    ),
]
