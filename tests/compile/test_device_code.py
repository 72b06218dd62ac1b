"""Every kernel compiles for every architecture, within its budget, to the instructions that it was written for."""

from __future__ import annotations

import functools
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from .compilers import AMD, NVIDIA, Kernel, compile_for, nvidia_tool

HEAD_DIMS = (64, 80, 96, 128, 192, 256)

#: Registers of a lane by head_dim: what keeps the blocks that fit by their shared memory (attention_tiles.h) running.
#: NVIDIA: 65536 registers in steps of 8, four blocks of 128 threads at 128 registers, three at 168; two of 64 at 255.
#: CDNA: 512 of a SIMD's lane in steps of 8, shared by its waves. RDNA3: 1536 in steps of 24.
REGISTERS = {
    "Nvidia": {64: 128, 80: 128, 96: 128, 128: 168, 192: 255, 256: 255},
    "Cdna": {64: 96, 80: 96, 96: 120, 128: 120, 192: 168, 256: 256},
    "Rdna": {64: 120, 80: 144, 96: 144, 128: 168, 192: 216, 256: 216},
}

#: What must be in the code, by dtype where it differs: the matrix instruction, copies of 16 bytes, matrix loads.
INSTRUCTIONS = {
    "8.0": (
        {"f16": r"HMMA\.16816\.F32 ", "bf16": r"HMMA\.16816\.F32\.BF16 "},
        r"LDGSTS\.E\.BYPASS\.\S*128",
        r"LDSM\.16\.M88\.4",
        r"LDSM\.16\.MT88\.4",
    ),
    "gfx90a": (
        {"f16": r"v_mfma_f32_16x16x16f16 ", "bf16": r"v_mfma_f32_16x16x16bf16_1k "},
        r"global_load_dwordx4 ",
        r"ds_write_b128 ",
    ),
    "gfx942": (
        {"f16": r"v_mfma_f32_16x16x16_f16 ", "bf16": r"v_mfma_f32_16x16x16_bf16 "},
        r"global_load_dwordx4 ",
        r"ds_write_b128 ",
    ),
    "gfx1100": (
        {"f16": r"v_wmma_f32_16x16x16_f16 ", "bf16": r"v_wmma_f32_16x16x16_bf16 "},
        r"global_load_b128 ",
        r"ds_store_b128 ",
        r"ds_load_b128 ",
    ),
}
INSTRUCTIONS |= dict.fromkeys(NVIDIA, INSTRUCTIONS["8.0"])
POLICY = dict.fromkeys(NVIDIA, "Nvidia") | {"gfx90a": "Cdna", "gfx942": "Cdna", "gfx1100": "Rdna"}


@functools.cache
def _compiling(folder) -> dict[str, Future]:
    """All architectures at once, as many at a time as there are processors."""
    pool = ThreadPoolExecutor(os.cpu_count())
    present = [*(NVIDIA if nvidia_tool("nvcc") else ()), *(AMD if shutil.which("clang++-19") else ())]
    return {arch: pool.submit(compile_for, arch, folder) for arch in present}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("device_code")


@pytest.fixture(params=[*NVIDIA, *AMD])
def arch(request):
    return request.param


@pytest.fixture
def kernels(arch, folder) -> list[Kernel]:
    jobs = _compiling(folder)
    if arch not in jobs:
        pytest.skip(f"no compiler for {arch}: nvcc or clang++-19")
    return [kernel for kernel in jobs[arch].result() if kernel.policy == POLICY[arch]]


def test_every_instantiation_is_there(kernels):
    attention = {(kernel.dtype, kernel.size) for kernel in kernels if kernel.name == "decode_attention"}
    assert attention == {(dtype, head_dim) for dtype in ("f16", "bf16") for head_dim in HEAD_DIMS}


def test_budget(kernels):
    """No spill, no shared memory beside what a launch asks for (which attention_kernel.h holds against its limit)."""
    used = {str(kernel): (kernel.registers, kernel.spills, kernel.shared) for kernel in kernels}
    over = {str(k): REGISTERS[k.policy][k.size] for k in kernels if k.registers > REGISTERS[k.policy][k.size]}
    assert not over, f"registers beyond the budget {over}: {used}"
    assert not [kernel for kernel in kernels if kernel.spills or kernel.shared], used


def test_instructions(arch, kernels):
    by_dtype, *others = INSTRUCTIONS[arch]
    for kernel in kernels:
        for pattern in (by_dtype[kernel.dtype], *others):
            assert re.search(pattern, kernel.code), f"{kernel}: no {pattern}"
        for dtype, pattern in by_dtype.items():
            assert dtype == kernel.dtype or not re.search(pattern, kernel.code), f"{kernel}: {pattern}"


@pytest.mark.parametrize("arch", AMD, indirect=True)
def test_the_kernels_of_other_hardware_are_empty(arch, folder):
    """One library holds code for all; on a device only its own is called (csrc/hip/arch.h)."""
    jobs = _compiling(folder)
    if arch not in jobs:
        pytest.skip("no clang++-19")
    for kernel in jobs[arch].result():
        if kernel.policy != POLICY[arch]:
            assert kernel.registers <= 8 and len(re.findall(r"^\t[a-z]", kernel.code, re.MULTILINE)) < 10, kernel.code
