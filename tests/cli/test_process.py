"""What only a process of its own shows: signals, pipes, terminals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from fdpp import dataflow
from tests.cli.conftest import LONG, TEXT

ROOT = Path(__file__).parents[2]

ENDLESS = ("--ignore-eos", "--max-new-tokens", LONG, "--max-seq-len", 20000)


def test_ctrl_c_ends_with_the_figures_so_far(start_fdpp, tiny_model):
    process = start_fdpp("generate", "--model", tiny_model, "--prompt", TEXT, *ENDLESS)
    assert process.stdout.read(20)  # it generates
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err
    assert b"interrupted after" in err and b"pieces of text" in err


def test_a_reader_that_leaves(start_fdpp, tiny_model):
    process = start_fdpp("generate", "--model", tiny_model, "--prompt", TEXT, *ENDLESS)
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_the_progress_bar_is_for_terminals(start_fdpp, tiny_model):
    terminal, stderr = pty.openpty()
    process = start_fdpp("generate", "--model", tiny_model, "--prompt", TEXT, "--max-new-tokens", 2, stderr=stderr)
    os.close(stderr)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # Linux: the other side has closed
        pass
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert b"[###" in shown and b"guard moved" in shown
    quiet = start_fdpp("generate", "--model", tiny_model, "--prompt", TEXT, "--max-new-tokens", 2)
    _, err = quiet.communicate(timeout=60)
    assert quiet.returncode == 0
    assert b"\r" not in err and b"#" not in err


def test_an_output_that_is_full(start_fdpp):
    with open("/dev/full", "wb") as full:
        process = start_fdpp("info", stdout=full)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, b"fdpp: error: No space left on device\n")


def run_fdpp(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run ``command`` in a shell, which knows this interpreter as ``$PYTHON``."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["sh", "-c", command], cwd=cwd, env=environment, capture_output=True, timeout=300)


def test_a_current_directory_that_is_gone(tiny_model, tmp_path):
    """The MKL in torch ends a process that loads it there, and transformers does not load."""
    gone = tmp_path / "gone"
    gone.mkdir()
    generate = f'"$PYTHON" -m fdpp generate --model "{tiny_model}" --prompt a --max-new-tokens 2'
    done = run_fdpp(f'rmdir "{gone}"; {generate}', gone)
    assert done.returncode == 0, done.stderr
    assert b"guard moved" in done.stderr


def test_a_locale_that_knows_ascii_alone(tmp_path):
    """A path, a table and an option beyond ASCII."""
    table = tmp_path / "é.csv"
    table.write_text("# ü\n" + ",".join(dataflow.COLUMNS) + "\n", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "FDPP_DATAFLOW_TABLE": str(table)}
    done = run_fdpp('"$PYTHON" -m fdpp generate --model "nö" --prompt é --stop é', tmp_path, **locale)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"fdpp: error: n") and done.stderr.count(b"\n") == 1


def test_help_where_docstrings_are_stripped():
    command = [sys.executable, "-OO", "-m", "fdpp", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: fdpp")
