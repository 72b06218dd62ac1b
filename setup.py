"""Builds the compiled libraries of fdpp: one per backend, from globbed sources.

FDPP_BACKENDS names the backends (see BACKENDS) and fails when one cannot be built. Without it: cpu, and the GPU
backend that this torch is built for, where its compiler is there. TORCH_CUDA_ARCH_LIST and PYTORCH_ROCM_ARCH name the
architectures, MAX_JOBS and NVCC_THREADS limit parallel compiles. With FDPP_ANY_TORCH=1 a torch without GPU support
builds the GPU libraries too, for one that has it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "fdpp compiles against the torch that you run, and this Python has none. Install torch (2.11 or newer), "
        "then `pip install --no-build-isolation .`"
    )

# The LibTorch stable ABI from 2.11 on: a build serves every later torch.
TORCH_TARGET = [("TORCH_TARGET_VERSION", "0x020b000000000000"), ("FDPP_TORCH_TARGET", '"2.11"')]
HOST_FLAGS = "-O3 -g0 -std=c++20 -fvisibility=hidden -Wall -Wextra -Wno-psabi -Wno-unused-parameter".split()
DEVICE_FLAGS = ["-O3", "-std=c++20", f"-I{os.path.abspath('csrc')}"]
CUDA_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
HIP_ARCHITECTURES = ("gfx90a", "gfx942", "gfx1100")


class Missing(Exception):
    """What a backend lacks, and how to get it."""


@dataclass(frozen=True)
class Device:
    """How the device code of a GPU backend is compiled and linked."""

    command: list[str]
    architectures: list[str]
    link: list[str]


@dataclass(frozen=True)
class Backend:
    """The sources of a library: folders of csrc compiled by the host, and a vendor's device code where it has any."""

    folders: tuple[str, ...]
    vendor: str | None = None  # of the GPU: whom torch has to support
    device_sources: str = ""
    device: Callable[[], Device] | None = None
    macros: tuple[str, ...] = ()


def words(variable: str) -> list[str]:
    return re.split(r"[\s;,]+", os.environ.get(variable, "").strip(" ;,")) if os.environ.get(variable) else []


def output_of(*command: str) -> str:
    """What a compiler says, on either stream; empty where it cannot be run."""
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout + result.stderr


def in_home(program: str, *homes: str) -> str | None:
    """The program below the first of the given environment variables that has it, or on PATH."""
    found = (Path(os.environ[home], "bin", program) for home in homes if os.environ.get(home))
    return next((str(path) for path in found if path.exists()), None) or shutil.which(program)


