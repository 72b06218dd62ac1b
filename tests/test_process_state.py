"""The state of the process around fdpp: where it comes in, what it must not change, and what fdpp must not change."""

from __future__ import annotations

import ast
import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fdpp import dataflow, ops, tuning
from tests.ops.valid import CALLS, call_op, valid_arguments

ROOT = Path(__file__).parents[1]
FACTORIES = frozenset(
    "arange asarray as_tensor empty empty_strided eye full linspace logspace ones rand randint randn randperm "
    "scalar_tensor tensor tril_indices triu_indices zeros".split()
)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# What a user may have set before a call, as context managers.
STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("path", sorted((ROOT / "fdpp").rglob("*.py")), ids=lambda path: path.stem)
def test_every_new_tensor_says_its_dtype_and_device(path):
    """Without them it takes torch's defaults, which belong to the user."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        owner = call.func.value
        if isinstance(owner, ast.Name) and owner.id == "torch" and call.func.attr in FACTORIES:
            missing = {"dtype", "device"} - {keyword.arg for keyword in call.keywords}
            assert not missing, f"{path.name}, line {call.lineno}: torch.{call.func.attr} without {sorted(missing)}"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("call", CALLS)
def test_operators(call, state):
    expected = call_op(ops, call, valid_arguments(call, "cpu"))
    arguments = valid_arguments(call, "cpu")
    with STATES[state]():
        assert torch.equal(call_op(ops, call, arguments), expected)


@pytest.mark.parametrize("state", STATES)
def test_tuning(tmp_path, monkeypatch, state):
    monkeypatch.setenv("FDPP_DATAFLOW_TABLE", str(tmp_path / "table.csv"))
    with STATES[state]():
        path = tuning.tune([(16, 8)], dtypes=["float32"], rows=[1], seconds=0)
    assert dataflow.read_table(path)[0].error < 1e-5
    monkeypatch.delenv("FDPP_DATAFLOW_TABLE")
    dataflow.install()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/fdpp/dataflow.csv"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/cache"}, "/cache/fdpp/dataflow.csv"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "cache"}, "/home/a/.cache/fdpp/dataflow.csv"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": ""}, "/home/a/.cache/fdpp/dataflow.csv"),
        ({"HOME": "."}, None),
        ({"HOME": ".", "XDG_CACHE_HOME": "/cache"}, "/cache/fdpp/dataflow.csv"),
        ({"HOME": ".", "FDPP_DATAFLOW_TABLE": "table.csv"}, "table.csv"),
    ],
    ids=str,
)
def test_the_place_of_the_users_table(monkeypatch, environment, expected):
    for name in ("HOME", "XDG_CACHE_HOME", "FDPP_DATAFLOW_TABLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert dataflow.user_table() == (Path(expected) if expected else None)


@pytest.fixture
def homeless(monkeypatch):
    """A user whom the system does not know, without ``HOME``."""
    for name in ("HOME", "XDG_CACHE_HOME", "FDPP_DATAFLOW_TABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))


def test_a_user_without_a_home(homeless):
    assert dataflow.user_table() is None
    assert list(dataflow.tables()) == sorted(dataflow.SHIPPED.glob("*.csv"))
    assert "by rule" in dataflow.explain(17, 19, 1)
    with pytest.raises(ValueError, match="no home directory: name a table with --output or FDPP_DATAFLOW_TABLE"):
        tuning.tune([(8, 8)])


@pytest.mark.parametrize("home", ["/" + "x" * 300, "/dev/null", "/proc/1"])
def test_a_home_that_cannot_be_searched(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("FDPP_DATAFLOW_TABLE", raising=False)
    assert list(dataflow.tables()) == sorted(dataflow.SHIPPED.glob("*.csv"))


STRANGER = """
import os, torch
os.setgid(54321)
os.setuid(54321)
import fdpp
print(tuple(fdpp.ops.linear(torch.randn(2, 64), torch.randn(8, 64)).shape))
"""


def is_open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes a user whom the system does not know")
@pytest.mark.skipif(not is_open_to_all(ROOT / "fdpp"), reason="the source tree is not for other users")
@pytest.mark.parametrize("home", [None, "/root"])  # none, and one that may not be searched
def test_import_by_a_stranger(home):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    if home:
        environment["HOME"] = home
    command = [sys.executable, "-W", "error::UserWarning:fdpp", "-c", STRANGER]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "(2, 8)\n"), done.stderr


def test_a_table_under_a_strict_umask(tmp_path):
    row = dataflow.Row("cpu", "float32", 8, 8, 1, "gemv", -1, 1.0, 1.0, 1.0, 0.0)
    before = os.umask(0o077)
    try:
        dataflow.write_table(tmp_path / "new" / "table.csv", [row], "")
    finally:
        os.umask(before)
    assert dataflow.read_table(tmp_path / "new" / "table.csv") == [row]
    assert stat.S_IMODE((tmp_path / "new" / "table.csv").stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "new") == ["table.csv"]
