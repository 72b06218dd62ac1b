"""``fdpp chat``: in a pipe, and at a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import time

import pytest

from fdpp.llm import LLM

FIGURES = re.compile(r"\((\d+) of (\d+) prompt tokens computed in [\d.]+ s(; \d+ tokens, [\d.]+ tokens/s)?\)")
SHORT = ("--max-new-tokens", 6, "--ignore-eos", "--dtype", "float32")


@pytest.fixture
def pipe(fdpp, monkeypatch):
    """Run the command with these lines at its standard input."""

    def run(text: str, *arguments):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))
        return fdpp("chat", *arguments)

    return run


def test_a_conversation_in_a_pipe(pipe, tiny_model, tmp_path):
    file = tmp_path / "conversation.json"
    outcome = pipe(f"fox\n\ndog\n/save {file}\n/reset\nfox\n", "--model", tiny_model, *SHORT)
    assert outcome.code == 0, outcome.err
    messages = json.loads(file.read_text())
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert [m["content"] for m in messages[::2]] == ["fox", "dog"]
    answers = [m["content"] for m in messages[1::2]]
    assert outcome.out == "".join(f"{text}\n" for text in (*answers, answers[0]))
    (expected,) = LLM(tiny_model, dtype="float32").chat(messages[:-1], max_new_tokens=6, ignore_eos=True)
    assert answers[1] == expected.text
    first, second, again = (FIGURES.fullmatch(line) for line in outcome.err.splitlines())
    assert first[1] == first[2] == again[2]
    assert int(second[1]) < int(second[2])
    assert int(again[1]) < int(first[1])  # the beginning is there


def test_the_system_message(pipe, tiny_model, tmp_path):
    file = tmp_path / "conversation.json"
    lines = f"/system short\nfox\n/save {file}\n/system\n/save {file}2\n/exit\nnever\n"
    outcome = pipe(lines, "--model", tiny_model, "--system", "long", *SHORT)
    assert outcome.code == 0, outcome.err
    assert [m["content"] for m in json.loads(file.read_text())][:2] == ["short", "fox"]
    assert json.loads((tmp_path / "conversation.json2").read_text())[0]["role"] == "user"
    assert len(FIGURES.findall(outcome.err)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing here", "/nothing: no such command; /help lists them"),
        ("/save", "/save: expected the name of a file"),
        ("/save ~nobody-here/x", "/save '~nobody-here/x': "),
        ("/save /proc/nothing/here", "/proc/nothing/here: No such file or directory"),
    ],
)
def test_errors_end_a_pipe(pipe, tiny_model, line, message):
    outcome = pipe(f"{line}\nfox\n", "--model", tiny_model, *SHORT)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_help_and_bytes_that_are_no_text(pipe, tiny_model):
    outcome = pipe("/help\n\udcff\udcfe\n", "--model", tiny_model, *SHORT)
    assert outcome.code == 0 and "/reset " in outcome.err and FIGURES.search(outcome.err)


def test_a_model_without_a_template(pipe, plain_model):
    outcome = pipe("fox\n", "--model", plain_model, *SHORT)
    assert outcome.code == 2 and "no chat template" in outcome.err


class Terminal:
    """The other side of a terminal."""

    def __init__(self, start_fdpp, *arguments):
        self._file, side = pty.openpty()
        self.process = start_fdpp("chat", *arguments, stdin=side, stdout=side, stderr=side)
        os.close(side)
        self._seen = b""

    def until(self, wanted: str, seconds: float = 120) -> str:
        """What is shown from here on, up to a text."""
        end = time.monotonic() + seconds
        while wanted.encode() not in self._seen:
            self._read(end)
        shown, _, self._seen = self._seen.partition(wanted.encode())
        return shown.decode(errors="replace")

    def interrupt(self, wanted: str) -> None:
        """Ctrl-C until a text is shown: Python's readline does not notice one that comes before it waits for keys."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.until(wanted, seconds=10)
                return
        raise AssertionError(self._seen)

    def more(self) -> None:
        """Wait until a text is shown that has not been asked for yet."""
        end = time.monotonic() + 120
        while not re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]|\s", b"", self._seen):  # not what moves a cursor
            self._read(end)

    def _read(self, end: float) -> None:
        ready, _, _ = select.select([self._file], [], [], max(0.0, end - time.monotonic()))
        assert ready, self._seen
        try:
            self._seen += os.read(self._file, 4096)
        except OSError:  # Linux: the other side has closed
            raise AssertionError(self._seen) from None

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())


def test_at_a_terminal(start_fdpp, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    terminal = Terminal(start_fdpp, "--model", tiny_model, "--ignore-eos", "--max-new-tokens", 20000)
    terminal.until("> ")
    terminal.type("/nothing\n")
    assert "no such command" in terminal.until("> ")
    terminal.type("fox\n")
    terminal.until("fox")
    terminal.more()  # it answers, for a second or so: what the context has room for
    terminal.interrupt("(stopped)")
    terminal.until("> ")
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.interrupt("> ")
    terminal.type(f"/save {tmp_path / 'c.json'}\n")
    terminal.until("> ")
    terminal.type("\x04")  # Ctrl-D
    assert terminal.process.wait(timeout=60) == 0
    question, answer = json.loads((tmp_path / "c.json").read_text())
    assert question["content"] == "fox" and answer["content"]
    assert "fox\n" in (tmp_path / "fdpp" / "chat_history").read_text()
