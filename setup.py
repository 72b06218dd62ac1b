"""Builds the compiled libraries of fdpp: one per backend, from globbed sources.

FDPP_BACKENDS names the backends (default: cpu). MAX_JOBS limits parallel compiles.
"""

from __future__ import annotations

import os
import sys
from glob import glob

from setuptools import setup

KNOWN_BACKENDS = ("cpu",)


def check_backends() -> None:
    wanted = [name.strip() for name in os.environ.get("FDPP_BACKENDS", "cpu").split(",") if name.strip()]
    unknown = [name for name in wanted if name not in KNOWN_BACKENDS]
    if unknown:
        sys.exit(
            f"FDPP_BACKENDS: unknown backend {', '.join(unknown)}; this version builds {', '.join(KNOWN_BACKENDS)}"
        )
    if not wanted:
        sys.exit("FDPP_BACKENDS names no backend")


def extensions():
    try:
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit(
            "fdpp compiles against the torch that you run, and this Python has none. Install torch (2.11 or newer), "
            "then `pip install --no-build-isolation .`"
        )
    check_backends()
    sources = sorted(
        os.path.relpath(path) for folder in ("common", "cpu", "torch") for path in glob(f"csrc/{folder}/*.cpp")
    )
    # The LibTorch stable ABI from 2.11 on: a build serves every later torch.
    target = "0x020b000000000000"
    return [
        cpp_extension.CppExtension(
            "fdpp.libfdpp_core",
            sources,
            include_dirs=[os.path.abspath("csrc")],
            define_macros=[("TORCH_TARGET_VERSION", target), ("FDPP_TORCH_TARGET", '"2.11"')],
            # No Python ABI at all: the library is loaded by torch and ctypes (fdpp/_core.py).
            py_limited_api=True,
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++20",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Wno-psabi",
                "-Wno-unused-parameter",
            ],
        )
    ], {"build_ext": cpp_extension.BuildExtension}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass, options={"bdist_wheel": {"py_limited_api": "cp310"}})
