"""The rules of the house that a reader relies on."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from fdpp import ops, reference

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.is_file())
TORCH_INCLUDE = re.compile(r'#\s*include\s*[<"](torch/|ATen/|c10/)')
PYTHON_INCLUDE = re.compile(r'#\s*include\s*[<"](pybind11/|Python\.h)')
VENDOR_INCLUDE = re.compile(r'#\s*include\s*[<"][^>"]*(cuda|hip/|hip_|mma|cublas|rocm|cooperative_g)', re.IGNORECASE)
VENDOR_NAME = re.compile(r"nvidia|\bamd\b|cuda|\bhip\b|rocm|cublas|__nv_|__builtin_amdgcn", re.IGNORECASE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
WRITTEN = (".py", ".h", ".cpp", ".cu", ".hip")
OPS = sorted(name for name in vars(ops) if hasattr(torch.ops.fdpp, name) and inspect.isfunction(getattr(ops, name)))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_torch_is_included_in_csrc_torch_only():
    # A header of csrc/torch itself is spelled "torch/...", and may be included there only as well.
    wrong = [p for p in SOURCES if p.relative_to(CSRC).parts[0] != "torch" and TORCH_INCLUDE.search(_text(p))]
    assert not wrong


def test_python_is_included_in_csrc_python_only():
    assert not [p for p in SOURCES if p.relative_to(CSRC).parts[0] != "python" and PYTHON_INCLUDE.search(_text(p))]


def test_bindings_share_what_is_shared():
    """Each library's bindings stand alone: they include those of csrc/torch/arguments and their own, and no other's."""
    for path in (CSRC / "torch").rglob("*.*"):
        used = set(re.findall(r'#\s*include\s*"torch/(\w+)/', _text(path)))
        assert used <= {"arguments", path.parent.name}, path


def test_csrc_common_knows_no_vendor():
    common = [path for path in SOURCES if path.relative_to(CSRC).parts[0] == "common"]
    assert common
    for path in common:
        assert not VENDOR_INCLUDE.search(_text(path)), path
        assert not VENDOR_NAME.search(COMMENT.sub("", _text(path))), path


def test_nothing_is_compiled_with_fast_math():
    """Fast maths may assume that no value is NaN or infinite, and so delete the guard of the softmax."""
    flags = re.compile(r"-Ofast|fast-math|-ffinite-math-only|-fassociative-math|use_fast_math")
    files = ("setup.py", "tools/device_compilers.py", "CMakeLists.txt", "Makefile", "pyproject.toml")
    builds = [ROOT / name for name in files]
    for path in [*SOURCES, *(build for build in builds if build.exists())]:
        text = "\n".join(line for line in _text(path).splitlines() if not line.lstrip().startswith(("#", "//")))
        assert not flags.search(text), path


def test_every_schema_has_its_function():
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("fdpp::")}
    assert {f"fdpp::{name}" for name in OPS} == schemas


@pytest.mark.parametrize("name", OPS)
def test_every_operator_has_an_oracle_a_fake_and_a_docstring(name):
    function, oracle = getattr(ops, name), getattr(reference, name)
    assert inspect.signature(function) == inspect.signature(oracle)
    packet = getattr(torch.ops.fdpp, name)
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    schema = overloads[-1]._schema  # the one with every argument
    assert [a.name for a in schema.arguments] == list(inspect.signature(function).parameters)
    for overload in overloads:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "Meta"), "no fake kernel"
    text = inspect.getdoc(function)
    if name == "linear":  # described by reference to gemv
        text += inspect.getdoc(ops.gemv)
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, section
    for argument in schema.arguments:
        assert f"{argument.name}:" in text, argument.name
        if argument.is_write:
            assert re.search(rf"{argument.name}:[^\n]*(\n[^\n:]*)*\*\*mutated\*\*", text), argument.name


def test_files_and_lines_are_short():
    folders = ("fdpp", "csrc", "tests", "bench", "tools", "examples")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in WRITTEN]
    lines = {path: _text(path).splitlines() for path in files}
    assert not [path for path in files if len(lines[path]) > 400]
    assert not [f"{path}:{number}" for path in files for number, line in enumerate(lines[path], 1) if len(line) > 120]
