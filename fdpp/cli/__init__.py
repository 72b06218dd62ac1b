"""The ``fdpp`` command: one module per sub-command, and here what they share: the parser, errors and exit codes.

A sub-command is a module with a docstring (its help), ``add_arguments(parser)`` and ``run(arguments)``. Modules import
the engine inside ``run``, so that ``--help`` and errors of usage do not wait for it.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from typing import NoReturn

from fdpp import __version__
from fdpp.cli import bench, calibrate, chat, explain, generate, info, quantize, tune
from fdpp.errors import FdppError, one_line
from fdpp.working_directory import existing_directory

COMMANDS = {
    "generate": generate,
    "chat": chat,
    "info": info,
    "explain": explain,
    "tune": tune,
    "calibrate": calibrate,
    "bench": bench,
    "quantize": quantize,
}

EXIT_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + 13  # SIGPIPE, which not every platform defines


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all the others."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message} (see `{self.prog} --help`)")
        sys.exit(EXIT_ERROR)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``arguments.run`` is the function of the chosen sub-command."""
    parser = Parser(prog="fdpp", description="Decode large language models with FlashDecoding++.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fdpp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or name).splitlines()[0].rstrip(".")  # -OO leaves no docstrings
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 (error, one line on stderr), 130 (Ctrl-C) or 141 (broken pipe).

    ``FDPP_TRACEBACK=1`` in the environment adds the traceback of an error, for those who mend fdpp itself.
    """
    if sys.stdout is None:  # started with a closed standard output
        sys.stdout = open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        arguments = build_parser().parse_args(argv)
        with existing_directory():
            import torch  # noqa: F401
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone
        _close_output()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if os.environ.get("FDPP_TRACEBACK") == "1":
            traceback.print_exc()
        _complain(_describe(error))
        _close_output()
        return EXIT_ERROR


def _close_output() -> None:
    """Flush stdout; where that fails (closed pipe, full disk), drop the rest, so that the exit does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    print(f"fdpp: error: {message}", file=sys.stderr)


def _describe(error: Exception) -> str:
    """One line that says what went wrong; errors that are not meant for users keep their type's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (FdppError, OSError, ImportError, ValueError)) and str(error):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}"
