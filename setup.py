"""Builds the compiled libraries of fdpp: one per backend, from globbed sources.

FDPP_BACKENDS names the backends (see BACKENDS) and fails when one cannot be built. Without it: cpu, and the GPU
backend that this torch is built for, where its compiler is there and a GPU is visible, or TORCH_CUDA_ARCH_LIST or
PYTORCH_ROCM_ARCH names architectures. MAX_JOBS and NVCC_THREADS limit parallel compiles. With FDPP_ANY_TORCH=1 a torch
without GPU support builds the GPU libraries too, for one that has it. The log says what is built, what is not, and why
(pip shows it with -v).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

# Build frontends do not put the source tree on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))
from device_compilers import (  # noqa: E402
    ARCHITECTURE_LISTS,
    DeviceCompiler,
    Missing,
    cuda_compiler,
    has_kernels,
    hip_compiler,
    words,
)

# torch warns of a CUDA toolkit on a machine without a GPU; what that means for fdpp is said below.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "fdpp compiles against the torch that you run, and this Python has none. Install torch (2.11 or newer), "
        "then `pip install --no-build-isolation .`"
    )

try:
    import pybind11
except ImportError:
    sys.exit("fdpp builds its Python module with pybind11, and this Python has none: pip install 'pybind11>=3'")
if not (PYTHON_HEADERS := Path(sysconfig.get_path("include"))).joinpath("Python.h").exists():
    sys.exit(f"fdpp builds a Python module and finds no Python.h in {PYTHON_HEADERS}: apt-get install python3-dev")

# The LibTorch stable ABI from 2.11 on: a build serves every later torch.
TORCH_TARGET = [("TORCH_TARGET_VERSION", "0x020b000000000000"), ("FDPP_TORCH_TARGET", '"2.11"')]
HOST_FLAGS = "-O3 -g0 -std=c++20 -fvisibility=hidden -Wall -Wextra -Wno-psabi -Wno-unused-parameter".split()


@dataclass(frozen=True)
class Backend:
    """The sources of a library, below csrc: what the host compiles, and a vendor's device code where it has any."""

    sources: tuple[str, ...]
    vendor: str | None = None  # of the GPU: whom torch has to support
    device_sources: str = ""
    compiler: Callable[[Sequence[str]], DeviceCompiler] | None = None
    macros: tuple[str, ...] = ()


SHARED = ("common/*.cpp", "torch/arguments/*.cpp")
BACKENDS = {
    "cpu": Backend((*SHARED, "cpu/*.cpp", "torch/cpu/*.cpp")),
    "cuda": Backend((*SHARED, "torch/gpu.cpp"), "cuda", "cuda/*.cu", cuda_compiler),
    "hip": Backend((*SHARED, "torch/gpu.cpp"), "hip", "hip/*.hip", hip_compiler),
    "simt": Backend((*SHARED, "simt/*.cpp", "torch/simt.cpp")),
    # The CUDA library without the unified maximum, for the comparison in bench/attention.py.
    "running_maximum": Backend(
        (*SHARED, "torch/gpu.cpp"), "cuda", "cuda/*.cu", cuda_compiler, ("FDPP_RUNNING_MAXIMUM",)
    ),
}


def supported(vendor: str) -> bool:
    """Whether this torch is built for the vendor's GPUs."""
    return getattr(torch.version, vendor) is not None


def visible_architectures(vendor: str) -> list[str]:
    """Of the vendor's GPUs that this torch sees and fdpp has kernels for."""
    if not supported(vendor) or not torch.cuda.is_available():
        return []
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = [gpu.gcnArchName.partition(":")[0] if vendor == "hip" else f"{gpu.major}.{gpu.minor}" for gpu in gpus]
    return [name for name in names if has_kernels(vendor, name)]


def compiler_of(name: str) -> DeviceCompiler | None:
    """What compiles the device code of a backend; None where it has none.

    Raises:
        Missing: it cannot be built here.
    """
    backend = BACKENDS[name]
    if backend.vendor is None:
        return None
    if not supported(backend.vendor) and os.environ.get("FDPP_ANY_TORCH") != "1":
        raise Missing(
            f"a torch with {backend.vendor.upper()} support (this is {torch.__version__}): install such a build, or "
            "set FDPP_ANY_TORCH=1 to build for one that you will run later"
        )
    return backend.compiler(visible_architectures(backend.vendor))


def default_compiler(vendor: str) -> DeviceCompiler:
    """As :func:`compiler_of`, for a GPU backend that nobody asked for.

    Most builds of torch support GPUs, also on machines that have none: a GPU, or a list of architectures, has to say
    that the library will be used.

    Raises:
        Missing: it cannot be built here, or nothing says so.
    """
    if not visible_architectures(vendor) and not words(ARCHITECTURE_LISTS[vendor]):
        raise Missing(
            f"a GPU that fdpp has kernels for, and torch sees none here: FDPP_BACKENDS=cpu,{vendor} or "
            f"{ARCHITECTURE_LISTS[vendor]}=... builds it for another machine"
        )
    return compiler_of(vendor)


