"""The GPU libraries build, link and load without a GPU, where their compilers are; setup.py says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SETTINGS = ("FDPP_BACKENDS", "FDPP_ANY_TORCH", "TORCH_CUDA_ARCH_LIST", "PYTORCH_ROCM_ARCH", "NVCC_THREADS")
LOAD = """
import ctypes, sys
import torch

key = ("fdpp::decode_attention", "CUDA")
core, library = sys.argv[1:]
torch.ops.load_library(core)
assert not torch._C._dispatch_has_kernel_for_dispatch_key(*key)
torch.ops.load_library(library)
assert torch._C._dispatch_has_kernel_for_dispatch_key(*key)
architectures = ctypes.CDLL(library).fdpp_gpu_architectures
architectures.restype = ctypes.c_char_p
print(architectures().decode())
"""


def _setup(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    # Where torch looks for ninja.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment | settings, capture_output=True, text=True, timeout=600)


def test_an_unknown_backend_is_refused():
    result = _setup("--version", FDPP_BACKENDS="cpu,vulkan")
    assert result.returncode != 0
    assert "unknown backend vulkan; this version builds cpu, cuda, hip, simt, running_maximum" in result.stderr


@pytest.mark.parametrize(("backend", "missing"), [("cuda", "nvcc"), ("hip", "a HIP compiler")])
def test_a_missing_compiler_is_named(tmp_path, backend, missing):
    homes = dict.fromkeys(("CUDA_HOME", "CUDA_PATH", "ROCM_HOME", "ROCM_PATH"), str(tmp_path))
    result = _setup("--version", FDPP_BACKENDS=backend, FDPP_ANY_TORCH="1", PATH=str(tmp_path), **homes)
    assert result.returncode != 0
    assert f"FDPP_BACKENDS: {backend} needs {missing}" in result.stderr
    assert "install" in result.stderr


@pytest.mark.parametrize("backend", ["cuda", "hip"])
def test_a_torch_without_the_gpu_is_named(backend):
    if getattr(torch.version, backend):
        pytest.skip(f"this torch has {backend}")
    result = _setup("--version", FDPP_BACKENDS=backend)
    assert result.returncode != 0
    assert f"{backend} needs a torch with {backend.upper()} support" in result.stderr


@pytest.mark.parametrize(
    ("backend", "list_name", "architecture"),
    [("cuda", "TORCH_CUDA_ARCH_LIST", "8.0"), ("hip", "PYTORCH_ROCM_ARCH", "gfx90a")],
    ids=["cuda", "hip"],
)
def test_a_gpu_library_builds_and_loads_without_a_gpu(tmp_path, backend, list_name, architecture):
    """For one architecture, with whatever torch is here: the libraries use its stable interface only."""
    settings = {"FDPP_BACKENDS": backend, "FDPP_ANY_TORCH": "1", list_name: architecture}
    probe = _setup("--version", **settings)
    if probe.returncode != 0 and f"{backend} needs" in probe.stderr:
        pytest.skip(probe.stderr.strip())
    build = _setup("build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path / 'objects'}", **settings)
    assert build.returncode == 0, (build.stdout + build.stderr)[-4000:]
    (library,) = tmp_path.glob(f"fdpp/libfdpp_{backend}*.so")
    (core,) = (ROOT / "fdpp").glob("libfdpp_core*.so")
    command = [sys.executable, "-c", LOAD, str(core), str(library)]
    load = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert load.returncode == 0, load.stderr
    assert load.stdout.split() == [architecture]


def test_hip_launchers_are_up_to_date():
    """csrc/hip/*.hip is what `make hipify` writes from csrc/cuda/*.cu."""
    check = subprocess.run([sys.executable, ROOT / "tools" / "hipify.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
