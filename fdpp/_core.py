"""The core library as a Python module: registers ``torch.ops.fdpp.*`` and calls its host functions through ctypes.

The library is no Python extension (it has no ``PyInit``): it needs no Python header to build and serves every version.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from fdpp.linear_host import LinearHost


def _load() -> ctypes.CDLL:
    found = sorted(Path(__file__).parent.glob("libfdpp_cpu*.so"))
    if not found:
        raise ImportError(f"no libfdpp_cpu*.so in {Path(__file__).parent}")
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        raise ImportError(str(error)) from error
    library = ctypes.CDLL(str(found[0]))
    integer = ctypes.c_int64
    for name, result, arguments in (
        ("fdpp_build_info", ctypes.c_char_p, []),
        ("fdpp_cpu_features", ctypes.c_char_p, []),
        ("fdpp_plan_splits", ctypes.c_int, [integer, integer, ctypes.c_int, ctypes.c_int]),
        ("fdpp_measure_read_bandwidth", ctypes.c_double, [integer, ctypes.c_int]),
        ("fdpp_advise_huge_pages", ctypes.c_int, [ctypes.c_void_p, integer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_library = _load()
linear_host = LinearHost(_library)


def build_info() -> dict[str, str]:
    """How the library was built."""
    compiler, target = _library.fdpp_build_info().decode().split(";")
    return {"backend": "cpu", "compiler": compiler, "torch_target": target}


def cpu_features() -> dict[str, object]:
    """The instruction set in use (``isa``), those ``available``, and the ``device`` name of dataflow tables.

    Raises:
        ValueError: ``FDPP_CPU_ISA`` names an instruction set that is unknown or that this processor lacks.
    """
    status, _, text = _library.fdpp_cpu_features().decode(errors="replace").partition(";")
    if status != "ok":
        raise ValueError(text)
    isa, device, available = text.split(";")
    return {"isa": isa, "available": available.split(","), "device": device}


def plan_splits(units: int, max_keys: int, workers: int, min_keys: int) -> int:
    """Number of KV splits of ``decode_attention`` (csrc/common/split_plan.h)."""
    return _library.fdpp_plan_splits(units, max_keys, workers, min_keys)


def measure_read_bandwidth(num_bytes: int, repeats: int) -> float:
    """Bytes per second that torch's threads read from memory, best of ``repeats`` passes over ``num_bytes``.

    Raises:
        ValueError: a number below 1.
        MemoryError: there is no room for the buffer.
    """
    if num_bytes < 1 or repeats < 1:
        raise ValueError(f"num_bytes and repeats must be at least 1; got {num_bytes}, {repeats}")
    rate = _library.fdpp_measure_read_bandwidth(num_bytes, repeats)
    if rate < 0:
        raise MemoryError(f"no room for a buffer of {num_bytes} bytes")
    return rate


def advise_huge_pages(address: int, num_bytes: int) -> bool:
    """Ask the system to back memory that nobody has touched yet with huge pages. False where it cannot."""
    return bool(_library.fdpp_advise_huge_pages(address, num_bytes))


cpu_features()  # a wrong FDPP_CPU_ISA fails here, when the library is loaded
