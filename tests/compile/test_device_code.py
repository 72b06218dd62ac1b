"""Every kernel compiles for every architecture, within its budget, to the instructions that it was written for."""

from __future__ import annotations

import functools
import re

import pytest
from device_compilers import CUDA_ARCHITECTURES as NVIDIA
from device_compilers import HIP_ARCHITECTURES as AMD

from fdpp._host import HEAD_DIMS
from fdpp.formats import PACKED

from .compilers import Kernel, compile_all, has_compiler, skip_not_checked

TILES = {"Nvidia": (0, 1), "Cdna": (0,), "Rdna": (0,)}  # of attention
DIRECT = {(padded_m, 2) for padded_m in (8, 16, 32, 64)}
FLAT = {  # padded_m and tiles of the flat GEMM
    "Nvidia": {(padded_m, tile) for padded_m in (8, 16, 32, 64) for tile in (0, 1, 3)},
    "Cdna": (amd := {(padded_m, tile) for padded_m in (16, 32, 64) for tile in (0, 1)}),
    "Rdna": amd,
}
POLICY = dict.fromkeys(NVIDIA, "Nvidia") | {"gfx90a": "Cdna", "gfx942": "Cdna", "gfx1100": "Rdna"}


PACKED_ROWS = {"Nvidia": (8, 16, 32), "Cdna": (16, 32), "Rdna": (16, 32)}  # what x is padded to


def variants(policy: str, dtype: str | None) -> dict[str, set[tuple]]:
    """Every kernel that there must be, with what it is made for."""
    if dtype is None:
        return {"Dequantize": {()}}
    return {
        "DecodeAttention": {(head_dim, tile) for head_dim in HEAD_DIMS for tile in TILES[policy]},
        "Gemv": {(rows,) for rows in (1, 2, 3, 4)},
        "FlatGemm": FLAT[policy],
        **({"DirectGemm": DIRECT} if policy == "Nvidia" else {}),
        "PackedGemm": {(padded_m, number) for padded_m in PACKED_ROWS[policy] for number in range(len(PACKED))},
        "LinearEpilogue": {()},
        "Norm": {
            (residual, width, centered)
            for residual in ("float", dtype)
            for width in (1024, 4096)
            for centered in ("true", "false")
        },
        "SiluMul": {()},
        "RopeAppend": {()},
    }


def packed(*registers: int) -> dict[tuple, int]:
    """The budgets of packed weights, the same for all formats: for x padded to 8, 16 and 32 rows."""
    of = dict(zip((8, 16, 32), registers, strict=True))
    return {(padded_m, number): of[padded_m] for padded_m in of for number in range(len(PACKED))}


#: Registers of a lane: what keeps the blocks that fit by their shared memory running. NVIDIA: 65536, so four blocks of
#: 128 threads have 128, three 168, and two of 64 threads 255 (no more can be named), as has one of 256; two of 256
#: threads have 128, three 80, and four 64. CDNA: 512 of a SIMD's lane in steps of 8, shared by its waves. RDNA3: 1536
#: in steps of 24.
REGISTERS = {
    "Nvidia": {
        "DecodeAttention": {
            **{(64, 0): 168, (80, 0): 168, (96, 0): 168, (128, 0): 168, (192, 0): 255, (256, 0): 255},
            **{(head_dim, 1): 255 for head_dim in HEAD_DIMS},
        },
        "Gemv": {(1,): 64, (2,): 128, (3,): 128, (4,): 128},
        "FlatGemm": dict.fromkeys(FLAT["Nvidia"], 168),
        "DirectGemm": {(8, 2): 80, (16, 2): 128, (32, 2): 128, (64, 2): 255},
        "PackedGemm": packed(168, 255, 255),
    },
    "Cdna": {
        "DecodeAttention": {(64, 0): 96, (80, 0): 96, (96, 0): 120, (128, 0): 120, (192, 0): 168, (256, 0): 256},
        "Gemv": {(1,): 72, (2,): 80, (3,): 104, (4,): 112},
        "PackedGemm": packed(0, 184, 272),
        "FlatGemm": {(16, 0): 80, (16, 1): 80, (32, 0): 88, (32, 1): 96, (64, 0): 104, (64, 1): 144},
    },
    "Rdna": {
        "DecodeAttention": {(64, 0): 120, (80, 0): 144, (96, 0): 144, (128, 0): 168, (192, 0): 216, (256, 0): 216},
        "Gemv": {(1,): 96, (2,): 120, (3,): 144, (4,): 168},
        "PackedGemm": packed(0, 192, 216),
        "FlatGemm": {(16, 0): 96, (16, 1): 96, (32, 0): 96, (32, 1): 144, (64, 0): 120, (64, 1): 144},
    },
}
ELEMENTWISE = 80  # registers of the others
LAYER_NORM = 104  # a row, its bias, too; 512 threads of an NVIDIA GPU have 128


def budget(kernel: Kernel) -> int:
    if kernel.name == "Norm" and kernel.variant[-1] == "true":
        return LAYER_NORM
    return REGISTERS[kernel.policy].get(kernel.name, {}).get(kernel.variant, ELEMENTWISE)


#: What has matrix instructions.
MULTIPLIES = ("DecodeAttention", "DirectGemm", "FlatGemm", "PackedGemm")

