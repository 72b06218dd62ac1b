"""Who imports whom. ``import fdpp`` needs torch alone, and arrows between the folders run one way."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Folder or module: what it does not import, with all that lies below.
FORBIDDEN = {
    "fdpp.engine": {"fdpp.calibration", "fdpp.checkpoints", "fdpp.models", "fdpp.llm", "fdpp.cli"},
    "fdpp.models": {"fdpp.checkpoints", "fdpp.tokenizers", "fdpp.llm", "fdpp.cli"},
    "fdpp.checkpoints": {"fdpp.engine", "fdpp.models", "fdpp.llm", "fdpp.cli"},
    "fdpp.tokenizers": {"fdpp.engine", "fdpp.models", "fdpp.checkpoints", "fdpp.llm", "fdpp.cli", "fdpp.ops"},
    "fdpp.ops": {"fdpp.engine", "fdpp.models", "fdpp.checkpoints", "fdpp.tokenizers", "fdpp.llm", "fdpp.cli"},
    "fdpp.calibration": {"fdpp.checkpoints", "fdpp.models", "fdpp.llm", "fdpp.cli"},
    "fdpp.llm": {"fdpp.export", "fdpp.cli"},
    "fdpp.export": {"fdpp.cli"},
}
# What integrations are made of: the operators, and what tells which they take.
FOR_INTEGRATIONS = {"fdpp.ops", "fdpp.library", "fdpp.dtypes"}

WITHOUT_EXTRAS = """
import sys

OPTIONAL = {"transformers", "tokenizers", "safetensors", "gguf", "huggingface_hub", "matplotlib"}

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Forbid())
import fdpp
import torch
heavy = {"fdpp.engine", "fdpp.checkpoints", "fdpp.integrations", "fdpp.tokenizers", "fdpp.models"} & set(sys.modules)
assert not heavy, heavy
assert torch.ops.fdpp.linear and fdpp.ops.linear and fdpp.__version__
assert fdpp.LLM.__name__ == "LLM"
import fdpp.reference
try:
    fdpp.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise AssertionError("fdpp.nonsense exists")
"""


def test_import_needs_torch_alone():
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argument", ["--help", "--version", "generate", "tune"])
def test_the_command_answers_without_torch(tmp_path, argument):
    """--help and errors of usage do not wait for torch."""
    (tmp_path / "torch.py").write_text("raise AssertionError('torch is imported')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "fdpp", argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if argument.startswith("--") else 2), done.stderr
    assert "fdpp" in (done.stdout if done.returncode == 0 else done.stderr)
    assert "torch is imported" not in done.stderr


def test_a_program_that_is_run_as_a_module_finds_the_operators(tmp_path):
    (tmp_path / "program.py").write_text("import fdpp, torch; print(torch.ops.fdpp.linear)")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "fdpp.linear", done.stderr


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted((ROOT / "fdpp").rglob("*.py"))}


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        submodules = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name if name in MODULES else node.module for name in submodules)


def _imports(module: str, everywhere: bool) -> set[str]:
    """What a module of fdpp imports of fdpp: when it is imported itself, or ``everywhere`` in it."""
    found, pending = set(), [ast.parse(MODULES[module].read_text("utf-8"))]
    while pending:
        node = pending.pop()
        found.update(name for name in _imported(node) if name in MODULES)
        is_later = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if everywhere or not is_later:
            pending.extend(ast.iter_child_nodes(node))
    return found - {module}


def _is_in(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_run_one_way(folder):
    inside = [module for module in MODULES if _is_in(module, folder)]
    assert inside
    for module in inside:
        wrong = {name for name in _imports(module, everywhere=True) for far in FORBIDDEN[folder] if _is_in(name, far)}
        assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


def test_integrations_stand_alone():
    """They import the operators and each other, and nothing imports them."""
    for module in MODULES:
        for name in _imports(module, everywhere=True):
            is_ours, theirs = _is_in(name, "fdpp.integrations"), _is_in(module, "fdpp.integrations")
            assert is_ours <= theirs and (not theirs or is_ours or name in FOR_INTEGRATIONS), f"{module} imports {name}"


def test_no_circle_of_imports():
    waiting = {module: _imports(module, everywhere=False) for module in MODULES}
    while ready := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in ready:
            del waiting[module]
    assert not waiting, f"a circle among {', '.join(sorted(waiting))}"
