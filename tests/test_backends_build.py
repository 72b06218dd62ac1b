"""The GPU libraries build, link and load without a GPU, where their compilers are; setup.py says what is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import device_compilers
import pytest
import torch

from .compile import compilers

ROOT = Path(__file__).parents[1]
HOMES = ("CUDA_HOME", "CUDA_PATH", "ROCM_HOME", "ROCM_PATH")
SETTINGS = ("FDPP_BACKENDS", "FDPP_ANY_TORCH", "TORCH_CUDA_ARCH_LIST", "PYTORCH_ROCM_ARCH", "NVCC_THREADS")
LOAD = """
import sys
import torch
from fdpp._host import Library

key = ("fdpp::decode_attention", "CUDA")
core, library = sys.argv[1:]
torch.ops.load_library(core)
assert not torch._C._dispatch_has_kernel_for_dispatch_key(*key)
torch.ops.load_library(library)
assert torch._C._dispatch_has_kernel_for_dispatch_key(*key)
print(Library(library).architectures())
"""


# setup.py with a torch that supports CUDA and sees GPUs of these compute capabilities.
WITH_GPUS = """
import runpy
from types import SimpleNamespace

import torch

gpus = {gpus}
torch.version.cuda, torch.version.hip = "13.0", None
torch.cuda.is_available = lambda: bool(gpus)
torch.cuda.device_count = lambda: len(gpus)
torch.cuda.get_device_properties = lambda index: SimpleNamespace(major=gpus[index][0], minor=gpus[index][1])
runpy.run_path("setup.py", run_name="__main__")
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


def test_a_python_without_headers_is_named(tmp_path):
    program = (
        "import runpy, sysconfig\n"
        f"sysconfig.get_paths = lambda *_: {{'include': {str(tmp_path)!r}}}\n"
        "sysconfig.get_path = lambda *_: sysconfig.get_paths()['include']\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line == f"fdpp builds a Python module and finds no Python.h in {tmp_path}: apt-get install python3-dev"


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """Makes a toolkit of shell scripts; no other can be found. ``toolkit(nvcc="echo ...")`` is its folder."""
    for name in (*SETTINGS, *HOMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device_compilers, "PINNED_CUDA", tmp_path / "nothing")

    def make(folder: str = "toolkit", **scripts: str) -> Path:
        for name, script in scripts.items():
            path = tmp_path / folder / "bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        (tmp_path / folder / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "lib" / "libcudart_static.a").touch()
        return tmp_path / folder

    return make


NVCC = """case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
--list-gpu-code) echo "sm_80 sm_90" ;;
esac"""


@pytest.mark.parametrize(("compiler", "missing"), [("cuda_compiler", "nvcc"), ("hip_compiler", "a HIP compiler")])
def test_a_missing_compiler_is_named(toolkit, compiler, missing):
    with pytest.raises(device_compilers.Missing, match=f"^{missing}.*install"):
        getattr(device_compilers, compiler)([])


@pytest.mark.parametrize(
    ("script", "what"),
    [("exit 1", "none that runs"), (NVCC.format(release="11.5"), "release 11.5")],
    ids=["broken", "old"],
)
def test_an_nvcc_that_cannot_compile_is_named(toolkit, script, what):
    result = _setup("--version", FDPP_BACKENDS="cuda", FDPP_ANY_TORCH="1", CUDA_HOME=str(toolkit(nvcc=script)))
    assert result.returncode != 0
    assert re.search(f"FDPP_BACKENDS: cuda needs nvcc 12.8 or newer, and .*/toolkit/bin/nvcc is {what}", result.stderr)


def test_cuda_home_comes_before_the_pinned_toolkit_and_that_before_the_path(toolkit, monkeypatch):
    folders = {name: toolkit(name, nvcc=NVCC.format(release="13.0")) for name in ("home", "pinned", "path")}
    monkeypatch.setenv("CUDA_HOME", str(folders["home"]))
    monkeypatch.setattr(device_compilers, "PINNED_CUDA", folders["pinned"])
    monkeypatch.setenv("PATH", str(folders["path"] / "bin"))
    chosen = []
    for _ in range(3):
        compiler = device_compilers.cuda_compiler([])
        assert compiler.architectures == ["8.0", "9.0a"]
        chosen.append(Path(compiler.command[0]).parents[1].name)
        (Path(compiler.command[0])).unlink()
    assert chosen == ["home", "pinned", "path"]


def test_the_compile_checks_take_the_pinned_toolkit(toolkit, monkeypatch):
    """Whatever CUDA_HOME and PATH hold: the budgets are those of one version, and strays may lack nvdisasm."""
    strays = toolkit("stray", nvcc="exit 1", nvdisasm="exit 1")
    monkeypatch.setenv("CUDA_HOME", str(strays))
    monkeypatch.setenv("PATH", str(strays / "bin"))
    pinned = toolkit("pinned", nvcc="exit 1", nvdisasm="exit 1")
    monkeypatch.setattr(compilers, "PINNED_CUDA", pinned)
    for name in ("nvcc", "nvdisasm"):
        assert compilers.nvidia_tool(name) == str(pinned / "bin" / name)


@pytest.mark.parametrize(
    ("gpus", "list_of_architectures", "built"),
    [([], "", None), ([(7, 5)], "", None), ([(9, 0)], "", "9.0"), ([], "8.0 9.0a", "8.0 9.0a")],
    ids=["no gpu", "an old gpu", "a gpu", "a list"],
)
def test_the_default_has_the_gpu_library_where_something_asks_for_it(toolkit, gpus, list_of_architectures, built):
    """With a torch that supports CUDA, as the usual build of it does on machines that have no GPU, too."""
    settings = {"CUDA_HOME": str(toolkit(nvcc=NVCC.format(release="13.0")))}
    if list_of_architectures:
        settings["TORCH_CUDA_ARCH_LIST"] = list_of_architectures
    command = [sys.executable, "-c", WITH_GPUS.format(gpus=gpus), "--version"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("fdpp: ")]
    if built:
        assert len(said) == 1
        assert f": cpu, cuda for {built} with {settings['CUDA_HOME']}/bin/nvcc (the default" in said[0]
    else:
        assert len(said) == 2
        assert said[0].startswith("fdpp: leaves out the cuda library; it needs a GPU")
        assert "FDPP_BACKENDS=cpu,cuda" in said[0]
        assert ": cpu (the default" in said[1]


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
    if nvcc := compilers.nvidia_tool("nvcc"):
        settings["CUDA_HOME"] = str(Path(nvcc).parents[1])
    probe = _setup("--version", **settings)
    if probe.returncode != 0 and f"{backend} needs" in probe.stderr:
        compilers.skip_not_checked(backend)
    build = _setup("build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path / 'objects'}", **settings)
    assert build.returncode == 0, (build.stdout + build.stderr)[-4000:]
    (library,) = tmp_path.glob(f"fdpp/libfdpp_{backend}*.so")
    (core,) = (ROOT / "fdpp").glob("libfdpp_cpu*.so")
    command = [sys.executable, "-c", LOAD, str(core), str(library)]
    load = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert load.returncode == 0, load.stderr
    assert load.stdout.split() == [architecture]


def test_hip_launchers_are_up_to_date():
    """csrc/hip/*.hip is what `make hipify` writes from csrc/cuda/*.cu."""
    check = subprocess.run([sys.executable, ROOT / "tools" / "hipify.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
