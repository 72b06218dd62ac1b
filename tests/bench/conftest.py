"""The bench scripts as modules and as programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import tiny_model  # noqa: F401  (a fixture)

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))


@pytest.fixture
def run_bench(tmp_path):
    """Run a script of bench/ with its results in a scratch directory; gives its output and the JSON it wrote."""

    def run(script: str, *arguments: object) -> tuple[str, dict]:
        command = [sys.executable, BENCH / script, "--quick", "--out", tmp_path, *map(str, arguments)]
        scratch = {"TMPDIR": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
        environment = {**os.environ, **scratch, "PYTHONPATH": str(BENCH.parent)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        (result,) = tmp_path.glob("*.json")
        return done.stdout, json.loads(result.read_text())

    return run
