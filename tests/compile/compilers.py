"""Device code of every kernel for one architecture: what the compiler says that it uses, and its instructions."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from device_compilers import CUDA_ARCHITECTURES as NVIDIA
from device_compilers import (
    FLAGS,
    HIP_CLANG_FLAGS,
    HIP_PACKAGES,
    PINNED_CUDA,
    ROOT,
    Missing,
    hip_clang,
    homes,
    program,
    virtual_architecture,
)
from device_compilers import HIP_ARCHITECTURES as AMD

NOT_CHECKED = {
    "cuda": "NVIDIA'S KERNELS ARE NOT CHECKED: nvcc or nvdisasm is missing; `make test` installs both",
    "hip": f"AMD'S KERNELS ARE NOT CHECKED: apt-get install {HIP_PACKAGES}",
}
#: kernel<Name<policy, dtype, what else it is made for>, ...>
KERNEL = re.compile(r"kernel<fdpp::(\w+)<fdpp::\w+::(\w+)(?:, fdpp::(\w+))?(?:, ([^<>]*))?>")


@dataclass(frozen=True)
class Kernel:
    """One instantiation of a kernel.

    Attributes:
        name: of its class in csrc/gpu.
        policy: the architecture that it is written for.
        dtype: ``f16`` or ``bf16``; None for a kernel that serves every dtype.
        variant: what else it is made for: numbers, such as the head_dim, or a type.
        registers: 32-bit vector registers of a lane.
        spills: bytes or registers that did not fit there, and everything else that a lane keeps in memory of its own.
        shared: bytes of shared memory that are not asked for at launch.
        code: its instructions.
    """

    name: str
    policy: str
    dtype: str | None
    variant: tuple[int | str, ...]
    registers: int
    spills: int
    shared: int
    code: str

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(map(str, (self.policy, self.dtype, *self.variant)))}>"


def nvidia_tool(name: str) -> str | None:
    """The pinned one wherever `make test` installed it: the budgets of registers are written for its version.

    Any other toolkit, even one that CUDA_HOME names, may be of another version or lack nvdisasm.
    """
    return program(name, [PINNED_CUDA, *homes("CUDA_HOME", "CUDA_PATH")])


def has_compiler(vendor: str) -> bool:
    """Whether what ``cuda`` or ``hip`` needs to compile a kernel and to read its code is there."""
    if vendor == "cuda":
        return all(nvidia_tool(name) for name in ("nvcc", "nvdisasm"))
    try:
        return bool(hip_clang())
    except Missing:
        return False


def skip_not_checked(vendor: str) -> NoReturn:
    """Skips a test that has no compiler, with one reason per vendor: tests/conftest.py makes one line of them."""
    pytest.skip(NOT_CHECKED[vendor])


def compile_all(vendor: str, folder: Path) -> dict[str, Future[list[Kernel]]]:
    """Every kernel of csrc/cuda or csrc/hip, for each architecture of the vendor; as many compilers as processors."""
    pool = ThreadPoolExecutor(os.cpu_count())
    sources = sorted((ROOT / "csrc").glob("cuda/*.cu" if vendor == "cuda" else "hip/*.hip"))
    if vendor == "hip":
        return {arch: pool.submit(lambda arch=arch: _all(_amd(path, arch, folder) for path in sources)) for arch in AMD}
    # Submitted first, and so begun first: whoever waits for one does not keep it from running.
    virtual = {arch: virtual_architecture(arch.partition(".")[0]) for arch in NVIDIA}
    ptx = {(path, of): pool.submit(_ptx, path, of, folder) for of in set(virtual.values()) for path in sources}
    return {
        arch: pool.submit(
            lambda arch=arch: _all(_nvidia(ptx[path, virtual[arch]].result(), arch, folder) for path in sources)
        )
        for arch in NVIDIA
    }


def _all(kernels: Iterable[list[Kernel]]) -> list[Kernel]:
    return [kernel for some in kernels for kernel in some]


def _run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def _kernel(mangled: str, **measured) -> Kernel:
    match = KERNEL.search(demangled := _run("c++filt", mangled))
    assert match, f"a kernel of another form than the others: {demangled}"
    name, policy, dtype, rest = match.groups()
    parts = rest.split(", ") if rest else []
    variant = tuple(int(part) if part.isdigit() else part.removeprefix("fdpp::") for part in parts)
    return Kernel(name, policy, dtype, variant, **measured)


def _ptx(source: Path, virtual: str, folder: Path) -> Path:
    target = folder / f"{source.stem}_{virtual}.ptx"
    _run(nvidia_tool("nvcc"), *FLAGS, "-ptx", f"-arch={virtual}", source, "-o", target)
    return target


def _nvidia(ptx: Path, arch: str, folder: Path) -> list[Kernel]:
    cubin = folder / f"{ptx.stem}_{arch}.cubin"
    log = _run(nvidia_tool("ptxas"), f"-arch=sm_{arch.replace('.', '')}", "-O3", "-v", ptx, "-o", cubin)
    used = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    code = dict(
        re.findall(
            r"^\.text\.(\w+):\n(.*?)(?=^//---|\Z)", _run(nvidia_tool("nvdisasm"), "-c", cubin), re.DOTALL | re.MULTILINE
        )
    )
    return [
        _kernel(
            name,
            registers=int(registers),
            spills=sum(map(int, memory)),
            shared=int((re.search(r"(\d+) bytes smem", rest) or [0, 0])[1]),
            code=code[name],
        )
        for name, *memory, registers, rest in used.findall(log)
    ]


def _amd(source: Path, arch: str, folder: Path) -> list[Kernel]:
    assembly = folder / f"{source.stem}_{arch}.s"
    target = [f"--offload-arch={arch}", "--cuda-device-only", "-S"]
    _run(hip_clang(), *HIP_CLANG_FLAGS, *FLAGS, *target, source, "-o", assembly)
    text = assembly.read_text()
    code = dict(re.findall(r"^(\w+):\s+; @\1\n(.*?)^\.Lfunc_end", text, re.DOTALL | re.MULTILINE))
    kernels = []
    if "amdhsa.kernels: []" in text:  # a launcher without kernels
        return []
    metadata = text[text.index("amdhsa.kernels:") : text.index("amdhsa.target:")]
    for entry in re.split(r"^  - ", metadata, flags=re.MULTILINE)[1:]:
        field = dict(re.findall(r"\.(\w+):\s+(\S+)", entry))
        number = {name: int(value) for name, value in field.items() if value.isdigit()}
        kernels.append(
            _kernel(
                field["name"],
                registers=number["vgpr_count"],
                # A scalar that does not fit lies in a lane of a vector register, which counts there.
                spills=number["vgpr_spill_count"] + number["private_segment_fixed_size"],
                shared=number["group_segment_fixed_size"],
                code=code[field["name"]],
            )
        )
    return kernels
