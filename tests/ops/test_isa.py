"""Every instruction set that this processor has passes the op tests, not only the best one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fdpp import library

ROOT = Path(__file__).parents[2]
KNOWN = ["amx", "avx512_bf16", "avx512", "avx2", "portable"]

#: A cut through the suite that reaches every kernel in every dtype.
REDUCED = [
    *(f"tests/ops/test_attention_parity.py::test_random_case[cpu-{seed}]" for seed in range(60)),
    "tests/ops/test_attention_parity.py::test_every_head_dim_and_group",
    "tests/ops/test_attention_hostile.py::test_logits",
    "tests/ops/test_attention_hostile.py::test_softcaps_of_any_size",
    "tests/ops/test_attention_hostile.py::test_phi_never_changes_the_result",
    "tests/ops/test_attention_hostile.py::test_a_sink_that_is_nan_makes_its_head_nan",
    "tests/ops/test_attention_hostile.py::test_nan_in_the_valid_region_shows_in_its_heads_only",
    "tests/ops/test_linear.py::test_gemv",
    "tests/ops/test_linear.py::test_flat_gemm",
    "tests/ops/test_fused.py",
]


def _python(*arguments: str, isa: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"FDPP_CPU_ISA": isa, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_choice_is_one_of_the_available():
    features = library.load().cpu_features()
    assert features["isa"] in features["available"] and features["available"][-1] == "portable"
    assert set(features["available"]) <= set(KNOWN)
    assert features["isa"] == (os.environ.get("FDPP_CPU_ISA") or features["available"][0])


@pytest.mark.parametrize("isa", KNOWN)
def test_instruction_set(isa):
    available = library.load().cpu_features()["available"]
    if isa not in available:
        pytest.skip(f"this processor runs {', '.join(available)}")
    if isa == library.load().cpu_features()["isa"]:
        pytest.skip("the rest of this run uses it")
    result = _python("-m", "pytest", "-q", "-x", "-k", "cpu", "-p", "no:cacheprovider", *REDUCED, isa=isa)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.parametrize("isa", ["amx", "avx1024", "AVX2", "avx2;portable"])
def test_an_instruction_set_that_is_not_there_raises_at_load(isa):
    if isa in library.load().cpu_features()["available"]:
        pytest.skip("this processor has it")
    result = _python("-c", "import fdpp", isa=isa)
    assert result.returncode == 1, "a Python exception, not a crash"
    message = result.stderr.splitlines()[-1]
    available = ", ".join(library.load().cpu_features()["available"])
    assert f"({available})" in message and message.endswith(f"got {isa}"), message
    assert "pip install" not in result.stderr, "building again brings no instruction set"
