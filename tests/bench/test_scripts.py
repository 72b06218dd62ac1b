"""Each bench script, quickly: the table, the JSON and the plots."""

from __future__ import annotations

import math

import pytest


def assert_environment(result: dict) -> None:
    environment = result["environment"]
    assert environment["threads"] >= 1
    assert {"device", "cores", "processor", "versions", "commit", "date"} <= environment.keys()


def assert_positive(rows: list[dict], *columns: str) -> None:
    assert rows
    for row in rows:
        assert all(math.isfinite(row[column]) and row[column] > 0 for column in columns), row


def test_linear(run_bench, tmp_path):
    pytest.importorskip("matplotlib")
    out, result = run_bench("linear.py")
    assert_environment(result)
    assert_positive(result["rows"], "us", "GB/s", "share", "x torch")
    assert {row["impl"] for row in result["rows"]} == {"A", "B", "C", "fdpp"}
    assert {row["dtype"] for row in result["rows"]} == {"bfloat16", "float32"}
    assert all(row["takes"] in "ABC" for row in result["rows"] if row["impl"] == "fdpp")
    assert "x torch" in out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["linear_cpu_bfloat16.png", "linear_cpu_float32.png"]


def test_attention(run_bench, tmp_path):
    pytest.importorskip("matplotlib")
    out, result = run_bench("attention.py")
    assert_environment(result)
    assert_positive(result["rows"], "us", "torch us", "x torch", "GB/s", "share", "torch share")
    assert {row["torch way"] for row in result["rows"]} <= {"torch", "torch expanded"}
    assert (tmp_path / "attention_cpu.png").stat().st_size > 0


def test_decode(run_bench, tiny_model):  # noqa: F811
    out, result = run_bench(
        *("decode.py", "--model", tiny_model, "--engines", "fdpp", "transformers", "llama.cpp"),
        *("--dtype", "float32", "--batches", "1,2", "--threads", 2),
    )
    assert_environment(result)
    assert_positive(result["rows"], "tokens/s", "min", "max", "fdpp is x", "of bound")
    assert [(row["batch"], row["engine"].split()[0]) for row in result["rows"]] == [
        (1, "fdpp"), (1, "transformers"), (2, "fdpp"), (2, "transformers"),
    ]  # fmt: skip
    assert [row["same tokens"] for row in result["rows"]] == [1.0] * 4
    assert list(result["left_out"]) == ["llama.cpp"]  # not installed, or without a GGUF file to read
    assert "llama.cpp is left out" in out
