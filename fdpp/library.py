"""Loading of the compiled libraries: the CPU's always, a GPU's where torch is built for it, others when asked for.

A library registers its operators with torch; its host functions are those of :class:`fdpp._host.Library`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdpp._host import Library

BACKENDS = ("cpu", "cuda", "hip", "simt")


@functools.cache
def load(backend: str = "cpu") -> Library:
    """Load ``libfdpp_<backend>``, which registers its kernels for the operators.

    Args:
        backend: ``cpu``, ``cuda``, ``hip``, or ``simt``: the GPU kernels executed by the host, for tests.

    Raises:
        ImportError: the library was not built, or does not fit this torch; the message says how to build it.
        ValueError: ``FDPP_CPU_ISA`` names an instruction set that is not there; the message lists those that are.
    """
    import torch  # its shared libraries must be in the process before ours

    try:
        from fdpp._host import Library

        path = _built(backend)
        torch.ops.load_library(path)
        library = Library(str(path))
    except (ImportError, OSError) as error:
        wanted = "" if backend == "cpu" else f"FDPP_BACKENDS=cpu,{backend} "
        raise ImportError(
            f"fdpp's library for {backend} cannot be loaded ({error.__cause__ or error}). Build it with "
            f"`{wanted}pip install --no-build-isolation .` in the source tree, with the torch that you run."
        ) from error
    if backend == "cpu":
        library.cpu_features()  # a wrong FDPP_CPU_ISA fails here
    return library


def is_loaded(backend: str) -> bool:
    """Whether ``libfdpp_<backend>`` is in this process; it is not loaded by asking."""
    import torch

    return any(Path(path).name.startswith(f"libfdpp_{backend}") for path in torch.ops.loaded_libraries)


@functools.cache
def load_gpu() -> str | None:
    """Load the library for the GPUs of this torch, if it supports any; what is wrong with it, or None.

    The GPU itself is not looked for: that would start its driver, and a process that did cannot fork any more.
    """
    vendor = gpu_vendor()
    if vendor is None:
        return None
    try:
        load(vendor)
    except ImportError as error:
        return str(error)
    return None


def gpu_vendor() -> str | None:
    """``cuda`` or ``hip``, whose GPUs this torch is built for, or None."""
    import torch

    return "cuda" if torch.version.cuda else "hip" if torch.version.hip else None


def libraries() -> dict[str, str]:
    """The libraries that were built: file, and for a GPU's that can be loaded the architectures of its kernels."""
    return {backend: _describe(backend) for backend in BACKENDS}


def _built(backend: str) -> Path:
    folder = Path(__file__).parent
    found = sorted(folder.glob(f"libfdpp_{backend}*.so"))
    if not found:
        raise FileNotFoundError(f"no libfdpp_{backend}*.so in {folder}")
    return found[0]


def _describe(backend: str) -> str:
    try:
        path = _built(backend)
    except FileNotFoundError:
        return "not built"
    if not is_loaded(backend):
        return f"{path.name}, not loaded"
    architectures = load(backend).architectures()
    return f"{path.name}, loaded" + (f", for {architectures}" if architectures else "")
