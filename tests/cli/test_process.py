"""What only a process of its own shows: signals, pipes, terminals."""

from __future__ import annotations

import os
import pty
import signal

from tests.cli.conftest import LONG, TEXT

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
    assert b"[###" in shown and b"re-references" in shown
    quiet = start_fdpp("generate", "--model", tiny_model, "--prompt", TEXT, "--max-new-tokens", 2)
    _, err = quiet.communicate(timeout=60)
    assert quiet.returncode == 0
    assert b"\r" not in err and b"#" not in err


def test_an_output_that_is_full(start_fdpp):
    with open("/dev/full", "wb") as full:
        process = start_fdpp("info", stdout=full)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, b"fdpp: error: No space left on device\n")
