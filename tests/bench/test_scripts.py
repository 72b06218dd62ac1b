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
    out, result = run_bench("linear.py", "--tune")
    assert_environment(result)
    rows = result["rows"]
    columns = [f"{name} {what}" for name in ("A", "C", "fdpp") for what in ("us", "GB/s", "share", "x torch")]
    assert_positive(rows, *columns, "bound us")
    assert [(row["dtype"], row["M"]) for row in rows] == [
        (d, m) for d in ("bfloat16", "float32") for m in (1, 4, 16, 96)
    ]
    for row in rows:
        assert (row["B us"] is None) == (row["M"] == 96)  # more rows than flat_gemm takes
        assert row["takes"][0] in "ABC" and row["best"] in row["medians us"] and row["regret"] >= 0
    assert [row["dtype"] for row in result["summary"]] == ["bfloat16", "float32"]
    assert all(row["takes"].endswith("by table") for row in rows), "the table that was measured first"
    assert "regret" in out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["linear_cpu_bfloat16.png", "linear_cpu_float32.png"]


def test_attention(run_bench, tmp_path):
    pytest.importorskip("matplotlib")
    out, result = run_bench("attention.py")
    assert_environment(result)
    assert_positive(result["rows"], "us", "torch us", "x torch", "GB/s", "share", "torch share")
    assert {row["torch way"] for row in result["rows"]} <= {"torch", "torch expanded"}
    assert (tmp_path / "attention_cpu.png").stat().st_size > 0


def test_quantised(run_bench):
    out, result = run_bench("quantised.py", "--formats", "q4_0", "q6_k")
    assert_environment(result)
    assert_positive(result["rows"], "us", "GB/s", "of read", "bfloat16 us", "x bfloat16")
    assert [(row["format"], row["M"]) for row in result["rows"]] == [(f, m) for f in ("q4_0", "q6_k") for m in (1, 8)]


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


def test_drop_in(run_bench, tiny_model):  # noqa: F811
    out, result = run_bench(
        *("drop_in.py", "--model", tiny_model, "--dtype", "float32", "--batches", "1,2", "--context", "20"),
        *("--threads", 2, "--without", "norms", "--alone", "attention", "cache"),
    )
    assert_environment(result)
    assert_positive(result["rows"], "tokens/s", "min", "max", "x")
    ways = ["transformers", "fdpp", "fdpp without norms", "fdpp, attention alone", "fdpp, cache alone"]
    assert [(row["batch"], row["way"]) for row in result["rows"]] == [(b, way) for b in (1, 2) for way in ways]
    assert [row["same tokens"] for row in result["rows"]] == [1.0] * 10


def test_neighbour(run_bench, tiny_model):  # noqa: F811
    out, result = run_bench(
        "neighbour.py", "--model", tiny_model, "--dtype", "float32", "--batches", "1", "--threads", 2
    )
    assert_environment(result)
    assert_positive(result["rows"], "quiet", "beside", "kept")
    assert [(row["engine"], row["threads"]) for row in result["rows"]] == [
        ("fdpp", 2), ("transformers", 2), ("fdpp", 1),
    ]  # fmt: skip
    assert "llama.cpp is left out" in out


def test_speculate(run_bench, tiny_model):  # noqa: F811
    out, result = run_bench("speculate.py", "--model", tiny_model, "--dtype", "float32", "--threads", 2)
    assert_environment(result)
    assert_positive(result["rows"], "plain", "ngram", "x", "transformers", "its look-up", "tokens/step")
    names = [row["prompt"] for row in result["rows"]]
    assert sum(name.startswith(("edit_", "summarise_")) for name in names) == 5
    assert all(row["same"] == "yes" for row in result["rows"])


def test_step(run_bench):
    out, result = run_bench(
        *("step.py", "--device", "cpu", "--models", "smollm2-135m", "--batches", "1", "--contexts", "40"),
        "--no-transformers",
    )
    assert_environment(result)
    columns = ["captured ms", "eager ms", "weights ms", "attention ms", "others ms", "python ms", "bound ms", "share"]
    assert_positive(result["rows"], *columns)
