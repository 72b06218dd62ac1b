"""Whatever is wrong: one line on stderr, nothing on stdout, exit code 2."""

from __future__ import annotations

import importlib.util
import os

import pytest

GENERATE = ("generate", "--model", "MODEL", "--prompt", "hello")
NINES = "9" * 5000

USAGE = [
    (),
    ("frobnicate",),
    ("--frobnicate",),
    ("generate",),
    ("generate", "--model", "MODEL"),
    ("generate", "--prompt", "hello"),
    (*GENERATE, "--prompt-file", "x"),
    (*GENERATE, "--chat", "--raw"),
    (*GENERATE, "surplus"),
    (*GENERATE, "--max-new", "3"),
    (*GENERATE, "--dtype", "int4"),
    ("explain", "--step", "--model", "MODEL", "1"),
    ("explain", "--step"),
    ("explain", "1", "2"),
    ("explain", "0", "1", "1"),
    ("explain", "1", "-1", "1"),
    ("explain", "1", "1", NINES),
    *((*GENERATE, "--max-new-tokens", value) for value in ("0", "-1", "1.5", "many", "nan", "1e3", str(2**31), NINES)),
    *((*GENERATE, "--temperature", value) for value in ("-1", "nan", "inf", "hot")),
    *((*GENERATE, "--top-p", value) for value in ("-0.1", "1.1", "nan")),
    *((*GENERATE, "--top-k", value) for value in ("-1", NINES)),
    *((*GENERATE, "--min-p", value) for value in ("-0.1", "1.1", "nan")),
    *((*GENERATE, "--repetition-penalty", value) for value in ("0", "-1", "inf", "1e300")),
    *((*GENERATE, "--stop-token-id", value) for value in ("-1", "x", NINES)),
    *((*GENERATE, "--template-arg", value) for value in ("thinking", "=1", "\udcff=1")),
    *((*GENERATE, option, "\udcff") for option in ("--stop", "--system")),
    *((*GENERATE, "--seed", value) for value in ("-1", str(2**63))),
    *((*GENERATE, option, value) for option in ("--max-seq-len", "--page-size", "--threads") for value in ("0", NINES)),
]


def assert_one_line(outcome) -> None:
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("fdpp: error: ")
    assert outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
    assert len(outcome.err) < 500


@pytest.mark.parametrize("arguments", USAGE, ids=lambda arguments: " ".join(arguments)[:60])
def test_usage(fdpp, arguments):
    assert_one_line(fdpp(*arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", ""), "prompt"),
        (("--prompt", "\udcff"), "UTF-8"),
        (("--prompt", "a", "--stop", ""), "stop"),
        (("--prompt", "a", "--device", "nosuch"), "nosuch"),
        (("--prompt", "a " * 30, "--max-seq-len", 20), "tokens"),
        (("--prompt", "a", "--max-seq-len", 1), "tokens"),
        (("--prompt", "a", "--stop-token-id", 100_000), "stop_token_ids: expected token ids in 0.."),
        (("--prompt", "a", "--template-arg", "a_b=1"), "a_b: neither an option nor a variable"),
        (("--prompt", "a", "--template-arg", "a_b=1", "--raw"), "--raw"),
        (("--prompt", "a", "--tools", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("--prompt", "a", "--tools", "/dev/null"), "/dev/null: expected a JSON list of tools"),
        (("--prompt", "a", "--tools", "/dev/zero"), "64 MiB"),
        (("--prompt-file", "/dev/null"), "empty"),
        (("--prompt-file", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("--prompt-file", "."), "Is a directory"),
    ],
)
def test_requests_that_cannot_be_answered(fdpp, tiny_model, arguments, said):
    outcome = fdpp("generate", "--model", tiny_model, *arguments)
    assert_one_line(outcome)
    assert said in outcome.err


@pytest.mark.parametrize("make", ["missing", "empty directory", "text", "empty GGUF", "random GGUF", ""])
def test_models_that_are_none(fdpp, tmp_path, make, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / ("model.gguf" if "GGUF" in make else "model")
    if make == "empty directory":
        path.mkdir()
    elif make == "text":
        path.write_text("hello")
    elif "GGUF" in make:
        path.write_bytes(b"" if "empty" in make else b"GGUF" + os.urandom(4096))
    assert_one_line(fdpp("generate", "--model", path if make else "", "--prompt", "a"))


def test_a_prompt_file_without_end(fdpp, tiny_model):
    outcome = fdpp("generate", "--model", tiny_model, "--prompt-file", "/dev/zero")
    assert_one_line(outcome)
    assert "64 MiB" in outcome.err


def test_a_prompt_file_that_is_not_text(fdpp, tiny_model, tmp_path):
    (tmp_path / "binary").write_bytes(b"abc\xff")
    outcome = fdpp("generate", "--model", tiny_model, "--prompt-file", tmp_path / "binary")
    assert_one_line(outcome)
    assert "byte 0xff at 3" in outcome.err


def test_a_missing_extra_is_named(fdpp, tiny_model, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else find_spec(name, *rest)
    )
    outcome = fdpp("generate", "--model", tiny_model, "--prompt", "a")
    assert_one_line(outcome)
    assert "fdpp[models]" in outcome.err


def test_an_unexpected_error_is_one_line_with_its_type(fdpp, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("fdpp.LLM", broken, raising=False)
    outcome = fdpp(*GENERATE)
    assert_one_line(outcome)
    assert "RuntimeError: first line" in outcome.err
    monkeypatch.setenv("FDPP_TRACEBACK", "1")
    assert "Traceback" in fdpp(*GENERATE).err


@pytest.mark.parametrize("insisting", [("--chat",), ("--system", "be short")])
def test_chat_with_a_model_that_has_no_template(fdpp, plain_model, insisting):
    outcome = fdpp("generate", "--model", plain_model, "--prompt", "a", *insisting)
    assert_one_line(outcome)
    assert "chat template" in outcome.err
