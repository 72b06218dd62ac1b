"""The backends that every op test runs on, where they are available: one row each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from fdpp import dataflow, library, ops, rules
from fdpp._host import Library

from .valid import OPERATORS


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators.

    Attributes:
        name: id of the test.
        device: where the inputs of the ops are put.
        namespace: of torch.ops, with the operators.
        dtypes: the dtypes that its kernels take.
        available: whether this machine can run it.
        ops: gives an object with the functions of :mod:`fdpp.ops`; called only where ``available()``.
        alignment: elements that outer strides and the beginning of q, k and v are a multiple of.
        checks_values: lengths, pages and positions out of range raise; where they lie on a device they cannot.
        set_seed: chooses the order in which threads run, where that is ours to choose.
        library: the library whose tables choose for ``linear``, and the device's number there.
    """

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    available: Callable[[], bool]
    ops: Callable[[], Any]
    namespace: str = "fdpp"
    alignment: int = 1
    checks_values: bool = True
    set_seed: Callable[[int], None] = lambda seed: None
    library: Callable[[], tuple[Library, int]] = lambda: (library.load(), 0)

    def __str__(self) -> str:
        return self.name

    @property
    def has_own_rules(self) -> bool:
        """For tests of fdpp.rules, which do not know one simulated machine from another: one stands for all."""
        return self.name not in ("simt-cdna", "simt-rdna")


MACHINES = ("nvidia", "cdna", "rdna")  # numbered as in csrc/simt/backend.h
GPU_KERNELS = {
    "dtypes": (torch.float16, torch.bfloat16),
    "alignment": 8,
    "checks_values": False,
}


def _simt(machine: str) -> Backend:
    """The GPU kernels as the host executes them for a kind of hardware."""

    @functools.cache
    def simt_ops() -> SimpleNamespace:
        library.load("simt")
        dataflow.install()  # a library that comes late has not been told of tables and options
        rules.register(f"fdpp_simt_{machine}", gpu=True)
        namespace = getattr(torch.ops, f"fdpp_simt_{machine}")
        return SimpleNamespace(**{name: getattr(namespace, name) for name in OPERATORS})

    return Backend(
        name=f"simt-{machine}",
        device="cpu",
        namespace=f"fdpp_simt_{machine}",
        available=lambda: True,
        ops=simt_ops,
        set_seed=lambda seed: library.load("simt").set_seed(seed),
        library=lambda: (library.load("simt"), MACHINES.index(machine)),
        **GPU_KERNELS,
    )


ROWS = [
    Backend(
        name="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        available=lambda: True,
        ops=lambda: ops,
    ),
    *(_simt(machine) for machine in MACHINES),
    Backend(
        name="cuda",
        device="cuda",
        available=lambda: torch.cuda.is_available() and library.load_gpu() is None,
        ops=lambda: ops,
        library=lambda: dataflow.library_of("cuda"),
        **GPU_KERNELS,
    ),
]

BACKENDS = [backend for backend in ROWS if backend.available()]
