"""``fdpp calibrate``, and ``--phi`` of the commands that use its result."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FDPP_DATAFLOW_TABLE", raising=False)
    return tmp_path / "cache"


def generate(fdpp, model, *options):
    outcome = fdpp("generate", "--model", model, "--prompt", "fox", "--max-new-tokens", 4, *options)
    assert outcome.code == 0, outcome.err
    return outcome.err


def test_what_it_writes_is_used(fdpp, tiny_model, own_cache, tmp_path):
    assert "phi: 0; see `fdpp calibrate`" in generate(fdpp, tiny_model)
    outcome = fdpp("calibrate", "--model", tiny_model, "--tokens", 100)
    assert outcome.code == 0, outcome.err
    path, *figures, picture = outcome.out.splitlines()
    assert figures[0].split() == "text 100 tokens; 2 layers, 4 heads".split()
    (written,) = (own_cache / "fdpp" / "phi").glob("*.json")
    assert path == str(written)
    assert picture == f"picture  {written.with_suffix('.png')}"
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(written.read_text())["tokens"] == 100
    assert f"; phi: {written}" in generate(fdpp, tiny_model)
    assert "phi: 0;" in generate(fdpp, tiny_model, "--phi", "none")

    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 3)
    outcome = fdpp(
        "calibrate", "--model", tiny_model, "--text", text, "--output", tmp_path, "--plot", tmp_path / "a.svg"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == str(tmp_path / "fdpp_phi.json")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert f"phi: {tmp_path / 'fdpp_phi.json'}" in generate(fdpp, tiny_model, "--phi", tmp_path / "fdpp_phi.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--tokens", "1"], "expected an integer from 2 to"),
        (["--output", "/proc/no/phi.json"], "/proc/no"),
        (["--plot", "a.nothing", "--tokens", "50"], "nothing"),
    ],
)
def test_errors(fdpp, tiny_model, options, message):
    outcome = fdpp("calibrate", "--model", tiny_model, *options)
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_a_short_text(fdpp, tiny_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("x")
    outcome = fdpp("calibrate", "--model", tiny_model, "--text", text)
    assert outcome.code == 2 and "text: expected at least 2 tokens, got 1" in outcome.err


def test_without_a_home(fdpp, tiny_model, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "nowhere")
    outcome = fdpp("calibrate", "--model", tiny_model, "--tokens", 20)
    assert outcome.code == 2 and "--output" in outcome.err


def test_without_matplotlib(fdpp, tiny_model, monkeypatch):
    monkeypatch.setattr("fdpp.cli.calibrate.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("fdpp.llm._check_dependencies", lambda: None)
    outcome = fdpp("calibrate", "--model", tiny_model, "--tokens", 20)
    assert outcome.code == 0 and "no picture: it needs matplotlib" in outcome.err
    outcome = fdpp("calibrate", "--model", tiny_model, "--tokens", 20, "--plot", "a.png")
    assert outcome.code == 2 and "--plot needs matplotlib" in outcome.err


def test_a_result_that_is_damaged(fdpp, tiny_model, tmp_path):
    file = tmp_path / "phi.json"
    file.write_text("{}")
    outcome = fdpp("generate", "--model", tiny_model, "--prompt", "fox", "--phi", file)
    assert outcome.code == 2 and "phi.json: model: expected a str" in outcome.err
