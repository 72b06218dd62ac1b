"""`make demo` and `make test` bring what pip can bring, say what they do and what is missing; .ci/run adds nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from device_compilers import CUDA_PACKAGES, HIP_PACKAGES

ROOT = Path(__file__).parents[1]
CI = ROOT / ".ci" / "run"
TOOLS = ("sh", "echo", "sed", "find", "grep", "touch", "rm", "dirname")


def _make(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": os.environ.get("HOME", "/"), "PATH": str(path or os.environ["PATH"])}
    command = [shutil.which("make"), "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def bin_folder(tmp_path):
    """A PATH with what a shell needs, and neither Python nor a compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def _script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("target", ["demo", "test"])
@pytest.mark.parametrize(
    ("python", "compiler", "message"),
    [
        (None, True, "python3 is missing: apt-get install python3 python3-venv"),
        ('case "$2" in *version_info*) exit 1 ;; esac', True, "python3 is older than 3.10"),
        ('case "$2" in *ensurepip*) exit 1 ;; esac', True, "python3 has no venv: apt-get install python3-venv"),
        ('case "$2" in *Python.h*) exit 1 ;; esac', True, "python3 has no Python.h: apt-get install python3-dev"),
        ("exit 0", False, "there is no C++ compiler: apt-get install g++"),
    ],
    ids=["no python", "old python", "no venv", "no headers", "no compiler"],
)
def test_a_missing_system_package_is_one_line(bin_folder, tmp_path, target, python, compiler, message):
    if python:
        _script(bin_folder, "python3", python)
    if compiler:
        _script(bin_folder, "c++", "exit 0")
    result = _make(target, f"VENV={tmp_path}/venv", path=bin_folder)
    assert result.returncode != 0
    said = [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("make:")]
    assert len(said) == 1 and said[0].startswith(f"fdpp: {message}"), said
    assert not (tmp_path / "venv").exists()


def _recipe(target: str, tmp_path: Path) -> list[str]:
    result = _make("-n", target, f"VENV={tmp_path}/venv")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_make_test_installs_the_pinned_toolkit(tmp_path):
    """Apart from the packages of the environment: a CUDA build of torch pins its own."""
    pins = re.findall(r"^nvidia-\S+==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {pin.partition("==")[0] for pin in pins} == {*CUDA_PACKAGES.split(), "nvidia-cuda-nvdisasm"}
    (line,) = [line for line in _recipe("test", tmp_path) if "nvidia-cuda-nvcc" in line]
    assert f"--no-deps --target {tmp_path}/venv/nvcc" in line
    assert [word for word in line.split() if word.startswith("nvidia-")] == pins
    installs = [line for line in _recipe("test", tmp_path) if "pip install" in line and "-c " in line]
    assert installs and all(f"-c {tmp_path}/venv/constraints.txt" in line for line in installs)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_every_step_is_announced_and_pip_is_quiet(tmp_path, target):
    lines = _recipe(target, tmp_path)
    assert all("pip install -q" in line for line in lines if "pip install" in line)
    spoken = [index for index, line in enumerate(lines) if line.startswith('echo "fdpp: ')]
    slow = [index for index, line in enumerate(lines) if re.search(r"-m (venv|pip|pytest)|fdpp generate", line)]
    assert spoken and slow
    for index in slow:
        assert any(index - 3 <= before < index for before in spoken), lines[index]


@pytest.mark.skipif(not CI.exists(), reason="a source distribution has no .ci")
def test_ci_installs_system_packages_and_runs_make():
    script = CI.read_text()
    assert not re.search(r"\bpip\b|venv/|export|nvcc", script)
    needed = set(re.findall(r"need ([\w+.-]+)", script))
    assert set(HIP_PACKAGES.split()) <= needed
    documents = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    assert not [name for name in needed if name not in documents]
    commands = script[script.rindex("\nfi\n") + 4 :].split("\n")
    commands = [line for line in commands if line]
    assert commands[-1] == "make test"
    assert all(re.search(rf"^    {line}\b", documents, re.MULTILINE) for line in commands)


def test_the_source_distribution_builds_on_its_own(tmp_path):
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        f"--egg-base={tmp_path}",
        "sdist",
        f"--dist-dir={tmp_path}",
    ]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data") if hasattr(tarfile, "data_filter") else file.extractall(tmp_path)
    (folder,) = tmp_path.glob("fdpp-*/")
    assert (folder / "fdpp" / "py.typed").exists()
    asked = subprocess.run([sys.executable, "setup.py", "--version"], cwd=folder, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert "fdpp: builds against torch" in asked.stderr
