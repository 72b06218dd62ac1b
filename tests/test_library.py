"""fdpp.library and fdpp._host: what the compiled libraries answer, and how they refuse."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fdpp import _host, dataflow, library
from fdpp.dtypes import NAMES

ROOT = Path(__file__).parents[1]
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "simt"])
REFUSED = {
    "flat_gemm_configs": (("int8",), "dtype must be one of float32, bfloat16, float16; got 'int8'"),
    "choice": (("int8", 1, 1, 1), "dtype must be one of"),
    "set_table": (
        ("x", [("bfloat16", 8, 8, 1, "gemm", -1, "")]),
        "impl must be one of gemv, flat_gemm, aten; got 'gemm'",
    ),
    "cpu_features": ((), "this library has no CPU kernels"),
    "measure_read_bandwidth": ((0, 1), "num_bytes and repeats must be at least 1; got 0, 1"),
}


@pytest.mark.parametrize("method", REFUSED)
def test_what_is_refused_is_a_value_error(method):
    arguments, message = REFUSED[method]
    with pytest.raises(ValueError, match=message):
        getattr(library.load("simt"), method)(*arguments)


@pytest.mark.parametrize("row", [("float16", 8, 8, 65, "flat_gemm", 0, ""), ("float16", 8, 8, 1, "gemv", 0, "")])
def test_a_bad_row_leaves_the_table_in_force(row):
    simt = library.load("simt")
    simt.set_table("simt:nvidia", [("float16", 24, 40, 1, "aten", -1, "")])
    try:
        with pytest.raises(ValueError, match="flat_gemm serves M|config of gemv"):
            simt.set_table("simt:nvidia", [row])
        assert simt.choice("float16", 24, 40, 1) == {"impl": "aten", "config": -1, "source": "table"}
    finally:
        simt.clear_tables()


@BACKENDS
@pytest.mark.parametrize("index", [-1, 3, 2**31 - 1])
def test_a_device_that_is_not_there(backend, index):
    found = library.load(backend)
    for ask in (found.device_name, lambda i: found.choice("float16", 72, 48, 4, i)):
        with pytest.raises(ValueError, match=f"; got {index}$"):
            ask(index)
    if index >= 0:  # -1 stands for any device
        with pytest.raises(ValueError, match=f"; got {index}$"):
            found.flat_gemm_configs("float16", index)


@BACKENDS
def test_one_choice_for_all_rows(backend):
    found = library.load(backend)
    try:
        found.set_batch_invariant(True)
        chosen = [found.choice("float16", 4096, 4096, M) for M in (1, 8, 64, 1000)]
        assert chosen == [chosen[0]] * 4 and chosen[0]["source"] == "batch_invariant"
    finally:
        dataflow.set_batch_invariant(dataflow.is_batch_invariant())


def test_a_long_name_that_is_no_ascii():
    with pytest.raises(ValueError, match="dtype must be one of .*; got '\u00e4\u00e4"):
        library.load().flat_gemm_configs("\u00e4" * 101)


def test_names_are_those_of_the_library():
    """Python lists them, too: they are needed where no library is loaded."""
    with pytest.raises(ValueError, match=f"^dtype must be one of {', '.join(NAMES)}; got"):
        library.load().flat_gemm_configs("")
    with pytest.raises(ValueError, match=f"^impl must be one of {', '.join(dataflow.IMPLEMENTATIONS)}; got"):
        library.load().set_table("x", [("float32", 8, 8, 1, "", -1, "")])


def test_types_are_checked():
    with pytest.raises(TypeError, match="incompatible function arguments"):
        library.load().choice("float32", "8", 8, 1)


def test_no_room_for_the_buffer():
    with pytest.raises(MemoryError):
        library.load().measure_read_bandwidth(1 << 60, 1)


def test_the_seed_belongs_to_the_simulation():
    with pytest.raises(ValueError, match="this library simulates no GPU"):
        library.load().set_seed(1)


def test_a_file_that_is_no_library(tmp_path):
    with pytest.raises(ImportError, match="cannot open shared object file"):
        _host.Library(str(tmp_path / "nothing.so"))
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(ImportError, match="file too short|invalid ELF header"):
        _host.Library(str(text))
    with pytest.raises(ImportError, match="is no library of this version of fdpp"):
        _host.Library(_host.__file__)


@pytest.mark.parametrize(
    ("backend", "command"), [("cpu", "with `pip install"), ("hip", "with `FDPP_BACKENDS=cpu,hip pip install")]
)
def test_a_library_that_is_not_there_says_how_to_build_it(monkeypatch, tmp_path, backend, command):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    library.load.cache_clear()
    try:
        with pytest.raises(ImportError, match=f"no libfdpp_{backend}.*\\.so in .*{command}"):
            library.load(backend)
    finally:
        library.load.cache_clear()


def test_the_stub_names_what_the_module_has():
    """fdpp/_host.pyi is what type checkers see."""
    stub = {
        node.name: node for node in ast.parse((ROOT / "fdpp" / "_host.pyi").read_text()).body if hasattr(node, "name")
    }
    written = {"GUARDS", "HEAD_DIMS", "WEIGHT_FORMATS"} | {
        name for name, node in stub.items() if not (isinstance(node, ast.ClassDef) and node.bases)
    }
    assert written == {name for name in vars(_host) if not name.startswith("__")}
    methods = {node.name for node in stub["Library"].body} - {"__init__"}
    assert methods == {name for name in vars(_host.Library) if not name.startswith("_")}
    assert all(getattr(_host.Library, name).__doc__ for name in methods)


def test_reading_bandwidth_lets_other_threads_run():
    """The interpreter's lock is released while memory is read."""
    code = """
import threading, time
from fdpp import library
ticks = []
thread = threading.Thread(target=lambda: [ticks.append(time.sleep(0.01)) for _ in range(5)])
thread.start()
library.load().measure_read_bandwidth(1 << 28, 20)
assert len(ticks) >= 2, ticks
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