#: What must be in the code: the matrix instruction of a dtype, copies of 16 bytes to shared memory, matrix loads, and
#: loads of 16 bytes that pass the caches or stay in them.
MATRIX = {
    "Nvidia": {"f16": r"HMMA\.16816\.F32 ", "bf16": r"HMMA\.16816\.F32\.BF16 "},
    "gfx90a": {"f16": r"v_mfma_f32_16x16x16f16 ", "bf16": r"v_mfma_f32_16x16x16bf16_1k "},
    "gfx942": {"f16": r"v_mfma_f32_16x16x16_f16 ", "bf16": r"v_mfma_f32_16x16x16_bf16 "},
    "gfx1100": {"f16": r"v_wmma_f32_16x16x16_f16 ", "bf16": r"v_wmma_f32_16x16x16_bf16 "},
}
LOADS = {
    "Nvidia": {
        "DecodeAttention": (r"LDGSTS\.E\.BYPASS\.\S*128", r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4"),
        "FlatGemm": (r"LDGSTS\.E\.BYPASS\.\S*128", r"LDSM\.16\.M88\.4"),
        "DirectGemm": (r"LDG\.E\.NA\.\S*128\.CONSTANT", r"LDG\.E\.128"),
        "PackedGemm": (r"LDG\.E\.NA\.\S*64\.CONSTANT", r"LDG\.E\.(64|128)"),
        "Gemv": (r"LDG\.E\.NA\.\S*128\.CONSTANT", r"LDG\.E\.128"),
        "Norm": (r"LDG\.E\.128", r"STG\.E\.128"),
        "SiluMul": (r"LDG\.E\.128", r"STG\.E\.128"),
    },
    "Cdna": {
        "DecodeAttention": (r"global_load_dwordx4 ", r"ds_write_b128 "),
        "FlatGemm": (r"global_load_dwordx4 ", r"ds_write_b128 "),
        "PackedGemm": (r"global_load_dword [^\n]*(slc|nt)",),
        "Gemv": (r"global_load_dwordx4 [^\n]*(slc|nt)", r"global_load_dwordx4 [^\n]*off\n"),
        "Norm": (r"global_load_dwordx4 ", r"global_store_dwordx4 "),
        "SiluMul": (r"global_load_dwordx4 ", r"global_store_dwordx4 "),
    },
    "Rdna": {
        "DecodeAttention": (r"global_load_b128 ", r"ds_store_b128 ", r"ds_load_b128 "),
        "FlatGemm": (r"global_load_b128 ", r"ds_store_b128 ", r"ds_load_b128 "),
        "PackedGemm": (r"global_load_b32 [^\n]*slc",),
        "Gemv": (r"global_load_b128 [^\n]*slc", r"global_load_b128 [^\n]*off\n"),
        "Norm": (r"global_load_b128 ", r"global_store_b128 "),
        "SiluMul": (r"global_load_b128 ", r"global_store_b128 "),
    },
}


_compiling = functools.cache(compile_all)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("device_code")


@pytest.fixture(params=[*NVIDIA, *AMD])
def arch(request):
    return request.param


@pytest.fixture
def compiled(arch, folder) -> list[Kernel]:
    vendor = "cuda" if arch in NVIDIA else "hip"
    if not has_compiler(vendor):
        skip_not_checked(vendor)
    return _compiling(vendor, folder)[arch].result()


@pytest.fixture
def kernels(arch, compiled) -> list[Kernel]:
    return [kernel for kernel in compiled if kernel.policy == POLICY[arch]]


def test_every_instantiation_is_there(arch, kernels):
    for dtype in ("f16", "bf16", None):
        found: dict[str, set[tuple]] = {}
        for kernel in kernels:
            if kernel.dtype == dtype:
                found.setdefault(kernel.name, set()).add(kernel.variant)
        assert found == variants(POLICY[arch], dtype)


def test_budget(kernels):
    """No spill, no shared memory beside what a launch asks for (which the kernels hold against their tiles' limits)."""
    used = {str(kernel): (kernel.registers, kernel.spills, kernel.shared) for kernel in kernels}
    over = {str(kernel): budget(kernel) for kernel in kernels if kernel.registers > budget(kernel)}
    assert not over, f"registers beyond the budget {over}: {used}"
    assert not [kernel for kernel in kernels if kernel.spills or kernel.shared], used


def test_instructions(arch, kernels):
    matrix = MATRIX.get(arch, MATRIX["Nvidia"])
    for kernel in kernels:
        for pattern in LOADS[kernel.policy].get(kernel.name, ()):
            assert re.search(pattern, kernel.code), f"{kernel}: no {pattern}"
        used = {dtype for dtype, pattern in matrix.items() if re.search(pattern, kernel.code)}
        assert used == ({kernel.dtype} if kernel.name in MULTIPLIES else set()), f"{kernel}: {used}"


@pytest.mark.parametrize("arch", ["9.0a", "10.0", "12.0"], indirect=True)
def test_every_kernel_waits_for_the_one_in_front(kernels):
    """Launches may overlap from compute capability 9.0 on (csrc/cuda/device.h): a kernel without griddepcontrol.wait
    would read what is not there yet. The first load of what others wrote comes after it; hints at weights may not."""
    for kernel in kernels:
        before, wait, _ = kernel.code.partition("ACQBULK")
        assert wait, f"{kernel} does not wait"
        assert not re.search(r"\b(LDG|LDGSTS|STG|ATOMG|RED)\.", before), f"{kernel} is early"


@pytest.mark.parametrize("arch", AMD, indirect=True)
def test_the_kernels_of_other_hardware_are_empty(arch, compiled):
    """One library holds code for all; on a device only its own is called (csrc/hip/arch.h)."""
    for kernel in compiled:
        if kernel.policy != POLICY[arch]:
            assert kernel.registers <= 8 and len(re.findall(r"^\t[a-z]", kernel.code, re.MULTILINE)) < 10, kernel.code
