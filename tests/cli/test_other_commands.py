"""``info``, ``explain``, ``bench``, ``--version`` and ``--help``."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
import torch

import fdpp as package
from fdpp import dataflow, info
from fdpp.cli import COMMANDS, main


def test_version(fdpp):
    outcome = fdpp("--version")
    assert (outcome.code, outcome.out) == (0, f"fdpp {package.__version__}\n")


def test_output_that_is_no_file():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["explain", "64", "64", "1"]) == 0
    assert "M=1" in out.getvalue()


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(fdpp, command):
    outcome = fdpp(*([command] if command else []), "--help")
    assert outcome.code == 0
    assert outcome.out.startswith("usage: fdpp")


def test_info(fdpp):
    outcome = fdpp("info")
    assert (outcome.code, outcome.err) == (0, "")
    for fact in (torch.__version__, "isa", "compiler", "dataflow tables"):
        assert fact in outcome.out


def test_info_survives_a_library_that_cannot_be_loaded(fdpp, monkeypatch):
    def broken(*arguments):
        raise ImportError("cannot be loaded")

    monkeypatch.setattr("fdpp.library.load", broken)
    assert info.collect()["processor"] == {"error": "cannot be loaded"}
    outcome = fdpp("info")
    assert outcome.code == 0
    assert "cannot be loaded" in outcome.out


def test_bench_reports_each_round_and_the_median(fdpp, tiny_model):
    outcome = fdpp(
        *("bench", "--model", tiny_model, "--batch", 2, "--prompt-tokens", 9, "--new-tokens", 5, "--rounds", 2)
    )
    assert outcome.code == 0
    assert outcome.out.count("prompt   18 tokens") == 2
    assert outcome.out.count("decode   8 tokens") == 2
    parts = "".join(rf"{name} [\d.]+ ms \(\d+%\),? ?" for name in ("weights", "attention", "others", "python"))
    assert re.search(rf"^step     [\d.]+ ms: {parts}$", outcome.out, re.MULTILINE)
    assert re.search(r"^median   [\d.]+ decode tokens/s \([\d.]+\.\.[\d.]+\)$", outcome.out, re.MULTILINE)


def test_explain_names_the_implementation_and_the_reason(fdpp, tmp_path, monkeypatch):
    outcome = fdpp("explain", 960, 576, 1, "--dtype", "float32")
    assert outcome.code == 0
    assert "float32 [M=1, K=576] x [N=960, K=576]^T" in outcome.out
    assert re.search(r"^by (rule|your table|shipped table)", outcome.out, re.MULTILINE)


def test_explain_a_step(fdpp, tiny_model):
    outcome = fdpp("explain", "--step", "--model", tiny_model, "--batch", 3, "--page-size", 8)
    assert outcome.code == 0
    assert re.fullmatch(
        r"a greedy step of \d layers, batch 3: \d+ pieces of work are replayed; called from Python: nothing\n",
        outcome.out,
    )


def test_tune_writes_a_table_that_explain_and_info_find(fdpp, tmp_path, monkeypatch):
    table = tmp_path / "table.csv"
    monkeypatch.setenv("FDPP_DATAFLOW_TABLE", str(table))
    try:
        outcome = fdpp("tune", "--shapes", "96x64", "--rows", 1, 4, "--seconds", 0, "--dtypes", "float32")
        assert (outcome.code, outcome.out, outcome.err) == (0, f"{table}\n", "")
        assert "by your table table.csv, measured at M=4" in fdpp("explain", 96, 64, 3, "--dtype", "float32").out
        outcome = fdpp("tune", "--shapes", "96x64", "--rows", 4, "--seconds", 0, "--formats", "q4_0")
        assert outcome.code == 0
        explained = fdpp("explain", 96, 64, 3, "--format", "q4_0").out
        assert "in q4_0 on" in explained and "by your table table.csv, measured at M=4" in explained
        assert re.search(r"table\.csv +3 of 3 rows for the devices of this machine", fdpp("info").out)
    finally:
        monkeypatch.undo()
        dataflow.install()  # the table of this test must not decide for others


def test_tune_takes_the_shapes_of_a_model(fdpp, tiny_model, monkeypatch):
    seen = {}
    monkeypatch.setattr("fdpp.tuning.tune", lambda shapes, **options: seen.update(options, shapes=set(shapes)))
    assert fdpp("tune", "--model", tiny_model, "--dtypes", "float32", "float16").code == 0
    assert seen["shapes"] == {(256, 128), (128, 128), (300, 128)}
    assert seen["dtypes"] == ["float32", "float16"]


@pytest.mark.parametrize("shape", ["1", "ax1", "1x", "0x1", "-1x4", "99999999999x1"])
def test_tune_refuses_what_is_no_shape(fdpp, shape):
    outcome = fdpp("tune", "--shapes", shape)
    assert outcome.code == 2
    assert outcome.err.startswith("fdpp: error: ") and outcome.err.count("\n") == 1


def test_tune_does_not_overwrite_what_is_no_table(fdpp, tmp_path):
    (tmp_path / "notes.csv").write_text("my notes\n")
    outcome = fdpp("tune", "--shapes", "64x64", "--rows", 1, "--output", tmp_path / "notes.csv")
    assert outcome.code == 2
    assert (tmp_path / "notes.csv").read_text() == "my notes\n"
