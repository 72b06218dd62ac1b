"""Hold a conversation with a model.

Each turn computes only what it adds. Answers stream to stdout, their figures go to stderr. Ctrl-C stops an answer and
Ctrl-D ends the program. In a pipe, each line of stdin is a message.

A line that begins with / is a command:
  /reset          begin anew; the system message stays
  /system TEXT    replace the system message; without TEXT, remove it
  /save FILE      write the conversation as JSON, as LLM.chat takes it
  /help           show this list
  /exit           end
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fdpp.cli.options import add_decoding, add_model, add_template, decoding_options, load_model
from fdpp.errors import FdppError, RequestError, one_line

if TYPE_CHECKING:
    from fdpp.engine.sequence import Timings
    from fdpp.session import Session

_HISTORY_LINES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_template(parser.add_argument_group("chat"))
    add_decoding(parser, max_new_tokens=1024)


def run(arguments: argparse.Namespace) -> None:
    llm = load_model(arguments, max_batch_size=1, generation_config=not arguments.no_generation_config)
    session = llm.session(arguments.system, **decoding_options(arguments), **dict(arguments.template_arg))
    session.check()
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    with _history() if is_terminal else contextlib.nullcontext():
        for line in _typed() if is_terminal else _piped():
            try:
                if line.startswith("/"):
                    if not command(session, line):
                        return
                elif line.strip():
                    answer(session, line)
            except (FdppError, OSError) as error:
                if not is_terminal:
                    raise
                print(f"fdpp: {one_line(error)}", file=sys.stderr)


def answer(session: Session, message: str) -> None:
    """Send a message and show the answer as it comes; Ctrl-C stops it."""

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    try:
        timings = session.send(message, stream=show).timings
    except KeyboardInterrupt:
        print(flush=True)
        print("(stopped)", file=sys.stderr)
        return
    print(flush=True)
    print(figures(timings), file=sys.stderr)


def figures(timings: Timings) -> str:
    """One line: what was computed, and how fast."""
    line = (
        f"{timings.prompt_tokens_computed} of {timings.prompt_tokens} prompt tokens computed in "
        f"{timings.prompt_seconds:.2f} s"
    )
    if speed := timings.decode_tokens_per_second:
        line += f"; {timings.decode_tokens + 1} tokens, {speed:.1f} tokens/s"
    if timings.guessed_tokens:
        line += f", {timings.accepted_tokens} of {timings.guessed_tokens} guesses right"
    return f"({line})"


def command(session: Session, line: str) -> bool:
    """Obey a line that begins with /; False ends the program."""
    name, _, rest = line[1:].strip().partition(" ")
    rest = rest.strip()
    if name == "exit":
        return False
    if name == "reset":
        session.reset()
    elif name == "system":
        session.system = rest or None
    elif name == "save":
        if not rest:
            raise RequestError("/save: expected the name of a file")
        conversation = json.dumps(session.messages, ensure_ascii=False, indent=1) + "\n"
        try:
            Path(rest).expanduser().write_text(conversation, "utf-8")
        except (RuntimeError, ValueError) as error:  # no such home, or no name of a file
            raise RequestError(f"/save {rest!r:.80}: {one_line(error)}") from error
    elif name == "help":
        print((__doc__ or "").partition("command:\n")[2].rstrip(), file=sys.stderr)
    else:
        raise RequestError(f"/{name[:40]}: no such command; /help lists them (a message may begin with a space)")
    return True


def _typed() -> Iterator[str]:
    """Lines from a terminal. Ctrl-C drops the line that is being typed, Ctrl-D ends."""
    while True:
        try:
            yield input("> ").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def _piped() -> Iterator[str]:
    for line in sys.stdin.buffer if sys.stdin is not None else ():  # it may have been closed
        yield line.decode("utf-8", "replace").rstrip("\r\n")


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines of earlier conversations at the arrow keys, where Python has readline: beside the user's dataflow table."""
    from fdpp.dataflow import user_table

    try:
        import readline
    except ImportError:
        yield
        return
    table = user_table()
    file = table and table.parent / "chat_history"
    if file is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(file)
    try:
        yield
    finally:
        if file is not None:
            readline.set_history_length(_HISTORY_LINES)
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(file)
