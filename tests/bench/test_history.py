"""The history of the benches: what is kept of a run, and how runs are compared."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import harness
import history
import pytest

from .conftest import BENCH


def keep(folder, date: str, rows: list[dict], bench: str = "attention", device: str = "A Processor (TM) 2") -> None:
    environment = {"date": date, "commit": "abc1234", "device": device, "threads": 2, "versions": {"torch": "2.13.0"}}
    history.append(folder / f"{bench}_cpu.json", {"environment": environment, "rows": rows})


def attention_row(context: int, us: float) -> dict:
    return {"heads": "h", "dtype": "float32", "batch": 1, "context": context, "us": us, "torch us": 9.0}


def test_a_run_is_one_line_of_its_device(tmp_path):
    keep(tmp_path, "2026-02-01", [attention_row(128, 4.0)])
    keep(tmp_path, "2026-01-01", [attention_row(128, 8.0)])
    (path,) = (tmp_path / "history").iterdir()
    assert path.name == "a_processor_tm_2.jsonl"
    assert json.loads(path.read_text().splitlines()[0]) == {
        "date": "2026-02-01", "commit": "abc1234", "torch": "2.13.0", "bench": "attention",
        "conditions": {"threads": 2}, "speeds": {"h float32 1 128": 0.25},
    }  # fmt: skip
    runs = history.read(tmp_path / "history")
    assert [run["date"] for run in runs] == ["2026-01-01", "2026-02-01"]
    assert history.series(runs) == {"a_processor_tm_2": {"attention, threads 2": runs}}


def test_other_engines_are_not_kept(tmp_path):
    rows = [{"context": 32, "batch": 1, "engine": f"{name} 1.0", "tokens/s": 5.0} for name in ("fdpp", "transformers")]
    keep(tmp_path, "2026-01-01", rows, bench="decode")
    (run,) = history.read(tmp_path / "history")
    assert run["speeds"] == {"32 1": 5.0}


def test_relative_speeds_are_of_common_cases():
    runs = [{"speeds": speeds} for speeds in ({"a": 1, "b": 2}, {"a": 2, "b": 16, "c": 9}, {"c": 9})]
    once, faster, incomparable = history.relative_speeds(runs)
    assert (once, faster) == (1.0, pytest.approx(4.0)) and math.isnan(incomparable)


@pytest.mark.parametrize("quick", [True, False])
def test_quick_results_are_no_history(tmp_path, quick):
    harness.write_json(tmp_path / "attention_cpu.json", quick=quick, rows=[attention_row(128, 4.0)])
    assert (tmp_path / "history").exists() != quick


def test_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(BENCH / "history.py"), "--out", str(tmp_path)]
    empty = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert empty.returncode == 2 and "holds no runs" in empty.stderr
    for device in ("one", "two"):
        keep(tmp_path, "2026-01-01", [attention_row(128, 4.0)], device=device)
        keep(tmp_path, "2026-02-01", [attention_row(512, 4.0)], device=device)
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "history" / "history.png").read_bytes().startswith(b"\x89PNG")
