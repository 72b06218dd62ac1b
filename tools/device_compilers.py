"""The compilers of GPU code, for setup.py, which builds with them, and for tests/compile, which checks what they make.

Only the standard library is imported here: which GPUs are there is the caller's to say.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-O3", "-std=c++20", f"-I{ROOT / 'csrc'}"]
CUDA_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
HIP_ARCHITECTURES = ("gfx90a", "gfx942", "gfx1100")
#: The variables of the environment that name architectures to build for; they are torch's own.
ARCHITECTURE_LISTS = {"cuda": "TORCH_CUDA_ARCH_LIST", "hip": "PYTORCH_ROCM_ARCH"}

#: Where `make test` puts the toolkit that constraints.txt pins. It belongs to the environment of this Python.
PINNED_CUDA = Path(sys.prefix, "nvcc", "nvidia", "cu13")
CUDA_PACKAGES = "nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"

# Debian's own hipcc is too old; its headers and runtime with a current clang do: the kernels use no device library.
HIP_CLANG = "clang++-19"
HIP_CLANG_FLAGS = ["-x", "hip", "--rocm-path=/usr", "-nogpulib"]
HIP_HEADER = Path("/usr/include/hip/hip_runtime.h")
HIP_PACKAGES = "clang-19 clang-tools-19 lld-19 libamdhip64-dev"


class Missing(Exception):
    """What a backend lacks, and how to get it."""


@dataclass(frozen=True)
class DeviceCompiler:
    """How the device code of a GPU backend is compiled and linked.

    Attributes:
        command: the compiler with its flags; ``-c SOURCE -o OBJECT`` completes it.
        architectures: the GPUs that it compiles for, in the vendor's notation.
        link: what the library needs from the vendor's runtime.
    """

    command: list[str]
    architectures: list[str]
    link: list[str]


def words(variable: str) -> list[str]:
    """The words of a variable of the environment, separated by commas, semicolons or spaces; none where it is unset."""
    return re.findall(r"[^\s;,]+", os.environ.get(variable, ""))


def homes(*variables: str) -> list[Path]:
    """The folders that the given variables of the environment name."""
    return [Path(os.environ[name]) for name in variables if os.environ.get(name)]


def program(name: str, folders: Iterable[Path]) -> str | None:
    """The program in ``bin`` of the first of the folders that has it, or else on PATH."""
    found = (folder / "bin" / name for folder in folders)
    return next((str(path) for path in found if path.exists()), None) or shutil.which(name)


def has_kernels(vendor: str, architecture: str) -> bool:
    """Whether there are kernels for a GPU: NVIDIA's from compute capability 8.0 on, of AMD's those that are listed."""
    return architecture in HIP_ARCHITECTURES if vendor == "hip" else float(architecture) >= 8.0


def virtual_architecture(major: str) -> str:
    """Whose PTX the code for a compute capability is made from.

    The sources tell those before 9.0 from those since (csrc/cuda/nvidia.h), and nothing else: one front end serves
    several architectures.
    """
    return "compute_90" if int(major) >= 9 else "compute_80"


def cuda_compiler(gpus: Sequence[str]) -> DeviceCompiler:
    """nvcc from CUDA_HOME or CUDA_PATH, else the pinned one of this environment, else from PATH.

    Args:
        gpus: compute capabilities to compile for, such as ``9.0``, unless TORCH_CUDA_ARCH_LIST names others; where
            neither does, all of :data:`CUDA_ARCHITECTURES` that the toolkit knows.

    Raises:
        Missing: there is no usable toolkit.
        SystemExit: TORCH_CUDA_ARCH_LIST is malformed.
    """
    nvcc = program("nvcc", [*homes("CUDA_HOME", "CUDA_PATH"), PINNED_CUDA])
    if nvcc is None:
        raise Missing(
            "nvcc, the compiler of the CUDA toolkit (12.8 or newer): install the toolkit that matches torch, or "
            f"`pip install {CUDA_PACKAGES}`, and set CUDA_HOME or PATH"
        )
    version = re.search(r"release (\d+)\.(\d+)", _output_of(nvcc, "--version"))
    if version is None or int(version[1]) < 12:
        found = version[0] if version else "none that runs"
        raise Missing(f"nvcc 12.8 or newer, and {nvcc} is {found}: install such a toolkit and set CUDA_HOME or PATH")
    top = re.search(r"TOP=(\S+)", _output_of(nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"))
    home = Path(top[1] if top else Path(nvcc).parents[1]).resolve()
    runtime = next(
        (path for folder in ("lib64", "lib", "targets/*/lib") for path in home.glob(f"{folder}/libcudart_static.a")),
        None,
    )
    if runtime is None:
        raise Missing(f"libcudart_static.a below {home}: install the runtime of the CUDA toolkit (nvidia-cuda-runtime)")
    known = set(_output_of(nvcc, "--list-gpu-code").split())
    wanted = words(ARCHITECTURE_LISTS["cuda"]) or sorted(set(gpus))
    # The toolkit's age decides about the newest of the defaults; a list that somebody wrote is taken as it stands.
    wanted = wanted or [arch for arch in CUDA_ARCHITECTURES if f"sm_{re.sub(r'[.a]', '', arch)}" in known]
    flags = []
    for arch in wanted:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if match is None:
            sys.exit(f"{ARCHITECTURE_LISTS['cuda']}: numbers such as 8.0 or 9.0a+PTX, please; got {arch!r}")
        name, virtual = "".join(match.group(1, 2, 3)), virtual_architecture(match[1])
        flags += ["-gencode", f"arch={virtual},code=sm_{name}"]
        flags += ["-gencode", f"arch={virtual},code={virtual}"] if match[4] else []
    threads = ["--threads", os.environ["NVCC_THREADS"]] if os.environ.get("NVCC_THREADS") else []
    command = [nvcc, *FLAGS, "-Xcompiler", "-fPIC,-fvisibility=hidden", *flags, *threads]
    return DeviceCompiler(command, wanted, [str(runtime), "-ldl", "-lrt", "-lpthread"])


def hip_compiler(gpus: Sequence[str]) -> DeviceCompiler:
    """hipcc from ROCM_HOME, ROCM_PATH or PATH where it is ROCm 6 or newer, else Debian's clang.

    Args:
        gpus: architectures to compile for, such as ``gfx942``, unless PYTORCH_ROCM_ARCH names others; where neither
            does, all of :data:`HIP_ARCHITECTURES`.

    Raises:
        Missing: there is neither.
    """
    wanted = words(ARCHITECTURE_LISTS["hip"]) or sorted(set(gpus)) or list(HIP_ARCHITECTURES)
    flags = [*FLAGS, "-fPIC", "-fvisibility=hidden", *(f"--offload-arch={arch}" for arch in wanted)]
    hipcc = program("hipcc", homes("ROCM_HOME", "ROCM_PATH"))
    version = re.search(r"HIP version: (\d+)", _output_of(hipcc, "--version")) if hipcc else None
    if version and int(version[1]) >= 6:
        lib = Path(hipcc).resolve().parents[1] / "lib"
        return DeviceCompiler([hipcc, *flags], wanted, [f"-L{lib}", f"-Wl,-rpath,{lib}", "-lamdhip64"])
    return DeviceCompiler([hip_clang(), *HIP_CLANG_FLAGS, *flags], wanted, ["-lamdhip64"])


def hip_clang() -> str:
    """The clang of Debian that compiles and links HIP.

    Raises:
        Missing: a part of it is not installed.
    """
    clang = shutil.which(HIP_CLANG)
    tools = [Path(clang).resolve().with_name(name) for name in ("ld.lld", "clang-offload-bundler")] if clang else []
    if clang is None or not all(path.exists() for path in (*tools, HIP_HEADER)):
        raise Missing(
            f"a HIP compiler: ROCm 6 or newer (hipcc), or on Debian and Ubuntu `apt-get install {HIP_PACKAGES}`"
        )
    return clang


def _output_of(*command: str) -> str:
    """What a compiler says, on either stream; empty where it cannot be run."""
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout + result.stderr