def visible_gpus() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def cuda_device() -> Device:
    nvcc = in_home("nvcc", "CUDA_HOME", "CUDA_PATH")
    if nvcc is None:
        raise Missing(
            "nvcc, the compiler of the CUDA toolkit (12.8 or newer): install the toolkit that matches torch, or "
            "`pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl`, and "
            "set CUDA_HOME or PATH"
        )
    top = re.search(r"TOP=(\S+)", output_of(nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"))
    home = Path(top[1] if top else Path(nvcc).parents[1]).resolve()
    runtime = next(
        (path for folder in ("lib64", "lib", "targets/*/lib") for path in home.glob(f"{folder}/libcudart_static.a")),
        None,
    )
    if runtime is None:
        raise Missing(f"libcudart_static.a below {home}: install the runtime of the CUDA toolkit (nvidia-cuda-runtime)")
    known = set(output_of(nvcc, "--list-gpu-code").split())
    gpus = (torch.cuda.get_device_capability(i) for i in visible_gpus() if torch.version.cuda)
    wanted = words("TORCH_CUDA_ARCH_LIST") or sorted({f"{major}.{minor}" for major, minor in gpus})
    # The toolkit's age decides about the newest of the defaults; a list that somebody wrote is taken as it stands.
    wanted = wanted or [arch for arch in CUDA_ARCHITECTURES if f"sm_{re.sub(r'[.a]', '', arch)}" in known]
    flags = []
    for arch in wanted:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if match is None:
            sys.exit(f"TORCH_CUDA_ARCH_LIST: numbers such as 8.0 or 9.0a+PTX, please; got {arch!r}")
        name = "".join(match.group(1, 2, 3))
        flags += ["-gencode", f"arch=compute_{name},code=sm_{name}"]
        flags += ["-gencode", f"arch=compute_{name},code=compute_{name}"] if match[4] else []
    threads = ["--threads", os.environ["NVCC_THREADS"]] if os.environ.get("NVCC_THREADS") else []
    command = [nvcc, *DEVICE_FLAGS, "-Xcompiler", "-fPIC,-fvisibility=hidden", *flags, *threads]
    return Device(command, wanted, [str(runtime), "-ldl", "-lrt", "-lpthread"])


def hip_device() -> Device:
    gpus = (torch.cuda.get_device_properties(i).gcnArchName for i in visible_gpus() if torch.version.hip)
    wanted = words("PYTORCH_ROCM_ARCH") or sorted({name.partition(":")[0] for name in gpus}) or list(HIP_ARCHITECTURES)
    flags = [*DEVICE_FLAGS, "-fPIC", "-fvisibility=hidden", *(f"--offload-arch={arch}" for arch in wanted)]
    hipcc = in_home("hipcc", "ROCM_HOME", "ROCM_PATH")
    version = re.search(r"HIP version: (\d+)", output_of(hipcc, "--version")) if hipcc else None
    if version and int(version[1]) >= 6:
        lib = Path(hipcc).resolve().parents[1] / "lib"
        return Device([hipcc, *flags], wanted, [f"-L{lib}", f"-Wl,-rpath,{lib}", "-lamdhip64"])
    # Debian's hipcc is too old; its headers and runtime with a current clang do, as the kernels use no device library.
    clang = shutil.which("clang++-19")
    tools = [Path(clang).resolve().with_name(name) for name in ("ld.lld", "clang-offload-bundler")] if clang else []
    if not tools or not all(path.exists() for path in (*tools, Path("/usr/include/hip/hip_runtime.h"))):
        raise Missing(
            "a HIP compiler: ROCm 6 or newer (hipcc), or on Debian `apt install clang-19 clang-tools-19 lld-19 "
            "libamdhip64-dev`"
        )
    return Device([clang, "-x", "hip", "--rocm-path=/usr", "-nogpulib", *flags], wanted, ["-lamdhip64"])


BACKENDS = {
    "cpu": Backend(("common", "cpu", "torch/shared", "torch/core")),
    "cuda": Backend(("common", "torch/shared", "torch/gpu"), "cuda", "cuda/*.cu", cuda_device),
    "hip": Backend(("common", "torch/shared", "torch/gpu"), "hip", "hip/*.hip", hip_device),
    "simt": Backend(("common", "simt", "torch/shared", "torch/simt")),
    # The CUDA library without the unified maximum, for the comparison in bench/attention.py.
    "running_maximum": Backend(
        ("common", "torch/shared", "torch/gpu"), "cuda", "cuda/*.cu", cuda_device, ("FDPP_RUNNING_MAXIMUM",)
    ),
}


def supported(vendor: str) -> bool:
    """Whether this torch is built for the vendor's GPUs."""
    return getattr(torch.version, vendor) is not None


def device_of(name: str) -> Device | None:
    """How to compile the device code of a backend; None where it has none.

    Raises:
        Missing: it cannot be built here.
    """
    backend = BACKENDS[name]
    if backend.vendor and not supported(backend.vendor) and os.environ.get("FDPP_ANY_TORCH") != "1":
        raise Missing(
            f"a torch with {backend.vendor.upper()} support (this is {torch.__version__}): install such a build, or "
            "set FDPP_ANY_TORCH=1 to build for one that you will run later"
        )
    return backend.device() if backend.device else None


def chosen_backends() -> dict[str, Device | None]:
    wanted = words("FDPP_BACKENDS")
    unknown = [name for name in wanted if name not in BACKENDS]
    if unknown:
        sys.exit(f"FDPP_BACKENDS: unknown backend {', '.join(unknown)}; this version builds {', '.join(BACKENDS)}")
    if not wanted and "FDPP_BACKENDS" in os.environ:
        sys.exit("FDPP_BACKENDS names no backend")
    chosen = {}
    for name in wanted or ["cpu", *filter(supported, ("cuda", "hip"))]:
        try:
            chosen[name] = device_of(name)
        except Missing as missing:
            if wanted:
                sys.exit(f"FDPP_BACKENDS: {name} needs {missing}")
            print(f"fdpp: the {name} library is left out; it needs {missing}", file=sys.stderr)
    return chosen


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
        inputs = [path for folder in ("csrc/common", os.path.dirname(source)) for path in Path(folder).iterdir()]
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


def extension_of(name: str, device: Device | None):
    backend = BACKENDS[name]
    sources = sorted(path for folder in backend.folders for path in glob(f"csrc/{folder}/*.cpp"))
    macros, link = [*TORCH_TARGET, *((name, "1") for name in backend.macros)], []
    if device is not None:
        # USE_CUDA declares torch's function for the current stream, for both vendors.
        macros += [("USE_CUDA", "1"), ("FDPP_GPU_ARCHITECTURES", f'"{" ".join(device.architectures)}"')]
        # libtorch.so brings the library with that function, though nothing in it is used by name.
        link = ["-Wl,--no-as-needed", "-ltorch", *device.link]
    extension = cpp_extension.CppExtension(
        f"fdpp.libfdpp_{'core' if name == 'cpu' else name}",
        sources,
        include_dirs=[os.path.abspath("csrc")],
        define_macros=macros,
        # No Python ABI at all: the library is loaded by torch and ctypes (fdpp/native.py).
        py_limited_api=True,
        extra_compile_args=HOST_FLAGS,
        extra_link_args=link,
    )
    extension.device = device
    extension.device_macros = [f"-D{name}" for name in backend.macros]
    extension.device_sources = sorted(glob(f"csrc/{backend.device_sources}")) if device else []
    return extension


setup(
    ext_modules=[extension_of(name, device) for name, device in chosen_backends().items()],
    cmdclass={"build_ext": DeviceExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
