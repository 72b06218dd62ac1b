"""The backends that every op test runs on, where they are available: one row each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from fdpp import native, ops

from .valid import OPERATORS


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators.

    Attributes:
        name: id of the test.
        device: where the inputs of the ops are put.
        dtypes: the dtypes that its kernels take.
        available: whether this machine can run it.
        ops: gives an object with the functions of :mod:`fdpp.ops`; called only where ``available()``.
        operators: the operators that it has kernels for.
        alignment: elements that outer strides and the beginning of q, k and v are a multiple of.
        checks_values: lengths, pages and positions out of range raise; where they lie on a device they cannot.
        set_seed: chooses the order in which threads run, where that is ours to choose.
        flat_gemm_configs: gives the number of tile configurations of ``flat_gemm`` for a dtype; likewise.
    """

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    available: Callable[[], bool]
    ops: Callable[[], Any]
    operators: frozenset[str] = frozenset(OPERATORS)
    alignment: int = 1
    checks_values: bool = True
    set_seed: Callable[[int], None] = lambda seed: None
    flat_gemm_configs: Callable[[torch.dtype], int] = lambda dtype: 0

    def __str__(self) -> str:
        return self.name


GPU_KERNELS = {
    "dtypes": (torch.float16, torch.bfloat16),
    "operators": frozenset(["decode_attention"]),
    "alignment": 8,
    "checks_values": False,
}


def _simt(machine: str) -> Backend:
    """The GPU kernels as the host executes them for a kind of hardware."""

    @functools.cache
    def simt_ops() -> SimpleNamespace:
        native.load_backend("simt")
        torch.library.register_fake(f"fdpp_simt_{machine}::decode_attention", ops.fake_decode_attention)
        return SimpleNamespace(decode_attention=getattr(torch.ops, f"fdpp_simt_{machine}").decode_attention.default)

    return Backend(
        name=f"simt-{machine}",
        device="cpu",
        available=lambda: True,
        ops=simt_ops,
        set_seed=lambda seed: native.load_backend("simt").fdpp_simt_set_seed(seed),
        **GPU_KERNELS,
    )


ROWS = [
    Backend(
        name="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        available=lambda: True,
        ops=lambda: ops,
        flat_gemm_configs=lambda dtype: native.load().flat_gemm_configs(str(dtype).removeprefix("torch.")),
    ),
    *(_simt(machine) for machine in ("nvidia", "cdna", "rdna")),
    Backend(
        name="cuda",
        device="cuda",
        available=lambda: torch.cuda.is_available() and native.load_gpu() is None,
        ops=lambda: ops,
        **GPU_KERNELS,
    ),
]
BACKENDS = [backend for backend in ROWS if backend.available()]