def chosen_backends() -> dict[str, DeviceCompiler | None]:
    """What is built, with the compiler of its device code; says so, and what is left out."""
    wanted = words("FDPP_BACKENDS")
    unknown = [name for name in wanted if name not in BACKENDS]
    if unknown:
        sys.exit(f"FDPP_BACKENDS: unknown backend {', '.join(unknown)}; this version builds {', '.join(BACKENDS)}")
    if not wanted and "FDPP_BACKENDS" in os.environ:
        sys.exit("FDPP_BACKENDS names no backend")
    chosen: dict[str, DeviceCompiler | None] = {}
    for name in wanted or ["cpu", *filter(supported, ("cuda", "hip"))]:
        try:
            chosen[name] = compiler_of(name) if wanted or name == "cpu" else default_compiler(name)
        except Missing as missing:
            if wanted:
                sys.exit(f"FDPP_BACKENDS: {name} needs {missing}")
            say(f"leaves out the {name} library; it needs {missing}")
    libraries = (
        f"{name} for {' '.join(device.architectures)} with {device.command[0]}" if device else name
        for name, device in chosen.items()
    )
    gpus = next(filter(supported, ("cuda", "hip")), "no GPU")
    why = "what FDPP_BACKENDS asks for" if wanted else f"the default; this torch supports {gpus}"
    say(f"builds against torch {torch.__version__}: {', '.join(libraries)} ({why})")
    return chosen


def say(text: str) -> None:
    print(f"fdpp: {text}", file=sys.stderr, flush=True)


class DeviceExtension(cpp_extension.BuildExtension):
    """Compiles an extension's device code into objects before torch's rules compile and link the rest.

    torch's own rules for device code would bring torch's headers to the GPU compiler, and rewrite sources under ROCm.
    """

    def build_extension(self, extension) -> None:
        # Extensions share sources but not flags: each has its own objects.
        shared, self.build_temp = self.build_temp, os.path.join(self.build_temp, extension.name)
        if extension.device is not None:
            jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
            with ThreadPoolExecutor(jobs) as pool:
                compiled = [pool.submit(self.compile_device, extension, path) for path in extension.device_sources]
            extension.extra_objects = [job.result() for job in compiled]
        super().build_extension(extension)
        self.build_temp = shared

    def compile_device(self, extension, source: str) -> str:
        target = Path(self.build_temp, f"{source}.o")
        command = [*extension.device.command, *extension.device_macros, "-c", source, "-o", str(target)]
        recipe = target.with_suffix(".command")
        inputs = [
            path for folder in ("csrc/common", "csrc/gpu", os.path.dirname(source)) for path in Path(folder).iterdir()
        ]
        if (
            target.exists()
            and recipe.exists()
            and recipe.read_text() == repr(command)
            and target.stat().st_mtime > max(path.stat().st_mtime for path in inputs)
        ):
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        print(" ".join(command), flush=True)
        if subprocess.run(command).returncode != 0:
            sys.exit(f"fdpp: {source} does not compile; the compiler's message stands above")
        recipe.write_text(repr(command))
        return str(target)


def extension_of(name: str, device: DeviceCompiler | None):
    backend = BACKENDS[name]
    sources = sorted(path for pattern in backend.sources for path in glob(f"csrc/{pattern}"))
    macros, link = [*TORCH_TARGET, *((name, "1") for name in backend.macros)], []
    if device is not None:
        # USE_CUDA declares torch's function for the current stream, for both vendors.
        macros += [("USE_CUDA", "1"), ("FDPP_GPU_ARCHITECTURES", f'"{" ".join(device.architectures)}"')]
        # libtorch.so brings the library with that function, though nothing in it is used by name.
        link = ["-Wl,--no-as-needed", "-ltorch", *device.link]
    extension = cpp_extension.CppExtension(
        f"fdpp.libfdpp_{name}",
        sources,
        include_dirs=[os.path.abspath("csrc")],
        define_macros=macros,
        # No Python ABI at all: the library is loaded by torch and by fdpp._host.
        py_limited_api=True,
        extra_compile_args=HOST_FLAGS,
        extra_link_args=link,
    )
    extension.device = device
    extension.device_macros = [f"-D{name}" for name in backend.macros]
    extension.device_sources = sorted(glob(f"csrc/{backend.device_sources}")) if device else []
    return extension


def host_module() -> Extension:
    """What Python calls of the libraries beside operators; it knows neither them nor torch when it is built."""
    extension = Extension(
        "fdpp._host",
        sorted(glob("csrc/python/*.cpp")),
        include_dirs=[os.path.abspath("csrc"), pybind11.get_include()],
        define_macros=TORCH_TARGET,
        extra_compile_args=HOST_FLAGS,
        language="c++",
    )
    extension.device = None
    return extension


setup(
    ext_modules=[host_module(), *(extension_of(name, device) for name, device in chosen_backends().items())],
    cmdclass={"build_ext": DeviceExtension},
)
