"""Loading of the compiled libraries: the core always, a GPU's where torch is built for it, others when asked for."""

from __future__ import annotations

import ctypes
import functools
import importlib
from pathlib import Path
from types import ModuleType

from fdpp.linear_host import LinearHost

BACKENDS = ("cpu", "cuda", "hip", "simt")


@functools.cache
def load(library: str = "_core") -> ModuleType:
    """Import ``fdpp.<library>``, which registers its operators with torch, and return the module.

    Raises:
        ImportError: the library was not built, or was built for something else; the message says how to build it.
        ValueError: ``FDPP_CPU_ISA`` names an instruction set that is not there; the message lists those that are.
    """
    import torch  # noqa: F401  (its shared libraries must be in the process before ours)

    try:
        return importlib.import_module(f"fdpp.{library}")
    except ImportError as error:
        raise ImportError(
            f"fdpp's compiled library '{library}' cannot be loaded ({error}). Build it with "
            f"`pip install --no-build-isolation .` in the source tree, with the torch that you run."
        ) from error


@functools.cache
def load_backend(name: str) -> ctypes.CDLL:
    """Load ``libfdpp_<name>``, which registers its kernels for the operators; its C functions are the result's.

    Args:
        name: ``cuda``, ``hip``, or ``simt``: the GPU kernels executed by the host, for tests.

    Raises:
        ImportError: the library was not built, or does not fit this torch; the message says how to build it.
    """
    import torch

    try:
        path = _built(name)
        torch.ops.load_library(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"fdpp's library for {name} cannot be loaded ({error.__cause__ or error}). Build it with "
            f"`FDPP_BACKENDS=cpu,{name} pip install --no-build-isolation .` in the source tree, with the torch you run."
        ) from error


def is_loaded(name: str) -> bool:
    """Whether ``libfdpp_<name>`` is in this process; it is not loaded by asking."""
    import torch

    return any(Path(path).name.startswith(f"libfdpp_{name}") for path in torch.ops.loaded_libraries)


@functools.cache
def linear_host(backend: str = "cpu") -> LinearHost:
    """What the library of a backend (``cpu``, ``cuda``, ``hip``, ``simt``) knows about linear layers.

    Raises:
        ImportError: as :func:`load_backend`.
    """
    return load().linear_host if backend == "cpu" else LinearHost(load_backend(backend))


@functools.cache
def load_gpu() -> str | None:
    """Load the library for the GPUs of this torch, if it supports any; what is wrong with it, or None.

    The GPU itself is not looked for: that would start its driver, and a process that did cannot fork any more.
    """
    vendor = gpu_vendor()
    if vendor is None:
        return None
    try:
        load_backend(vendor)
    except ImportError as error:
        return str(error)
    return None


def gpu_vendor() -> str | None:
    """``cuda`` or ``hip``, whose GPUs this torch is built for, or None."""
    import torch

    return "cuda" if torch.version.cuda else "hip" if torch.version.hip else None


def libraries() -> dict[str, str]:
    """The libraries that were built: file, and for a GPU's that can be loaded the architectures of its kernels."""
    return {name: _describe(name) for name in BACKENDS}


def _built(name: str) -> Path:
    folder = Path(__file__).parent
    found = sorted(folder.glob(f"libfdpp_{name}*.so"))
    if not found:
        raise FileNotFoundError(f"no libfdpp_{name}*.so in {folder}")
    return found[0]


def _describe(name: str) -> str:
    try:
        path = _built(name)
    except FileNotFoundError:
        return "not built"
    if not is_loaded(name):
        return f"{path.name}, not loaded"
    if name not in ("cuda", "hip"):
        return f"{path.name}, loaded"
    architectures = load_backend(name).fdpp_gpu_architectures
    architectures.restype = ctypes.c_char_p
    return f"{path.name}, loaded, for {architectures().decode()}"
